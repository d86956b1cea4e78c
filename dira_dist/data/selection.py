"""Which samples of a set a training gets: fractions, folds and weights, as arithmetic of hashes.

A *fraction* is the beginning of one order of all units, which are groups (patients) or images; the order depends on the
seed and not on the fraction, so fractions of one seed lie within each other. In it stands first, for each class that no
unit before holds, from the rarest class on, one unit that holds it; a fraction is never shorter than that. The others
follow such that any beginning has about its share of each stratum, that is of each combination of classes: the ``i``-th
of the ``m`` units of a stratum, in a drawn order, stands at ``(i + u) / m`` with one drawn ``u`` in [0, 1).

*Folds* are dealt out by group, in the manner of iterative stratification (Sechidis, Tsoumakas & Vlahavas, ECML PKDD
2011) with groups in place of single samples: from the rarest class on, each group that holds it, the largest first,
goes to the fold that lacks most of the class, or, among equals, most samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.pieces import Places
from dira_dist.data.splitmix import Drawn, Int64s, drawn, permutation

Bools = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]
Unit = Literal["group", "image"]

_RESOLUTION = 1 << 40  # of the drawn place of a stratum


@dataclass(frozen=True)
class Selection:
    """Some samples of a set, for a stream over them; goes to loader processes as it is.

    Attributes:
        ids: ``(n,)`` places in the set.
        weights: ``(n,)`` how often each is drawn, in proportion; none: each once in an epoch.
        places: of all samples of the set, so that what is not selected is not read; none: shards are read through.
    """

    ids: Int64s
    weights: Weights | None = None
    places: Places | None = None


@dataclass(frozen=True)
class Draw:
    """A fraction of a set.

    Attributes:
        ids: ``(n,)`` of the samples, rising.
        units, all_units: groups (or images) that were drawn, and of how many.
        positives: ``(K,)`` samples among them that hold each class.
        missing: columns of the classes that no sample of the set holds.
    """

    ids: Int64s
    units: int
    all_units: int
    positives: Int64s
    missing: tuple[int, ...]


def draw_fraction(
    groups: Sequence[str], classes: npt.NDArray[Any], fraction: float, seed: int, *, by: Unit = "group"
) -> Draw:
    """Some of the samples, such that smaller fractions of the same seed lie within larger ones.

    At least one unit is drawn, and for each class one that holds it, where any does.

    Args:
        groups: of the N samples; not looked at where images are drawn.
        classes: ``(N, K)`` whether each sample holds each class; unknown counts as not.
        fraction: of the units, above 0 and up to 1.
        seed: of the draw.
        by: whether groups or images are drawn.

    Raises:
        RequestError: the fraction is no share.
    """
    if not 0 < fraction <= 1:
        raise RequestError(f"the fraction {fraction:g} is no share of the samples; choose one above 0 and up to 1.")
    held: Bools = np.asarray(classes, dtype=bool)
    units = np.arange(len(held)) if by == "image" else _numbers(groups)
    held_by = _held_by(units, held)
    order, fewest = _nested_order(held_by, seed)
    count = min(len(order), max(1, fewest, int(fraction * len(order) + 0.5)))
    taken = np.zeros(len(order), dtype=bool)
    taken[order[:count]] = True
    ids: Int64s = np.flatnonzero(taken[units])
    missing = tuple(np.flatnonzero(~held.any(axis=0)).tolist())
    return Draw(ids, count, len(order), held[ids].sum(axis=0), missing)


def _numbers(groups: Sequence[str]) -> Int64s:
    """``(N,)`` a number for each group, in the order of their names."""
    return np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _held_by(units: Int64s, held: Bools) -> Bools:
    """``(U, K)`` whether any sample of a unit holds a class."""
    found = np.zeros((int(units.max(initial=-1)) + 1, held.shape[1]), dtype=bool)
    np.logical_or.at(found, units, held)
    return found


def _nested_order(held_by: Bools, seed: int) -> tuple[Int64s, int]:
    """``(U,)`` the order of all units, and the length of its beginning that holds all classes which any holds."""
    order = _stratified_order(held_by, seed)
    front: list[int] = []
    for column in np.argsort(held_by.sum(axis=0), kind="stable"):
        holders = order[held_by[order, column]]
        if len(holders) and not held_by[front, column].any():
            front.append(int(holders[0]))
    rest = order[~np.isin(order, front)]
    return np.concatenate([np.array(front, dtype=np.int64), rest]), len(front)


def _stratified_order(held_by: Bools, seed: int) -> Int64s:
    """``(U,)`` units such that any beginning has about its share of each combination of classes."""
    _, strata = np.unique(held_by, axis=0, return_inverse=True)
    at_random = permutation(len(held_by), seed, Drawn.FRACTION)
    places = np.zeros(len(held_by))
    for number in range(int(strata.max(initial=-1)) + 1):
        members = at_random[strata.ravel()[at_random] == number]
        start = drawn(_RESOLUTION, seed, Drawn.FRACTION_START, number) / _RESOLUTION
        places[members] = (np.arange(len(members)) + start) / len(members)
    return at_random[np.argsort(places[at_random], kind="stable")]


def draw_folds(groups: Sequence[str], classes: npt.NDArray[Any], folds: int, seed: int) -> Int64s:
    """``(N,)`` the fold of each sample, from 0 on; all samples of a group are in one fold, and each fold has a group.

    Args:
        groups: of the N samples.
        classes: ``(N, K)`` whether each sample holds each class; unknown counts as not.
        folds: how many.
        seed: of ties.

    Raises:
        RequestError: there are fewer than two folds, or fewer groups than folds.
    """
    units, held = _numbers(groups), np.asarray(classes, dtype=bool)
    count = int(units.max(initial=-1)) + 1
    if folds < 2:
        raise RequestError(f"{folds} fold(s) leave nothing to validate on; choose 2 or more.")
    if count < folds:
        raise RequestError(f"{count} groups (patients) cannot fill {folds} folds; choose {count} folds at most.")
    sums = np.zeros((count, held.shape[1] + 1), dtype=np.int64)
    np.add.at(sums, units, np.column_stack([held, np.ones(len(held), dtype=bool)]))
    return _dealt_out(sums, folds, seed)[units]


def _dealt_out(sums: Int64s, folds: int, seed: int) -> Int64s:
    """``(U,)`` the fold of each unit.

    Args:
        sums: ``(U, K + 1)`` samples of each unit that hold each class; last, all its samples.
        folds: how many.
        seed: of ties.
    """
    fold_of: Int64s = np.full(len(sums), -1, dtype=np.int64)
    lacking = np.tile(sums.sum(axis=0) / folds, (folds, 1))
    at_random, ties = permutation(len(sums), seed, Drawn.FOLD_UNITS), permutation(folds, seed, Drawn.FOLDS)
    while (open_ := fold_of[at_random] < 0).any():
        waiting = at_random[open_]
        column = _rarest(sums[waiting])
        holders = waiting[sums[waiting, column] > 0]
        for unit in holders[np.argsort(-sums[holders, column], kind="stable")]:
            fold_of[unit] = np.lexsort((ties, -lacking[:, -1], -lacking[:, column]))[0]
            lacking[fold_of[unit]] -= sums[unit]
    return fold_of


def _rarest(sums: Int64s) -> int:
    """The class of which there are fewest samples but some; the last column, all samples, where there is none."""
    totals = sums[:, :-1].sum(axis=0)
    return int(np.argmin(np.where(totals > 0, totals, np.iinfo(np.int64).max))) if totals.any() else -1


def common_groups(ones: Sequence[str], others: Sequence[str], most: int = 5) -> tuple[int, tuple[str, ...]]:
    """How many groups two sets have in common, and the first few of them."""
    common = sorted(set(ones) & set(others))
    return len(common), tuple(common[:most])


def balanced_weights(classes: npt.NDArray[Any], most_ratio: float = 20.0) -> Weights:
    """``(N,)`` how often each sample is to be drawn: by the rarest class that it holds, of mean 1.

    A weight is in proportion to one over the samples of that class; samples that hold none are a class of their own.

    Args:
        classes: ``(N, K)`` whether each sample holds each class; unknown counts as not.
        most_ratio: between the largest weight and the smallest.
    """
    assert most_ratio >= 1, most_ratio
    held: Bools = np.asarray(classes, dtype=bool)
    held = np.column_stack([held, ~held.any(axis=1)])
    weights = (held / np.maximum(1, held.sum(axis=0))).max(axis=1)
    weights = np.minimum(weights, most_ratio * weights.min())
    return np.asarray(weights / weights.mean(), dtype=np.float64)
