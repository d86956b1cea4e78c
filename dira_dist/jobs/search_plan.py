"""What can be known of a search before anything starts: its figures, its space, its rungs. Reads, never writes."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from dira_dist.config import RequestError, flatten
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedJob, LoadedSearch
from dira_dist.jobs.preflight import Preflight, preflight, steps_of
from dira_dist.metrics import Mode, find
from dira_dist.search.config import Dimension
from dira_dist.search.ranking import CONFIRMED, Goal
from dira_dist.search.rungs import Rungs, plan_rungs
from dira_dist.search.suggestions import distributions

WEIGHTS = "loss_weights."
FIXED = {
    "seed": "search.confirm_seeds repeats the best with other seeds",
    "name": "trials are named by the search",
    "kind": "trials are pretraining jobs",
    "data.train": "figures of trials on other images cannot be compared",
    "data.val": "figures of trials that are evaluated by other images cannot be compared",
    "data.folds": "figures of trials that are evaluated by other images cannot be compared",
    "data.fold": "figures of trials that are evaluated by other images cannot be compared",
    "probe": "figures of trials that are evaluated by other probes cannot be compared",
    "evaluation": "trials are evaluated at the same steps",
    "resources": "trials run alike",
    "checkpoint": "trials lie under the search's storage",
    "tracking": "trials are recorded beside each other",
}


@dataclass(frozen=True)
class SearchPlan:
    """A search that can run, and what it will do.

    Attributes:
        facts: of its base.
        goal: by what it evaluates.
        space: by dotted key, in Optuna's terms.
        published: values of the first trial.
        rungs: where trials are compared and stopped; none where all are trained to their end.
    """

    loaded: LoadedSearch
    facts: Preflight
    goal: Goal
    space: Mapping[str, BaseDistribution]
    published: Mapping[str, Any]
    rungs: Rungs | None

    @property
    def most_trials(self) -> int:
        """Trials and repetitions, if as many as possible are repeated."""
        search = self.loaded.search
        return search.trials + search.confirm_seeds * min(search.trials, CONFIRMED + 1)

    @property
    def written(self) -> Mapping[str, Any]:
        """All of the job that trials are made of, as it is written."""
        return self.loaded.base

    def tags(self) -> dict[str, str]:
        """Of the parent's run in MLflow, and of the trials' runs."""
        return {"dira.search": self.loaded.job.name}

    def trial(self, name: str, params: Mapping[str, Any], seed: int | None = None) -> LoadedJob:
        """A trial as a pretraining job: evaluated at the rungs, registered nowhere.

        A repetition with another seed is stopped by nothing, and evaluated as often as the base says.

        Raises:
            RequestError: if its values together make no valid job.
        """
        values: dict[str, Any] = dict(params) | {"tracking.register_as": None}
        if seed is not None:
            values["seed"] = seed
        elif self.rungs is not None:
            values["evaluation.every_steps"] = self.rungs.evaluate_every_steps
        return self.loaded.trial(name, values)

    def steps(self, job: TrainingJob) -> int:
        """Optimiser steps of a trial; its batch may be another than the base's, and with it its lanes and epochs."""
        return steps_of(job, self.facts)

    def winner(self, params: Mapping[str, Any]) -> LoadedJob:
        """The base with these values, under its own name: a complete job."""
        return self.loaded.trial(self.loaded.winner_name, params)

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it: a trial, then the search."""
        search = self.loaded.search
        yield from self.facts.lines()
        goals = [f"{metric} ({mode})" for metric, mode in zip(self.goal.metrics, self.goal.modes, strict=True)]
        yield f"evaluated   by {', '.join(goals)}"
        for key, dimension in search.space.items():
            values = dimension.choices and " | ".join(map(str, dimension.choices))
            yield f"space    {key}: {values or f'{dimension.low:g} to {dimension.high:g}, {dimension.scale}'}"
        yield f"trials   {search.trials}, the first with {_words(self.published)}; then at most {self._repetitions}"
        stops = f"at steps {', '.join(map(str, self.rungs.steps))}" if self.rungs else "none"
        yield f"stopping {stops}"

    @property
    def _repetitions(self) -> str:
        return (
            f"{self.most_trials - self.loaded.search.trials} repetitions with {self.loaded.search.confirm_seeds} seeds"
        )


def plan_search(loaded: LoadedSearch) -> SearchPlan:
    """Check a search and everything that its base names.

    Raises:
        RequestError: see :func:`dira_dist.jobs.preflight.preflight`; and for a figure that nobody reports, a key that
            is none or that no stage takes, values that the job refuses, workers without a fixed number.
    """
    goal = _goal(loaded)
    loaded.check_workers()
    facts = preflight(loaded.job.resolve_paths())
    now = flatten(loaded.job.model_dump(mode="json"))
    for key, dimension in loaded.search.space.items():
        _check_key(key, now, goal)
        _check_kind(key, dimension, now[key])
    jobs = [job for key, dimension in loaded.search.space.items() for job in _ends(loaded, key, dimension)]
    shortest = min(steps_of(job, facts) for job in [loaded.job, *jobs])
    return SearchPlan(
        loaded=loaded,
        facts=facts,
        goal=goal,
        space=distributions(loaded.search.space, now),
        published=_published(loaded, now),
        rungs=plan_rungs(loaded.search, shortest, loaded.job.evaluation.every_steps),
    )


def _goal(loaded: LoadedSearch) -> Goal:
    search, job = loaded.search, loaded.job
    known = job.reported_metrics()
    if not known:
        raise RequestError(
            "base: neither base.probe nor base.data.val is given, so nothing compares the trials; add one"
        )
    metrics = search.metrics or (job.main_metric(),)
    for metric in metrics:
        if metric not in known:
            near = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RequestError(f"search.metric: nobody reports {metric!r} here; {hint}known: {', '.join(known)}")
    natural: tuple[Mode, ...] = tuple(map(job.better, metrics))
    return Goal(metrics, search.modes or natural)


def _check_key(key: str, now: Mapping[str, Any], goal: Goal) -> None:
    """Refuses what is no key of the job, and what all trials have in common."""
    place = f"search.space.{key}"
    for fixed, reason in FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise RequestError(f"{place}: this key is the same in all trials: {reason}; leave it out of the space")
    if key.startswith("views.") and (
        measured := [name for name in goal.metrics if (found := find(name)) and found.of_views]
    ):
        raise RequestError(f"{place}: {measured[0]} is measured on what base.views makes; take another metric")
    if key in now:
        return
    if below := [known for known in now if known.startswith(f"{key}.")]:
        raise RequestError(f"{place}: this is a section; name one of its keys: {', '.join(below)}")
    near = difflib.get_close_matches(key, now, n=1)
    raise RequestError(f"{place}: base has no such key; {f'did you mean {near[0]!r}?' if near else 'see base'}")


def _check_kind(key: str, dimension: Dimension, now: Any) -> None:
    if dimension.choices is None and (isinstance(now, bool | str | list) or now is None):
        raise RequestError(f"search.space.{key}: the base has {now!r} there, which is no number; give choices")


def _ends(loaded: LoadedSearch, key: str, dimension: Dimension) -> list[TrainingJob]:
    """The base with each end of the key's range, or each of its choices: valid jobs, and different ones."""
    whole = isinstance(flatten(loaded.job.model_dump(mode="json"))[key], int)
    values = dimension.choices or (dimension.low, dimension.high)
    jobs = []
    for value in values:
        end = int(value) if whole and isinstance(value, float) else value
        try:
            jobs.append(loaded.trial(loaded.job.name, {key: end}).job)
        except RequestError as error:
            raise RequestError(f"search.space.{key}: {end!r} is refused: {error}") from error
    if key.startswith((WEIGHTS, "optimizer.", "stages.")) and _effect(jobs[0]) == _effect(jobs[1]):
        raise RequestError(
            f"search.space.{key}: no stage takes it from there: stages without this objective do not, nor do those "
            "that give a value of their own; leave it out of the space, or name stages.0... instead"
        )
    return jobs


def _effect(job: TrainingJob) -> list[dict[str, Any]]:
    """What the stages compute, without settings that change nothing in them."""
    return [stage.effect() for stage in job.stage_configs()]


def _published(loaded: LoadedSearch, now: Mapping[str, Any]) -> dict[str, Any]:
    """The first trial: the published values in all stages, everything else as the base has it."""
    common = {key: value for key, value in loaded.job.published().items() if not key.startswith("stages.")}
    params = {key: common.get(key, now[key]) for key in loaded.search.space}
    params |= {key: value for key, value in common.items() if now[key] != value}
    job = loaded.trial(loaded.job.name, params).job
    then = flatten(job.model_dump(mode="json"))
    return params | {key: value for key, value in job.published().items() if then[key] != value}


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in params.items()
    )
