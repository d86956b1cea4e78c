"""How a job of many trials is driven: which one a folder goes on with, and what ends it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rich.console import Console

from dira_dist.cluster.fit.stopping import JobStoppedError, signals_interrupt
from dira_dist.cluster.outcome import JobOutcome
from dira_dist.cluster.session import losses_explained, ray_session
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.jobs.base import TrainingJob
from dira_dist.runs.lease import sole_driver
from dira_dist.runs.run import read_run
from dira_dist.runs.search import SearchState, read_search

OutcomeT = TypeVar("OutcomeT", bound=JobOutcome)
RoomT = TypeVar("RoomT")
KINDS = {"tune": "search", "compare": "comparison", "finetune": "cross-validation"}


def drive(
    job: TrainingJob,
    *,
    claim: Callable[[Store], SearchState],
    outcome: type[OutcomeT],
    room: Callable[[], RoomT],
    work: Callable[[Store, SearchState, Console, RoomT], OutcomeT],
    warnings: Sequence[str],
    console: Console | None,
) -> OutcomeT:
    """Does the work as the only driver of its folder, or tells what came of it before.

    Args:
        job: whose resources a trial takes, and under whose name the folder lies.
        claim: the state that a folder goes on with.
        outcome: the class of what is kept.
        room: how much the cluster holds; asked before anything is written.
        work: to be done with the folder, its state and the room.
        warnings: shown at the beginning.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: the work failed or was stopped; the same call goes on.
    """
    resolved = job.resolve_paths()
    check_reachable(resolved.checkpoint.storage, write=True)
    store, console = open_store(resolved.run_folder), console or Console(file=sys.stderr, soft_wrap=True)
    state = claim(store)
    if state.outcome:
        return outcome.of_earlier(state.outcome)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False)
    way_on = f"what it found is in {store.address}, and the same command goes on"
    with losses_explained(job.name), ray_session(resolved.resources), signals_interrupt():
        found = room()
        with sole_driver(store, console):
            try:
                return work(store, claim(store), console, found)  # another driver may have ended only now
            except StoreError as error:
                raise JobFailedError(f"{job.name} failed: {error}\n{way_on}") from error
            except KeyboardInterrupt:
                raise JobStoppedError(f"{job.name} was stopped; {way_on}") from None


def wanted_state(job: TrainingJob, public: Mapping[str, Any], train_digest: str) -> SearchState:
    """The state of a job of many trials that is new."""
    sets = job.resolve_paths().shard_sets()
    evaluated_on = {name: read_index(address).digest for name, address, _ in sets if name != "train"}
    return SearchState(dict(public), train_digest, evaluated_on=evaluated_on)


def claim_state(
    store: Store,
    wanted: SearchState,
    differing: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[str]],
    grew: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
) -> SearchState:
    """The state this job goes on with. Nothing is written here.

    Args:
        store: of the folder.
        wanted: what is asked for now.
        differing: a line for each key that is there and here, and differs though it may not.
        grew: whether more is asked for here than there, so that a finished job goes on.

    Raises:
        RequestError: if a job of this name with another configuration or other images is there.
    """
    existing, kind = read_search(store), KINDS[wanted.job["kind"]]
    if existing is None:
        if (run := read_run(store)) is not None:
            what = "fine-tuning" if run.job.get("kind") == "finetune" else "pretraining"
            raise RequestError(f"{store.address}: a {what} run of this name is there; give the {kind} another name")
        return wanted
    if existing.job["kind"] != wanted.job["kind"]:
        other = KINDS[existing.job["kind"]]
        raise RequestError(f"{store.address}: a {other} of this name is there; give the {kind} another name")
    differences = [*differing(existing.job, wanted.job), *_differing_images(existing, wanted)]
    if differences:
        raise RequestError(
            f"{store.address}: a {kind} of this name with another configuration is there already:\n  "
            + "\n  ".join(differences)
            + f"\ngive the {kind} another name, or the same values to go on with it"
        )
    outcome = {} if grew(existing.job, wanted.job) else existing.outcome
    return replace(existing, job=wanted.job, outcome=outcome, evaluated_on=wanted.evaluated_on)


def _differing_images(existing: SearchState, wanted: SearchState) -> Iterator[str]:
    """A set that trials are evaluated on may not come or go either."""
    if existing.train_digest != wanted.train_digest:
        yield f"the training images: digest {existing.train_digest[:12]} there, {wanted.train_digest[:12]} here"
    for name in sorted({*existing.evaluated_on, *wanted.evaluated_on}):
        there, here = existing.evaluated_on.get(name, "none"), wanted.evaluated_on.get(name, "none")
        if there != here:
            yield f"the images that trials are evaluated on, {name}: digest {there[:12]} there, {here[:12]} here"
