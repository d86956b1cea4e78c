"""In- and out-painting: noise in blocks, or all around windows (Zhou et al., *Models Genesis*, 2021, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dira_dist.views.randomness import PerView, RandomPurpose, integers_between, noise, uniform

IN_SIDES = (1 / 6, 1 / 3)
"""Smallest and largest side of a block, as a share of the view's; the published draw leaves the largest out."""
OUT_REST = (3 / 7, 4 / 7)
"""What a window's side leaves of the view's, smallest and largest, likewise."""
BORDER_PX = 3
"""Published distance of blocks and windows from the border, in views of 64 x 64 x 32: a pixel less of smaller ones."""


@dataclass(frozen=True)
class Blocks(PerView):
    """K blocks, or windows, of each view with n axes.

    Attributes:
        first_px: (V, B, K, n) int64, their first pixels.
        side_px: (V, B, K, n) int64, their sides; 0 for those that are not there.
    """

    first_px: Tensor
    side_px: Tensor


def draw_blocks(keys: Tensor, outer: Tensor, most: int, further: float, sides_px: Sequence[int]) -> Blocks:
    """Blocks of the views with (V, B) keys, windows where `outer`; a further one with a probability each time."""
    axes = len(sides_px)
    numbers = uniform(keys, RandomPurpose.PAINTING, most * (1 + 2 * axes)).view(*keys.shape, most, 1 + 2 * axes)
    sides, firsts = [], []
    for axis, length in enumerate(sides_px):
        inner, window = side_bounds(length)
        low, high = (torch.where(outer, o, i)[..., None] for i, o in zip(inner, window, strict=True))
        border = border_px(length)
        sides.append(integers_between(numbers[..., 1 + axis], low, high))
        firsts.append(integers_between(numbers[..., 1 + axes + axis], border, length - sides[-1] - border))
    goes_on = (numbers[..., 0] < further).long()
    goes_on[..., 0] = 1
    return Blocks(torch.stack(firsts, -1), torch.stack(sides, -1) * goes_on.cumprod(-1)[..., None])


def side_bounds(length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest side of a block and of a window along an axis of a view."""
    (low, high), (least, most) = ([int(length * share) for share in bounds] for bounds in (IN_SIDES, OUT_REST))
    inner = max(1, low), max(1, low, high - 1)
    largest = length - 2 * border_px(length)
    return inner, (min(largest, length - max(least, most - 1)), min(largest, length - least))


def border_px(length: int) -> int:
    """Pixels between a block and the view's border, along an axis."""
    return min(BORDER_PX, max(0, (length - 1) // 8))


def inside_blocks(blocks: Blocks, sides_px: Sequence[int]) -> Tensor:
    """Which pixels lie in any of the blocks of (N, K, n): (N, *S) bool."""
    end = blocks.first_px + blocks.side_px
    inside = []
    for axis, side in enumerate(sides_px):
        pixel = torch.arange(side, device=end.device)
        along = (pixel >= blocks.first_px[..., axis, None]) & (pixel < end[..., axis, None])
        inside.append(along.float())
    rows, *others = inside
    rest = others[0]
    for other in others[1:]:
        rest = (rest[..., None] * other[:, :, None]).flatten(2)
    return (rows.mT @ rest > 0).view(-1, *sides_px)


def paint(views: Tensor, keys: Tensor, blocks: Blocks, outer: Tensor) -> Tensor:
    """(N, C, *S) views with uniform noise in [0, 1) inside their blocks, or outside of them where `outer`."""
    painted = inside_blocks(blocks, views.shape[2:]) != outer.view(-1, *(1,) * (views.ndim - 2))
    fresh = noise(keys, RandomPurpose.PAINTED_NOISE, views[0].numel()).view(views.shape)
    return torch.where(painted[:, None], fresh, views)
