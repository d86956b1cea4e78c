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


def center_view(images: Tensor, image_size: int | Sequence[int], in_channels: int) -> Tensor:
    """The images resized until they just cover ``image_size`` px along every axis, and the centre of that.

    Args:
        images: ``(B, C, *S)`` with two or three spatial axes, uint8, uint16, or floating point in [0, 1].
        image_size: side of the view in pixels, or one for each axis.
        in_channels: channels of the view: C; or any number where C is 1, which is repeated; or 1 where C is 3, of which
            the luma is taken.

    Returns:
        ``(B, in_channels, *image_size)`` float32 in [0, 1].

    Raises:
        ValueError: if the images have another number of axes or channels, or another type.
    """
    axes = images.ndim - 2
    sides = [image_size] * axes if isinstance(image_size, int) else list(image_size)
    if axes not in (2, 3) or len(sides) != axes:
        raise ValueError(
            f"images of shape {tuple(images.shape)}; allowed is (B, C, H, W) or (B, C, D, H, W), and a view of {sides}"
        )
    if images.shape[1] not in (1, in_channels) and (images.shape[1], in_channels) != (3, 1):
        raise ValueError(
            f"images of shape {tuple(images.shape)}; allowed is C 1 (grey), {in_channels}, or 3 (RGB) for a view of 1"
        )
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise ValueError(f"images of type {images.dtype}; allowed are uint8, uint16 and floating point in [0, 1]")
    view = images.to(torch.float32) / _WHITE.get(images.dtype, 1.0)
    view = _with_channels(view, in_channels)
    scale = max(side / found for side, found in zip(sides, view.shape[2:], strict=True))
    size = [max(side, round(found * scale)) for side, found in zip(sides, view.shape[2:], strict=True)]
    if size != list(view.shape[2:]):
        view = _resized(view, size)
    for axis, (found, side) in enumerate(zip(size, sides, strict=True)):
        view = view.narrow(2 + axis, (found - side) // 2, side)
    return view


def _resized(images: Tensor, size: list[int]) -> Tensor:
    """Bi- or trilinear with antialiasing, which torch has for two axes: the third one is resized by itself."""
    if len(size) == 3:
        depth, plane = size[0], list(images.shape[3:])
        stretched = _resized(images.flatten(3), [depth, plane[0] * plane[1]])
        planes = stretched.unflatten(3, plane).transpose(1, 2).flatten(0, 1)
        resized: Tensor = _resized(planes, size[1:]).unflatten(0, (len(images), depth)).transpose(1, 2)
        return resized
    return functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, *images.shape[2:])
    return (images * images.new_tensor(_LUMA).view(1, 3, *[1] * (images.ndim - 2))).sum(dim=1, keepdim=True)
