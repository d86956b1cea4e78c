"""Logistic regression on frozen features, with its regularisation chosen by cross-validation over groups."""

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried one after the other: C of :func:`fit_logistic`, the strongest regularisation first."""
PLAIN_STRENGTH = 1.0
"""Where there are too few groups to choose one: scikit-learn's default."""
FOLDS = 5
_TOLERANCE = 1e-4
_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted model of standardised features.

    Attributes:
        mean: ``(C,)`` of the features it was fitted on; ``scale`` their standard deviation, 1 where that is 0.
        weights: ``(C + 1, K)``, the last row the intercepts.
        exclusive: whether each sample has exactly one of the K labels.
        strength: see :func:`fit_logistic`.
    """

    mean: Features
    scale: Features
    weights: FloatArray
    exclusive: bool
    strength: float

    def probabilities(self, features: Features) -> FloatArray:
        """``(M, K)`` of each label, for features ``(M, C)``."""
        return _probabilities(_logits((features - self.mean) / self.scale, self.weights), self.exclusive)


def choose_and_fit(features: Features, labels: BoolArray, groups: IntArray, *, exclusive: bool) -> LogisticRegression:
    """The model of the strength that :func:`choose_strength` takes, on all samples.

    Args:
        features: ``(N, C)``.
        labels: ``(N, K)``; a label that all or no samples have gets that answer for everyone.
        groups: ``(N,)``, whom each sample is of.
        exclusive: each sample has exactly one label.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1
    inputs = (features - mean) / scale
    strength = choose_strength(inputs, labels, groups, exclusive=exclusive)
    weights = fit_logistic(inputs, labels, strength, exclusive=exclusive)
    return LogisticRegression(mean, scale, weights, exclusive, strength)


def choose_strength(inputs: Features, labels: BoolArray, groups: IntArray, *, exclusive: bool) -> float:
    """The strength of the least cross-entropy on held-out groups: no group is on both sides of a fold.

    Weaker regularisation costs more steps and goes on from the stronger one before; the search ends where the loss
    rises. Where the groups are too few to hold some out it is :data:`PLAIN_STRENGTH`.
    """
    folds = [
        (inputs[learned], labels[learned], inputs[held], labels[held])
        for learned, held in group_folds(labels, groups, exclusive=exclusive)
    ]
    best, least = PLAIN_STRENGTH, np.inf
    starts: list[FloatArray | None] = [None] * len(folds)
    for strength in STRENGTHS if folds else ():
        loss = 0.0
        for number, (learn_x, learn_y, held_x, held_y) in enumerate(folds):
            weights = fit_logistic(learn_x, learn_y, strength, exclusive=exclusive, start=starts[number])
            loss += _held_out_loss(weights, learn_y, held_x, held_y, exclusive)
            starts[number] = weights
        if loss >= least:
            break
        best, least = strength, loss
    return best


def group_folds(labels: BoolArray, groups: IntArray, *, exclusive: bool) -> list[tuple[IntArray, IntArray]]:
    """Up to five pairs of what is learned from and what is held out, of like shares of the classes; none at need.

    By scikit-learn's ``StratifiedGroupKFold``. Samples of several labels are spread by the rarest one that they have.
    A fold that would have to learn a class from no sample of it is left out.
    """
    classes = _strata(labels)
    folds = min(FOLDS, len(np.unique(groups)), int(np.unique(classes, return_counts=True)[1].max()))
    if folds < 2:
        return []
    splitter = importlib.import_module("sklearn.model_selection").StratifiedGroupKFold(
        folds, shuffle=True, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds, which is all right
        pairs = list(splitter.split(classes, classes, groups))
    whole = [(learned, held) for learned, held in pairs if len(learned) and len(held)]
    if not exclusive:
        return [pair for pair in whole if _varies(labels[pair[0]]).any()]
    return [pair for pair in whole if labels[pair[0]].any(axis=0).sum() == labels.any(axis=0).sum()]


def fit_logistic(
    inputs: Features, labels: BoolArray, strength: float, *, exclusive: bool, start: FloatArray | None = None
) -> FloatArray:
    r"""Weights of the least regularised cross-entropy, by L-BFGS.

    .. math:: \min_{W, b} \; \sum_{n} \ell(x_n W + b, y_n) + \frac{1}{2 C} \lVert W \rVert^2

    with the softmax's cross-entropy where labels are exclusive, else the sum of the K logistic losses. The same model
    as scikit-learn's ``LogisticRegression``; all labels at once in products of matrices, which for several labels is
    many times faster than one after the other.

    Args:
        inputs: ``(N, D)``, standardised.
        labels: ``(N, K)``.
        strength: C; the smaller, the stronger is the regularisation.
        exclusive: each sample has exactly one label.
        start: ``(D + 1, K)``, weights to begin with; 0 if none.

    Returns:
        ``(D + 1, K)``, the last row the intercepts.
    """
    learnable = np.ones(labels.shape[1], dtype=bool) if exclusive else _varies(labels)
    weights = np.zeros((inputs.shape[1] + 1, labels.shape[1])) if start is None else start.copy()
    # A label without a counterexample has no finite intercept: it is the answer for everyone.
    weights[-1, ~learnable] = np.where(labels[0, ~learnable], np.inf, -np.inf)
    begin, truth = weights[:, learnable], labels[:, learnable].astype(np.float64)

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        tried = flat.reshape(begin.shape)
        logits = _logits(inputs, tried)
        residual = _probabilities(logits, exclusive) - truth
        gradient = np.vstack([inputs.T @ residual.astype(inputs.dtype), residual.sum(axis=0)])
        gradient[:-1] += tried[:-1] / strength
        loss = _cross_entropy(logits, truth, exclusive).sum() + 0.5 * np.square(tried[:-1]).sum() / strength
        return float(loss) / len(inputs), gradient.ravel() / len(inputs)

    options = {"maxiter": _MOST_ITERATIONS, "gtol": _TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    minimize = importlib.import_module("scipy.optimize").minimize
    found: Any = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights[:, learnable] = found.x.reshape(begin.shape)
    return weights


def _logits(inputs: Features, weights: FloatArray) -> FloatArray:
    logits: FloatArray = (inputs @ weights[:-1].astype(inputs.dtype)).astype(np.float64) + weights[-1]
    return logits


def _probabilities(logits: FloatArray, exclusive: bool) -> FloatArray:
    special = importlib.import_module("scipy.special")
    found: FloatArray = special.softmax(logits, axis=1) if exclusive else special.expit(logits)
    return found


def _cross_entropy(logits: FloatArray, truth: FloatArray, exclusive: bool) -> FloatArray:
    """``(N, K)``, of each sample and label."""
    if exclusive:
        found: FloatArray = -truth * importlib.import_module("scipy.special").log_softmax(logits, axis=1)
        return found
    return np.logaddexp(0, logits) - truth * logits


def _held_out_loss(
    weights: FloatArray, learned: BoolArray, held_x: Features, held_y: BoolArray, exclusive: bool
) -> float:
    """Summed over the held-out samples, for those labels that could be learned."""
    columns = np.ones(learned.shape[1], dtype=bool) if exclusive else _varies(learned)
    logits, truth = _logits(held_x, weights[:, columns]), held_y[:, columns].astype(np.float64)
    return float(_cross_entropy(logits, truth, exclusive).sum())


def _varies(labels: BoolArray) -> BoolArray:
    """``(K,)``, labels that some samples have and some have not."""
    return np.asarray(labels.any(axis=0) & ~labels.all(axis=0))


def _strata(labels: BoolArray) -> IntArray:
    """``(N,)``, the rarest label of each sample; K for those without one."""
    ranks = np.argsort(labels.sum(axis=0), kind="stable")
    ordered = np.hstack([labels[:, ranks], np.ones((len(labels), 1), dtype=bool)])
    strata: IntArray = np.append(ranks, labels.shape[1])[ordered.argmax(axis=1)]
    return strata
