"""A network that was trained on patches, over whole images or volumes: window by window, blended where they overlap.

This file imports torch, and MONAI where it is called. A copy of it travels with every registered segmenter of volumes,
so that what the model does to volumes elsewhere is what was done to them here.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import product
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

Blend = Literal["gaussian", "constant"]


def slide(
    network: Callable[[Tensor], Any],
    images: Tensor,
    image_size: Sequence[int],
    *,
    overlap: float,
    blend: Blend,
    windows_at_once: int = 4,
) -> Tensor:
    """What a network says of every position, by windows of the size that it was trained on.

    Where windows overlap their answers are averaged, with ``gaussian`` by their nearness to the window's centre
    (Isensee et al., *Nature Methods* 18, 2021). An image smaller than the window is padded with black on both sides.

    Args:
        network: windows (N, C, *image_size) to (N, K, *image_size).
        images: (B, C, *S) of any size.
        image_size: of the windows, along each axis.
        overlap: of neighbouring windows, a share of their sides.
        blend: how they are averaged.
        windows_at_once: N at most.

    Returns:
        (B, K, *S) float32.
    """
    inferers: Any = import_module("monai.inferers")  # seconds and hundreds of megabytes
    found: Tensor = inferers.sliding_window_inference(
        images,
        tuple(image_size),
        windows_at_once,
        lambda windows: network(windows).float(),
        overlap=overlap,
        mode=blend,
        padding_mode="constant",
        cval=0.0,
    )
    return found


def pad_to_window(images: Tensor, image_size: Sequence[int]) -> Tensor:
    """Images (B, C, *S) that are smaller than a window with black on both sides, as :func:`slide` has them."""
    missing = [max(0, side - length) for side, length in zip(image_size, images.shape[2:], strict=True)]
    return functional.pad(images, [each for gap in reversed(missing) for each in (gap // 2, gap - gap // 2)])


def tiles(size_px: Sequence[int], image_size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """As few windows as cover an image that is no smaller than one, evenly spaced from end to end."""
    starts = []
    for length, side in zip(size_px, image_size, strict=True):
        count = -(-length // side)
        starts.append([round(number * (length - side) / max(1, count - 1)) for number in range(count)])
    for corner in product(*starts):
        yield tuple(slice(first, first + side) for first, side in zip(corner, image_size, strict=True))
