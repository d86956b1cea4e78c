"""DiRA's distortion T: what the network has to undo (Haghighi et al., CVPR 2022; Zhou et al., Models Genesis, 2021).

Each view gets one of four: nothing, local shuffling (blocks trade places), inner cut-out (blocks become 0), outer
cut-out (all but a few windows becomes 0). Block sides are given for a view of 224 px and scale with the view.
"""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dira_dist.config import Section
from dira_dist.views.randomness import Stream, integers_between, uniform

_REFERENCE_PX = 224

Probability = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1)]
Sides = tuple[Side, Side]
Count = Annotated[int, Field(ge=1, le=100)]


class DistortionConfig(Section):
    """The four distortions; what the three probabilities leave is the chance of none. Defaults as published."""

    shuffle_probability: Probability = Field(default=0.30, description="of local shuffling")
    inner_probability: Probability = Field(default=0.30, description="of inner cut-out")
    outer_probability: Probability = Field(default=0.05, description="of outer cut-out")
    shuffle_swaps: Count = Field(default=10, description="pairs of blocks that trade places, one pair after the other")
    shuffle_sides_px: Sides = Field(
        default=(10, 15), description="smallest and largest side of such a block, at 224 px"
    )
    inner_blocks: Count = Field(default=10, description="most blocks of an inner cut-out")
    inner_sides_px: Sides = Field(default=(10, 70), description="smallest and largest side of such a block, at 224 px")
    outer_windows: Count = Field(default=10, description="most windows of an outer cut-out")
    outer_sides_px: Sides = Field(
        default=(154, 174), description="smallest and largest side of such a window, at 224 px"
    )
    stop_probability: Probability = Field(
        default=0.1, description="of no further block or window after each one of a cut-out"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        total = self.shuffle_probability + self.inner_probability + self.outer_probability
        if total > 1 + 1e-9:
            raise ValueError(f"the probabilities of the distortions add up to {total:g}; at most 1 is allowed")
        for name in ("shuffle_sides_px", "inner_sides_px", "outer_sides_px"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} ({low}, {high}): wanted low <= high")
        return self


NONE, SHUFFLE, INNER, OUTER = range(4)


def draw_kinds(keys: Tensor, config: DistortionConfig) -> Tensor:
    """(N,) keys to (N,) int64: NONE, SHUFFLE, INNER or OUTER for each view."""
    number = uniform(keys, Stream.DISTORTION, 1)
    parts = number.new_tensor((config.shuffle_probability, config.inner_probability, config.outer_probability))
    passed = (number >= parts.cumsum(0)).sum(1)
    return (passed + 1) % 4


def distort(views: Tensor, keys: Tensor, config: DistortionConfig) -> Tensor:
    """Distorts (N, C, *S) views in place, each in its own way; all of S are equal."""
    kinds = draw_kinds(keys, config)
    shuffle(views, kinds == SHUFFLE, keys, config)
    return cut_out(views, kinds, keys, config)


def _draw_blocks(numbers: Tensor, low: Tensor | int, high: Tensor | int, view_px: int) -> tuple[Tensor, Tensor]:
    """Sides and first pixels, (..., n) int64 each, of blocks inside the view, from (..., 2n) numbers in [0, 1)."""
    size, place = numbers.chunk(2, dim=-1)
    side = integers_between(size, low, high)
    return side, integers_between(place, 0, view_px - side)


def _scaled(sides_px: Sides, view_px: int) -> tuple[int, int]:
    """Sides at 224 px to sides at `view_px`: at least a pixel, at most the view."""
    low, high = (min(view_px, max(1, round(side * view_px / _REFERENCE_PX))) for side in sides_px)
    return low, high


def cut_out(views: Tensor, kinds: Tensor, keys: Tensor, config: DistortionConfig) -> Tensor:
    """Inner and outer cut-out of the (N, C, *S) views whose kind asks for it, in place.

    The union of axis-aligned blocks is found in one product: pixel (y, x) lies in as many blocks as
    sum_k [y in rows of k] [x in columns of k].
    """
    view_px, axes = views.shape[-1], views.ndim - 2
    outer = kinds == OUTER
    most = torch.where(outer, config.outer_windows, torch.where(kinds == INNER, config.inner_blocks, 0))
    blocks = max(config.outer_windows, config.inner_blocks)
    numbers = uniform(keys, Stream.CUT_OUT, blocks * (1 + 2 * axes)).view(-1, blocks, 1 + 2 * axes)
    inner_px, outer_px = _scaled(config.inner_sides_px, view_px), _scaled(config.outer_sides_px, view_px)
    low, high = (torch.where(outer, o, i)[:, None, None] for i, o in zip(inner_px, outer_px, strict=True))
    side, first = _draw_blocks(numbers[..., 1:], low, high, view_px)
    stopped = (numbers[..., 0] < config.stop_probability).long()
    drawn = (stopped.cumsum(1) - stopped == 0) & (torch.arange(blocks, device=views.device) < most[:, None])
    inside = _inside(first, side, view_px) & drawn[..., None, None]
    covered = _union(inside.float())
    keep = covered.view(-1, 1, *views.shape[2:]) == outer.view(-1, *(1,) * (axes + 1))
    return views.mul_(keep)


def _inside(first: Tensor, side: Tensor, view_px: int) -> Tensor:
    """(N, K, n) intervals to (N, K, n, view_px) bool: which pixels of each axis lie in each block."""
    pixel = torch.arange(view_px, device=first.device)
    return (pixel >= first[..., None]) & (pixel < (first + side)[..., None])


def _union(inside: Tensor) -> Tensor:
    """(N, K, n, S) indicators to (N, S, S**(n - 1)) bool: whether a pixel lies in any of the K blocks."""
    rows, *others = inside.unbind(2)
    rest = others[0]
    for other in others[1:]:
        rest = (rest[..., None] * other[:, :, None]).flatten(2)
    return torch.bmm(rows.mT, rest) > 0.5


def shuffle(views: Tensor, chosen: Tensor, keys: Tensor, config: DistortionConfig) -> Tensor:
    """Local shuffling of the chosen (N,) bool of the (N, C, *S) views, in place: equal blocks trade places in turn.

    A view that is not chosen trades each block with itself. Blocks smaller than the largest repeat their last row
    and column, which writes the same value twice and needs no mask.
    """
    view_px, axes = views.shape[-1], views.ndim - 2
    low, high = _scaled(config.shuffle_sides_px, view_px)
    numbers = uniform(keys, Stream.SHUFFLE, config.shuffle_swaps * 3 * axes).view(-1, config.shuffle_swaps, 3 * axes)
    side, first = _draw_blocks(numbers[..., : 2 * axes], low, high, view_px)
    second = torch.where(chosen[:, None, None], integers_between(numbers[..., 2 * axes :], 0, view_px - side), first)
    pixels = views.flatten(2)
    here, there = (_block_index(corner, side, high, view_px) for corner in (first, second))
    for one, other in zip(here.unbind(1), there.unbind(1), strict=True):
        one, other = (index[:, None].expand(-1, views.shape[1], -1) for index in (one, other))
        from_one, from_other = pixels.gather(2, one), pixels.gather(2, other)
        pixels.scatter_(2, one, from_other).scatter_(2, other, from_one)
    return views


def _block_index(corner: Tensor, side: Tensor, largest: int, view_px: int) -> Tensor:
    """(N, K, n) corners and sides to (N, K, largest**n) int64: flat pixel numbers of each block."""
    step = torch.arange(largest, device=corner.device)
    coordinate = corner[..., None] + torch.minimum(step, side[..., None] - 1)
    flat, *others = coordinate.unbind(2)
    for other in others:
        flat = (flat[..., None] * view_px + other[:, :, None]).flatten(2)
    return flat
