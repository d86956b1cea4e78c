"""What runs on each Ray Train worker: a job turned into objects and handed to the training loop."""

from collections.abc import Sized
from dataclasses import dataclass

import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient
from dira_dist.cluster.fit.failures import LASTING_ERRORS, MovedError, advice_on_memory, is_out_of_memory, is_timeout
from dira_dist.cluster.fit.heartbeat import Heartbeat
from dira_dist.cluster.fit.reporter import NullReporter, Reporter, WorkerReporter
from dira_dist.config import RequestError
from dira_dist.data.batch import LocalBatch
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import RetryPolicy, open_store
from dira_dist.data.stream import ShardStream
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedJob
from dira_dist.jobs.preflight import Preflight
from dira_dist.objectives.collectives import gather
from dira_dist.runs.run import keep_precision
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.protocol import NullRun, Run
from dira_dist.tracking.provenance import host_row
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.loop import InterruptedRunError, Training, train
from dira_dist.training.precision import Precision, native_bf16, resolve, settle
from dira_dist.training.scratch import check_room
from dira_dist.training.stages import Position, StageSpan
from dira_dist.training.state import Checkpoint
from dira_dist.training.task import Task

# The writer of checkpoints tries again without end, and reports a failure as soon as it knows.
SHORT_RETRY = RetryPolicy(timeout_s=3.0, read_timeout_s=60.0)


@dataclass(frozen=True)
class WorkerSetup:
    """What the driver hands to every worker.

    Attributes:
        facts: what was known of the job before anything started.
        tracking: the job's, its address settled on the driver.
        run_id: MLflow run; empty without tracking.
        coordinator: the job's.
    """

    loaded: LoadedJob
    facts: Preflight
    tracking: TrackingConfig
    run_id: str
    coordinator: CoordinatorClient


def train_worker(setup: WorkerSetup) -> None:
    """Train this worker's part of the job, unless the job was given up; errors that last give it up.

    Raises:
        MovedError: the run goes on elsewhere, from what was saved.
        RuntimeError: another worker hangs, and is named.
    """
    coordinator = setup.coordinator
    over = coordinator.call(Coordinator.fatal) != "" or coordinator.call(Coordinator.requested) == "stop"
    if any(gather(over)):  # all or none, or the others would wait for those that left
        return  # Ray restarts the workers after any error; the driver says the reason
    rank, device = ray.train.get_context().get_world_rank(), ray.train.torch.get_device()
    job = setup.loaded.job
    try:
        with Heartbeat(coordinator, rank, device) as heartbeat:
            job = job.in_precision(precision := _precision(setup, device))
            _train(setup, job, precision, device, heartbeat)
    except LASTING_ERRORS as error:
        coordinator.call(Coordinator.give_up, f"worker {rank}: {type(error).__name__}: {error}")
        raise
    except InterruptedRunError as error:
        if coordinator.call(Coordinator.requested) != "stop":  # to Ray Train a worker that returns has finished the job
            raise MovedError(str(error)) from None
    except Exception as error:
        if is_out_of_memory(error):
            advice = advice_on_memory(job, device, error)
            coordinator.call(Coordinator.give_up, f"worker {rank}: {advice}")
        elif is_timeout(error) and (straggler := coordinator.call(Coordinator.straggler)):
            raise RuntimeError(
                f"the workers waited {setup.loaded.job.guards.hang_timeout_s:g} s: {straggler}"
            ) from error
        raise


def _train(
    setup: WorkerSetup, job: TrainingJob, precision: Precision, device: torch.device, heartbeat: Heartbeat
) -> None:
    """Train ``job``, whose precision is settled, from the newest whole checkpoint, or from the start."""
    task = job.build_task(setup.facts.samples)
    resumed = _newest_checkpoint(setup, device)
    start = (setup.facts.start or task.starting_weights()) if resumed is None else None
    networks = task.build(start.weights if start else None).to(device)
    if ray.train.get_context().get_world_rank() == 0:
        check_room(networks.state_dict())
    validator = task.validator(networks, device)
    reporter = _open_reporter(setup, resumed, device, precision)
    if start:
        reporter.started_from(start)
    training = Training(
        plan=setup.facts.plan,
        device=device,
        open_stream=lambda span, position: heartbeat.watched(_open_stream(setup, span, position), position.step),
        make_inputs=lambda batch, span: _inputs(task, batch, span, device),
        make_step=lambda span: task.step(networks, span, device),
        tracker=reporter,
        checkpointer=reporter,
        interruption=heartbeat,
        seed=(job.seed + ray.train.get_context().get_world_rank()) << 32,
        log_every_steps=job.tracking.log_every_steps,
        max_nonfinite_steps=job.guards.max_nonfinite_steps,
        validator=validator,
    )
    position, tensors = (resumed.position, resumed.tensors) if resumed else (Position(), None)
    try:
        train(training, position, tensors)
        reporter.drain()
        if validator.chosen:
            heartbeat.at("reporting", setup.facts.plan.steps)
            networks.load_state_dict(_chosen_checkpoint(setup, validator.chosen, device).tensors["networks"])
            reporter.keep_report(validator.report())
    except InterruptedRunError as error:
        heartbeat.at("saving", error.position.step)
        reporter.drain()
        reporter.saved(error.position)
        raise
    finally:
        reporter.close()


def _open_reporter(
    setup: WorkerSetup, resumed: Checkpoint | None, device: torch.device, precision: Precision
) -> WorkerReporter:
    """The reporter of this worker; a collective, for the table of hosts is the first one's to log."""
    context = ray.train.get_context()
    hosts = gather(host_row(context.get_world_rank(), device))
    start, pending = (resumed.position, resumed.pending_metrics) if resumed else (Position(), [])
    first, measures = context.get_world_rank() == 0, setup.tracking.system_metrics_every_s > 0
    run: Run = NullRun()
    if setup.run_id and (first or (measures and context.get_local_rank() == 0)):  # each node's first measures it
        from dira_dist.tracking.run import TrackingRun  # the other workers need not import MLflow

        pending, folder = pending if first else [], setup.loaded.job.run_folder
        run = TrackingRun.attach(setup.tracking, setup.run_id, pending, folder=folder)
    if not first:
        return NullReporter(setup.loaded, run)
    run.set_tags({"dira.precision": precision})
    run.log_table(hosts, f"hosts/step-{start.step}.json")
    loaded = setup.loaded.in_precision(precision)
    store = open_store(loaded.job.run_folder, SHORT_RETRY)
    return Reporter(loaded, store, run, setup.coordinator, start)


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
        found = folder.newest_whole(lambda warning: setup.coordinator.send(Coordinator.warn, warning))
        name, checkpoint = found or ("", None)
    if context.get_world_size() > 1:
        chosen = [name]
        distributed.broadcast_object_list(chosen, src=0, device=device)
        (name,) = chosen
    return folder.fetch(name) if name and not first else checkpoint


def _chosen_checkpoint(setup: WorkerSetup, label: str, device: torch.device) -> Checkpoint:
    """The checkpoint of a label, the same on all workers."""
    folder, context = CheckpointFolder(open_store(setup.loaded.job.run_folder)), ray.train.get_context()
    name = folder.labelled()[label].name if context.get_world_rank() == 0 else ""
    return folder.fetch(gather(name)[0])


def _open_stream(setup: WorkerSetup, span: StageSpan, position: Position) -> ShardStream:
    context = ray.train.get_context()
    job, selection = setup.loaded.job, setup.facts.samples.selection
    return ShardStream.from_config(
        job.data,
        seed=job.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        start_sample=position.samples,
        global_batch=span.config.global_batch,
        lanes=job.lanes,
        index=_drawn_from(setup) if selection else None,  # else read anew, for patients may have been withdrawn since
        selection=selection,
        annotations=job.reads_masks,
    )


def _drawn_from(setup: WorkerSetup) -> ShardSetIndex:
    """The index that the samples were drawn from, as long as its tars are those that they lie in.

    Raises:
        RequestError: the tars were written anew since.
    """
    train = setup.facts.train
    address = setup.loaded.job.data.train
    if [shard.name for shard in read_index(address).shards] != [shard.name for shard in train.shards]:
        raise RequestError(
            f"{address}: its tars were written anew since this run drew its samples. Run the same command again."
        )
    return train


def _inputs(task: Task, batch: LocalBatch, span: StageSpan, device: torch.device) -> Sized:
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    return task.inputs(batch, span)


def _precision(setup: WorkerSetup, device: torch.device) -> Precision:
    """What to compute in; with ``auto`` a collective, settled at the run's first start and read at all later ones."""
    asked = setup.loaded.job.precision
    if asked != "auto":
        return resolve(asked, device)
    native, kept = gather(native_bf16(device)), None
    if ray.train.get_context().get_world_rank() == 0:
        kept = keep_precision(open_store(setup.loaded.job.run_folder), settle(native))
        if kept == "bf16" and not all(native):
            slow = f"{native.count(False)} of {len(native)} workers"
            setup.coordinator.send(
                Coordinator.warn, f"this run computes in bf16 since its first start, which {slow} only emulate: slowly"
            )
    settled: Precision = gather(kept)[0]
    return settled
