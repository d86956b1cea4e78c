"""What guards find goes where a person looks: the live view, and a tag of the MLflow run."""

import threading
from collections.abc import Iterable, Mapping

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient
from dira_dist.cluster.fit.evaluations import OnEvaluation
from dira_dist.runs.evaluations import EvaluationEntry
from dira_dist.tracking.protocol import Run
from dira_dist.training.running_guards import RunningGuards

WARNINGS_TAG = "dira.warnings"
TAG_CHARACTERS = 5000


class GuardWatch:
    """Feeds the guards of a run on the driver's side. Its methods are called from several threads.

    Args:
        guards: of this run.
        coordinator: the job's, whose warnings the live view shows.
        run: the job's MLflow run, or none of it.
        known: warnings from before the start, which the run keeps too.
    """

    def __init__(
        self, guards: RunningGuards, coordinator: CoordinatorClient, run: Run, known: Iterable[str] = ()
    ) -> None:
        self._guards, self._coordinator, self._run = guards, coordinator, run
        self._lock = threading.Lock()
        self._last_step = 0
        self._warnings = list(known)
        self._tag()

    def catch_up(self, entries: Iterable[EvaluationEntry]) -> None:
        """Evaluations of earlier sessions of the run."""
        for each in entries:
            self.evaluated(each.label, each.step, each.metrics)

    def before(self, heard: OnEvaluation | None) -> OnEvaluation:
        """:meth:`evaluated`, and then ``heard`` where there is one."""

        def both(label: str, step: int, figures: dict[str, float]) -> None:
            self.evaluated(label, step, figures)
            if heard is not None:
                heard(label, step, figures)

        return both

    def evaluated(self, label: str, step: int, figures: Mapping[str, float]) -> None:
        """An evaluation has come."""
        with self._lock:
            self._tell(self._guards.evaluated(label, step, figures))

    def reported(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of the training stand at a step; more than once for each is all right."""
        with self._lock:
            if step != self._last_step:
                self._last_step = step
                self._tell(self._guards.reported(step, figures))

    def _tell(self, warnings: list[str]) -> None:
        for warning in warnings:
            self._coordinator.send(Coordinator.warn, warning)
        if warnings:
            self._warnings += warnings
            self._tag()

    def _tag(self) -> None:
        if self._warnings:
            self._run.set_tags({WARNINGS_TAG: "\n".join(self._warnings)[:TAG_CHARACTERS]})
