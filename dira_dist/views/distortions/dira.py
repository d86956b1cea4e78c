"""DiRA's distortion T: what the network has to undo (Haghighi et al., CVPR 2022; Zhou et al., Models Genesis, 2021).

Each view gets one of four: nothing, local shuffling (blocks trade places), inner cut-out (blocks become 0), outer
cut-out (all but a few windows becomes 0). Block sides are given for a view of 224 px and scale with the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dira_dist.config import Probability, Range, per_axis
from dira_dist.views.distortions.section import DistortionSection
from dira_dist.views.randomness import PerView, RandomPurpose, integers_between, uniform

_REFERENCE_PX = 224

Side = Annotated[int, Field(ge=1)]
Sides = Range[Side]
Count = Annotated[int, Field(ge=1, le=100)]

NONE, SHUFFLE, INNER, OUTER = range(4)


@dataclass(frozen=True)
class Distortion(PerView):
    """How each view is distorted, K blocks of a cut-out and K' swaps of a local shuffling, with n axes.

    Attributes:
        kind: (V, B) int64, NONE, SHUFFLE, INNER or OUTER.
        cut_first_px: (V, B, K, n) int64, first pixels of the blocks.
        cut_side_px: (V, B, K, n) int64, their sides; 0 for those that are not there.
        swap_first_px: (V, B, K', n) int64, first pixels of one block of each pair.
        swap_second_px: (V, B, K', n) int64, of the other one: the same where nothing is shuffled.
        swap_side_px: (V, B, K', n) int64, sides of both.
    """

    kind: Tensor
    cut_first_px: Tensor
    cut_side_px: Tensor
    swap_first_px: Tensor
    swap_second_px: Tensor
    swap_side_px: Tensor


class DiraDistortion(DistortionSection[Distortion]):
    """DiRA's own; what the three probabilities leave is the chance of none. Defaults as published."""

    name: Literal["dira"] = "dira"

    shuffle_probability: Probability = Field(0.30, description="of local shuffling")
    inner_probability: Probability = Field(0.30, description="of inner cut-out")
    outer_probability: Probability = Field(0.05, description="of outer cut-out")
    shuffle_swaps: Count = Field(10, description="pairs of blocks that trade places, one pair after the other")
    shuffle_sides_px: Sides = Field((10, 15), description="smallest and largest side of such a block, at 224 px")
    inner_blocks: Count = Field(10, description="most blocks of an inner cut-out")
    inner_sides_px: Sides = Field((10, 70), description="smallest and largest side of such a block, at 224 px")
    outer_windows: Count = Field(10, description="most windows of an outer cut-out")
    outer_sides_px: Sides = Field((154, 174), description="smallest and largest side of such a window, at 224 px")
    stop_probability: Probability = Field(0.1, description="of no further block or window after each one of a cut-out")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        total = self.shuffle_probability + self.inner_probability + self.outer_probability
        if total > 1 + 1e-9:
            raise ValueError(f"the probabilities of the distortions add up to {total:g}; at most 1 is allowed")
        return self

    def draw(self, keys: Tensor, sides_px: Sequence[int]) -> Distortion:
        return draw_distortion(keys, self, sides_px, len(sides_px))

    def distort(self, views: Tensor, drawn: Distortion) -> Tensor:
        return distort(views, drawn, self)

    def labels(self, drawn: Distortion) -> dict[str, Tensor]:
        """``kind`` (B,) int64: NONE, SHUFFLE, INNER or OUTER."""
        return {"kind": drawn.kind[0]}


def draw_distortion(keys: Tensor, config: DiraDistortion, view_px: int | Sequence[int], axes: int) -> Distortion:
    """Distortions of the views with the (V, B) keys; a side for all axes, or one for each."""
    sides_px = per_axis(view_px, axes)
    kind = _draw_kind(keys, config)
    cut_first, cut_side = _draw_cuts(keys, kind, config, sides_px)
    numbers = uniform(keys, RandomPurpose.SHUFFLE, config.shuffle_swaps * 3 * axes).view(*keys.shape, -1, 3, axes)
    sides, firsts, seconds = [], [], []
    for length, drawn in zip(sides_px, numbers.unbind(-1), strict=True):
        side = integers_between(drawn[..., 0], *_scaled(config.shuffle_sides_px, length))
        sides.append(side)
        firsts.append(integers_between(drawn[..., 1], 0, length - side))
        seconds.append(integers_between(drawn[..., 2], 0, length - side))
    first, second = torch.stack(firsts, -1), torch.stack(seconds, -1)
    second = torch.where((kind == SHUFFLE)[..., None, None], second, first)
    return Distortion(kind, cut_first, cut_side, first, second, torch.stack(sides, -1))


def _draw_kind(keys: Tensor, config: DiraDistortion) -> Tensor:
    number = uniform(keys, RandomPurpose.DISTORTION, 1).squeeze(-1)
    shuffled = number < config.shuffle_probability
    cut = number < config.shuffle_probability + config.inner_probability
    emptied = number < config.shuffle_probability + config.inner_probability + config.outer_probability
    return torch.where(shuffled, SHUFFLE, torch.where(cut, INNER, torch.where(emptied, OUTER, NONE)))


def _draw_cuts(keys: Tensor, kind: Tensor, config: DiraDistortion, view_px: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """First pixels and sides of the cut-outs' blocks; those after the drawn stop have side 0."""
    axes, outer = len(view_px), kind == OUTER
    blocks = max(config.outer_windows, config.inner_blocks)
    most = torch.where(outer, config.outer_windows, torch.where(kind == INNER, config.inner_blocks, 0))
    numbers = uniform(keys, RandomPurpose.CUT_OUT, blocks * (1 + 2 * axes)).view(*keys.shape, blocks, 1 + 2 * axes)
    sides, firsts = [], []
    for axis, length in enumerate(view_px):
        inner_px, outer_px = _scaled(config.inner_sides_px, length), _scaled(config.outer_sides_px, length)
        low, high = (torch.where(outer, o, i)[..., None] for i, o in zip(inner_px, outer_px, strict=True))
        sides.append(integers_between(numbers[..., 1 + axis], low, high))
        firsts.append(integers_between(numbers[..., 1 + axes + axis], 0, length - sides[-1]))
    stops = (numbers[..., 0] < config.stop_probability).long()
    stopped_before = stops.cumsum(-1) - stops > 0
    there = ~stopped_before & (torch.arange(blocks, device=keys.device) < most[..., None])
    return torch.stack(firsts, -1), torch.stack(sides, -1) * there[..., None]


def _scaled(sides_px: Sides, view_px: int) -> tuple[int, int]:
    """Sides at 224 px to sides at `view_px`: at least a pixel, at most the view."""
    low, high = (min(view_px, max(1, round(side * view_px / _REFERENCE_PX))) for side in sides_px)
    return low, high


def distort(views: Tensor, drawn: Distortion, config: DiraDistortion) -> Tensor:
    """Distorts (N, C, *S) contiguous views in place, each in its own way."""
    largest_px = [_scaled(config.shuffle_sides_px, side)[1] for side in views.shape[2:]]
    return _cut_out(_shuffle(views, drawn, largest_px), drawn)


def _cut_out(views: Tensor, drawn: Distortion) -> Tensor:
    """Inner and outer cut-out of the views whose kind asks for it, in place.

    The blocks' union is found in one product: pixel (y, x) lies in sum_k [y in rows of k] [x in columns of k]
    blocks. What is kept is max(0, 1 - that sum) of a view, but min(1, that sum) of one with an outer cut-out.
    """
    end = drawn.cut_first_px + drawn.cut_side_px
    inside = []
    for axis, side in enumerate(views.shape[2:]):
        pixel = torch.arange(side, device=views.device)
        inside.append(((pixel >= drawn.cut_first_px[..., axis, None]) & (pixel < end[..., axis, None])).float())
    rows, *others = inside
    rest = others[0]
    for other in others[1:]:
        rest = (rest[..., None] * other[:, :, None]).flatten(2)
    outer = (drawn.kind == OUTER).float()[:, None, None]
    keep = torch.baddbmm(1 - outer, (rows * (2 * outer - 1)).mT, rest).clamp_(0, 1)
    return views.mul_(keep.view(-1, 1, *views.shape[2:]))


def _shuffle(views: Tensor, drawn: Distortion, largest_px: Sequence[int]) -> Tensor:
    """Local shuffling in place: equal blocks trade places, pair after pair.

    A view that is not to be shuffled trades each block with itself. A block smaller than the largest repeats its
    last row and column, which writes the same value twice and needs no mask.
    """
    pixels = views.flatten(2)
    shape = (-1, -1, views.shape[1], -1)
    here, there = (
        _block_pixels(first, drawn.swap_side_px, largest_px, views.shape[2:])[:, :, None].expand(shape)
        for first in (drawn.swap_first_px, drawn.swap_second_px)
    )
    for one, other in zip(here.unbind(1), there.unbind(1), strict=True):
        from_one, from_other = pixels.gather(2, one), pixels.gather(2, other)
        pixels.scatter_(2, one, from_other).scatter_(2, other, from_one)
    return views


def _block_pixels(first_px: Tensor, side_px: Tensor, largest_px: Sequence[int], view_px: Sequence[int]) -> Tensor:
    """(N, K, n) blocks to (N, K, P) int64, the flat numbers of their pixels; P is the largest block's."""
    flat = torch.zeros_like(first_px[..., :1])
    for axis, (largest, length) in enumerate(zip(largest_px, view_px, strict=True)):
        step = torch.arange(largest, device=first_px.device)
        coordinate = first_px[..., axis, None] + torch.minimum(step, side_px[..., axis, None] - 1)
        flat = (flat[..., None] * length + coordinate[:, :, None]).flatten(2)
    return flat
