"""Which trials are best, by how much they beat the published weights, and how sure that is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from dira_dist.metrics import Mode
from dira_dist.search.trial import Trial, of_search

CONFIRMED = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Goal:
    """By what trials are evaluated: figures, and for each whether more or less of it is better. The first one leads."""

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
    """Trials that were evaluated at their end in layers: what no other dominates, then what only these do, ...

    With one metric each layer is one value. The order inside a layer is by the first metric, then by number.
    """
    scored = {trial.name: (trial, goal.scores(trial.metrics)) for trial in of_search(trials) if trial.evaluated_at_end}
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
    """Trials of the search that were evaluated at their end, best first."""
    return [trial for layer in fronts(trials, goal) for trial in layer]


@dataclass(frozen=True)
class Comparison:
    """A configuration beside the published weights on the same further seeds, in one figure.

    Attributes:
        difference: mean of the differences seed by seed; its sign says which is larger, not which is better.
        low: lower end of the 95 % interval of that mean (Student's t over the seeds); NaN for a single seed.
        high: upper end.
        better: seeds on which the configuration was better.
        seeds: how many there are.
        mode: whether more of the figure is better.
    """

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
        from scipy.stats import t as student

        half = float(student.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * stdev(differences) / math.sqrt(len(seeds))
    better = sum(difference > 0 if mode == "max" else difference < 0 for difference in differences)
    return Comparison(mean, mean - half, mean + half, better, len(seeds), mode)


@dataclass(frozen=True)
class Ranking:
    """What a search found.

    Attributes:
        goal: by what it evaluated.
        best: trials that were evaluated at their end, best first.
        front: names of those that no other dominates.
        comparisons: by name of a repeated trial and metric, with the published weights.
        means: by name of a repeated trial, its first metric's mean over the further seeds that all repeated ones have.
        shared_seeds: how many these are.
        winner: the trial whose weights are kept.
        unranked: trials that were trained to their end and not evaluated there.
    """

    goal: Goal
    best: list[Trial]
    front: frozenset[str]
    comparisons: dict[str, dict[str, Comparison]]
    means: dict[str, float]
    shared_seeds: int
    winner: Trial
    unranked: list[Trial]

    def table(self) -> Iterator[str]:
        """Markdown: a row for each trial that was evaluated at its end, the best first."""
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

    def notes(self) -> Iterator[str]:
        """What the table leaves out, in words."""
        for trial in self.unranked:
            what = f"trial {trial.number}" + (f" with seed {trial.seed}" if trial.seed is not None else "")
            yield f"{what}: {trial.not_evaluated_at_end}; it is not ranked"

    def verdict(self) -> str:
        """The result of the search in one sentence."""
        metric, name = self.goal.metrics[0], self.winner.name
        if self.winner.number == 0:
            return f"nothing that was tried beats the published weights by {metric}"
        comparison = self.comparisons.get(name, {}).get(metric)
        if comparison is not None:
            certainty = "sure at 95 %" if comparison.sure else "not sure at 95 %"
            what = f"trial {self.winner.number} against the published weights by {metric}"
            return f"{what}: {comparison.words()}: {certainty}"
        if name in self.means:
            figure = f"mean {self.means[name]:.4f} over {self.shared_seeds} further seeds"
        else:
            figure = f"{self.winner.metrics[metric]:.4f} on one seed, not confirmed (search.confirm_seeds)"
        return f"trial {self.winner.number} is the best by {metric}: {figure}{self._without_yardstick}"

    @property
    def _without_yardstick(self) -> str:
        """That nothing can be said against the published weights, where that is so."""
        published = next((trial for trial in self.best if trial.number == 0), None)
        if published is None:
            return "; the published weights were not evaluated at their end, so that nothing is compared with them"
        if self.means and published.name not in self.means:
            return "; no repetition of the published weights was evaluated at its end, so nothing is compared with them"
        return ""


def candidates(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The trials to repeat with further seeds: the best three, and the published weights to compare them with."""
    best = ranked(trials, goal)
    published = [trial for trial in best if trial.number == 0]
    leaders = [trial for trial in best if trial.number != 0][:CONFIRMED]
    return published + leaders if published else leaders


def conclude(trials: Sequence[Trial], goal: Goal) -> Ranking | None:
    """The ranking of all that is known, or none where no trial was evaluated at its end.

    The winner is the one with the best mean over the further seeds that all repeated trials have; without such seeds,
    the first of the ranking. Whether the published weights are among the repeated does not matter to that.
    """
    best = ranked(trials, goal)
    if not best:
        return None
    by_seed = {trial.name: _by_seed(trials, trial.number) for trial in candidates(trials, goal)}
    means, shared_seeds = _means({name: _one(runs, goal.metrics[0]) for name, runs in by_seed.items()})
    return Ranking(
        goal=goal,
        best=best,
        front=frozenset(trial.name for trial in next(fronts(trials, goal))),
        comparisons=_with_published(by_seed, best, goal),
        means=means,
        shared_seeds=shared_seeds,
        winner=_winner(best, goal, means),
        unranked=[trial for trial in trials if trial.not_evaluated_at_end],
    )


def _with_published(
    by_seed: Mapping[str, Mapping[int, dict[str, float]]], best: Sequence[Trial], goal: Goal
) -> dict[str, dict[str, Comparison]]:
    published = next((by_seed[trial.name] for trial in best if trial.number == 0), {})
    return {
        name: {
            metric: comparison
            for metric, mode in zip(goal.metrics, goal.modes, strict=True)
            if (comparison := compare(_one(runs, metric), _one(published, metric), mode)) is not None
        }
        for name, runs in by_seed.items()
    }


def _means(by_seed: Mapping[str, Mapping[int, float]]) -> tuple[dict[str, float], int]:
    """Means over the seeds that all have who have any, and how many these are; no means where they share none."""
    repeated = {name: values for name, values in by_seed.items() if values}
    shared = set.intersection(*(set(values) for values in repeated.values())) if repeated else set()
    if not shared:
        return {}, 0
    return {name: fmean(values[seed] for seed in shared) for name, values in repeated.items()}, len(shared)


def _winner(best: Sequence[Trial], goal: Goal, means: Mapping[str, float]) -> Trial:
    """Among the repeated, by the first metric; ties to the better one of the search."""
    sign = 1 if goal.modes[0] == "max" else -1
    repeated = [trial for trial in best if trial.name in means]
    return max(repeated, key=lambda trial: sign * means[trial.name]) if repeated else best[0]


def _by_seed(trials: Sequence[Trial], number: int) -> dict[int, dict[str, float]]:
    repeats = (trial for trial in trials if trial.number == number and trial.evaluated_at_end)
    return {trial.seed: trial.metrics for trial in repeats if trial.seed is not None}


def _one(by_seed: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
    values = {seed: metrics.get(metric, math.nan) for seed, metrics in by_seed.items()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
