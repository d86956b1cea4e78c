"""``kind: pretrain``: from a validated job to a registered model, on whatever Ray is there."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient, start_coordinator
from dira_dist.cluster.fit.evaluations import EvaluationRunner, EvaluationSetup, OnEvaluation, log_late
from dira_dist.cluster.fit.failures import COLLATERAL_ERRORS, advice_on_memory
from dira_dist.cluster.fit.preemption import ControllerWatch
from dira_dist.cluster.fit.progress import ProgressView
from dira_dist.cluster.fit.stopping import JobStoppedError, fit_until_stopped, signals_interrupt
from dira_dist.cluster.fit.worker import WorkerSetup, train_worker
from dira_dist.cluster.folders import check_shared
from dira_dist.cluster.ray_internals import LoggingConfig, worker_failures
from dira_dist.cluster.session import gpus_per_worker, ray_session
from dira_dist.config import JobFailedError, RequestError, mutable_keys
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.evaluation.pictures import LOSSES
from dira_dist.jobs.job import LoadedJob, PretrainJob, ResourcesConfig, dump_job
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.registry.publish import publish
from dira_dist.runs.evaluations import best, by_label, figures_of, read_evaluations
from dira_dist.runs.lease import sole_driver
from dira_dist.runs.run import RunState, claim
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.history import draw_losses
from dira_dist.tracking.protocol import Run
from dira_dist.tracking.run import TrackingRun, open_run
from dira_dist.training.checkpoints import CheckpointFolder, step_of
from dira_dist.training.state import Checkpoint
from dira_dist.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What a finished job leaves behind.

    Attributes:
        name: of the job.
        run_id: MLflow run; empty without tracking.
        page: the run's page, or the command that opens it.
        steps: optimiser steps of all stages.
        checkpoint: address of the last checkpoint.
        best: address of the checkpoint with the highest ``checkpoint.best``; empty where nothing was evaluated.
        model: ``models:/name/version`` of the registered model, or an empty string.
        quality: what the networks were evaluated to be before and after each stage, by stage and figure.
        already_done: the run was finished before; nothing was done now.
    """

    name: str
    run_id: str = ""
    page: str = ""
    steps: int = 0
    checkpoint: str = ""
    best: str = ""
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


def pretrain(
    loaded: LoadedJob,
    *,
    console: Console | None = None,
    on_evaluation: OnEvaluation | None = None,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a pretraining job to its end, or go on with the run of its name.

    Called in a process' main thread, SIGINT and SIGTERM make the workers save and stop; a second one stops at once.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.
        on_evaluation: called in a thread with label, step and figures of each evaluation, those of earlier sessions
            first.
        tags: of the MLflow run, besides its own.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: when the work failed or was stopped; the same call goes on from the last checkpoint.
    """
    loaded = replace(loaded, job=loaded.job.resolve_paths())
    job, facts = loaded.job, preflight(loaded.job)
    check_reachable(job.checkpoint.storage, write=True)
    store, console = open_store(job.run_folder), console or Console(file=sys.stderr, soft_wrap=True)
    session = _Session(loaded, facts, store, on_evaluation, dict(tags or {}))
    finished = _finished(_claim(session))
    if on_evaluation is not None:
        for evaluated in read_evaluations(store):
            on_evaluation(evaluated.label, evaluated.step, evaluated.metrics)
    if finished:
        return finished
    with ray_session(job.resources), signals_interrupt(), sole_driver(store, console):
        state = _claim(session)  # once more, for another driver may have ended only now
        try:
            return _finished(state) or _pretrain(session, state, console)
        except StoreError as error:
            raise JobFailedError(f"{job.name} failed: {error}\n{_how_to_go_on(job)}") from error
        except KeyboardInterrupt:
            raise JobStoppedError(f"{job.name} was stopped; {_how_to_go_on(job)}") from None


@dataclass(frozen=True)
class _Session:
    """One start of a job, from its first write to its end."""

    loaded: LoadedJob
    facts: Preflight
    store: Store
    on_evaluation: OnEvaluation | None
    tags: Mapping[str, str]

    @property
    def job(self) -> PretrainJob:
        return self.loaded.job

    @property
    def tracking(self) -> TrackingConfig:
        """Tracking without measuring the machine, which the first worker does."""
        return self.job.tracking.model_copy(update={"system_metrics_every_s": 0.0})


def _claim(session: _Session) -> RunState:
    """The run that is begun or gone on with."""
    newest = CheckpointFolder(session.store).newest_manifest()
    digests = {name: read_index(address).digest for name, address, _ in session.job.shard_sets()}
    wanted = RunState(session.loaded.public, digests)
    return claim(session.store, wanted, mutable_keys(type(session.job), "run"), newest.position.stage if newest else 0)


def _finished(state: RunState) -> Outcome | None:
    return Outcome(**{**state.outcome, "already_done": True}) if state.status == "finished" else None


def _pretrain(session: _Session, state: RunState, console: Console) -> Outcome:
    """Everything from the first thing that is written."""
    run = _open_run(session, state.run_id)
    try:
        state = replace(state, run_id=run.run_id)
        state.write(session.store)
        run.claimed()
        check_shared(session.job)
        _fit(session, run.run_id, console)
        _draw_losses(session, run)
        outcome = _outcome(session, run)
        if not run.finish("FINISHED"):
            raise _undelivered(session.job)
        state.finished(asdict(outcome)).write(session.store)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | JobStoppedError)
        run.finish("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
        raise
    return outcome


def _open_run(session: _Session, run_id: str) -> Run:
    """The job's MLflow run on the driver's side."""
    loaded, train = session.loaded, session.facts.train
    own = {"dira.job": session.job.name, "dira.version": __version__}
    tags, folder = {**session.tags, **own}, session.store.address
    run = open_run(session.tracking, session.job.name, loaded.public, tags, run_id or None, folder=folder)
    if not run_id:
        for name, address, context in session.job.shard_sets():
            index = train if name == "train" else read_index(address)
            profile = {"samples": index.samples, "shards": len(index.shards), "bytes": index.bytes}
            run.log_dataset(name, index.digest, address, context, profile)
        run.log_text(dump_job(loaded.public), "job.yaml")
    return run


def _fit(session: _Session, run_id: str, console: Console) -> None:
    """Train to the end of the plan, with every labelled checkpoint evaluated.

    Raises:
        JobFailedError: it did not come to its end.
    """
    job, plan = session.job, session.facts.plan
    coordinator = start_coordinator(stall_s=job.guards.hang_timeout_s / 2)
    setup = WorkerSetup(session.loaded, session.facts.train, plan, job.tracking, run_id, coordinator)
    evaluating = EvaluationRunner(EvaluationSetup(job, session.tracking, run_id), coordinator, session.on_evaluation)
    with ProgressView(coordinator, plan, console), evaluating, tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            partial(train_worker, setup),
            torch_config=TorchConfig(timeout_s=job.guards.hang_timeout_s),
            scaling_config=_scaling(job.resources),
            run_config=_run_config(job, scratch, coordinator),
        )
        try:
            stopped = fit_until_stopped(trainer.fit, coordinator, job.resources.start_timeout_s)
            cause = coordinator.call(Coordinator.fatal)
        except ray.train.TrainingFailedError as error:
            stopped, cause = False, coordinator.call(Coordinator.fatal) or _cause(job, error)
        except TimeoutError as error:
            stopped, cause = False, _no_room(job.resources, error)
        if cause:
            raise JobFailedError(f"{job.name} failed: {cause}\n{_how_to_go_on(job)}")
        newest = CheckpointFolder(session.store).newest_manifest()
        if stopped and (newest is None or newest.position.stage < len(plan.spans)):
            where = f"after step {newest.position.step} of {plan.steps}" if newest else "before its first step"
            raise JobStoppedError(f"{job.name} was stopped {where}; {_how_to_go_on(job)}")


def _no_room(resources: ResourcesConfig, error: TimeoutError) -> str:
    per_worker = f"{resources.cpus_per_worker:g} CPUs and {gpus_per_worker(resources):g} GPUs"
    return (
        f"{error}: the cluster has no room for {resources.min_workers} with {per_worker} each; make room, ask for less "
        "(resources.workers, cpus_per_worker, gpus_per_worker), or wait longer (resources.start_timeout_s)"
    )


def _undelivered(job: PretrainJob) -> JobFailedError:
    return JobFailedError(
        f"{job.name} is trained, but its tracking server did not take all figures; the same command delivers them"
    )


def _how_to_go_on(job: PretrainJob) -> str:
    return f"its checkpoints are in {job.run_folder}; the same command goes on from the newest"


def _scaling(resources: ResourcesConfig) -> ray.train.ScalingConfig:
    gpus = gpus_per_worker(resources)
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return ray.train.ScalingConfig(
        num_workers=resources.workers,
        use_gpu=gpus > 0,
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=resources.resize_every_s,
    )


def _run_config(job: PretrainJob, scratch: str, coordinator: CoordinatorClient) -> ray.train.RunConfig:
    """Checkpoints are this project's own affair: Ray Train is given a scratch folder, and keeps nothing in it."""
    return ray.train.RunConfig(
        name=job.name,
        storage_path=scratch,
        failure_config=ray.train.FailureConfig(
            max_failures=job.resources.max_failures,
            controller_failure_limit=-1,  # tries at starting workers; the driver's clock ends them
        ),
        callbacks=[ControllerWatch(coordinator, job.checkpoint.storage_timeout_s)],
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _draw_losses(session: _Session, run: Run) -> None:
    """The curves of the whole run as a picture, where its tracking server is there to be asked for them."""
    boundaries = {span.first_step: span.name for span in session.facts.plan.spans}
    try:
        curves = draw_losses(session.tracking, run.run_id, boundaries) if run.run_id else None
    except RequestError:
        return  # the training is done, and its figures arrive when the server is back
    if curves is not None:
        run.log_picture(LOSSES, curves, session.facts.plan.steps)
        run.flush()


def _outcome(session: _Session, run: Run) -> Outcome:
    """Register what the last checkpoint holds, and say what came out."""
    job, folder = session.job, CheckpointFolder(session.store)
    newest = folder.newest_whole(lambda warning: None)
    assert newest is not None, "the last stage ends with a checkpoint"
    name, checkpoint = newest
    if checkpoint.pending_metrics and run.run_id:  # measured while the tracking server was away
        late = TrackingRun.attach(session.tracking, run.run_id, checkpoint.pending_metrics)
        if not late.flush():
            raise _undelivered(job)
    log_late(run, session.store)
    evaluations = read_evaluations(session.store)
    best_one = best(evaluations, job.checkpoint.best)
    for gone in folder.keep(job.checkpoint.keep, [best_one.checkpoint] if best_one else []):
        run.log_removal(step_of(gone))
    return Outcome(
        name=job.name,
        run_id=run.run_id,
        page=run.page,
        steps=checkpoint.position.step,
        checkpoint=folder.address(name),
        best=folder.address(best_one.checkpoint) if best_one else "",
        model=_published(session, run.run_id, checkpoint, figures_of(evaluations, name)),
        quality=by_label(evaluations),
    )


def _published(session: _Session, run_id: str, checkpoint: Checkpoint, quality: Mapping[str, float]) -> str:
    """The address of the newly registered model; none where nothing is to be registered."""
    train, job = session.facts.train, session.job
    if job.tracking.register_as is None or not run_id:
        return ""
    data = {"address": job.data.train, "images": train.samples, "digest": train.digest}
    try:
        return publish(job.tracking, run_id, checkpoint, quality, data, tags=session.tags).address
    except RequestError as error:
        raise JobFailedError(
            f"{job.name} is trained, but its model was not registered: {error}\n"
            f"its checkpoints are in {job.run_folder}; the same command registers it"
        ) from error


def _cause(job: PretrainJob, error: ray.train.TrainingFailedError) -> str:
    """What failed first, as far as can be told: not a worker that only lost its connection to the one that did."""
    failures = worker_failures(error)
    if not failures:
        return str(error)
    own = {rank: failure for rank, failure in failures.items() if not isinstance(failure, COLLATERAL_ERRORS)}
    rank, failure = min((own or failures).items())
    if isinstance(failure, ray.exceptions.OutOfMemoryError):
        return f"worker {rank}: {advice_on_memory(job)}"
    return f"worker {rank}: {type(failure).__name__}: {failure}"
