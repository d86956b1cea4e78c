"""What runs on each Ray Train worker: a job turned into objects and handed to the training loop.

``ray.train`` is called from here alone.
"""

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from dira_dist.cluster.journal import Journal, Silence
from dira_dist.config import RequestError
from dira_dist.data.batch import Batch, TooManyBadSamplesError
from dira_dist.data.lanes import ShardError
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.stream import ShardStream
from dira_dist.evaluation.judge import Judge
from dira_dist.foreign import starting_weights
from dira_dist.job import LoadedJob, PretrainJob
from dira_dist.tracking.config import TrackingConfig
from dira_dist.training.loop import NonFiniteError, Training, train
from dira_dist.training.stages import Plan, Position, StageSpan
from dira_dist.training.state import BrokenCheckpointError, Checkpoint, read_checkpoint, write_checkpoint
from dira_dist.training.step import Networks, Precision, TrainStep, build_networks
from dira_dist.views import Views, make_views

CHECKPOINT_PREFIX = "step-"


@dataclass(frozen=True)
class WorkerSetup:
    """What the driver hands to every worker.

    Attributes:
        index: of the training set.
        tracking: the job's, its address settled on the driver.
        run_id: MLflow run; empty without tracking.
        board: handle of the progress board.
    """

    loaded: LoadedJob
    index: ShardSetIndex
    plan: Plan
    tracking: TrackingConfig
    run_id: str
    board: Any


# What would only happen again: a restart from the last checkpoint cannot mend it.
LASTING_ERRORS = (NonFiniteError, TooManyBadSamplesError, ShardError, BrokenCheckpointError, RequestError)


def train_worker(setup: WorkerSetup) -> None:
    """Train this worker's part of the job, unless the job was given up; errors that last give it up."""
    if ray.get(setup.board.fatal.remote()):
        return  # Ray restarts the workers after any error; the driver tells the reason
    try:
        _train(setup)
    except LASTING_ERRORS as error:
        rank = ray.train.get_context().get_world_rank()
        ray.get(setup.board.give_up.remote(f"worker {rank}: {type(error).__name__}: {error}"))
        raise


def _train(setup: WorkerSetup) -> None:
    """Train from the newest whole checkpoint, or from the start."""
    job, device = setup.loaded.job, ray.train.torch.get_device()
    resumed = _newest_checkpoint()
    weights = starting_weights(job.model, job.seed) if resumed is None else None
    model = job.model.model_copy(update={"init": None})
    networks = build_networks(model, job.method, job.adversarial, seed=job.seed, weights=weights).to(device)
    journal = _open_journal(setup, networks, device, resumed)
    training = Training(
        plan=setup.plan,
        device=device,
        open_stream=lambda span, position: _open_stream(setup, span, position),
        make_views=lambda batch, span: _make_views(job, batch, span, device),
        make_step=lambda span: _make_step(job, networks, span, device),
        tracker=journal,
        checkpointer=_Checkpointer(setup, journal),
        judge=journal,
        seed=(job.seed + ray.train.get_context().get_world_rank()) << 32,
        log_every_steps=job.tracking.log_every_steps,
        max_nonfinite_steps=job.guards.max_nonfinite_steps,
    )
    position, tensors = (resumed.position, resumed.tensors) if resumed else (Position(), None)
    try:
        train(training, position, tensors)
    finally:
        journal.close()


def _open_journal(
    setup: WorkerSetup, networks: Networks, device: torch.device, resumed: Checkpoint | None
) -> Journal | Silence:
    """The journal of the run on the first worker, silence on all others."""
    if ray.train.get_context().get_world_rank() > 0:
        return Silence()
    job = setup.loaded.job
    judge = Judge(job.data.val, job.probe, job.views, job.seed, job.data.image_size, job.data.storage_patience_s)
    return Journal.open(
        setup.tracking,
        setup.run_id,
        storage=job.run_folder,
        board=setup.board,
        judge=lambda: judge.judge(networks.unet, device),
        quality=resumed.quality if resumed else {},
        pending=resumed.pending_metrics if resumed else [],
    )


def _newest_checkpoint() -> Checkpoint | None:
    """The newest checkpoint that is whole, or none where nothing was saved yet.

    Raises:
        BrokenCheckpointError: checkpoints were saved, and none of them is whole.
    """
    if ray.train.get_checkpoint() is None:
        return None
    broken: list[str] = []
    for reported in reversed(ray.train.get_all_reported_checkpoints()):
        with reported.checkpoint.as_directory() as folder:
            try:
                return read_checkpoint(Path(folder))
            except BrokenCheckpointError as error:
                broken.append(str(error))
    raise BrokenCheckpointError("no checkpoint of this run is whole:\n  " + "\n  ".join(broken))


def _open_stream(setup: WorkerSetup, span: StageSpan, position: Position) -> ShardStream:
    context = ray.train.get_context()
    job = setup.loaded.job
    return ShardStream.from_config(
        job.data,
        seed=job.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        start_sample=position.samples,
        global_batch=span.config.global_batch,
        lanes=job.lanes,
        index=setup.index,
    )


def _make_views(job: PretrainJob, batch: Batch, span: StageSpan, device: torch.device) -> Views:
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    return make_views(
        batch.images,
        batch.sizes_px,
        batch.sample_ids,
        batch.epochs,
        seed=job.seed,
        image_size=job.data.image_size,
        in_channels=job.model.in_channels,
        config=job.views,
        with_target=span.config.objective != "di",
    )


def _make_step(job: PretrainJob, networks: Networks, span: StageSpan, device: torch.device) -> TrainStep:
    stage = span.config
    return TrainStep(
        networks,
        stage.objective,
        weights=stage.loss_weights,
        optimizer=stage.optimizer,
        adversarial=job.adversarial,
        execution=job.execution,
        precision=job.precision or _precision_of(device),
        device=device,
        total_steps=span.steps,
        steps_per_epoch=span.steps_per_epoch,
    )


def _precision_of(device: torch.device) -> Precision:
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


class _Checkpointer:
    """Saves through ``ray.train.report``, a barrier of all workers; the first one writes, Ray uploads and commits."""

    def __init__(self, setup: WorkerSetup, journal: Journal | Silence) -> None:
        self._setup, self._journal = setup, journal
        self._first = isinstance(journal, Journal)
        # Steps done again after a broken checkpoint must not be saved under a name that Ray has listed already.
        self._attempt = secrets.token_hex(3)

    def due(self, position: Position) -> bool:
        return position.step % self._setup.loaded.job.checkpoint.every_steps == 0

    def save(self, position: Position, tensors: Mapping[str, Any]) -> None:
        name = f"{CHECKPOINT_PREFIX}{position.step:09d}-{self._attempt}"
        with tempfile.TemporaryDirectory() as folder:
            reported = None
            if self._first:
                write_checkpoint(Path(folder), self._checkpoint(position, tensors))
                reported = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": position.step}, checkpoint=reported, checkpoint_dir_name=name)
        self._journal.checkpointed(name, position.step)

    def _checkpoint(self, position: Position, tensors: Mapping[str, Any]) -> Checkpoint:
        return Checkpoint(
            position,
            tensors,
            self._setup.loaded.record,
            self._setup.run_id,
            dict(self._journal.quality),
            self._journal.pending(),
        )
