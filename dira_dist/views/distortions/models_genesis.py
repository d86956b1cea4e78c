"""Models Genesis' mixture: a view is flipped, shuffled, bent and painted over, each by its own chance.

Zhou et al., *Models Genesis* (Medical Image Analysis 67, 2021), section 3.1, with the rates of its published run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import Probability
from dira_dist.views.distortions.chosen import where_chosen
from dira_dist.views.distortions.curves import bend
from dira_dist.views.distortions.painting import Blocks, draw_blocks, paint
from dira_dist.views.distortions.section import NAMED, DistortionSection
from dira_dist.views.distortions.shuffling import shuffle_locally
from dira_dist.views.randomness import PerView, RandomPurpose, uniform

FLIPS = 3
"""Most flips of a view, each about an axis drawn anew."""

WindowCount = Annotated[int, Field(ge=1, le=20_000)]
WindowShare = Annotated[float, Field(gt=0, le=0.5)]


@dataclass(frozen=True)
class Mixture(PerView):
    """How each view is distorted; with n axes.

    Attributes:
        keys: (V, B) int64, from which the windows and the noise are drawn where they are needed.
        flipped: (V, B, n) bool, about which axes input and target are flipped.
        shuffled: (V, B) bool.
        bent: (V, B) bool.
        points: (V, B, 2, 2) float64, inner points of the curve, each with x and y.
        falling: (V, B) bool, whether the curve falls.
        painted: (V, B) bool.
        outer: (V, B) bool, painted outside of the windows.
        first_px: (V, B, K, n) int64, of the blocks or windows.
        side_px: (V, B, K, n) int64, their sides; 0 for those that are not there.
    """

    keys: Tensor
    flipped: Tensor
    shuffled: Tensor
    bent: Tensor
    points: Tensor
    falling: Tensor
    painted: Tensor
    outer: Tensor
    first_px: Tensor
    side_px: Tensor


class ModelsGenesis(DistortionSection[Mixture]):
    """Models Genesis' distortions, one after the other; sizes are shares of the view. Defaults as published."""

    model_config = NAMED

    name: Literal["models_genesis"] = "models_genesis"
    flip_probability: Probability = Field(
        0.4, description=f"of a flip of input and target about an axis, and of each further one; at most {FLIPS}"
    )
    shuffle_probability: Probability = Field(0.5, description="of local shuffling")
    shuffle_windows: WindowCount = Field(10_000, description="windows whose voxels get another order")
    shuffle_share: WindowShare = Field(0.1, description="largest side of such a window, as a share of the view's")
    curve_probability: Probability = Field(0.9, description="of grey values through a Bezier curve")
    falling_probability: Probability = Field(0.5, description="of a curve that falls: inverted grey values")
    paint_probability: Probability = Field(0.9, description="of painting noise over the view")
    outer_probability: Probability = Field(0.8, description="of these, of noise all around windows, not in blocks")
    paint_blocks: int = Field(5, ge=1, le=100, description="most blocks or windows")
    further_probability: Probability = Field(0.95, description="of a further block or window after each one")

    def draw(self, keys: Tensor, sides_px: Sequence[int]) -> Mixture:
        numbers = uniform(keys, RandomPurpose.DISTORTION, 4)
        shuffled, bent, painted = (
            numbers[..., place] < probability
            for place, probability in enumerate(
                (self.shuffle_probability, self.curve_probability, self.paint_probability)
            )
        )
        outer = numbers[..., 3] < self.outer_probability
        points, falling = draw_curves(keys, self.falling_probability)
        blocks = draw_blocks(keys, outer, self.paint_blocks, self.further_probability, sides_px)
        flipped = draw_flips(keys, self.flip_probability, len(sides_px))
        return Mixture(keys, flipped, shuffled, bent, points, falling, painted, outer, blocks.first_px, blocks.side_px)

    def align(self, views: Tensor, drawn: Mixture) -> Tensor:
        return flip(views, drawn.flipped)

    def distort(self, views: Tensor, drawn: Mixture) -> Tensor:
        def shuffle(some: Tensor, rows: Tensor) -> Tensor:
            return shuffle_locally(some, drawn.keys[rows], self.shuffle_windows, self.shuffle_share)

        def curve(some: Tensor, rows: Tensor) -> Tensor:
            return bend(some, drawn.points[rows], drawn.falling[rows])

        def noise_over(some: Tensor, rows: Tensor) -> Tensor:
            return paint(some, drawn.keys[rows], Blocks(drawn.first_px[rows], drawn.side_px[rows]), drawn.outer[rows])

        views = where_chosen(views, drawn.shuffled, shuffle)
        views = where_chosen(views, drawn.bent, curve)
        return where_chosen(views, drawn.painted, noise_over)


def draw_flips(keys: Tensor, probability: float, axes: int) -> Tensor:
    """About which axes the views with (V, B) keys are flipped, (V, B, n) bool: one twice flipped is as it was."""
    numbers = uniform(keys, RandomPurpose.ALIGNED_FLIP, 2 * FLIPS).view(*keys.shape, FLIPS, 2)
    goes_on = (numbers[..., 0] < probability).long().cumprod(-1)
    about = (numbers[..., 1] * axes).long()[..., None] == torch.arange(axes, device=keys.device)
    return (about & (goes_on[..., None] == 1)).sum(-2) % 2 == 1


def flip(views: Tensor, flipped: Tensor) -> Tensor:
    """(N, C, *S) views mirrored about those of the axes that (N, n) `flipped` names."""
    for axis in range(flipped.shape[1]):
        views = where_chosen(views, flipped[:, axis], partial(_mirrored, axis=2 + axis))
    return views


def _mirrored(views: Tensor, rows: Tensor, axis: int) -> Tensor:
    return views.flip(axis)


def draw_curves(keys: Tensor, falling: float) -> tuple[Tensor, Tensor]:
    """Inner points (V, B, 2, 2) of the views' curves, and which of them fall, (V, B)."""
    numbers = uniform(keys, RandomPurpose.CURVE, 5)
    return numbers[..., :4].unflatten(-1, (2, 2)), numbers[..., 4] < falling
