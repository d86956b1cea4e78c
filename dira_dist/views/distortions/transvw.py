"""TransVW's distortion: an elastic warp, then one of four of Models Genesis' ways, weaker.

Haghighi et al., *TransVW* (IEEE TMI 2021), with the settings of its published 3D run. The target is the view before
all of it, so that the warp has to be undone, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dira_dist.config import Probability
from dira_dist.views.distortions.chosen import where_chosen
from dira_dist.views.distortions.curves import bend
from dira_dist.views.distortions.models_genesis import WindowCount, WindowShare, draw_curves
from dira_dist.views.distortions.painting import Blocks, draw_blocks, paint
from dira_dist.views.distortions.section import NAMED, DistortionSection
from dira_dist.views.distortions.shuffling import shuffle_locally
from dira_dist.views.distortions.warp import DEVIATION, SIGMA, draw_moves, warp
from dira_dist.views.randomness import PerView, RandomPurpose, uniform

SHUFFLED, BENT, PAINTED_INSIDE, PAINTED_OUTSIDE, AS_IT_IS = range(5)


@dataclass(frozen=True)
class OneOfFour(PerView):
    """How each view is distorted; with n axes.

    Attributes:
        keys: (V, B) int64, from which the moves, the windows and the noise are drawn where they are needed.
        warped: (V, B) bool.
        kind: (V, B) int64, SHUFFLED, BENT, PAINTED_INSIDE, PAINTED_OUTSIDE or AS_IT_IS.
        points: (V, B, 2, 2) float64, inner points of the curve, each with x and y.
        falling: (V, B) bool, whether the curve falls.
        first_px: (V, B, K, n) int64, of the blocks or windows.
        side_px: (V, B, K, n) int64, their sides; 0 for those that are not there.
    """

    keys: Tensor
    warped: Tensor
    kind: Tensor
    points: Tensor
    falling: Tensor
    first_px: Tensor
    side_px: Tensor


class TransVW(DistortionSection[OneOfFour]):
    """TransVW's distortions; sizes are shares of the view. Defaults as published."""

    model_config = NAMED

    name: Literal["transvw"] = "transvw"
    warp_probability: Probability = Field(1.0, description="of the elastic warp")
    warp_sigma: float = Field(SIGMA, gt=0, le=1, description="how far moves are alike, as a share of the first side")
    warp_deviation: float = Field(DEVIATION, ge=0, le=1, description="how far they go, as a share of the first side")
    shuffle_probability: Probability = Field(0.25, description="of local shuffling")
    shuffle_windows: WindowCount = Field(5, description="windows whose voxels get another order")
    shuffle_share: WindowShare = Field(0.1, description="largest side of such a window, as a share of the view's")
    curve_probability: Probability = Field(0.25, description="of grey values through a Bezier curve")
    falling_probability: Probability = Field(0.5, description="of a curve that falls: inverted grey values")
    inner_probability: Probability = Field(0.25, description="of noise in blocks")
    outer_probability: Probability = Field(0.25, description="of noise all around windows")
    paint_blocks: int = Field(1, ge=1, le=100, description="most blocks or windows")
    further_probability: Probability = Field(0.95, description="of a further block or window after each one")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(self.shares()) > 1 + 1e-9:
            raise ValueError(f"the probabilities of the four add up to {sum(self.shares()):g}; at most 1 is allowed")
        return self

    def shares(self) -> tuple[float, ...]:
        """Probabilities of the four, in the order of their numbers."""
        return self.shuffle_probability, self.curve_probability, self.inner_probability, self.outer_probability

    def draw(self, keys: Tensor, sides_px: Sequence[int]) -> OneOfFour:
        numbers = uniform(keys, RandomPurpose.DISTORTION, 2)
        bounds = torch.tensor(self.shares(), dtype=torch.float64).cumsum(0)
        kind = sum((numbers[..., 0] >= bound for bound in bounds.tolist()), torch.zeros_like(keys))
        points, falling = draw_curves(keys, self.falling_probability)
        outer = kind == PAINTED_OUTSIDE
        blocks = draw_blocks(keys, outer, self.paint_blocks, self.further_probability, sides_px)
        warped = numbers[..., 1] < self.warp_probability
        return OneOfFour(keys, warped, kind, points, falling, blocks.first_px, blocks.side_px)

    def distort(self, views: Tensor, drawn: OneOfFour) -> Tensor:
        def elastic(some: Tensor, rows: Tensor) -> Tensor:
            return warp(some, draw_moves(drawn.keys[rows], some.shape[2:], self.warp_sigma, self.warp_deviation))

        def shuffle(some: Tensor, rows: Tensor) -> Tensor:
            return shuffle_locally(some, drawn.keys[rows], self.shuffle_windows, self.shuffle_share)

        def curve(some: Tensor, rows: Tensor) -> Tensor:
            return bend(some, drawn.points[rows], drawn.falling[rows])

        def noise_over(some: Tensor, rows: Tensor) -> Tensor:
            blocks = Blocks(drawn.first_px[rows], drawn.side_px[rows])
            return paint(some, drawn.keys[rows], blocks, drawn.kind[rows] == PAINTED_OUTSIDE)

        views = where_chosen(views, drawn.warped, elastic)
        views = where_chosen(views, drawn.kind == SHUFFLED, shuffle)
        views = where_chosen(views, drawn.kind == BENT, curve)
        return where_chosen(views, (drawn.kind == PAINTED_INSIDE) | (drawn.kind == PAINTED_OUTSIDE), noise_over)

    def labels(self, drawn: OneOfFour) -> dict[str, Tensor]:
        """``kind`` (B,) int64."""
        return {"kind": drawn.kind[0]}
