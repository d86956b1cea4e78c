"""One trial as Ray Tune sees it: a process that takes nothing and drives a training job of its own."""

import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from rich.console import Console

from dira_dist.cluster.fit.driver import fit
from dira_dist.config import JobFailedError, RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedComparison, LoadedFolds, LoadedJob, LoadedSearch
from dira_dist.search.ranking import Goal
from dira_dist.search.trial import REFUSED, Status

# What trials are compared by: the leading figure, turned so that more is better, at steps that may be rungs.
OBJECTIVE, RUNG_STEP = "objective", "rung_step"


class TrialPlan(Protocol):
    """What is asked of whoever has trials run: a search, a comparison, or a cross-validation."""

    @property
    def loaded(self) -> LoadedSearch | LoadedComparison | LoadedFolds:
        """The job; its base says where trials run, and where they are kept and recorded."""

    @property
    def goal(self) -> Goal:
        """By what trials are evaluated while they run."""

    @property
    def most_trials(self) -> int:
        """As many as there can be."""

    @property
    def written(self) -> Mapping[str, Any]:
        """All of the job that trials are made of, as it is written."""

    def tags(self) -> dict[str, str]:
        """Of the parent's run in MLflow, and of the trials' runs."""

    def trial(self, name: str, params: Mapping[str, Any], seed: int | None = None) -> LoadedJob:
        """A trial as a job of its own.

        Raises:
            RequestError: if its values together make no valid job.
        """

    def steps(self, job: TrainingJob) -> int | None:
        """Optimiser steps at whose end a trial is evaluated; none where its own figures say when it ends."""


@dataclass(frozen=True)
class TrialSetup:
    """What the driver hands to every trial; it travels through Ray's object store and lies in no file.

    Attributes:
        tags: of the trials' MLflow runs.
        folder: the driver's working directory, by which relative addresses go.
        environment: what a trial needs of the driver's environment.
    """

    plan: TrialPlan
    tags: Mapping[str, str]
    folder: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _Evaluated:
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Ended:
    status: Status
    reason: str = ""
    run_id: str = ""


class TrialDriver(tune.Trainable):
    """Hands out the evaluations of a training job one by one, and at last how it ended.

    When Tune stops the trial, its process ends, and with it what it owns: workers, evaluations, Train's controller.
    """

    def setup(self, config: dict[str, Any], setup: TrialSetup) -> None:
        os.environ.update(setup.environment)
        os.chdir(setup.folder)
        self._setup, self._trial = setup, config["trial"]
        self._events: queue.SimpleQueue[_Evaluated | _Ended | ray.exceptions.RayError] = queue.SimpleQueue()
        self._total_steps = 0
        threading.Thread(target=self._run, name="trial", daemon=True).start()

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation, or for the end."""
        event = self._events.get()
        if isinstance(event, ray.exceptions.RayError):
            raise event  # Tune begins this process anew, and the job goes on from its checkpoint
        if isinstance(event, _Ended):
            ended = {"status": event.status, "reason": event.reason, "run_id": event.run_id}
            return {OBJECTIVE: float("nan"), "ended": ended, "done": True}
        scores = self._setup.plan.goal.scores(event.metrics)
        evaluated = {"step": event.step, "metrics": event.metrics}
        rung = {RUNG_STEP: event.step} if scores and event.step < self._total_steps else {}
        return {OBJECTIVE: scores[0] if scores else float("nan"), "evaluated": evaluated, **rung}

    def _run(self) -> None:
        try:
            self._events.put(self._train())
        except RequestError as error:
            self._events.put(_Ended("failed", f"{REFUSED}{error}"))
        except JobFailedError as error:
            self._events.put(_Ended("failed", str(error)))
        except ray.exceptions.RayError as error:  # an actor beside the workers was lost
            self._events.put(error)
        except BaseException as error:  # shown in the search's table, not lost in a log
            self._events.put(_Ended("failed", f"{type(error).__name__}: {error}"))

    def _train(self) -> _Ended:
        plan, trial = self._setup.plan, self._trial
        loaded = plan.trial(trial["name"], trial["params"], trial["seed"])
        self._total_steps = plan.steps(loaded.job) or 0
        tags = {**self._setup.tags, "dira.trial": str(trial["number"])}
        outcome = fit(loaded, console=Console(quiet=True), on_evaluation=self._evaluated, tags=tags)
        return _Ended("finished", run_id=outcome.run_id)

    def _evaluated(self, label: str, step: int, metrics: dict[str, float]) -> None:
        if metrics:
            self._events.put(_Evaluated(step, metrics))
