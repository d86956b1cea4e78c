"""What the first worker reports: figures to MLflow, Prometheus and the coordinator, checkpoints to the storage."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient, EvaluationRequest
from dira_dist.cluster.fit.prometheus import JobMetrics
from dira_dist.data.store import Store
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedJob
from dira_dist.metrics import RESTARTS, STEPS_DONE_AGAIN
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.report import write_report
from dira_dist.tracking.protocol import Run
from dira_dist.training.checkpoints import CheckpointFolder, CheckpointWriter, Labelled
from dira_dist.training.loop import Checkpointer, Tracker
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint
from dira_dist.training.task import Start
from dira_dist.training.validation import Report

FLUSH_S = 60.0


class WorkerReporter(Tracker, Checkpointer, Protocol):
    """What a worker asks of its reporter: tracker and checkpointer of the training loop, and more around the loop."""

    def started_from(self, start: Start) -> None:
        """Say which weights came from ``model.init``, and which did not."""

    def keep_report(self, report: Report | None) -> None:
        """Keep what the chosen networks are worth, in the run's folder and in its MLflow run."""

    def drain(self) -> None:
        """Wait until the last checkpoint is in the storage."""

    def saved(self, position: Position) -> None:
        """The workers have saved, and are about to leave."""

    def close(self) -> None:
        """Wait, not for ever, until all figures have arrived."""


def keep_report(store: Store, run: Run, report: Report, step: int) -> None:
    """Keep what networks are worth, in the run's folder and in its MLflow run.

    Raises:
        OSError: the storage is away.
    """
    write_report(store, report.files)
    for name, content in report.files.items():
        if name.endswith((".json", ".md", ".csv")):
            run.log_text(content.decode(), f"report/{name}")
    for name, picture in report.pictures.items():
        run.log_picture(f"report-{name}", picture, step)
    run.log_metrics(report.metrics, step)


class Reporter:
    """The reporter of the first worker.

    Args:
        loaded: the job.
        store: of the run's folder.
        run: the job's.
        coordinator: the job's.
        start: where this worker begins.
    """

    def __init__(
        self,
        loaded: LoadedJob,
        store: Store,
        run: Run,
        coordinator: CoordinatorClient,
        start: Position,
    ) -> None:
        self._job, self._public = loaded.job, loaded.public
        self._store, self._run, self._coordinator = store, run, coordinator
        self._folder = CheckpointFolder(store)
        self._metrics = JobMetrics(self._job.name)
        self._folder.remove_unfinished()
        self._labelled = self._folder.labelled()
        self._writer = CheckpointWriter(
            self._folder,
            keep=self._job.checkpoint.keep,
            spared=self._spared,
            committed=self._committed,
            removed=run.log_removal,
            warn=self.warn,
        )
        restarts, again = coordinator.call(Coordinator.resumed, start.step, secrets.token_hex(8))
        self._setbacks = {RESTARTS.name: restarts, STEPS_DONE_AGAIN.name: again}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log_metrics({**metrics, **self._setbacks}, step)
        self._metrics.update(metrics, step)
        self._coordinator.send(Coordinator.post, step, dict(metrics))

    def warn(self, warning: str) -> None:
        """Have the driver show a line."""
        self._coordinator.send(Coordinator.warn, warning)

    def started_from(self, start: Start) -> None:
        for line in start.report:
            self.warn(line)
        self._run.log_text("\n".join(start.report), "init.txt")

    def due(self, position: Position) -> bool:
        return _checkpoint_due(self._job, position)

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Any],
        label: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> None:
        if figures is None and not self._job.is_evaluated_beside:
            label = ""  # it is not evaluated, so it gives way to newer ones like any other
        elif not label and _every(self._job.evaluation.every_steps, position):
            label = f"step-{position.step}"
        pending, known = self._run.pending(), None if figures is None else dict(figures)
        self._writer.put(Checkpoint(position, self._public, self._run.run_id, label, known, pending, tensors))

    def keep_report(self, report: Report | None) -> None:
        """Keep what the chosen networks are worth, in the run's folder and in its MLflow run.

        Raises:
            OSError: the storage is away.
        """
        assert report is not None, "the first worker has it"
        keep_report(self._store, self._run, report, self._folder.newest_step())

    def drain(self) -> None:
        """Wait until the last checkpoint is in the storage.

        Raises:
            UnsavedError: the storage is away for longer than ``checkpoint.storage_timeout_s``.
        """
        self._writer.drain(self._job.checkpoint.storage_timeout_s)

    def saved(self, position: Position) -> None:
        self._coordinator.call(Coordinator.saved, position.step)

    def close(self) -> None:
        self._writer.close()
        if not self._run.flush(FLUSH_S):
            self.warn(f"not all figures reached the tracking server within {FLUSH_S:g} s; they are kept")

    def _committed(self, name: str, checkpoint: Checkpoint) -> None:
        """In the writer's thread, once a checkpoint is whole in the storage."""
        step = checkpoint.position.step
        self._run.log_checkpoint(self._folder.address(name), step)
        self._metrics.checkpointed(step)
        if checkpoint.label:
            self._labelled[checkpoint.label] = Labelled(name, checkpoint.figures)
            request = EvaluationRequest(checkpoint.label, step, name, checkpoint.figures)
            self._coordinator.call(Coordinator.request_evaluation, request)

    def _spared(self) -> Iterable[str]:
        """The best checkpoint so far, and those that are not evaluated yet."""
        evaluations = read_evaluations(self._store)
        found = self._job.best_evaluation(evaluations)
        evaluated = {each.label for each in evaluations}
        waiting = [each.name for label, each in self._labelled.items() if label not in evaluated]
        return [*waiting, *([found.checkpoint] if found else [])]


class NullReporter:
    """The reporter of all other workers: it writes nothing, and knows all the same when a checkpoint is due.

    Args:
        loaded: the job.
        run: of a worker that measures its machine for the MLflow run; otherwise one that records nothing.
    """

    def __init__(self, loaded: LoadedJob, run: Run) -> None:
        self._job, self._run = loaded.job, run

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def started_from(self, start: Start) -> None: ...

    def keep_report(self, report: Report | None) -> None: ...

    def due(self, position: Position) -> bool:
        return _checkpoint_due(self._job, position)

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Any],
        label: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> None: ...

    def drain(self) -> None: ...

    def saved(self, position: Position) -> None: ...

    def close(self) -> None:
        self._run.flush(FLUSH_S)


def _checkpoint_due(job: TrainingJob, position: Position) -> bool:
    """What is evaluated is a checkpoint, so one is due for either reason."""
    return _every(job.checkpoint.every_steps, position) or _every(job.evaluation.every_steps, position)


def _every(steps: int | None, position: Position) -> bool:
    return steps is not None and position.step % steps == 0
