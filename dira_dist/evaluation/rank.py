"""Is the representation alive? Figures that need no labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dira_dist.metrics import COLLAPSED, FEATURE_STD, RANKME, UNIFORMITY

# Alarms. Features of a healthy encoder have an effective rank of tens to hundreds and, on the unit sphere, a standard
# deviation near 1/sqrt(C) per dimension (Chen & He, *SimSiam*, CVPR 2021, section 4.1); a collapsed one has neither.
COLLAPSED_RANK = 2.0
COLLAPSED_STD_SHARE = 0.05


def rankme(features: Tensor, epsilon: float = 1e-7) -> float:
    """Effective rank of the features: the exponential of the entropy of their normalised singular values.

    RankMe(Z) = exp(-sum_k p_k log p_k),  p_k = sigma_k(Z) / ||sigma(Z)||_1 + epsilon

    Garrido, Balestriero, Najman, LeCun: *RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank*, ICML 2023, equation 1. Between 1 (all features on one line) and min(N, C).

    Args:
        features: ``(N, C)``; the paper takes N = 25,600, and N below C bounds the result by N.
        epsilon: keeps the logarithm finite.

    Raises:
        ValueError: without features, or where they are not finite.
    """
    _check(features)
    scales = torch.linalg.svdvals(features.double())
    total = scales.sum()
    if total == 0:
        return 1.0  # every feature is the origin: a line of length none
    shares = scales / total + epsilon
    return float(torch.exp(-(shares * shares.log()).sum()))


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of the normalised features, times sqrt(C).

    1 for features spread evenly over the sphere, 0 for a collapse to a point (SimSiam, section 4.1).

    Args:
        features: ``(N, C)``.
    """
    _check(features)
    unit = functional.normalize(features.double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def view_distances(features_1: Tensor, features_2: Tensor, alpha: float = 2.0) -> Tensor:
    """Alignment: distance ``(N,)`` to the power ``alpha`` between the normalised features of two views; 0 is perfect.

    Wang & Isola: *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere*, ICML 2020, equation 2, is its mean.

    Args:
        features_1: ``(N, C)``, of one view of each image.
        features_2: ``(N, C)``, of another.
        alpha: exponent.
    """
    _check(features_1)
    unit_1, unit_2 = (functional.normalize(features.double(), dim=1) for features in (features_1, features_2))
    distances: Tensor = (unit_1 - unit_2).norm(dim=1).pow(alpha)
    return distances


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean Gaussian potential of all pairs of normalised features; 0 is a collapse, -4 ideal for t=2.

    Wang & Isola, ICML 2020, equation 3.

    Args:
        features: ``(N, C)``, N at least 2.
        t: of the potential exp(-t d^2).
    """
    _check(features)
    if len(features) < 2:
        raise ValueError("uniformity of a single image is not defined; give two or more")
    unit = functional.normalize(features.double(), dim=1)
    return float(torch.pdist(unit).pow(2).mul(-t).exp().mean().log())


@dataclass(frozen=True)
class RepresentationHealth:
    """Label-free figures of a set of features, of one view of each image.

    Attributes:
        rankme: see :func:`rankme`.
        feature_std: see :func:`feature_std`.
        uniformity: see :func:`uniformity`.
        collapsed: 1.0 when rank or spread say that the encoder tells its inputs apart no longer, else 0.0.
    """

    rankme: float
    feature_std: float
    uniformity: float
    collapsed: float

    def as_metrics(self) -> dict[str, float]:
        """For a tracker."""
        return {
            RANKME.name: self.rankme,
            FEATURE_STD.name: self.feature_std,
            UNIFORMITY.name: self.uniformity,
            COLLAPSED.name: self.collapsed,
        }


def representation_health(features: Tensor) -> RepresentationHealth:
    """All figures that features ``(N, C)`` of one view of each image give without labels."""
    rank, spread = rankme(features), feature_std(features)
    collapsed = float(rank < COLLAPSED_RANK or spread < COLLAPSED_STD_SHARE)
    return RepresentationHealth(rank, spread, uniformity(features), collapsed)


def _check(features: Tensor) -> None:
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)}; allowed is (N, C) with at least one of each")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features are not finite: the encoder's weights or its inputs are broken")
