"""The training itself: Ray Train's workers, evaluations beside them, and what to say when it does not end well."""

import tempfile
from functools import partial

import ray
import ray.train
from ray.train.torch import TorchConfig
from rich.console import Console

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient, start_coordinator
from dira_dist.cluster.fit.evaluation_gpu import EvaluationGpu
from dira_dist.cluster.fit.evaluations import EvaluationRunner, EvaluationSetup
from dira_dist.cluster.fit.failures import COLLATERAL_ERRORS, advice_on_memory
from dira_dist.cluster.fit.guarding import GuardWatch
from dira_dist.cluster.fit.preemption import ControllerWatch
from dira_dist.cluster.fit.progress import ProgressView
from dira_dist.cluster.fit.session import FitSession
from dira_dist.cluster.fit.stopping import JobStoppedError, fit_until_stopped
from dira_dist.cluster.fit.worker import WorkerSetup, train_worker
from dira_dist.cluster.ray_internals import LeanTrainer, LoggingConfig, remove_orphaned_groups, worker_failures
from dira_dist.cluster.session import gpus_per_worker
from dira_dist.config import JobFailedError
from dira_dist.jobs.base import ResourcesConfig, TrainingJob
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.tracking.protocol import Run
from dira_dist.training.checkpoints import NONE_WHOLE, CheckpointFolder


def train_on_ray(session: FitSession, run: Run, console: Console) -> None:
    """Train to the end of the plan, with every labelled checkpoint evaluated.

    Raises:
        JobFailedError: it did not come to its end.
    """
    job, plan, run_id = session.job, session.facts.plan, run.run_id
    coordinator = start_coordinator(stall_s=job.guards.hang_timeout_s / 2)
    setup = WorkerSetup(session.loaded, session.facts, job.tracking, run_id, coordinator)
    watch = GuardWatch(job.running_guards(), coordinator, run, session.facts.warnings)
    watch.catch_up(read_evaluations(session.store))
    heard = watch.before(session.on_evaluation)
    with (
        EvaluationGpu(job) as gpu,
        ProgressView(coordinator, plan, console, watch.reported),
        EvaluationRunner(EvaluationSetup(job, session.tracking, run_id), coordinator, gpu, heard),
        tempfile.TemporaryDirectory() as scratch,
    ):
        trainer = LeanTrainer(
            partial(train_worker, setup),
            torch_config=TorchConfig(timeout_s=job.guards.hang_timeout_s),
            scaling_config=_scaling(job.resources),
            run_config=_run_config(job, scratch, coordinator),
        )
        try:
            stopped = fit_until_stopped(trainer.fit, coordinator, job.resources.start_timeout_s)
            cause = coordinator.call(Coordinator.fatal)
        except ray.train.TrainingFailedError as error:
            stopped, cause = False, coordinator.call(Coordinator.fatal) or _cause(session, error)
        except ray.exceptions.ActorDiedError:
            remove_orphaned_groups()  # the controller is gone, and a driver that lives on would keep its workers' room
            raise
        except TimeoutError as error:
            stopped, cause = False, _no_room(job.resources, error)
        if cause:
            way_on = "" if NONE_WHOLE in cause else f"\n{session.how_to_go_on}"  # which says its own
            raise JobFailedError(f"{job.name} failed: {cause}{way_on}")
        newest = CheckpointFolder(session.store).newest_manifest()
        if stopped and (newest is None or newest.position.stage < len(plan.spans)):
            where = f"after step {newest.position.step} of {plan.steps}" if newest else "before its first step"
            raise JobStoppedError(f"{job.name} was stopped {where}; {session.how_to_go_on}")


def _no_room(resources: ResourcesConfig, error: TimeoutError) -> str:
    per_worker = f"{resources.cpus_per_worker:g} CPUs and {gpus_per_worker(resources):g} GPUs"
    return (
        f"{error}: the cluster has no room for {resources.min_workers} with {per_worker} each; make room, ask for less "
        "(resources.workers, cpus_per_worker, gpus_per_worker), or wait longer (resources.start_timeout_s)"
    )


def _scaling(resources: ResourcesConfig) -> ray.train.ScalingConfig:
    gpus = gpus_per_worker(resources)
    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return ray.train.ScalingConfig(
        num_workers=resources.workers,
        use_gpu=gpus > 0,
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=resources.resize_every_s,
    )


def _run_config(job: TrainingJob, scratch: str, coordinator: CoordinatorClient) -> ray.train.RunConfig:
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


def _cause(session: FitSession, error: ray.train.TrainingFailedError) -> str:
    """The first failure, as far as it is known: not that of a worker which only lost its connection to a failed one."""
    failures = worker_failures(error)
    if not failures:
        return str(error)
    own = {rank: failure for rank, failure in failures.items() if not isinstance(failure, COLLATERAL_ERRORS)}
    rank, failure = min((own or failures).items())
    if isinstance(failure, ray.exceptions.OutOfMemoryError):
        return f"worker {rank}: {advice_on_memory(session.job_as_it_ran)}"
    return f"worker {rank}: {type(failure).__name__}: {failure}"
