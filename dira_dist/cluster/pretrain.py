"""``kind: pretrain``: from a validated job to a registered model, on whatever Ray is there."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import ray
import ray.train
import torch.distributed
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from rich.console import Console

from dira_dist.cluster.progress import ProgressView, new_board
from dira_dist.cluster.record import RunRecord, claim
from dira_dist.cluster.session import gpus_per_worker, ray_session
from dira_dist.cluster.storage import ray_storage
from dira_dist.cluster.worker import CHECKPOINT_PREFIX, WorkerSetup, train_worker
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.job import LoadedJob, PretrainJob, ResourcesConfig, dump_job
from dira_dist.preflight import Preflight, preflight
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.publish import publish
from dira_dist.tracking.run import NullRun, TrackingRun, open_run
from dira_dist.training.state import read_checkpoint
from dira_dist.version import __version__

COLLECTIVE_TIMEOUT_S = 1800
_COLLATERAL = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)


@dataclass(frozen=True)
class Outcome:
    """What a finished job leaves behind.

    Attributes:
        name: of the job.
        run_id: MLflow run; empty without tracking.
        page: the run's page, or the command that opens it.
        steps: optimiser steps of all stages.
        checkpoint: address of the last checkpoint.
        model: ``models:/name/version`` of the registered model, or an empty string.
        quality: what the networks were judged to be before and after each stage, by stage and figure.
        already_done: the run was finished before; nothing was done now.
    """

    name: str
    run_id: str = ""
    page: str = ""
    steps: int = 0
    checkpoint: str = ""
    model: str = ""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    already_done: bool = False

    def lines(self) -> Iterator[str]:
        """The outcome as a person reads it."""
        yield f"{self.name}: {'was finished already' if self.already_done else 'finished'}, {self.steps:,} steps"
        yield f"checkpoint  {self.checkpoint}"
        if self.run_id:
            yield f"MLflow run  {self.run_id}  ({self.page})"
        if self.model:
            yield f"model       {self.model}  (dira-dist pull {self.model} weights/)"


def pretrain(loaded: LoadedJob, *, console: Console | None = None) -> Outcome:
    """Run a pretraining job to its end, or go on with the run of its name.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: when the work failed; the same call goes on from the last checkpoint.
    """
    loaded = replace(loaded, job=loaded.job.located())
    job, facts = loaded.job, preflight(loaded.job)
    check_reachable(job.checkpoint.storage, write=True)
    store = open_store(job.run_folder)
    record = claim(store, RunRecord(loaded.record, facts.train.digest))
    if record.status == "finished":
        return Outcome(**{**record.outcome, "already_done": True})
    with ray_session(job.resources):
        return _pretrain(loaded, facts, store, record, console)


def _pretrain(loaded: LoadedJob, facts: Preflight, store: Store, record: RunRecord, console: Console | None) -> Outcome:
    """Everything from the first thing that is written."""
    run = _open_run(loaded, facts, record.run_id)
    try:
        record = replace(record, run_id=run.run_id)
        record.write(store)
        result = _fit(loaded, facts, run.run_id, console)
        outcome = _outcome(facts, run, result)
        _remove_strays(store, result)
        record.finished(asdict(outcome)).write(store)
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", f"{type(error).__name__}: {error}")
        raise
    run.finish("FINISHED")
    return outcome


def _open_run(loaded: LoadedJob, facts: Preflight, run_id: str) -> TrackingRun | NullRun:
    """The job's MLflow run on the driver's side; the first worker measures the machine, not the driver."""
    job, tags = loaded.job, {"dira.job": loaded.job.name, "dira.version": __version__}
    run = open_run(_quiet(job), job.name, loaded.record, tags, run_id or None)
    profile = {"samples": facts.train.samples, "shards": len(facts.train.shards), "bytes": facts.train.bytes}
    if not run_id:
        run.log_dataset("train", facts.train.digest, job.data.train, "training", profile)
        run.log_text(dump_job(loaded.record), "job.yaml")
    return run


def _quiet(job: PretrainJob) -> TrackingConfig:
    """Tracking without measuring the machine, which the first worker does."""
    return job.tracking.model_copy(update={"system_metrics_every_s": 0.0})


def _fit(loaded: LoadedJob, facts: Preflight, run_id: str, console: Console | None) -> ray.train.Result:
    job, board = loaded.job, new_board()
    setup = WorkerSetup(loaded, facts.train, facts.plan, job.tracking, run_id, board)
    trainer = TorchTrainer(
        partial(train_worker, setup),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=_scaling(job.resources),
        run_config=_run_config(job),
    )
    with ProgressView(board, facts.plan, console):
        try:
            result = trainer.fit()
            cause = ray.get(board.fatal.remote())
        except ray.train.TrainingFailedError as error:
            result, cause = None, ray.get(board.fatal.remote()) or _cause(error)
    if result is None or cause:
        raise JobFailedError(
            f"{job.name} failed: {cause}\n"
            f"its checkpoints are in {job.run_folder}; the same command goes on from the newest"
        )
    return result


def _scaling(resources: ResourcesConfig) -> ray.train.ScalingConfig:
    gpus = gpus_per_worker(resources)
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return ray.train.ScalingConfig(num_workers=resources.workers, use_gpu=gpus > 0, resources_per_worker=per_worker)


def _run_config(job: PretrainJob) -> ray.train.RunConfig:
    path, filesystem = ray_storage(job.checkpoint.storage)
    return ray.train.RunConfig(
        name=job.name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(
            max_failures=job.resources.max_failures, controller_failure_limit=job.resources.max_failures
        ),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=job.checkpoint.keep),
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _outcome(facts: Preflight, run: TrackingRun | NullRun, result: ray.train.Result) -> Outcome:
    """Register what the last checkpoint holds, and say what came out."""
    assert result.checkpoint is not None, "the last stage ends with a checkpoint"
    with result.checkpoint.as_directory() as folder:
        checkpoint = read_checkpoint(Path(folder))
    if checkpoint.pending_metrics and run.run_id:  # measured while the tracking server was away
        TrackingRun.attach(_quiet(facts.job), run.run_id, checkpoint.pending_metrics).flush()
    data = {"address": facts.job.data.train, "images": facts.train.samples, "digest": facts.train.digest}
    try:
        model = publish(facts.job.tracking, run.run_id, checkpoint, data)
    except RequestError as error:
        raise JobFailedError(
            f"{facts.job.name} is trained, but its model was not registered: {error}\n"
            f"its checkpoints are in {facts.job.run_folder}; the same command registers it"
        ) from error
    return Outcome(
        name=facts.job.name,
        run_id=run.run_id,
        page=run.page,
        steps=checkpoint.position.step,
        checkpoint=f"{facts.job.run_folder}/{Path(result.checkpoint.path).name}",
        model=model,
        quality=checkpoint.quality,
    )


def _remove_strays(store: Store, result: ray.train.Result) -> None:
    """Remove checkpoints that Ray does not list: those that were being uploaded when a driver was killed."""
    kept = {Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints or []}
    for found in list(store.list(CHECKPOINT_PREFIX)):
        if found.key.partition("/")[0] not in kept:
            store.delete(found.key)


def _cause(error: ray.train.TrainingFailedError) -> str:
    """What failed first, as far as can be told: not a worker that only lost its connection to the one that did."""
    failures = {rank: getattr(failure, "_base_exc", failure) for rank, failure in _failures(error).items()}
    if not failures:
        return str(error)
    own = {rank: failure for rank, failure in failures.items() if not isinstance(failure, _COLLATERAL)}
    rank, failure = min((own or failures).items())
    return f"worker {rank}: {type(failure).__name__}: {failure}"


def _failures(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    found: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return found
