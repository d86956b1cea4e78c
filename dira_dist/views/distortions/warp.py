"""Elastic warp in the first two axes (Haghighi et al., *TransVW*, IEEE TMI 2021; the manner of Simard et al., 2003).

Uniform noise in [-1, 1), smoothed along every axis, moves each pixel along the first two. Published for views of
64 x 64 x 32: a Gaussian of 8 voxels, and the noise 991 times as strong. What that is in a view of another size or
number of axes follows from the deviation that smoothed noise has away from the border.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dira_dist.views.randomness import RandomPurpose, noise

SIGMA = 1 / 8
"""Of the Gaussian, as a share of the view's first side."""
DEVIATION = 0.0592
"""Standard deviation of the published moves, as a share of the first side: 991 / sqrt(3) * (16 sqrt(pi))^-1.5 / 64."""
_TRUNCATE = 4.0


def draw_moves(keys: Tensor, sides_px: Sequence[int], sigma: float, deviation: float) -> Tensor:
    """How far each pixel of the views with (N,) keys is moved along the first two axes: (N, 2, *S) pixels."""
    count = 2 * math.prod(sides_px)
    moves = noise(keys, RandomPurpose.WARP, count).view(-1, 2, *sides_px) * 2 - 1
    return smoothed(moves, sigma * sides_px[0]) * strength(sides_px, sigma, deviation)


def strength(sides_px: Sequence[int], sigma: float, deviation: float) -> float:
    """Factor that gives smoothed noise the deviation: noise has 1 / sqrt(3), and each axis leaves a part of it."""
    left = (2 * sigma * sides_px[0] * math.sqrt(math.pi)) ** (-len(sides_px) / 2)
    return deviation * sides_px[0] * math.sqrt(3) / float(left)


def smoothed(fields: Tensor, sigma_px: float) -> Tensor:
    """(N, C, *S) through a Gaussian along every axis; beyond the border lies 0."""
    for axis in range(2, fields.ndim):
        matrix = _gaussian(fields.shape[axis], sigma_px, fields.device)
        fields = torch.tensordot(fields, matrix, dims=([axis], [0])).movedim(-1, axis)
    return fields


def warp(views: Tensor, moves: Tensor) -> Tensor:
    """(N, C, *S) views read where (N, 2, *S) moves lead from each pixel: linearly, mirrored at the border."""
    sides = views.shape[2:]
    places = []
    for axis, side in enumerate(sides):
        place = torch.arange(side, device=views.device).view(-1, *(1,) * (len(sides) - 1 - axis))
        moved = place + moves[:, axis] if axis < 2 else place.expand(len(views), *sides).float()
        places.append((2 * moved + 1) / side - 1)
    grid = torch.stack(places[::-1], -1)  # grid_sample counts axes from the last
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@lru_cache(maxsize=16)
def _gaussian(side: int, sigma_px: float, device: torch.device) -> Tensor:
    """(side, side) weights of a normalised Gaussian that is cut at four deviations."""
    radius = int(_TRUNCATE * sigma_px + 0.5)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    weights /= weights.sum()
    apart = torch.arange(side)[:, None] - torch.arange(side) + radius
    inside = (apart >= 0) & (apart <= 2 * radius)
    return torch.where(inside, weights[apart.clamp(0, 2 * radius)], 0).float().to(device)
