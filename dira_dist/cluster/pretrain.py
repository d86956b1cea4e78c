"""``kind: pretrain``: from a validated job to a registered model, on whatever Ray is there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from rich.console import Console

from dira_dist.cluster.progress import ProgressBoard, ProgressView
from dira_dist.cluster.record import RunRecord, claim
from dira_dist.cluster.storage import ray_storage
from dira_dist.cluster.worker import WorkerSetup, train_worker
from dira_dist.config import JobFailedError
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.job import LoadedJob, PretrainJob, ResourcesConfig
from dira_dist.preflight import Preflight, preflight
from dira_dist.publish import publish
from dira_dist.tracking.run import NullRun, TrackingRun, open_run

COLLECTIVE_TIMEOUT_S = 600


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
    job = loaded.job
    facts = preflight(job)
    storage = f"{job.checkpoint.storage.rstrip('/')}/{job.name}"
    check_reachable(job.checkpoint.storage, write=True)
    store = open_store(storage)
    record = claim(store, RunRecord(loaded.record, facts.train.digest))
    if record.status == "finished":
        return Outcome(**{**record.outcome, "already_done": True})
    tracking = job.tracking.located()
    run = open_run(_without_monitor(tracking), job.name, loaded.record, _tags(job), record.run_id or None)
    record = replace(record, run_id=run.run_id)
    try:
        record.write(store)
        with ray_session(job.resources):
            setup = WorkerSetup(loaded, facts.plan, tracking, run.run_id, ProgressBoard.remote())
            result = _fit(setup, console)
            outcome = _outcome(facts, run, result)
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", _reason(error))
        raise
    record.finished(asdict(outcome)).write(store)
    run.finish("FINISHED")
    return outcome


def _fit(setup: WorkerSetup, console: Console | None) -> ray.train.Result:
    job = setup.loaded.job
    trainer = TorchTrainer(
        partial(train_worker, setup),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=_scaling(job.resources),
        run_config=_run_config(job),
    )
    with ProgressView(setup.board, setup.plan, console):
        try:
            return trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobFailedError(
                f"{job.name} failed: {_cause(error)}\n"
                f"its checkpoints are in {job.checkpoint.storage}; the same command goes on from the newest"
            ) from error


def _scaling(resources: ResourcesConfig) -> ray.train.ScalingConfig:
    gpus = gpus_per_worker(resources)
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return ray.train.ScalingConfig(
        num_workers=resources.workers, use_gpu=gpus > 0, resources_per_worker=per_worker
    )


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
        logging_config=ray.train.LoggingConfig(log_level="ERROR"),
    )


def _outcome(facts: Preflight, run: TrackingRun | NullRun, result: ray.train.Result) -> Outcome:
    """Register what the last checkpoint holds, and say what came out."""
    assert result.checkpoint is not None, "the last stage ends with a checkpoint"
    with result.checkpoint.as_directory() as folder:
        checkpoint = read_checkpoint(Path(folder))
    model = publish(facts.job, checkpoint, run)
    return Outcome(
        name=facts.job.name,
        run_id=run.run_id,
        page=run.page,
        steps=checkpoint.position.step,
        checkpoint=_address_like(facts.job.checkpoint.storage, result.checkpoint.path),
        model=model,
        quality=checkpoint.quality,
    )


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The first worker's own words, without Ray's frames around them."""
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)
    rank, failure = min(failures.items())
    return f"worker {rank}: {failure}"
