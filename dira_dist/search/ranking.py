"""Which trials are best, by how much they beat the published weights, and how sure that is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from dira_dist.search.config import Mode
from dira_dist.search.ledger import Trial, of_search

CONFIRMED = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Goal:
    """By what trials are judged: figures, and for each whether more or less of it is better. The first one leads."""

    metrics: tuple[str, ...]
    modes: tuple[Mode, ...]

    def scores(self, metrics: Mapping[str, float]) -> tuple[float, ...] | None:
        """The figures with their signs turned so that more is better; none where one is missing or is no number."""
        if any(not math.isfinite(metrics.get(name, math.nan)) for name in self.metrics):
            return None
        return tuple(
            metrics[name] * (1 if mode == "max" else -1) for name, mode in zip(self.metrics, self.modes, strict=True)
        )


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """At least as good everywhere, and better somewhere; scores of which more is better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def fronts(trials: Sequence[Trial], goal: Goal) -> Iterator[list[Trial]]:
    """Finished trials in layers: those that no other dominates, then those that only the first layer dominates, ...

    With one metric each layer is one value. The order inside a layer is by the first metric, then by number.
    """
    scored = {
        trial.name: (trial, goal.scores(trial.metrics)) for trial in of_search(trials) if trial.status == "finished"
    }
    left = {name: (trial, scores) for name, (trial, scores) in scored.items() if scores is not None}
    while left:
        layer = [
            (trial, scores)
            for trial, scores in left.values()
            if not any(dominates(other, scores) for _, other in left.values())
        ]
        yield [trial for trial, _ in sorted(layer, key=lambda each: (-each[1][0], each[0].number))]
        for trial, _ in layer:
            del left[trial.name]


def ranked(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Finished trials of the search, best first."""
    return [trial for layer in fronts(trials, goal) for trial in layer]


@dataclass(frozen=True)
class Comparison:
    """A configuration beside the published weights on the same further seeds, in one figure.

    Attributes:
        mean: of the configuration over the seeds.
        difference: mean of the differences seed by seed; its sign says which is larger, not which is better.
        low: lower end of the 95 % interval of that mean (Student's t over the seeds); NaN for a single seed.
        high: upper end.
        better: seeds on which the configuration was better.
        seeds: how many there are.
        mode: whether more of the figure is better.
    """

    mean: float
    difference: float
    low: float
    high: float
    better: int
    seeds: int
    mode: Mode

    @property
    def sure(self) -> bool:
        """Whether the whole interval lies on the better side."""
        return self.low > 0 if self.mode == "max" else self.high < 0

    def words(self) -> str:
        """Difference, interval and seeds for the table."""
        interval = "" if math.isnan(self.low) else f" [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.difference:+.4f}{interval}, better on {self.better} of {self.seeds} seeds"


def compare(values: Mapping[int, float], published: Mapping[int, float], mode: Mode) -> Comparison | None:
    """Paired over the seeds that both have, or none where there is no such seed.

    The search's own seed takes no part: of many trials the best one is also the luckiest one on that seed.

    Args:
        values: the configuration's figure by seed.
        published: that of the published weights.
        mode: whether more is better.
    """
    seeds = sorted(values.keys() & published.keys())
    if not seeds:
        return None
    differences = [values[seed] - published[seed] for seed in seeds]
    mean = fmean(differences)
    half = math.nan
    if len(seeds) > 1:
        half = float(student.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * stdev(differences) / math.sqrt(len(seeds))
    better = sum(difference > 0 if mode == "max" else difference < 0 for difference in differences)
    return Comparison(fmean(values[seed] for seed in seeds), mean, mean - half, mean + half, better, len(seeds), mode)


@dataclass(frozen=True)
class Ranking:
    """What a search found.

    Attributes:
        goal: by what it judged.
        best: finished trials, best first.
        front: names of those that no other dominates.
        comparisons: by name of a repeated trial and metric.
        winner: the trial whose weights are kept.
    """

    goal: Goal
    best: list[Trial]
    front: frozenset[str]
    comparisons: dict[str, dict[str, Comparison]]
    winner: Trial

    def table(self) -> Iterator[str]:
        """Markdown: a row for each trial that was trained to its end, the best first."""
        keys = list(dict.fromkeys(key for trial in self.best for key in trial.params))
        against = [f"{metric} against published" for metric in self.goal.metrics]
        head = ["trial", *keys, *self.goal.metrics, *against, ""]
        yield _row(head)
        yield _row(["---"] * len(head))
        for trial in self.best:
            figures = [f"{trial.metrics[metric]:.4f}" for metric in self.goal.metrics]
            sure = [self._against(trial, metric) for metric in self.goal.metrics]
            yield _row(
                [
                    str(trial.number),
                    *(_short(trial.params.get(key)) for key in keys),
                    *figures,
                    *sure,
                    self._note(trial),
                ]
            )

    def _against(self, trial: Trial, metric: str) -> str:
        comparison = self.comparisons.get(trial.name, {}).get(metric)
        return comparison.words() if comparison is not None and trial.number else ""

    def _note(self, trial: Trial) -> str:
        notes = ["published weights"] if trial.number == 0 else []
        notes += ["**winner**"] if trial.name == self.winner.name else []
        notes += ["on the front"] if trial.name in self.front and len(self.goal.metrics) > 1 else []
        return ", ".join(notes)

    def verdict(self) -> str:
        """In one sentence, what the search is worth."""
        metric = self.goal.metrics[0]
        if self.winner.number == 0:
            return f"nothing that was tried beats the published weights by {metric}"
        comparison = self.comparisons.get(self.winner.name, {}).get(metric)
        what = f"trial {self.winner.number} against the published weights by {metric}"
        if comparison is None:
            return f"{what}: one seed each, not confirmed (search.confirm_seeds)"
        certainty = "sure at 95 %" if comparison.sure else "not sure at 95 %"
        return f"{what}: {comparison.words()}: {certainty}"


def candidates(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The trials to repeat with further seeds: the best three, and the published weights to compare them with."""
    best = ranked(trials, goal)
    published = [trial for trial in best if trial.number == 0]
    leaders = [trial for trial in best if trial.number != 0][:CONFIRMED]
    return published + leaders if published else leaders


def conclude(trials: Sequence[Trial], goal: Goal) -> Ranking | None:
    """The ranking of all that is known, or none where no trial finished.

    The winner is the one with the best mean over the further seeds; without them, the first of the ranking.
    """
    best = ranked(trials, goal)
    if not best:
        return None
    by_seed = {trial.name: _by_seed(trials, trial.number) for trial in candidates(trials, goal)}
    published = next((by_seed[trial.name] for trial in best if trial.number == 0), {})
    comparisons = {
        name: {
            metric: comparison
            for metric, mode in zip(goal.metrics, goal.modes, strict=True)
            if (comparison := compare(_one(runs, metric), _one(published, metric), mode)) is not None
        }
        for name, runs in by_seed.items()
    }
    front = frozenset(trial.name for trial in next(fronts(trials, goal)))
    return Ranking(goal, best, front, comparisons, _winner(best, goal, comparisons))


def _winner(best: Sequence[Trial], goal: Goal, comparisons: Mapping[str, Mapping[str, Comparison]]) -> Trial:
    """Among the repeated, by the first metric; ties to the better one of the search."""
    sign = 1 if goal.modes[0] == "max" else -1
    means = {
        name: sign * found[goal.metrics[0]].mean for name, found in comparisons.items() if goal.metrics[0] in found
    }
    repeated = [trial for trial in best if trial.name in means]
    return max(repeated, key=lambda trial: means[trial.name]) if repeated else best[0]


def _by_seed(trials: Sequence[Trial], number: int) -> dict[int, dict[str, float]]:
    repeats = (trial for trial in trials if trial.number == number and trial.status == "finished")
    return {trial.seed: trial.metrics for trial in repeats if trial.seed is not None}


def _one(by_seed: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
    values = {seed: metrics.get(metric, math.nan) for seed, metrics in by_seed.items()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
