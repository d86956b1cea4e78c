"""What the first worker writes down: figures to MLflow, Prometheus and the coordinator, checkpoints to the storage."""

from collections.abc import Iterable, Mapping
from typing import Any

import ray

from dira_dist.cluster.fit.coordinator import EvaluationRequest
from dira_dist.cluster.fit.prometheus import JobMetrics
from dira_dist.data.store import Store
from dira_dist.jobs.job import LoadedJob, PretrainJob
from dira_dist.models.pretrained import ImportReport
from dira_dist.runs.evaluations import best, read_evaluations
from dira_dist.tracking.run import NullRun, TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder, CheckpointWriter
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint

FLUSH_S = 60.0


class Reporter:
    """Tracker and checkpointer of the training loop on the first worker.

    Args:
        loaded: the job.
        store: of the run's folder.
        run: the job's MLflow run, or none of it.
        coordinator: handle of the job's coordinator.
        start: where this worker begins.
    """

    def __init__(
        self, loaded: LoadedJob, store: Store, run: TrackingRun | NullRun, coordinator: Any, start: Position
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
        setbacks = ray.get(coordinator.resumed.remote(start.step))
        self._setbacks = {f"train/{name}": count for name, count in setbacks._asdict().items()}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log_metrics({**metrics, **self._setbacks}, step)
        self._metrics.update(metrics, step)
        self._coordinator.post.remote(step, dict(metrics))

    def warn(self, warning: str) -> None:
        """A line for the person in front of the driver."""
        self._coordinator.warn.remote(warning)

    def started_from(self, report: ImportReport) -> None:
        """Tell which weights came from ``model.init``, and which did not."""
        for line in report.lines():
            self.warn(line)
        self._run.log_text("\n".join(report.lines()), "init.txt")

    def due(self, position: Position) -> bool:
        return _checkpoint_due(self._job, position)

    def save(self, position: Position, tensors: Mapping[str, Any], label: str = "") -> None:
        if not self._job.is_evaluated:
            label = ""  # nobody waits for it, so it gives way to newer ones like any other
        elif not label and _every(self._job.evaluation.every_steps, position):
            label = f"step-{position.step}"
        pending = self._run.pending()
        self._writer.put(Checkpoint(position, self._public, self._run.run_id, label, pending, tensors))

    def drain(self) -> None:
        """Wait until the last checkpoint is in the storage.

        Raises:
            TimeoutError: the storage is away for longer than ``checkpoint.storage_timeout_s``.
        """
        self._writer.drain(self._job.checkpoint.storage_timeout_s)

    def left(self, position: Position) -> None:
        """Tell the coordinator that the workers have saved and go."""
        ray.get(self._coordinator.left.remote(position.step))

    def close(self) -> None:
        """Wait, not for ever, until everything has arrived."""
        self._writer.close()
        if not self._run.flush(FLUSH_S):
            self.warn(f"not all figures reached the tracking server within {FLUSH_S:g} s; they are kept")

    def _committed(self, name: str, checkpoint: Checkpoint) -> None:
        """In the writer's thread, once a checkpoint is whole in the storage."""
        step = checkpoint.position.step
        self._run.log_checkpoint(self._folder.address(name), step)
        self._metrics.checkpointed(step)
        if checkpoint.label:
            self._labelled[checkpoint.label] = name
            ray.get(self._coordinator.request_evaluation.remote(EvaluationRequest(checkpoint.label, step, name)))

    def _spared(self) -> Iterable[str]:
        """The best checkpoint so far, and those that nobody has evaluated yet."""
        evaluations = read_evaluations(self._store)
        found = best(evaluations, self._job.checkpoint.best)
        evaluated = {each.label for each in evaluations}
        waiting = [name for label, name in self._labelled.items() if label not in evaluated]
        return [*waiting, *([found.checkpoint] if found else [])]


class NullReporter:
    """The reporter of all workers but the first: it writes nothing, and is asked when to save all the same.

    Args:
        loaded: the job.
        run: of a worker that measures its machine for the MLflow run, or none of it.
    """

    def __init__(self, loaded: LoadedJob, run: TrackingRun | NullRun) -> None:
        self._job, self._run = loaded.job, run

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def started_from(self, report: ImportReport) -> None: ...

    def due(self, position: Position) -> bool:
        return _checkpoint_due(self._job, position)

    def save(self, position: Position, tensors: Mapping[str, Any], label: str = "") -> None: ...

    def drain(self) -> None: ...

    def left(self, position: Position) -> None: ...

    def close(self) -> None:
        self._run.flush(FLUSH_S)


def _checkpoint_due(job: PretrainJob, position: Position) -> bool:
    """What is evaluated is a checkpoint, so one is due for either reason."""
    return _every(job.checkpoint.every_steps, position) or _every(job.evaluation.every_steps, position)


def _every(steps: int | None, position: Position) -> bool:
    return steps is not None and position.step % steps == 0
