"""The frame of a whole image: scaled by one factor until it just fits, padded with black at the ends of its axes.

This file imports torch alone. A copy of it travels with every registered segmenter, beside one of ``center_view.py``,
so that what the model does to images elsewhere is what was done to them here.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

NO_LABEL = -1


def fitted_size(size_px: Sequence[int], image_size: int | Sequence[int]) -> tuple[int, ...]:
    """Pixels that an image takes in its frame, along each axis."""
    wanted = (image_size,) * len(size_px) if isinstance(image_size, int) else tuple(image_size)
    scale = min(side / length for side, length in zip(wanted, size_px, strict=True))
    return tuple(min(side, max(1, round(length * scale))) for side, length in zip(wanted, size_px, strict=True))


def fit_view(images: Tensor, image_size: int | Sequence[int]) -> Tensor:
    """Whole images in their frames.

    Args:
        images: ``(B, C, *S)`` float32.
        image_size: pixels of the frame, a side or one for each axis.

    Returns:
        ``(B, C, *image_size)``.
    """
    size = fitted_size(images.shape[2:], image_size)
    if size != tuple(images.shape[2:]):
        images = _resized(images, size)
    return _padded(images, image_size, 0.0)


def fit_mask(masks: Tensor, image_size: int | Sequence[int]) -> Tensor:
    """Masks with the geometry of :func:`fit_view`: the value at the nearest pixel's centre, none in the padding.

    Args:
        masks: ``(B, *S)`` int.
        image_size: as of the images.
    """
    size = fitted_size(masks.shape[1:], image_size)
    if size != tuple(masks.shape[1:]):
        masks = functional.interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0].to(masks.dtype)
    return _padded(masks[:, None], image_size, NO_LABEL)[:, 0]


def unfit(maps: Tensor, size_px: Sequence[int]) -> Tensor:
    """Maps of a frame brought back to the image's own pixels.

    Args:
        maps: ``(B, K, *image_size)`` floating point, such as probabilities.
        size_px: of the image, along each axis.

    Returns:
        ``(B, K, *size_px)``.
    """
    size = fitted_size(size_px, tuple(maps.shape[2:]))
    maps = maps[(slice(None), slice(None), *map(slice, size))]
    if size == tuple(size_px):
        return maps
    mode = "bilinear" if maps.ndim == 4 else "trilinear"
    return functional.interpolate(maps, tuple(size_px), mode=mode, align_corners=False)


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if images.ndim == 5:
        return functional.interpolate(images, size, mode="trilinear", align_corners=False)
    if size[1] == 1:  # of a single column PyTorch's antialiased filter repeats the first row
        return functional.interpolate(images, size, mode="area")
    return functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def _padded(tensor: Tensor, image_size: int | Sequence[int], value: float) -> Tensor:
    axes = tensor.ndim - 2
    wanted = (image_size,) * axes if isinstance(image_size, int) else tuple(image_size)
    missing = [side - length for side, length in zip(wanted, tensor.shape[2:], strict=True)]
    if not any(missing):
        return tensor
    padding = [each for amount in reversed(missing) for each in (0, amount)]
    return functional.pad(tensor, padding, value=value)
