"""The one undistorted view by which an encoder is evaluated and used: resized, cut to its centre, scaled to [0, 1].

This file imports torch alone. A copy of it travels with every registered model, so that what the model does to images
elsewhere is what was done to them here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def covering_size(size_px: Sequence[int], image_size: Sequence[int]) -> tuple[int, ...]:
    """Pixels along each axis of an image that just covers its view."""
    scale = max(side / length for side, length in zip(image_size, size_px, strict=True))
    return tuple(max(side, round(length * scale)) for side, length in zip(image_size, size_px, strict=True))


def center_view(images: Tensor, image_size: int | Sequence[int], in_channels: int) -> Tensor:
    """Images resized until they just cover the view, and the centre of that.

    Args:
        images: ``(B, C, H, W)`` or ``(B, C, D, H, W)`` with C 1, 3 or ``in_channels``; uint8, uint16, or floating point
            in [0, 1].
        image_size: pixels of the view, a side or one for each axis.
        in_channels: channels of the view. Grey is repeated to three, colour becomes its luma.

    Returns:
        ``(B, in_channels, *image_size)`` float32 in [0, 1].

    Raises:
        ValueError: if the images have another number of axes or channels, or another type.
    """
    axes = images.ndim - 2
    if axes not in (2, 3) or images.shape[1] not in {1, 3, in_channels}:
        raise ValueError(
            f"images of shape {tuple(images.shape)}; allowed is (B, C, H, W) or (B, C, D, H, W) with C 1 (grey), "
            f"3 (RGB) or {in_channels}"
        )
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise ValueError(f"images of type {images.dtype}; allowed are uint8, uint16 and floating point in [0, 1]")
    view = _with_channels(images.to(torch.float32) / _WHITE.get(images.dtype, 1.0), in_channels)
    wanted = (image_size,) * axes if isinstance(image_size, int) else tuple(image_size)
    size = covering_size(view.shape[2:], wanted)
    if size != tuple(view.shape[2:]):
        smooth = {"mode": "bilinear", "antialias": True} if axes == 2 else {"mode": "trilinear"}
        view = functional.interpolate(view, size, align_corners=False, **smooth)
    for axis, (side, length) in enumerate(zip(wanted, size, strict=True), start=2):
        view = view.narrow(axis, (length - side) // 2, side)
    return view


def uncrop(maps: Tensor, size_px: Sequence[int]) -> Tensor:
    """Maps of a view brought back to the image's own pixels; 0 where the view shows nothing of it.

    Args:
        maps: ``(B, K, *image_size)`` floating point.
        size_px: of the image, along each axis.

    Returns:
        ``(B, K, *size_px)``.
    """
    wanted = tuple(maps.shape[2:])
    size = covering_size(size_px, wanted)
    padding = [(length - side) // 2 for side, length in zip(wanted, size, strict=True)]
    ends = [length - side - start for side, length, start in zip(wanted, size, padding, strict=True)]
    both = [each for pair in zip(reversed(padding), reversed(ends), strict=True) for each in pair]
    whole = functional.pad(maps, both)
    if size == tuple(size_px):
        return whole
    mode = "bilinear" if maps.ndim == 4 else "trilinear"
    return functional.interpolate(whole, tuple(size_px), mode=mode, align_corners=False)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, *images.shape[2:])
    if channels != 1:
        raise ValueError(f"images with {images.shape[1]} channels; the network takes {channels}")
    return (images * images.new_tensor(_LUMA).view(1, 3, *(1,) * (images.ndim - 2))).sum(dim=1, keepdim=True)
