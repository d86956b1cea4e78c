"""Rubik's cube: the pieces of a grid change places and are turned (Zhuang et al., MICCAI 2019; Zhu et al., 2020).

The whole view is restored from the whole distorted view, as Tao et al. (*Rubik's cube++*, 2020) do: a piece's content
is then somewhere in what the network sees, which it is not where each piece is restored from another one alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import Probability, RequestError
from dira_dist.views.distortions.orders import far_orders, order_count
from dira_dist.views.distortions.section import NAMED, DistortionSection
from dira_dist.views.randomness import PerView, RandomPurpose, uniform

DEFAULT_GRID, DEFAULT_ORDERS = 2, 1000


@dataclass(frozen=True)
class Pieces(PerView):
    """Where the pieces of each view come from, G of them.

    Attributes:
        order: (V, B) int64, number of the order, 0 for the pieces' own.
        source: (V, B, G) int64, the piece whose content is seen at each place of the grid.
        turn: (V, B, G) int64, how the piece at each place is turned: 0 not, k by half a turn in the k-th plane.
    """

    order: Tensor
    source: Tensor
    turn: Tensor


class Rubik(DistortionSection[Pieces]):
    """Pieces of a grid in another order and turned by half a turn. Defaults as in the published 3D runs."""

    model_config = NAMED

    name: Literal["rubik"] = "rubik"
    grid: int = Field(DEFAULT_GRID, ge=2, le=4, description="pieces along each axis")
    orders: int = Field(
        DEFAULT_ORDERS,
        ge=2,
        le=5000,
        description="orders to draw from, far apart; of few pieces as many as there are: 24 of 2 x 2",
    )
    order_probability: Probability = Field(1.0, description="of another order than the pieces' own, drawn among all")
    turn_probability: Probability = Field(0.75, description="of half a turn of each piece, in a plane at random")
    gap: float = Field(
        10 / 64, ge=0, lt=0.5, description="emptied between neighbouring pieces, as a share of the view's side"
    )

    def draw(self, keys: Tensor, sides_px: Sequence[int]) -> Pieces:
        axes = len(sides_px)
        pieces = self.pieces(axes)
        orders = _orders(pieces, self.orders, keys.device)
        numbers = uniform(keys, RandomPurpose.PIECES, 2 + 2 * pieces)
        number = (numbers[..., 1] * len(orders)).long()
        order = torch.where(numbers[..., 0] < self.order_probability, number, 0)
        turns, planes = numbers[..., 2:].chunk(2, dim=-1)
        plane = 1 + (planes * math.comb(axes, 2)).long()
        turn = torch.where(turns < self.turn_probability, plane, 0)
        return Pieces(order, orders[order], turn)

    def distort(self, views: Tensor, drawn: Pieces) -> Tensor:
        grid, sides_px = self.grid, views.shape[2:]
        axes, piece_px = len(sides_px), [side // self.grid for side in sides_px]
        places = math.prod(piece_px)
        apart = views.unflatten(2, (grid, piece_px[0]))
        for axis in range(1, axes):
            apart = apart.unflatten(2 + 2 * axis, (grid, piece_px[axis]))
        to_pieces = [0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 2 + 2 * axes, 2)]
        split = apart.permute(to_pieces).reshape(*views.shape[:2], -1, places)
        moved = split.gather(2, drawn.source[:, None, :, None].expand_as(split))
        voxels = _turns(tuple(piece_px), views.device)[drawn.turn]
        turned = moved.gather(3, voxels[:, None].expand_as(moved))
        together = turned.view(*views.shape[:2], *(grid,) * axes, *piece_px)
        back = [0, 1, *(each for axis in range(axes) for each in (2 + axis, 2 + axes + axis))]
        return self._emptied(together.permute(back).reshape(views.shape))

    def labels(self, drawn: Pieces) -> dict[str, Tensor]:
        """``order`` (B,) int64, and ``turned`` (B, G) int64, 1 for a turned piece, by its place in the view."""
        return {"order": drawn.order[0], "turned": (drawn.turn[0] > 0).long()}

    def pieces(self, axes: int) -> int:
        """Pieces of a view."""
        return int(self.grid**axes)

    def order_count(self, axes: int) -> int:
        """Orders that are drawn from."""
        return order_count(self.pieces(axes), self.orders)

    def check_size(self, sides_px: Sequence[int]) -> None:
        if any(side % self.grid for side in sides_px):
            raise RequestError(
                f"views.distortion.grid: found {self.grid} and views of {list(sides_px)}, which are not cut into "
                "so many equal pieces; take multiples of it as data.image_size, or another grid"
            )

    def _emptied(self, views: Tensor) -> Tensor:
        """With nothing where pieces meet: content that runs on from one to the next would tell their
        order. After they moved: emptied before, a piece would show by its empty sides where it was."""
        for axis, side in enumerate(views.shape[2:]):
            views = views * _kept(side, self.grid, self.gap, views.device).view(-1, *(1,) * (views.ndim - 3 - axis))
        return views


@lru_cache(maxsize=16)
def _kept(side: int, grid: int, gap: float, device: torch.device) -> Tensor:
    """(side,) 1, but 0 in the gaps, of whole pixels, that lie around the inner borders of the grid."""
    half, pixel = round(gap * side / 2), torch.arange(side, device=device)
    kept = torch.ones(side, device=device)
    for border in range(side // grid, side, side // grid):
        kept = kept.masked_fill((pixel >= border - half) & (pixel < border + half), 0)
    return kept


@lru_cache(maxsize=16)
def _turns(piece_px: tuple[int, ...], device: torch.device) -> Tensor:
    """(1 + planes, P) where each voxel of a turned piece comes from: not turned, then turned in each plane."""
    own = torch.arange(math.prod(piece_px)).view(piece_px)
    planes = combinations(range(len(piece_px)), 2)
    return torch.stack([own, *(own.flip(plane) for plane in planes)]).flatten(1).to(device)


@lru_cache(maxsize=8)
def _orders(pieces: int, most: int, device: torch.device) -> Tensor:
    return torch.from_numpy(far_orders(pieces, most)).to(device)
