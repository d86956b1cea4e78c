"""From logits to probabilities that mean what they say, and to decisions; both fitted on ``val`` alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation.classification import ClassKind, ClassPredictions, plain_chances

Floats = npt.NDArray[np.float64]
_LEAST = 10  # samples of a class, and without it, from which a slope can be learned at all
_LEAST_SLOPE = float(np.exp(-4))  # a falling one would turn the order of the samples, and with it AUROC, around


@dataclass(frozen=True)
class Calibration:
    """Probabilities are sigmoid or softmax of ``slope * logit + intercept``.

    Of classes that exclude each other one slope serves all, the inverse of a temperature (Guo et al., ICML 2017); else
    each has its own slope and intercept (Platt 1999).

    Attributes:
        kind: of the classes.
        slopes, intercepts: (K,) as lists.
    """

    kind: ClassKind
    slopes: list[float]
    intercepts: list[float]

    def chances(self, logits: Floats) -> Floats:
        """(N, K) probabilities of (N, K) logits."""
        return plain_chances(logits * np.asarray(self.slopes) + np.asarray(self.intercepts), self.kind)


def fit_calibration(val: ClassPredictions) -> Calibration:
    """What makes the outputs on ``val`` likeliest; a class with few samples of either kind is left as it is."""
    count = len(val.classes)
    slopes, intercepts = [1.0] * count, [0.0] * count
    if val.kind == "multiclass":
        known = ~np.isnan(val.targets).any(axis=1)
        if known.sum() >= _LEAST:
            slopes = [_temperature_slope(val.logits[known], val.targets[known].argmax(1))] * count
        return Calibration(val.kind, slopes, intercepts)
    for place in range(count):
        known = ~np.isnan(val.targets[:, place])
        truth = val.targets[known, place] == 1
        if min(truth.sum(), (~truth).sum()) >= _LEAST:
            slopes[place], intercepts[place] = _platt(val.logits[known, place], truth)
    return Calibration(val.kind, slopes, intercepts)


def _temperature_slope(logits: Floats, classes: npt.NDArray[np.int64]) -> float:
    from scipy.optimize import minimize_scalar

    def loss(log_slope: float) -> float:
        scaled = np.exp(log_slope) * logits
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        chosen = shifted[np.arange(len(classes)), classes]
        return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def _platt(logits: Floats, truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """With the targets that Platt takes for the truth, which keep a separable class finite; the slope always rises."""
    from scipy.optimize import minimize

    positives, negatives = truth.sum(), (~truth).sum()
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = parameters[0] * logits + parameters[1]
        gaps = plain_chances(scaled, "binary") - targets
        return float((np.logaddexp(0, scaled) - targets * scaled).mean()), np.array(
            [(gaps * logits).mean(), gaps.mean()]
        )

    bounds = [(_LEAST_SLOPE, None), (None, None)]
    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(slope), float(intercept)


def choose_thresholds(chances: Floats, val: ClassPredictions, operating_point: str) -> list[float]:
    """(K,) chance above which a class is said to be there.

    Args:
        chances: (N, K) calibrated, on ``val``.
        val: the truth.
        operating_point: ``youden`` (sensitivity and specificity together at their highest), or ``sensitivity=X`` or
            ``specificity=X``: at least that, and the other as high as can be.

    Returns:
        0.5 for a class that has one value.
    """
    return [
        _threshold(chances[known, place], val.targets[known, place] == 1, operating_point)
        for place in range(len(val.classes))
        for known in [~np.isnan(val.targets[:, place])]
    ]


def _threshold(chances: Floats, truth: npt.NDArray[np.bool_], operating_point: str) -> float:
    if truth.all() or not truth.any():
        return 0.5
    levels = np.unique(chances)
    edges = np.concatenate([[levels[0] - 1e-9], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1e-9]])
    found = np.searchsorted(np.sort(chances[truth]), edges, side="right")
    passed = np.searchsorted(np.sort(chances[~truth]), edges, side="right")
    sensitivity, specificity = 1 - found / truth.sum(), passed / (~truth).sum()
    name, _, wanted = operating_point.partition("=")
    if name == "youden":
        return float(edges[np.argmax(sensitivity + specificity)])
    held, other = (sensitivity, specificity) if name == "sensitivity" else (specificity, sensitivity)
    return float(edges[np.argmax(np.where(held >= float(wanted) - 1e-12, other, -1))])


def decided(chances: Floats, thresholds: Sequence[float], kind: ClassKind) -> npt.NDArray[np.bool_]:
    """(N, K) which classes are said to be there."""
    return np.asarray(chances > np.asarray(thresholds))
