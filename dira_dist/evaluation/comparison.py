"""Which start is better, by how much, and how sure that is: fits compared on the same test patients, seed by seed.

From each start the same network is fine-tuned with several fractions of the labels and several seeds. A seed is the
same for all starts: the same labels drawn, the same order of the samples. What is said of a start is of the mean over
its seeds, and could be another with other test patients as well as with other seeds. Both are drawn again, with
replacement, the same draws for all starts and fractions, so that differences are paired. Of ``S`` seeds ``S - 1`` are
drawn, which makes the variance of a mean of few seeds right on average (Rao & Wu, *JASA* 83, 1988).

The variance is the sum of that over draws of the patients and that over draws of the seeds. An interval of 95 % is the
value and, on both sides, the standard error times a mean of Student's t with the degrees of freedom of the patients and
with those of the seeds, weighted by how much of the variance comes from each (Cochran, *Biometrics* 20, 1964).
Percentiles of the draws would not do: with three seeds no draw goes beyond the outermost of the three. What one fit
happens to make of one patient is in both variances, so that intervals are rather too wide than too narrow: taking it
out of one of them (the components of a two-way layout; Owen, *Annals of Applied Statistics* 1, 2007) was tried, and
told equal starts apart in up to 10 % of the comparisons with three seeds, for what is taken out is as unsure.

Of a family of differences the p values are corrected (Holm, *Scandinavian Journal of Statistics* 6, 1979).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation.intervals import Figure, Floats, Resamples

Statistic = Callable[[Floats], Floats]
"""From means over the seeds of C cells, (M, C), to one number of each of M rows, (M,)."""

LEVEL = 0.05
_MOST_UNDEFINED = 0.025  # share of the draws that may say nothing
_ROUND_LEVELS = 0.005


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and the chance of one so far from 0 if it were 0; NaN where not defined."""

    value: float
    low: float
    high: float
    p: float

    @property
    def text(self) -> str:
        """As ``0.931 [0.912, 0.950]``."""
        return f"{self.value:.3f}{self._ends('.3f')}"

    @property
    def signed(self) -> str:
        """As ``+0.031 [+0.012, +0.050]``."""
        return f"{self.value:+.3f}{self._ends('+.3f')}"

    def _ends(self, form: str) -> str:
        return "" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class ResampledCells:
    """A figure of C cells with S seeds each, on the test set and on R draws of its patients.

    Attributes:
        values: (C, S) on the test set as it is.
        draws: (R, C, S) on each draw.
        seed_weights: (R, S) how much each seed counts in each draw; of sum 1.
        groups: how many patients the figure hangs on.
    """

    values: Floats
    draws: Floats
    seed_weights: Floats
    groups: int

    def estimate(self, statistic: Statistic) -> Estimate:
        """A number of the cells' means with its interval, see the module."""
        seeds = self.values.shape[1]
        value = float(statistic(self.values.mean(axis=1)[None])[0])
        by_patients = _variance(statistic(self.draws.mean(axis=2)))
        by_seeds = _variance(statistic(self.seed_weights @ self.values.T))
        sources = ((by_patients, self.groups - 1), (by_seeds, seeds - 1))
        return _interval(value, [(variance, max(1, freedom)) for variance, freedom in sources])


def resample_cells(
    cells: Sequence[Sequence[Figure]], groups: Sequence[str], *, draws: int, telling: int | None = None, seed: int = 0
) -> ResampledCells:
    """Measures every cell's fits on the test set and on draws of its patients, the same for all.

    Args:
        cells: of each of the C cells, its S figures, one for each seed, all over the same samples.
        groups: whom each of these samples is of.
        draws: how many.
        telling: how many groups the figure hangs on, such as those that are positive; all where left out.
        seed: of the draws.
    """
    counts = {len(cell) for cell in cells}
    assert len(counts) == 1 and counts != {1}, "as many seeds in each cell, and two at least"
    flat = {f"{cell}-{number}": each for cell, row in enumerate(cells) for number, each in enumerate(row)}
    once = np.ones((1, len(groups)))
    shape = (len(cells), counts.pop())
    values = np.array([float(figure(once)[0]) for figure in flat.values()]).reshape(shape)
    drawn = Resamples(groups, draws, seed).distributions(flat)
    stacked = np.stack([drawn[name] for name in flat], axis=1).reshape(draws, *shape)
    return ResampledCells(values, stacked, draw_seeds(shape[1], draws, seed), telling or len(set(groups)))


def draw_seeds(seeds: int, draws: int, seed: int = 0) -> Floats:
    """(R, S) how much each of S seeds counts in each draw: S - 1 of them, with replacement."""
    generator = np.random.default_rng((seed, seeds))
    often = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=draws)
    return np.asarray(often / (seeds - 1), dtype=np.float64)


def _variance(found: Floats) -> float:
    """Over the draws that say something; NaN where too many say nothing."""
    known = found[np.isfinite(found)]
    if len(known) < 2 or len(known) < (1 - _MOST_UNDEFINED) * len(found):
        return math.nan
    return float(known.var(ddof=1))


def _interval(value: float, sources: Sequence[tuple[float, int]]) -> Estimate:
    """Around a value whose variance is the sum of several, each with its degrees of freedom."""
    total = sum(variance for variance, _ in sources)
    if math.isnan(total) or math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    if total == 0:
        return Estimate(value, value, value, 1.0 if value == 0 else 0.0)
    shares = [(variance / total, freedom) for variance, freedom in sources]
    reach = _critical(0.05, shares) * math.sqrt(total)
    return Estimate(value, value - reach, value + reach, _chance(abs(value) / math.sqrt(total), shares))


def _critical(chance: float, shares: Sequence[tuple[float, int]]) -> float:
    """What is exceeded, on either side, with a chance."""
    from scipy.stats import t

    return float(sum(share * t.isf(chance / 2, freedom) for share, freedom in shares))


def _chance(found: float, shares: Sequence[tuple[float, int]]) -> float:
    """The chance with which :func:`_critical` gives what was found."""
    from scipy.optimize import brentq

    least = -60.0
    if found <= 0 or _critical(math.exp(least), shares) <= found:
        return 1.0 if found <= 0 else math.exp(least)
    return math.exp(brentq(lambda log: _critical(math.exp(log), shares) - found, least, 0.0))


def holm(chances: Sequence[float]) -> list[float]:
    """p values corrected for being several: with the smallest first, each times how many are left, and never falling.

    NaN stays NaN, and counts as a test that was made.
    """
    order = sorted(range(len(chances)), key=lambda place: (math.isnan(chances[place]), chances[place]))
    found, largest = [math.nan] * len(chances), 0.0
    for rank, place in enumerate(order):
        if not math.isnan(chances[place]):
            largest = max(largest, min(1.0, chances[place] * (len(chances) - rank)))
            found[place] = largest
    return found


def labels_to_reach(curves: Floats, labels: Floats, level: float) -> Floats:
    """(M,) log of the labels with which each of M learning curves first reaches a level.

    Between two amounts a curve is a line over the logarithm of the labels. NaN where it never reaches the level, or is
    there with the fewest labels already: how many fewer would do was not measured.

    Args:
        curves: (M, F) figures, of which more is better.
        labels: (F,) rising amounts.
        level: of the figure.
    """
    reached = curves >= level
    first = reached.argmax(axis=1)
    rows, before = np.arange(len(curves)), np.maximum(first - 1, 0)
    low, high, logs = curves[rows, before], curves[rows, first], np.log(labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = logs[before] + (logs[first] - logs[before]) * (level - low) / (high - low)
    return np.asarray(np.where(reached.any(axis=1) & (first > 0), places, np.nan))


@dataclass(frozen=True)
class LabelEfficiency:
    """How many times fewer labels a start needs than the first one.

    Attributes:
        level: of the figure that both reach.
        times: fewer labels; below 1: more.
    """

    level: float
    times: Estimate

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is on one side of 1."""
        return self.times.low > 1 or self.times.high < 1


@dataclass(frozen=True)
class ComparedCell:
    """A start with a fraction of the labels.

    Attributes:
        start: its name.
        fraction: of the labels.
        by_seed: the figure of each seed's fit.
        mean: over the seeds.
        difference: to the first start with the same fraction, paired; none of the first start itself.
        p_corrected: of the difference, corrected for all differences of the comparison (Holm).
    """

    start: str
    fraction: float
    by_seed: tuple[float, ...]
    mean: Estimate
    difference: Estimate | None = None
    p_corrected: float = math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return float(np.std(self.by_seed, ddof=1))

    @property
    def differs(self) -> bool:
        """Whether it is told apart from the first start."""
        return self.p_corrected < LEVEL


@dataclass(frozen=True)
class ComparedStarts:
    """What a comparison found in one figure, of which more is better.

    Attributes:
        cells: of all starts and fractions; the first start first.
        efficiency: of each other start, where both curves reach a level in between.
    """

    cells: tuple[ComparedCell, ...]
    efficiency: Mapping[str, LabelEfficiency] = field(default_factory=dict)

    @property
    def starts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.start for cell in self.cells))

    @property
    def fractions(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(cell.fraction for cell in self.cells))

    def of(self, start: str) -> list[ComparedCell]:
        """The cells of a start, from the fewest labels on."""
        return [cell for cell in self.cells if cell.start == start]


def compare_starts(
    figures: Mapping[str, Mapping[float, Sequence[Figure]]],
    groups: Sequence[str],
    labels: Mapping[float, float],
    *,
    draws: int,
    telling: int | None = None,
) -> ComparedStarts:
    """Compares all starts with the first one.

    Args:
        figures: by start and fraction, of each seed's fit, over the same samples; more is better. All starts have the
            same fractions, and all cells the same seeds in the same order.
        groups: whom each sample is of.
        labels: amount of labels by fraction.
        draws: of patients and seeds.
        telling: how many groups the figure hangs on; all where left out.
    """
    starts, fractions = list(figures), sorted(labels)
    found = resample_cells(
        [figures[start][fraction] for start in starts for fraction in fractions], groups, draws=draws, telling=telling
    )
    places = {(start, fraction): number for number, (start, fraction) in enumerate(_pairs(starts, fractions))}
    differences = {
        pair: found.estimate(_minus(place, places[starts[0], pair[1]]))
        for pair, place in places.items()
        if pair[0] != starts[0]
    }
    corrected = dict(zip(differences, holm([each.p for each in differences.values()]), strict=True))
    cells = tuple(
        ComparedCell(
            start=pair[0],
            fraction=pair[1],
            by_seed=tuple(found.values[place].tolist()),
            mean=found.estimate(_one(place)),
            difference=differences.get(pair),
            p_corrected=corrected.get(pair, math.nan),
        )
        for pair, place in places.items()
    )
    amounts, count = np.array([labels[fraction] for fraction in fractions]), len(fractions)
    efficient = {
        start: efficiency
        for number, start in enumerate(starts[1:], start=1)
        if (efficiency := label_efficiency(found, slice(number * count, (number + 1) * count), amounts)) is not None
    }
    return ComparedStarts(cells, efficient)


def estimate_means(
    figures: Mapping[tuple[str, float], Sequence[Figure]], groups: Sequence[str], *, draws: int
) -> dict[tuple[str, float], Estimate]:
    """The mean over the seeds of a figure of each start and fraction, see :func:`compare_starts`."""
    found = resample_cells(list(figures.values()), groups, draws=draws)
    return {cell: found.estimate(_one(place)) for place, cell in enumerate(figures)}


def _pairs(starts: Sequence[str], fractions: Sequence[float]) -> Iterator[tuple[str, float]]:
    return ((start, fraction) for start in starts for fraction in fractions)


def _one(place: int) -> Statistic:
    return lambda means: means[:, place]


def _minus(place: int, other: int) -> Statistic:
    return lambda means: means[:, place] - means[:, other]


def label_efficiency(found: ResampledCells, cells: slice, labels: Floats) -> LabelEfficiency | None:
    """By how many times fewer labels a start reaches what the first one reaches.

    Compared is the highest round level that both curves cross between the fewest and the most labels, on the test set
    and in all draws but 2.5 %: what lies outside was not measured. None where there is no such level.

    Args:
        found: of all cells; those of the first start come first, in the order of their labels.
        cells: those of the start.
        labels: (F,) rising.
    """
    count = len(labels)
    means = found.values.mean(axis=1)
    lowest = max(means[:count].min(), means[cells].min())
    highest = min(means[:count].max(), means[cells].max())
    if not lowest < highest:  # NaN, too
        return None
    steps = range(math.floor(highest / _ROUND_LEVELS), math.floor(lowest / _ROUND_LEVELS), -1)
    for level in (round(step * _ROUND_LEVELS, 6) for step in steps):
        times = found.estimate(_log_ratio(cells, labels, level))
        if not math.isnan(times.low):
            ends = (math.exp(times.value), math.exp(times.low), math.exp(times.high))
            return LabelEfficiency(level, Estimate(*ends, times.p))
    return None


def _log_ratio(cells: slice, labels: Floats, level: float) -> Statistic:
    count = len(labels)
    return lambda means: (
        labels_to_reach(means[:, :count], labels, level) - labels_to_reach(means[:, cells], labels, level)
    )


def aligned(keys: Sequence[Sequence[str]]) -> tuple[list[str], list[npt.NDArray[np.int64]]]:
    """The keys that all tables have, in order, and the rows where each table has them."""
    common = sorted(set.intersection(*(set(each) for each in keys)))
    places = [{key: row for row, key in enumerate(each)} for each in keys]
    return common, [np.array([place[key] for key in common], dtype=np.int64) for place in places]
