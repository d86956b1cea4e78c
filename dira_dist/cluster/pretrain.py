"""``kind: pretrain``: from a validated job to a registered model, on whatever Ray is there."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from rich.console import Console

from dira_dist.cluster.board import new_board
from dira_dist.cluster.controller import ControllerWatch
from dira_dist.cluster.folders import check_shared
from dira_dist.cluster.judging import JudgeSetup, Judging, OnJudgement, tell_late
from dira_dist.cluster.lease import sole_driver
from dira_dist.cluster.progress import ProgressView
from dira_dist.cluster.record import RunRecord, claim, read_record
from dira_dist.cluster.session import gpus_per_worker, ray_session
from dira_dist.cluster.stopping import JobStoppedError, fit_until_stopped, signals_interrupt
from dira_dist.cluster.trouble import COLLATERAL_ERRORS, advice_on_memory
from dira_dist.cluster.worker import WorkerSetup, train_worker
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.evaluation.record import best, by_label, figures_of, read_judgements
from dira_dist.job import LoadedJob, PretrainJob, ResourcesConfig, dump_job
from dira_dist.preflight import Preflight, preflight
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.history import draw_losses
from dira_dist.tracking.pictures import LOSSES
from dira_dist.tracking.publish import publish
from dira_dist.tracking.run import NullRun, TrackingRun, open_run
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
        best: address of the checkpoint with the highest ``checkpoint.best``; empty where nothing was judged.
        model: ``models:/name/version`` of the registered model, or an empty string.
        quality: what the networks were judged to be before and after each stage, by stage and figure.
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
    on_judgement: OnJudgement | None = None,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a pretraining job to its end, or go on with the run of its name.

    Called in a process' main thread, SIGINT and SIGTERM make the workers save and stop; a second one stops at once.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.
        on_judgement: called in a thread with label, step and figures of each judgement, those of earlier sessions
            first.
        tags: of the MLflow run, besides its own.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: when the work failed or was stopped; the same call goes on from the last checkpoint.
    """
    loaded = replace(loaded, job=loaded.job.located())
    job, facts = loaded.job, preflight(loaded.job)
    check_reachable(job.checkpoint.storage, write=True)
    store, console = open_store(job.run_folder), console or Console(file=sys.stderr, soft_wrap=True)
    session = _Session(loaded, facts, store, on_judgement, dict(tags or {}))
    finished = _finished(_claim(session))
    if on_judgement is not None:
        for judged in read_judgements(store):
            on_judgement(judged.label, judged.step, judged.metrics)
    if finished:
        return finished
    with ray_session(job.resources), signals_interrupt(), sole_driver(store, console):
        record = _claim(session)  # once more, for another driver may have ended only now
        try:
            return _finished(record) or _pretrain(session, record, console)
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
    on_judgement: OnJudgement | None
    tags: Mapping[str, str]

    @property
    def job(self) -> PretrainJob:
        return self.loaded.job

    @property
    def tracking(self) -> TrackingConfig:
        """Tracking without measuring the machine, which the first worker does."""
        return self.job.tracking.model_copy(update={"system_metrics_every_s": 0.0})


def _claim(session: _Session) -> RunRecord:
    """The run that is begun or gone on with."""
    newest = CheckpointFolder(session.store).newest_manifest()
    digests = {name: read_index(address).digest for name, address, _ in session.job.shard_sets()}
    wanted = RunRecord(session.loaded.record, digests)
    return claim(session.store, wanted, newest.position.stage if newest else 0)


def _finished(record: RunRecord) -> Outcome | None:
    return Outcome(**{**record.outcome, "already_done": True}) if record.status == "finished" else None


def _pretrain(session: _Session, record: RunRecord, console: Console) -> Outcome:
    """Everything from the first thing that is written."""
    run = _open_run(session, record.run_id)
    try:
        record = replace(record, run_id=run.run_id)
        record.write(session.store)
        run.claimed()
        check_shared(session.job)
        _fit(session, run.run_id, console)
        _draw_losses(session, run)
        outcome = _outcome(session, run)
        if not run.finish("FINISHED"):
            raise _undelivered(session.job)
        record = read_record(session.store) or record  # the workers have added their precision
        record.finished(asdict(outcome)).write(session.store)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | JobStoppedError)
        run.finish("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
        raise
    return outcome


def _open_run(session: _Session, run_id: str) -> TrackingRun | NullRun:
    """The job's MLflow run on the driver's side."""
    loaded, train = session.loaded, session.facts.train
    own = {"dira.job": session.job.name, "dira.version": __version__}
    tags, folder = {**session.tags, **own}, session.store.address
    run = open_run(session.tracking, session.job.name, loaded.record, tags, run_id or None, folder=folder)
    if not run_id:
        for name, address, context in session.job.shard_sets():
            index = train if name == "train" else read_index(address)
            profile = {"samples": index.samples, "shards": len(index.shards), "bytes": index.bytes}
            run.log_dataset(name, index.digest, address, context, profile)
        run.log_text(dump_job(loaded.record), "job.yaml")
    return run


def _fit(session: _Session, run_id: str, console: Console) -> None:
    """Train to the end of the plan, with every labelled checkpoint judged.

    Raises:
        JobFailedError: it did not come to its end.
    """
    job, plan = session.job, session.facts.plan
    board = new_board(stall_s=job.guards.hang_timeout_s / 2)
    setup = WorkerSetup(session.loaded, session.facts.train, plan, job.tracking, run_id, board)
    judging = Judging(JudgeSetup(job, session.tracking, run_id), board, session.on_judgement)
    with ProgressView(board, plan, console), judging, tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            partial(train_worker, setup),
            torch_config=TorchConfig(timeout_s=job.guards.hang_timeout_s),
            scaling_config=_scaling(job.resources),
            run_config=_run_config(job, scratch, board),
        )
        try:
            stopped = fit_until_stopped(trainer.fit, board, job.resources.start_timeout_s)
            cause = ray.get(board.fatal.remote())
        except ray.train.TrainingFailedError as error:
            stopped, cause = False, ray.get(board.fatal.remote()) or _cause(job, error)
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


def _run_config(job: PretrainJob, scratch: str, board: Any) -> ray.train.RunConfig:
    """Checkpoints are this project's own affair: Ray Train is given a scratch folder, and keeps nothing in it."""
    return ray.train.RunConfig(
        name=job.name,
        storage_path=scratch,
        failure_config=ray.train.FailureConfig(
            max_failures=job.resources.max_failures,
            controller_failure_limit=-1,  # tries at starting workers; the driver's clock ends them
        ),
        callbacks=[ControllerWatch(board, job.checkpoint.patience_s)],
        logging_config=LoggingConfig(log_level="ERROR"),
    )


def _draw_losses(session: _Session, run: TrackingRun | NullRun) -> None:
    """The curves of the whole run as a picture, where its tracking server is there to be asked for them."""
    boundaries = {span.first_step: span.name for span in session.facts.plan.spans}
    try:
        curves = draw_losses(session.tracking, run.run_id, boundaries) if run.run_id else None
    except RequestError:
        return  # the training is done, and its figures arrive when the server is back
    if curves is not None:
        run.log_picture(LOSSES, curves, session.facts.plan.steps)
        run.flush()


def _outcome(session: _Session, run: TrackingRun | NullRun) -> Outcome:
    """Register what the last checkpoint holds, and say what came out."""
    job, folder = session.job, CheckpointFolder(session.store)
    newest = folder.newest_whole(lambda warning: None)
    assert newest is not None, "the last stage ends with a checkpoint"
    name, checkpoint = newest
    if checkpoint.pending_metrics and run.run_id:  # measured while the tracking server was away
        late = TrackingRun.attach(session.tracking, run.run_id, checkpoint.pending_metrics)
        if not late.flush():
            raise _undelivered(job)
    tell_late(run, session.store)
    judgements = read_judgements(session.store)
    best_one = best(judgements, job.checkpoint.best)
    for gone in folder.keep(job.checkpoint.keep, [best_one.checkpoint] if best_one else []):
        run.log_removal(step_of(gone))
    return Outcome(
        name=job.name,
        run_id=run.run_id,
        page=run.page,
        steps=checkpoint.position.step,
        checkpoint=folder.address(name),
        best=folder.address(best_one.checkpoint) if best_one else "",
        model=_published(session, run.run_id, checkpoint, figures_of(judgements, name)),
        quality=by_label(judgements),
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
    failures = {rank: getattr(failure, "_base_exc", failure) for rank, failure in _failures(error).items()}
    if not failures:
        return str(error)
    own = {rank: failure for rank, failure in failures.items() if not isinstance(failure, COLLATERAL_ERRORS)}
    rank, failure = min((own or failures).items())
    if isinstance(failure, ray.exceptions.OutOfMemoryError):
        return f"worker {rank}: {advice_on_memory(job)}"
    return f"worker {rank}: {type(failure).__name__}: {failure}"


def _failures(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    found: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return found
