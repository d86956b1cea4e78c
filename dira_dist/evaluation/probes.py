"""What a frozen encoder's features are worth: weighted k-NN and a linear probe on a labelled set."""

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dira_dist.config import RequestError
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.metrics import KNN_ACCURACY, KNN_AUROC, PROBE_ACCURACY, PROBE_AUROC

Kind = Literal["binary", "multiclass", "multilabel"]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SEPARATOR = "|"
BOOTSTRAP_BLOCK = 2**22


@dataclass(frozen=True)
class Targets:
    """Labels as numbers.

    Attributes:
        kind: one of two classes, one of several, or any number of several.
        classes: names, sorted; for ``binary`` the second one is the positive class.
        train: ``(N, K)``, which of the K classes each sample has.
        val: ``(M, K)``.
    """

    kind: Kind
    classes: tuple[str, ...]
    train: BoolArray
    val: BoolArray


@dataclass(frozen=True)
class Scores:
    """How good predictions are.

    Attributes:
        accuracy: share of samples with the right class; for ``multilabel`` the share of right yes/no answers.
        auroc: area under the ROC curve; one class against the rest, averaged over the classes, unless binary.
        low: lower end of the AUROC's 95 % bootstrap interval; NaN where none was asked for.
        high: upper end.
    """

    accuracy: float
    auroc: float
    low: float = math.nan
    high: float = math.nan


def encode_labels(train: Sequence[Any], val: Sequence[Any], label: str = "label") -> Targets:
    """Labels as they stand in the shards, as numbers.

    Args:
        train: per sample a word, number or truth value (one class), or a list of words or ``a|b`` (several).
        val: likewise.
        label: the label's name, for messages.

    Raises:
        RequestError: with fewer than two classes, or where no class can be evaluated; see :func:`shared_classes`.
    """
    absent = sum(value is None for value in (*train, *val))
    if absent:
        raise RequestError(
            f"probe.label: {absent} samples of probe.train and probe.val have no {label!r}; leave them out"
        )
    several = _several_at_once(train, val)
    train_sets, val_sets = [_words(value) for value in train], [_words(value) for value in val]
    classes = tuple(sorted(set().union(*train_sets, *val_sets)))
    matrices = [np.array([[name in words for name in classes] for words in sets]) for sets in (train_sets, val_sets)]
    if not several and len(classes) < 2:
        raise RequestError(
            f"probe.label: {label!r} has one class only ({', '.join(classes) or 'none'}); give a label with two or more"
        )
    evaluated = [
        column
        for column in range(len(classes))
        if all(0 < matrix[:, column].sum() < len(matrix) for matrix in matrices)
    ]
    if not evaluated or (not several and len(evaluated) < len(classes)):
        wrong = [name for column, name in enumerate(classes) if column not in evaluated]
        raise RequestError(
            f"probe.label: {label!r}: {', '.join(wrong)} does not stand beside another class in both probe.train and "
            "probe.val; give sets that hold samples of each class"
        )
    kind: Kind = "multilabel" if several else "binary" if len(classes) == 2 else "multiclass"
    kept = [matrix[:, evaluated] for matrix in matrices]
    return Targets(kind, tuple(classes[column] for column in evaluated), kept[0], kept[1])


def shared_classes(
    train: Sequence[Any], val: Sequence[Any], label: str = "label"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which samples a probe learns from and is evaluated on: those of classes that both sets hold.

    A class that one of the sets lacks, as a rare one easily does after a split by patient, cannot be evaluated. Its
    samples are left out of both sets, so that accuracy and AUROC are those of a label that has the other classes only.
    Labels with several classes at once keep all samples; there :func:`encode_labels` leaves the class itself out.

    Args:
        train: per sample a word, number or truth value (one class), or a list of words or ``a|b`` (several).
        val: likewise.
        label: the label's name, for messages.

    Returns:
        Indices of the samples that are kept, rising, of ``train`` and of ``val``.

    Raises:
        RequestError: both sets hold samples, and fewer than two classes that they share.
    """
    if _several_at_once(train, val):
        return np.arange(len(train)), np.arange(len(val))
    train_sets, val_sets = [_words(value) for value in train], [_words(value) for value in val]
    in_train, in_val = set().union(*train_sets), set().union(*val_sets)
    shared = in_train & in_val
    if len(shared) < 2:
        raise RequestError(
            f"probe.label: {label!r}: probe.train holds {_listed(in_train)} and probe.val {_listed(in_val)}; a probe "
            "needs two classes that both hold: give sets that have them, for example by another split"
        )
    kept_train, kept_val = (np.flatnonzero([bool(words & shared) for words in sets]) for sets in (train_sets, val_sets))
    return kept_train, kept_val


def knn_probe(
    train_x: Tensor, val_x: Tensor, targets: Targets, *, k: int = 20, temperature: float = 0.07, bootstrap: int = 0
) -> Scores:
    """Weighted k-nearest-neighbour classifier on normalised features.

    Each of the k training samples nearest by cosine similarity s votes for its classes with exp(s / temperature).
    Wu, Xiong, Yu, Lin: *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, CVPR 2018, section
    3.4; the protocol of Caron et al., DINO, ICCV 2021.

    Args:
        train_x: ``(N, C)``; ``k`` is lowered to N where it is larger.
        val_x: ``(M, C)``.
        targets: the labels of both.
        k: neighbours.
        temperature: of the votes.
        bootstrap: resamples for the interval; 0 for none.
    """
    similarity = functional.normalize(val_x.double(), dim=1) @ functional.normalize(train_x.double(), dim=1).T
    nearest, index = similarity.topk(min(k, len(train_x)), dim=1)
    # Relative to the nearest neighbour: the same ratios, and no overflow at small temperatures.
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    votes = torch.from_numpy(targets.train)[index].double()
    scores = (weights.unsqueeze(2) * votes).sum(dim=1) / weights.sum(dim=1, keepdim=True)
    return score(scores.numpy(), targets, bootstrap)


def linear_probe(
    train_x: Tensor, val_x: Tensor, targets: Targets, *, fraction: float = 1.0, bootstrap: int = 0, seed: int = 0
) -> Scores:
    """Logistic regression on standardised features, by scikit-learn.

    Args:
        train_x: ``(N, C)``.
        val_x: ``(M, C)``.
        targets: the labels of both.
        fraction: share of the training samples to learn from, in (0, 1]; see :func:`label_subset`.
        bootstrap: resamples for the interval; 0 for none.
        seed: of the subset.
    """
    chosen = label_subset(targets.train, fraction, seed)
    inputs, labels = train_x.double().numpy()[chosen], targets.train[chosen]
    outputs = val_x.double().numpy()
    if targets.kind == "multilabel":
        columns = [_probability(inputs, labels[:, column], outputs) for column in range(labels.shape[1])]
        return score(np.stack(columns, axis=1), targets, bootstrap)
    model = _classifier().fit(inputs, labels.argmax(axis=1))
    return score(model.predict_proba(outputs), targets, bootstrap)


def label_subset(labels: BoolArray, fraction: float, seed: int = 0) -> npt.NDArray[np.int64]:
    """Indices of a random share of the samples, rising; at least one sample of each class is among them.

    A smaller share is a part of a larger one of the same seed, but for those added for the sake of a class.

    Args:
        labels: ``(N, K)``.
        fraction: in (0, 1].
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = set(order[: math.ceil(fraction * len(labels))].tolist())
    for column in range(labels.shape[1]):
        holders = order[labels[order, column]]
        if len(holders) and chosen.isdisjoint(holders.tolist()):
            chosen.add(int(holders[0]))
    return np.array(sorted(chosen), dtype=np.int64)


def score(scores: FloatArray, targets: Targets, bootstrap: int = 0, seed: int = 0) -> Scores:
    """Accuracy and AUROC of class scores.

    Args:
        scores: ``(M, K)``, higher means likelier; between 0 and 1 for ``multilabel``.
        targets: what is true of the M samples.
        bootstrap: resamples for the interval; 0 for none.
        seed: of the resamples.
    """
    truth = targets.val
    if targets.kind == "multilabel":
        accuracy = float(((scores > 0.5) == truth).mean())
    else:
        accuracy = float((scores.argmax(axis=1) == truth.argmax(axis=1)).mean())
    columns = [1] if targets.kind == "binary" else list(range(truth.shape[1]))
    area = _sklearn("metrics").roc_auc_score
    auroc = float(np.mean([area(truth[:, column], scores[:, column]) for column in columns]))
    if not bootstrap:
        return Scores(accuracy, auroc)
    low, high = bootstrap_interval(scores[:, columns], truth[:, columns], bootstrap, seed)
    return Scores(accuracy, auroc, low, high)


def bootstrap_interval(scores: FloatArray, truth: BoolArray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean AUROC over the columns, the samples drawn again with replacement.

    Args:
        scores: ``(M, K)``.
        truth: ``(M, K)``.
        resamples: how many draws.
        seed: of the draws.
    """
    generator, count = np.random.default_rng(seed), len(truth)
    block = max(1, BOOTSTRAP_BLOCK // count)
    means = []
    for start in range(0, resamples, block):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        areas = [weighted_auroc(scores[:, column], truth[:, column], drawn) for column in range(truth.shape[1])]
        with np.errstate(invalid="ignore"):
            means.append(np.nanmean(np.stack(areas), axis=0) if len(areas) > 1 else areas[0])
    low, high = np.nanpercentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def weighted_auroc(scores: FloatArray, truth: BoolArray, weights: npt.NDArray[Any]) -> FloatArray:
    """Area under the ROC curve for many weightings of the samples at once; ties count half.

    Args:
        scores: ``(M,)``.
        truth: ``(M,)``.
        weights: ``(R, M)``, how often each sample counts in each of R resamples.

    Returns:
        ``(R,)``; NaN where a resample lacks one of the two classes.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    positive = np.add.reduceat((weights * truth)[:, order], starts, axis=1).astype(np.float64)
    negative = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1).astype(np.float64)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    areas: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return areas


def probe_metrics(
    config: ProbeConfig, train_x: Tensor, train_labels: Sequence[Any], val_x: Tensor, val_labels: Sequence[Any]
) -> dict[str, float]:
    """Both probes as metrics for a tracker: ``probe/auroc`` is the linear probe's with all labels.

    Args:
        config: neighbours, fractions, resamples.
        train_x: ``(N, C)`` features.
        train_labels: N labels as they stand in the shards.
        val_x: ``(M, C)``.
        val_labels: M labels.

    Raises:
        RequestError: see :func:`shared_classes` and :func:`encode_labels`.
    """
    train, val = shared_classes(train_labels, val_labels, config.label)
    train_x, val_x = train_x[torch.from_numpy(train)], val_x[torch.from_numpy(val)]
    targets = encode_labels([train_labels[i] for i in train], [val_labels[i] for i in val], config.label)
    neighbours = knn_probe(train_x, val_x, targets, k=config.k, temperature=config.temperature)
    metrics = {KNN_ACCURACY.name: neighbours.accuracy, KNN_AUROC.name: neighbours.auroc}
    for fraction, suffix in _fractions(config):
        linear = linear_probe(train_x, val_x, targets, fraction=fraction, bootstrap=config.bootstrap)
        metrics |= {PROBE_AUROC.of(suffix): linear.auroc, PROBE_ACCURACY.of(suffix): linear.accuracy}
        if config.bootstrap:
            metrics |= {PROBE_AUROC.of(f"{suffix}_low"): linear.low, PROBE_AUROC.of(f"{suffix}_high"): linear.high}
    return metrics


def class_names(labels: Sequence[Any]) -> list[str]:
    """Labels as they stand in the shards, one name each: ``a|b`` for several classes, ``none`` for none."""
    return [SEPARATOR.join(sorted(_words(label))) or "none" for label in labels]


def probe_metric_names(config: ProbeConfig) -> list[str]:
    """Names of the figures that :func:`probe_metrics` gives."""
    ends = ("_low", "_high") if config.bootstrap else ()
    names = [KNN_ACCURACY.name, KNN_AUROC.name]
    for _, suffix in _fractions(config):
        names += [PROBE_AUROC.of(suffix), PROBE_ACCURACY.of(suffix)]
        names += [PROBE_AUROC.of(f"{suffix}{end}") for end in ends]
    return names


def _fractions(config: ProbeConfig) -> list[tuple[float, str]]:
    """Shares of the labels, rising, all of them always among them, and how their figures' names end."""
    shares = sorted({1.0, *config.label_fractions})
    return [(share, "" if share == 1 else f"_{100 * share:g}pct") for share in shares]


def _words(value: Any) -> set[str]:
    values: Iterable[Any] = value if isinstance(value, list | tuple) else str(value).split(SEPARATOR)
    return {str(word).strip() for word in values if str(word).strip()}


def _several_at_once(train: Sequence[Any], val: Sequence[Any]) -> bool:
    return any(isinstance(value, list | tuple) or SEPARATOR in str(value) for value in (*train, *val))


def _listed(classes: Iterable[str]) -> str:
    return ", ".join(sorted(classes)) or "none"


def _sklearn(module: str) -> Any:
    """scikit-learn takes a second to import, and a job file that names a probe is read without it."""
    return importlib.import_module(f"sklearn.{module}")


def _classifier() -> Any:
    regression = _sklearn("linear_model").LogisticRegression(max_iter=1000)
    return _sklearn("pipeline").make_pipeline(_sklearn("preprocessing").StandardScaler(), regression)


def _probability(inputs: FloatArray, labels: BoolArray, outputs: FloatArray) -> FloatArray:
    """Probability ``(M,)`` of one label; a label that is always or never there in the subset says nothing."""
    if labels.all() or not labels.any():
        return np.full(len(outputs), float(labels.all()))
    probabilities: FloatArray = np.asarray(_classifier().fit(inputs, labels).predict_proba(outputs)[:, 1])
    return probabilities
