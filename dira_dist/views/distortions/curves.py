"""Non-linear intensity: grey values through a cubic Bezier curve (Zhou et al., *Models Genesis*, 2021, section 3.1).

The curve runs from (0, 0) to (1, 1) by two inner points of the unit square. Its x and its y then both rise with the
curve's parameter, for a control point's share of such a curve's derivative is never so negative as the others'
positive: so the published sorting of 100,000 samples, of x alone or of both, is a matter of direction. Sorted alone, x
meets the y of the curve run backwards, and intensities are inverted.
"""

import torch
from torch import Tensor

SAMPLES = 4096
"""Samples along the curve, and pieces of the line that stands for it."""


def bezier(points: Tensor, t: Tensor) -> Tensor:
    """One coordinate of the curves with the inner points' (N, 2) coordinates at t (T,): (N, T)."""
    rest = 1 - t
    return 3 * rest**2 * t * points[:, :1] + 3 * rest * t**2 * points[:, 1:] + t**3


def curve_tables(points: Tensor, falling: Tensor) -> Tensor:
    """What grey values 0, 1 / SAMPLES, ... 1 become, (N, SAMPLES + 1) float32.

    Args:
        points: (N, 2, 2) float64 in [0, 1), the inner points, each with x and y.
        falling: (N,) bool, which of the curves fall.
    """
    t = torch.linspace(0, 1, SAMPLES + 1, dtype=torch.float64, device=points.device)
    x, y = bezier(points[..., 0], t), bezier(points[..., 1], t)
    y = torch.where(falling[:, None], y.flip(1), y)
    after = torch.searchsorted(x, t.expand(len(x), -1).contiguous()).clamp_(1, SAMPLES)
    left, right = x.gather(1, after - 1), x.gather(1, after)
    weight = ((t - left) / (right - left).clamp_min(1e-12)).clamp_(0, 1)
    return torch.lerp(y.gather(1, after - 1), y.gather(1, after), weight).float()


def bend(views: Tensor, points: Tensor, falling: Tensor) -> Tensor:
    """(N, C, *S) views in [0, 1], each through its curve; see :func:`curve_tables`."""
    tables = curve_tables(points, falling)
    place = views.flatten(1) * SAMPLES
    piece = place.long().clamp_(max=SAMPLES - 1)
    place -= piece
    piece += torch.arange(len(views), device=views.device)[:, None] * (SAMPLES + 1)
    low, high = (tables.flatten()[step:].index_select(0, piece.flatten()) for step in (0, 1))
    return low.lerp_(high, place.flatten()).view(views.shape)
