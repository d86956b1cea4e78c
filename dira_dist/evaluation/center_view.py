"""The one undistorted view by which an encoder is evaluated and used: resized, cut to its centre, scaled to [0, 1].

This file imports torch alone. A copy of it travels with every registered model, so that what the model does to images
elsewhere is what was done to them here.
"""

import torch
from torch import Tensor
from torch.nn import functional

_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def center_view(images: Tensor, image_size: int, in_channels: int) -> Tensor:
    """The shorter side resized to ``image_size`` px, and the centre square of it.

    Args:
        images: ``(B, C, H, W)`` with C 1 or 3, uint8, uint16, or floating point in [0, 1].
        image_size: side of the view in pixels.
        in_channels: channels of the view, 1 or 3. Grey is repeated, colour becomes its luma.

    Returns:
        ``(B, in_channels, image_size, image_size)`` float32 in [0, 1].

    Raises:
        ValueError: if the images have another number of axes or channels, or another type.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}; allowed is (B, C, H, W) with C 1 (grey) or 3 (RGB)")
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise ValueError(f"images of type {images.dtype}; allowed are uint8, uint16 and floating point in [0, 1]")
    view = images.to(torch.float32) / _WHITE.get(images.dtype, 1.0)
    view = _with_channels(view, in_channels)
    height, width = view.shape[2:]
    scale = image_size / min(height, width)
    size = [max(image_size, round(height * scale)), max(image_size, round(width * scale))]
    if size != [height, width]:
        view = functional.interpolate(view, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    return view[:, :, top : top + image_size, left : left + image_size]


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
