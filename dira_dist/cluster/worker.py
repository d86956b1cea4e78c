"""What runs on each Ray Train worker: a job turned into objects and handed to the training loop."""

from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed

from dira_dist.cluster.journal import Journal, Silence
from dira_dist.cluster.lifeline import Lifeline
from dira_dist.cluster.record import keep_precision
from dira_dist.cluster.trouble import LASTING_ERRORS, MovedError, advice_on_memory, is_out_of_memory, is_timeout
from dira_dist.data.batch import Batch
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.store import Patience, open_store
from dira_dist.data.stream import ShardStream
from dira_dist.foreign import starting_weights
from dira_dist.job import LoadedJob, PretrainJob
from dira_dist.objectives.collectives import gather
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.provenance import host_row
from dira_dist.tracking.run import NullRun, TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.loop import InterruptedRunError, Training, train
from dira_dist.training.precision import Precision, native_bf16, settle
from dira_dist.training.stages import Plan, Position, StageSpan
from dira_dist.training.state import Checkpoint
from dira_dist.training.step import Networks, TrainStep, build_networks
from dira_dist.views import Views, make_views

# The writer of checkpoints has a patience of its own, without end, and tells of trouble as soon as it knows.
SHORT_PATIENCE = Patience(give_up_s=3.0, read_timeout_s=60.0)


@dataclass(frozen=True)
class WorkerSetup:
    """What the driver hands to every worker.

    Attributes:
        index: of the training set.
        tracking: the job's, its address settled on the driver.
        run_id: MLflow run; empty without tracking.
        board: handle of the job's board.
    """

    loaded: LoadedJob
    index: ShardSetIndex
    plan: Plan
    tracking: TrackingConfig
    run_id: str
    board: Any


def train_worker(setup: WorkerSetup) -> None:
    """Train this worker's part of the job, unless the job was given up; errors that last give it up.

    Raises:
        MovedError: the run goes on elsewhere, from what was saved.
        RuntimeError: another worker hangs, and is named.
    """
    heard = gather(ray.get([setup.board.fatal.remote(), setup.board.wished.remote()]))
    if any(fatal or wish == "stop" for fatal, wish in heard):  # all or none: nobody may wait for one that has gone
        return  # Ray restarts the workers after any error; the driver tells the reason
    rank, device = ray.train.get_context().get_world_rank(), ray.train.torch.get_device()
    try:
        with Lifeline(setup.board, rank, device) as lifeline:
            _train(setup, device, lifeline)
    except LASTING_ERRORS as error:
        ray.get(setup.board.give_up.remote(f"worker {rank}: {type(error).__name__}: {error}"))
        raise
    except InterruptedRunError as error:
        if ray.get(setup.board.wished.remote()) != "stop":  # to Ray Train a worker that returns has finished the job
            raise MovedError(str(error)) from None
    except Exception as error:
        if is_out_of_memory(error):
            advice = advice_on_memory(setup.loaded.job, device, error)
            ray.get(setup.board.give_up.remote(f"worker {rank}: {advice}"))
        elif is_timeout(error) and (laggard := ray.get(setup.board.laggard.remote())):
            raise RuntimeError(f"the workers waited {setup.loaded.job.guards.hang_timeout_s:g} s: {laggard}") from error
        raise


def _train(setup: WorkerSetup, device: torch.device, lifeline: Lifeline) -> None:
    """Train from the newest whole checkpoint, or from the start."""
    job = setup.loaded.job
    resumed = _newest_checkpoint(setup, device)
    start = starting_weights(job.model, job.seed) if resumed is None else None
    weights = start.weights if start else None
    model = job.model.model_copy(update={"init": None})
    networks = build_networks(model, job.method, job.adversarial, seed=job.seed, weights=weights).to(device)
    precision = _precision(setup, device)
    journal = _open_journal(setup, resumed, device, precision)
    if start:
        journal.started_from(start.report)
    training = Training(
        plan=setup.plan,
        device=device,
        open_stream=lambda span, position: lifeline.watched(_open_stream(setup, span, position), position.step),
        make_views=lambda batch, span: _make_views(job, batch, span, device),
        make_step=lambda span: _make_step(job, networks, span, device, precision),
        tracker=journal,
        checkpointer=journal,
        interruption=lifeline,
        seed=(job.seed + ray.train.get_context().get_world_rank()) << 32,
        log_every_steps=job.tracking.log_every_steps,
        max_nonfinite_steps=job.guards.max_nonfinite_steps,
    )
    position, tensors = (resumed.position, resumed.tensors) if resumed else (Position(), None)
    try:
        train(training, position, tensors)
        journal.drain()
    except InterruptedRunError as error:
        lifeline.at("saving", error.position.step)
        journal.drain()
        journal.left(error.position)
        raise
    finally:
        journal.close()


def _open_journal(
    setup: WorkerSetup, resumed: Checkpoint | None, device: torch.device, precision: Precision
) -> Journal | Silence:
    """The journal of the run on the first worker, silence on all others; a collective."""
    context = ray.train.get_context()
    hosts = gather(host_row(context.get_world_rank(), device))
    start, pending = (resumed.position, resumed.pending_metrics) if resumed else (Position(), [])
    first, measures = context.get_world_rank() == 0, setup.tracking.system_metrics_every_s > 0
    run: TrackingRun | NullRun = NullRun()
    if setup.run_id and (first or (measures and context.get_local_rank() == 0)):  # each node's first measures it
        run = TrackingRun.attach(setup.tracking, setup.run_id, pending if first else [])
    if not first:
        return Silence(setup.loaded, run)
    run.set_tags({"dira.precision": precision})
    run.log_table(hosts, f"hosts/step-{start.step}.json")
    store = open_store(setup.loaded.job.run_folder, SHORT_PATIENCE)
    return Journal(setup.loaded, store, run, setup.board, start)


def _newest_checkpoint(setup: WorkerSetup, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint that is whole, the same on all workers; none where nothing was saved yet.

    Raises:
        BrokenCheckpointError: checkpoints were saved, and none of them is whole.
    """
    folder = CheckpointFolder(open_store(setup.loaded.job.run_folder))
    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    name, checkpoint = "", None
    if first:
        found = folder.newest_whole(lambda warning: setup.board.warn.remote(warning))
        name, checkpoint = found or ("", None)
    if context.get_world_size() > 1:
        chosen = [name]
        distributed.broadcast_object_list(chosen, src=0, device=device)
        (name,) = chosen
    return folder.fetch(name) if name and not first else checkpoint


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


def _make_step(
    job: PretrainJob, networks: Networks, span: StageSpan, device: torch.device, precision: Precision
) -> TrainStep:
    stage = span.config
    return TrainStep(
        networks,
        stage.objective,
        weights=stage.loss_weights,
        optimizer=stage.optimizer,
        adversarial=job.adversarial,
        execution=job.execution,
        precision=precision,
        device=device,
        total_steps=span.steps,
        steps_per_epoch=span.steps_per_epoch,
    )


def _precision(setup: WorkerSetup, device: torch.device) -> Precision:
    """What to compute in; with ``auto`` a collective, settled at the run's first start and read at all later ones."""
    asked = setup.loaded.job.precision
    if asked is None:
        return "bf16" if device.type == "cuda" and native_bf16(device) else "fp32"
    if asked != "auto":
        return asked
    native, kept = gather(native_bf16(device)), None
    if ray.train.get_context().get_world_rank() == 0:
        kept = keep_precision(open_store(setup.loaded.job.run_folder), settle(native))
        if kept == "bf16" and not all(native):
            slow = f"{native.count(False)} of {len(native)} workers"
            setup.board.warn.remote(
                f"this run computes in bf16 since its first start, which {slow} only emulate: slowly"
            )
    settled: Precision = gather(kept)[0]
    return settled
