"""A job that trains, of any kind: from a validated job file to a registered model, on whatever Ray is there."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace

from rich.console import Console

from dira_dist.cluster.fit.evaluations import OnEvaluation
from dira_dist.cluster.fit.outcome import Outcome, conclude, draw_loss_curves
from dira_dist.cluster.fit.session import FitSession
from dira_dist.cluster.fit.stopping import JobStoppedError, signals_interrupt
from dira_dist.cluster.fit.trainer import train_on_ray
from dira_dist.cluster.folders import check_shared
from dira_dist.cluster.session import losses_explained, ray_session
from dira_dist.config import JobFailedError, RequestError, mutable_keys
from dira_dist.data.generations import at_generation, generation_of, plain_address
from dira_dist.data.store import StoreError, check_reachable, open_store
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import LoadedJob, dump_job
from dira_dist.jobs.preflight import preflight
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.lease import sole_driver
from dira_dist.runs.run import RunState, claim, read_run
from dira_dist.runs.search import read_search
from dira_dist.tracking.protocol import Run
from dira_dist.tracking.run import open_run
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.version import __version__


def fit(
    loaded: LoadedJob,
    *,
    console: Console | None = None,
    on_evaluation: OnEvaluation | None = None,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a job to its end, or go on with the run of its name.

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
    check_reachable(loaded.job.checkpoint.storage, write=True)
    store, console = open_store(loaded.job.run_folder), console or Console(file=sys.stderr, soft_wrap=True)
    earlier = read_run(store)
    asked = _at_generations(loaded.job, earlier.generations if earlier else {})
    facts = preflight(asked, earlier.job if earlier else None)
    facts = replace(facts, job=_at_generations(facts.job, {name: index.number for name, index in facts.sets.items()}))
    loaded, job = loaded.settled(facts.job, facts.changes), facts.job
    session = FitSession(loaded, facts, store, on_evaluation, dict(tags or {}))
    finished = _finished(_claim(session))
    if on_evaluation is not None:
        for evaluated in read_evaluations(store):
            on_evaluation(evaluated.label, evaluated.step, evaluated.metrics)
    if finished:
        return finished
    for warning in facts.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False)
    with losses_explained(job.name), ray_session(job.resources), signals_interrupt(), sole_driver(store, console):
        state = _claim(session)  # once more, for another driver may have ended only now
        try:
            return _finished(state) or _run(session, state, console)
        except StoreError as error:
            raise JobFailedError(f"{job.name} failed: {error}\n{session.how_to_go_on}") from error
        except KeyboardInterrupt:
            raise JobStoppedError(f"{job.name} was stopped; {session.how_to_go_on}") from None


def _claim(session: FitSession) -> RunState:
    """The run that is begun or gone on with.

    Raises:
        RequestError: there is another of this name.
    """
    _check_no_folds(session)
    newest = CheckpointFolder(session.store).newest_manifest()
    sets = session.facts.sets.items()
    wanted = RunState(
        session.loaded.public,
        {name: index.digest for name, index in sets},
        generations={name: index.number for name, index in sets},
    )
    may_change = (*mutable_keys(type(session.job), "run"), *session.job.keys_of_rounding())
    return claim(session.store, wanted, may_change, newest.position.stage if newest else 0)


def _at_generations(job: TrainingJob, generations: Mapping[str, int]) -> TrainingJob:
    """The job on generations of its sets, by name; where its address names one already, that one is meant."""
    addresses = {name: address for name, address, _ in job.shard_sets() if generation_of(address) is None}
    known = addresses.keys() & generations.keys()
    return job.reading({name: at_generation(addresses[name], generations[name]) for name in known})


def _check_no_folds(session: FitSession) -> None:
    """Raises:
    RequestError: a job of folds has its ensemble in this folder, which is no checkpoint to go on from.
    """
    found = read_search(session.store)
    if found is not None and found.job["kind"] == session.job.kind:
        raise RequestError(
            f"{session.store.address}: a cross-validation (data.folds) of this name is there; give the job another name"
        )


def _finished(state: RunState) -> Outcome | None:
    return Outcome.of_earlier(state.outcome) if state.status == "finished" else None


def _run(session: FitSession, state: RunState, console: Console) -> Outcome:
    """Everything from the first thing that is written."""
    run = _open_run(session, state.run_id)
    try:
        state = replace(state, run_id=run.run_id)
        state.write(session.store)
        run.claimed()
        check_shared(session.job)
        train_on_ray(session, run, console)
        draw_loss_curves(session, run)
        outcome = conclude(session, run)
        if not run.finish("FINISHED"):
            raise session.undelivered()
        state = read_run(session.store) or state  # the workers have added their precision
        state.finished(asdict(outcome)).write(session.store)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | JobStoppedError)
        run.finish("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
        raise
    return outcome


def _open_run(session: FitSession, run_id: str) -> Run:
    """The job's MLflow run on the driver's side."""
    loaded = session.loaded
    own = {"dira.job": session.job.name, "dira.version": __version__}
    tags, folder = {**session.tags, **own}, session.store.address
    run = open_run(session.tracking, session.job.name, loaded.public, tags, run_id or None, folder=folder)
    if not run_id:
        for name, address, context in session.job.shard_sets():
            index = session.facts.sets[name]
            profile = {"samples": index.samples, "shards": len(index.shards), "bytes": index.bytes}
            profile["generation"] = index.number
            run.log_dataset(name, index.digest, plain_address(address), context, profile)
        run.log_text(dump_job(loaded.public), "job.yaml")
    return run
