"""What a frozen encoder's features are worth: weighted k-NN and a linear probe on a labelled set.

What a probe is free to choose, its number of neighbours and its regularisation, is chosen on the set that it learns
from, and never on the one that it is judged on. Samples of one patient (of one *group*) are never on both sides of
such a choice, are drawn together where labels are few, and are resampled together for the intervals.
"""

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dira_dist.config import RequestError
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.logistic import BoolArray, FloatArray, IntArray, choose_and_fit
from dira_dist.metrics import COMMON_GROUPS, KNN_ACCURACY, KNN_AUROC, KNN_K, PROBE_ACCURACY, PROBE_AUROC, Metric

Kind = Literal["binary", "multiclass", "multilabel"]

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
        train_groups: ``(N,)``, a number for whom each sample is of, such as its patient.
        val_groups: ``(M,)``.
    """

    kind: Kind
    classes: tuple[str, ...]
    train: BoolArray
    val: BoolArray
    train_groups: IntArray
    val_groups: IntArray


@dataclass(frozen=True)
class Scores:
    """How good predictions are.

    Attributes:
        accuracy: share of samples with the right class; for ``multilabel`` the share of right yes/no answers.
        auroc: area under the ROC curve; one class against the rest, averaged over the classes, unless binary.
        low: lower end of the AUROC's 95 % bootstrap interval over groups; NaN where none was asked for.
        high: upper end.
        spread: standard deviation of the AUROC over draws of the labels; NaN for fewer than two.
    """

    accuracy: float
    auroc: float
    low: float = math.nan
    high: float = math.nan
    spread: float = math.nan


def encode_labels(
    train: Sequence[Any],
    val: Sequence[Any],
    label: str = "label",
    *,
    train_groups: Sequence[str] | None = None,
    val_groups: Sequence[str] | None = None,
) -> Targets:
    """Labels as they stand in the shards, as numbers.

    Args:
        train: per sample a word, number or truth value (one class), or a list of words or ``a|b`` (several).
        val: likewise.
        label: the label's name, for messages.
        train_groups: whom each sample is of; each a group of its own if none.
        val_groups: likewise.

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
    groups = [_numbered(train_groups, len(train)), _numbered(val_groups, len(val))]
    return Targets(kind, tuple(classes[column] for column in evaluated), kept[0], kept[1], *groups)


def _numbered(groups: Sequence[str] | None, count: int) -> IntArray:
    if groups is None:
        return np.arange(count)
    assert len(groups) == count, (len(groups), count)
    return np.asarray(np.unique(np.array(groups), return_inverse=True)[1], dtype=np.int64)


def apart(train_groups: Sequence[str], val_groups: Sequence[str]) -> tuple[IntArray, float]:
    """What of ``train`` a probe may learn from: samples of those groups that ``val`` has none of.

    Args:
        train_groups: whom each of N samples is of.
        val_groups: likewise of M.

    Returns:
        Indices of the samples that are kept, rising, and the share of the ``val`` samples whose group ``train`` has,
        too: 0 for sets that were split by it.

    Raises:
        RequestError: nothing is left to learn from.
    """
    in_train, in_val = set(train_groups), set(val_groups)
    kept = np.flatnonzero([group not in in_val for group in train_groups])
    if train_groups and not len(kept):
        raise RequestError(
            f"probe.train: every sample of it, or its patient, stands in probe.val, too ({len(train_groups)} samples "
            "compared), so that a probe would be judged on what it has learned from; split the set by patient: "
            "dira-dist shard ... --split train=0.8,val=0.2 --group-by patient"
        )
    common = sum(group in in_train for group in val_groups) / max(1, len(val_groups))
    return kept, common


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
    (votes,) = _knn_votes(_similarity(val_x, train_x), targets.train, (k,), temperature)
    return score([votes], targets, bootstrap)


def choose_k(train_x: Tensor, targets: Targets, ks: Sequence[int], temperature: float = 0.07) -> int:
    """The number of neighbours of the highest AUROC on the training set itself, the smallest of equal ones.

    Each training sample is judged by those of all other groups, so that no patient's image finds another of its own.

    Args:
        train_x: ``(N, C)``.
        targets: only what is known of the training set is looked at.
        ks: to choose from.
        temperature: of the votes.
    """
    groups = torch.from_numpy(targets.train_groups)
    if len(ks) == 1 or len(groups.unique()) == 1:
        return min(ks)
    similarity = _similarity(train_x, train_x)
    similarity[groups[:, None] == groups[None]] = -math.inf
    here = replace(targets, val=targets.train, val_groups=targets.train_groups)
    found = _knn_votes(similarity, targets.train, sorted(ks), temperature)
    areas = [score([votes], here).auroc for votes in found]
    return sorted(ks)[int(np.argmax(areas))]


def _similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines ``(M, N)`` of features ``(M, C)`` and ``(N, C)``."""
    return functional.normalize(queries.double(), dim=1) @ functional.normalize(keys.double(), dim=1).T


def _knn_votes(similarity: Tensor, labels: BoolArray, ks: Sequence[int], temperature: float) -> list[FloatArray]:
    """For each k the classes' shares of the votes ``(M, K)``; of similarities ``(M, N)`` and labels ``(N, K)``."""
    nearest, index = similarity.topk(min(max(ks), len(labels)), dim=1)
    # Relative to the nearest neighbour: the same ratios, and no overflow at small temperatures.
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    votes = weights.unsqueeze(2) * torch.from_numpy(labels)[index].double()
    return [(votes[:, :k].sum(dim=1) / weights[:, :k].sum(dim=1, keepdim=True)).numpy() for k in ks]


def linear_probe(
    train_x: Tensor,
    val_x: Tensor,
    targets: Targets,
    *,
    fraction: float = 1.0,
    draws: int = 1,
    bootstrap: int = 0,
    seed: int = 0,
) -> Scores:
    """Logistic regression on standardised features, its regularisation chosen by cross-validation over groups.

    The choice is made within the labels that it learns from, see
    :func:`dira_dist.evaluation.logistic.choose_strength`.

    Args:
        train_x: ``(N, C)``.
        val_x: ``(M, C)``.
        targets: the labels of both.
        fraction: share of the training set's groups to learn from, in (0, 1]; see :func:`label_subset`.
        draws: how often the share is drawn, of seeds from ``seed`` on; the scores are means over the draws.
        bootstrap: resamples for the interval of the mean; 0 for none.
        seed: of the first draw.
    """
    # Of two exclusive classes one is enough, as scikit-learn has it.
    labels = targets.train[:, 1:] if targets.kind == "binary" else targets.train
    inputs, outputs, found = train_x.float().numpy(), val_x.float().numpy(), []
    for draw in range(draws if fraction < 1 else 1):
        chosen = label_subset(targets.train, fraction, seed + draw, targets.train_groups)
        model = choose_and_fit(
            inputs[chosen], labels[chosen], targets.train_groups[chosen], exclusive=targets.kind == "multiclass"
        )
        scores = model.probabilities(outputs)
        found.append(np.hstack([1 - scores, scores]) if targets.kind == "binary" else scores)
    return score(found, targets, bootstrap)


def label_subset(labels: BoolArray, fraction: float, seed: int = 0, groups: IntArray | None = None) -> IntArray:
    """Indices of the samples of a random share of the groups, rising; each class has at least one among them.

    A smaller share is a part of a larger one of the same seed, but for groups added for the sake of a class.

    Args:
        labels: ``(N, K)``.
        fraction: in (0, 1].
        seed: of the draw.
        groups: ``(N,)``, whom each sample is of; each a group of its own if none.
    """
    numbers = np.arange(len(labels)) if groups is None else groups
    order = np.random.default_rng(seed).permutation(np.unique(numbers))
    chosen = set(order[: math.ceil(fraction * len(order))].tolist())
    for column in range(labels.shape[1]):
        holders = set(numbers[labels[:, column]].tolist())
        if holders and chosen.isdisjoint(holders):
            chosen.add(next(group for group in order.tolist() if group in holders))
    return np.flatnonzero(np.isin(numbers, list(chosen)))


def score(draws: Sequence[FloatArray], targets: Targets, bootstrap: int = 0, seed: int = 0) -> Scores:
    """Accuracy and AUROC of class scores, averaged over draws of what they were learned from.

    Args:
        draws: ``(M, K)`` each, higher means likelier; between 0 and 1 for ``multilabel``.
        targets: what is true of the M samples.
        bootstrap: resamples of the M samples' groups for the interval of the mean; 0 for none.
        seed: of the resamples.
    """
    columns = [1] if targets.kind == "binary" else list(range(targets.val.shape[1]))
    truth, area = targets.val[:, columns], _sklearn("metrics").roc_auc_score
    accuracy = float(np.mean([_accuracy(scores, targets) for scores in draws]))
    chosen = [scores[:, columns] for scores in draws]
    areas = [np.mean([area(*pair) for pair in zip(truth.T, scores.T, strict=True)]) for scores in chosen]
    mean, spread = float(np.mean(areas)), float(np.std(areas, ddof=1)) if len(areas) > 1 else math.nan
    if not bootstrap:
        return Scores(accuracy, mean, spread=spread)
    side_by_side = np.hstack(chosen), np.tile(truth, len(draws))
    low, high = bootstrap_interval(*side_by_side, bootstrap, seed, targets.val_groups)
    return Scores(accuracy, mean, low, high, spread)


def _accuracy(scores: FloatArray, targets: Targets) -> float:
    if targets.kind == "multilabel":
        return float(((scores > 0.5) == targets.val).mean())
    return float((scores.argmax(axis=1) == targets.val.argmax(axis=1)).mean())


def bootstrap_interval(
    scores: FloatArray, truth: BoolArray, resamples: int, seed: int = 0, groups: IntArray | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the mean AUROC over the columns, the groups drawn again with replacement.

    Args:
        scores: ``(M, K)``.
        truth: ``(M, K)``.
        resamples: how many draws.
        seed: of the draws.
        groups: ``(M,)``, numbers from 0 of whom each sample is of; each a group of its own if none.
    """
    members = np.arange(len(truth)) if groups is None else groups
    generator, count = np.random.default_rng(seed), int(members.max()) + 1
    block = max(1, BOOTSTRAP_BLOCK // len(truth))
    means = []
    for start in range(0, resamples, block):
        often = generator.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        drawn = often.T.astype(np.float64)[members].T  # in memory sample by sample, as it is read
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
    negatives, positives = np.flatnonzero(~truth), np.flatnonzero(truth)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    below = np.zeros((len(negatives) + 1, len(weights)))  # weight of the lowest negatives, by their number
    np.cumsum(weights.T[negatives], axis=0, out=below[1:])
    often, wins = weights.T[positives], np.zeros(len(weights))
    for side in ("left", "right"):  # half for those below, and half for those not above
        places = np.searchsorted(scores[negatives], scores[positives], side=side)
        wins += 0.5 * (often * below[places]).sum(axis=0)
    pairs = often.sum(axis=0) * below[-1]
    areas: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return areas


@dataclass(frozen=True)
class LabelledSet:
    """Features and what a probe has to know of each.

    Attributes:
        features: ``(N, C)`` on the CPU.
        labels: N labels as they stand in the shards.
        groups: whom each of the N samples is of.
    """

    features: Tensor
    labels: Sequence[Any]
    groups: Sequence[str]

    def take(self, kept: IntArray) -> "LabelledSet":
        """The samples with these indices."""
        labels, groups = [self.labels[place] for place in kept], [self.groups[place] for place in kept]
        return LabelledSet(self.features[torch.from_numpy(kept)], labels, groups)


def probe_metrics(config: ProbeConfig, train: LabelledSet, val: LabelledSet) -> dict[str, float]:
    """Both probes as metrics for a tracker: ``probe/auroc`` is the linear probe's with all labels.

    ``_low`` and ``_high`` end the names of 95 % intervals over the patients of ``val``, ``_spread`` that of the
    standard deviation over draws of few labels; ``probe/knn_k`` is the number of neighbours, see :func:`choose_k`, and
    ``probe/common_groups`` the share of ``val`` whose patients ``train`` has, too, see :func:`apart`.

    Args:
        config: neighbours, fractions, draws, resamples.
        train: what the probes learn from; of a patient that ``val`` has as well, nothing is learned.
        val: what they are judged on.

    Raises:
        RequestError: see :func:`apart`, :func:`shared_classes` and :func:`encode_labels`.
    """
    kept, common = apart(train.groups, val.groups)
    train = train.take(kept)
    learned, evaluated = shared_classes(train.labels, val.labels, config.label)
    train, val = train.take(learned), val.take(evaluated)
    groups = {"train_groups": train.groups, "val_groups": val.groups}
    targets = encode_labels(train.labels, val.labels, config.label, **groups)
    k = choose_k(train.features, targets, config.neighbours, config.temperature)
    features, resamples = (train.features, val.features), config.bootstrap
    nearest = knn_probe(*features, targets, k=k, temperature=config.temperature, bootstrap=resamples)
    metrics = {COMMON_GROUPS.name: common, KNN_ACCURACY.name: nearest.accuracy, KNN_K.name: float(k)}
    metrics |= _auroc_metrics(KNN_AUROC, "", nearest, config)
    for fraction, suffix in _fractions(config):
        linear = linear_probe(*features, targets, fraction=fraction, draws=config.label_draws, bootstrap=resamples)
        metrics |= {PROBE_ACCURACY.of(suffix): linear.accuracy}
        metrics |= _auroc_metrics(PROBE_AUROC, suffix, linear, config)
    return metrics


def _auroc_metrics(family: Metric, suffix: str, scores: Scores, config: ProbeConfig) -> dict[str, float]:
    ends = {"": scores.auroc, "_low": scores.low, "_high": scores.high, "_spread": scores.spread}
    found = {family.of(f"{suffix}{end}"): value for end, value in ends.items()}
    return {name: value for name, value in found.items() if name in probe_metric_names(config)}


def class_names(labels: Sequence[Any]) -> list[str]:
    """Labels as they stand in the shards, one name each: ``a|b`` for several classes, ``none`` for none."""
    return [SEPARATOR.join(sorted(_words(label))) or "none" for label in labels]


def probe_metric_names(config: ProbeConfig) -> list[str]:
    """Names of the figures that :func:`probe_metrics` gives."""
    interval = ("_low", "_high") if config.bootstrap else ()
    names = [COMMON_GROUPS.name, KNN_ACCURACY.name, KNN_K.name]
    names += [KNN_AUROC.of(end) for end in ("", *interval)]
    for fraction, suffix in _fractions(config):
        spread = ("_spread",) if fraction < 1 and config.label_draws > 1 else ()
        names.append(PROBE_ACCURACY.of(suffix))
        names += [PROBE_AUROC.of(f"{suffix}{end}") for end in ("", *interval, *spread)]
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
