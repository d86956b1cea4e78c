"""What a classifier's outputs are worth: figures of each class, and of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation.probes import weighted_auroc
from dira_dist.metrics import VAL_ACCURACY, VAL_AUROC, VAL_AVERAGE_PRECISION, VAL_BALANCED_ACCURACY, VAL_LOSS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ClassKind = Literal["binary", "multiclass", "multilabel"]
Pooling = Literal["mean", "max"]

BINS = 10


@dataclass(frozen=True)
class ClassPredictions:
    """What a classifier says of a set, and what is true.

    Attributes:
        keys: of the N samples.
        groups: whom each is of, such as its patient.
        logits: (N, K).
        targets: (N, K) 1, 0, or NaN where nothing is known.
        classes: names of the K outputs.
        kind: of the classes.
        columns: what else is known of each sample, such as sex and age.
    """

    keys: Sequence[str]
    groups: Sequence[str]
    logits: Floats
    targets: npt.NDArray[np.float32]
    classes: Sequence[str]
    kind: ClassKind
    columns: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, kept: npt.NDArray[np.int64]) -> "ClassPredictions":
        """The samples with these places."""
        return replace(
            self,
            keys=[self.keys[place] for place in kept],
            groups=[self.groups[place] for place in kept],
            logits=self.logits[kept],
            targets=self.targets[kept],
            columns=[self.columns[place] for place in kept] if self.columns else (),
        )

    def figures(self) -> dict[str, float]:
        """The figures of an epoch on ``val``; those of a class with one value are left out, of means, too.

        No figure is NaN: what is not defined is not there.
        """
        chances = plain_chances(self.logits, self.kind)
        loss = cross_entropy(self.logits, self.targets, self.kind)
        found: dict[str, float] = {} if np.isnan(loss) else {VAL_LOSS.name: loss}
        ones = np.ones((1, len(self)))
        for metric, figure in ((VAL_AUROC, auroc), (VAL_AVERAGE_PRECISION, average_precision)):
            values = [
                float(figure(chances[known, place], self.targets[known, place] == 1, ones[:, known])[0])
                for place in range(len(self.classes))
                for known in [~np.isnan(self.targets[:, place])]
            ]
            measured = [value for value in values if not np.isnan(value)]
            if measured:
                found[metric.name] = float(np.mean(measured))
            if len(values) > 1:
                found |= {
                    metric.of(f"/{label}"): value
                    for label, value in zip(self.classes, values, strict=True)
                    if not np.isnan(value)
                }
        return found | self._accuracy(chances)

    def _accuracy(self, chances: Floats) -> dict[str, float]:
        if self.kind != "multiclass":
            known = ~np.isnan(self.targets)
            right = np.equal(chances > 0.5, self.targets == 1)
            return {VAL_ACCURACY.name: float(right[known].mean())} if known.any() else {}
        rows = ~np.isnan(self.targets).any(axis=1)
        if not rows.any():
            return {}
        truth, said = self.targets[rows].argmax(1), chances[rows].argmax(1)
        recalls = [float((said[truth == place] == place).mean()) for place in np.unique(truth)]
        return {
            VAL_ACCURACY.name: float((truth == said).mean()),
            VAL_BALANCED_ACCURACY.name: float(np.mean(recalls)),
        }


def plain_chances(logits: Floats, kind: ClassKind) -> Floats:
    """(N, K) what the outputs say as probabilities, not calibrated."""
    if kind == "multiclass":
        lifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(lifted / lifted.sum(axis=1, keepdims=True))
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def cross_entropy(logits: Floats, targets: npt.NDArray[np.float32], kind: ClassKind) -> float:
    """The mean over what is known; NaN where nothing is."""
    if kind == "multiclass":
        rows = ~np.isnan(targets).any(axis=1)
        shifted = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        terms = np.log(np.exp(shifted).sum(axis=1)) - (shifted * targets[rows]).sum(axis=1)
    else:
        known = ~np.isnan(targets)
        found, truth = logits[known], targets[known]
        terms = np.logaddexp(0, found) - truth * found
    return float(terms.mean()) if terms.size else float("nan")


def pooled(chances: Floats, predictions: ClassPredictions, how: Pooling) -> tuple[Floats, ClassPredictions]:
    """Chances and truth of each group in place of each image: mean or largest chance, and whether any image has it.

    Args:
        chances: (N, K).
        predictions: of the N images.
        how: of the chances.
    """
    names, group_of = np.unique(np.asarray(predictions.groups, dtype=object).astype(str), return_inverse=True)
    rows = [np.flatnonzero(group_of == place) for place in range(len(names))]
    merged = np.stack([chances[row].mean(axis=0) if how == "mean" else chances[row].max(axis=0) for row in rows])
    truth = np.stack([_any_known(predictions.targets[row]) for row in rows])
    first = predictions.take(np.array([row[0] for row in rows]))
    return merged, replace(first, targets=truth, groups=names.tolist())


def _any_known(targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(K,) the largest that is known, NaN where nothing is."""
    known = ~np.isnan(targets).all(axis=0)
    found = np.full(targets.shape[1], np.nan, dtype=np.float32)
    found[known] = np.nanmax(targets[:, known], axis=0)
    return found


# Figures of one class, for R weightings of the N samples at once: chances (N,), truth (N,) bool, weights (R, N); each
# gives (R,), NaN where it is not defined.


def auroc(chances: Floats, truth: Bools, weights: Floats) -> Floats:
    """Area under the ROC curve; ties count half."""
    if truth.all() or not truth.any():
        return np.full(len(weights), np.nan)
    return weighted_auroc(chances, truth, weights)


def average_precision(chances: Floats, truth: Bools, weights: Floats) -> Floats:
    """The sum over thresholds of the gain in recall times the precision."""
    if not truth.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(-chances, kind="stable")
    levels, positives = -chances[order], np.flatnonzero(truth[order])
    last = np.searchsorted(levels, levels[positives], side="right") - 1  # those alike are taken together
    taken = np.cumsum(weights[:, order], axis=1)[:, last]
    gains = weights[:, order[positives]]
    found = np.cumsum(gains, axis=1)
    hits = found[:, np.searchsorted(levels[positives], levels[positives], side="right") - 1]
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    return _share((gains * precision).sum(axis=1), found[:, -1])


def sensitivity(said: Bools, truth: Bools, weights: Floats) -> Floats:
    """Share of the positives that are found."""
    return _share(weights @ (said & truth), weights @ truth)


def specificity(said: Bools, truth: Bools, weights: Floats) -> Floats:
    """Share of the negatives that are let go."""
    return _share(weights @ (~said & ~truth), weights @ ~truth)


def f1(said: Bools, truth: Bools, weights: Floats) -> Floats:
    """Twice the true positives over what is said and what is true together."""
    return _share(2 * (weights @ (said & truth)), weights @ said + weights @ truth)


def brier(chances: Floats, truth: Bools, weights: Floats) -> Floats:
    """Mean squared distance of chance and truth (Brier 1950)."""
    return _share(weights @ (chances - truth) ** 2, weights.sum(axis=1))


def calibration_error(chances: Floats, truth: Bools, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015)."""
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    gaps = (chances - truth)[:, None] * (bins[:, None] == np.arange(BINS))
    return _share(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    part = np.asarray(part, dtype=np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=np.asarray(whole) > 0))
