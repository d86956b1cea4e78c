"""``kind: tune``: Ray Tune over a pretraining job, each trial a Ray Train run with workers of its own."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from dira_dist.cluster.fit.stopping import JobStoppedError, signals_interrupt
from dira_dist.cluster.outcome import JobOutcome
from dira_dist.cluster.session import cluster_grows, gpus_per_worker, live_nodes, ray_session
from dira_dist.cluster.tune.controller import SearchController, SearchProgress, trial_name
from dira_dist.cluster.tune.tuner import run_trials, scheduler_of
from dira_dist.config import JobFailedError, RequestError, flatten, mutable_keys
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.kinds import kinds
from dira_dist.jobs.load import LoadedSearch
from dira_dist.jobs.search_plan import SearchPlan, plan_search
from dira_dist.runs.folder import WINNER
from dira_dist.runs.lease import sole_driver
from dira_dist.runs.run import differing_keys, read_run
from dira_dist.runs.search import SearchState, read_search
from dira_dist.search.fitting import ResourceRequest, trials_that_fit
from dira_dist.search.ranking import candidates
from dira_dist.search.suggestions import Suggestions
from dira_dist.search.trial import REFUSED, Trial, of_search

MAY_GROW = ("trials", "confirm_seeds")
MAY_CHANGE = ("max_concurrent",)


@dataclass(frozen=True)
class SearchOutcome(JobOutcome):
    """What a finished search leaves behind; its run is the trials' parent.

    Attributes:
        winner: number of the trial whose values are kept.
        best: address of the winner's job file.
        verdict: by how much it beats the published weights and how sure that is, in words.
        table: rows in Markdown.
        notes: what the table leaves out, in words.
        counts: trials and repetitions by how they ended.
    """

    winner: int = 0
    best: str = ""
    verdict: str = ""
    table: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The outcome as text, line by line."""
        yield from self.table
        yield from self.notes
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        yield self.headline(f": {counts}")
        yield f"verdict     {self.verdict}"
        here = self.best if "://" not in self.best else f"{WINNER}, once it is fetched"
        yield f"winner      {self.best}  (dira-dist run {here})"
        yield from self.run_lines()


def search(loaded: LoadedSearch, *, console: Console | None = None) -> SearchOutcome:
    """Run a search to its end, or go on with the search of its name.

    Trials that ended are kept; those that did not go on from their checkpoints.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: no trial could be trained to its end, or the search was stopped; the same call goes on.
    """
    plan = plan_search(loaded)
    resolved = loaded.job.resolve_paths()
    check_reachable(resolved.checkpoint.storage, write=True)
    store = open_store(resolved.run_folder)
    console = console or Console(file=sys.stderr, soft_wrap=True)
    wanted = _wanted(loaded, plan)
    state = claim_search(store, wanted)
    if state.outcome:
        return SearchOutcome.of_earlier(state.outcome)
    for warning in plan.facts.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False)
    with ray_session(resolved.resources), signals_interrupt():
        side_by_side = trials_at_once(plan)
        with sole_driver(store, console):  # another driver may have ended only now
            return _searched(plan, store, claim_search(store, wanted), console, side_by_side)


def _searched(plan: SearchPlan, store: Store, state: SearchState, console: Console, side_by_side: int) -> SearchOutcome:
    name, way_on = plan.loaded.job.name, f"what it found is in {store.address}, and the same command goes on"
    try:
        with SearchController(plan, store, state, console) as controller, SearchProgress(controller, console):
            _search(controller, side_by_side)
            _confirm(controller, side_by_side)
            return _concluded(controller)
    except StoreError as error:
        raise JobFailedError(f"{name} failed: {error}\n{way_on}") from error
    except KeyboardInterrupt:
        raise JobStoppedError(f"{name} was stopped; {way_on}") from None


def _concluded(controller: SearchController) -> SearchOutcome:
    ranking = controller.conclude()
    outcome = SearchOutcome(
        name=controller.plan.loaded.job.name,
        run_id=controller.run_id,
        page=controller.page,
        winner=ranking.winner.number,
        best=controller.address(WINNER),
        verdict=ranking.verdict(),
        table=list(ranking.table()),
        notes=list(ranking.notes()),
        counts=dict(Counter(trial.status for trial in controller.trials)),
    )
    controller.concluded(asdict(outcome))
    return outcome


def _wanted(loaded: LoadedSearch, plan: SearchPlan) -> SearchState:
    sets = loaded.job.resolve_paths().shard_sets()
    evaluated_on = {name: read_index(address).digest for name, address, _ in sets if name != "train"}
    return SearchState(loaded.public, plan.facts.train.digest, evaluated_on=evaluated_on)


def claim_search(store: Store, wanted: SearchState) -> SearchState:
    """The search this job goes on with. Nothing is written here.

    Raises:
        RequestError: if a search of this name with another configuration or other images is there.
    """
    existing = read_search(store)
    if existing is None:
        if read_run(store) is not None:
            raise RequestError(
                f"{store.address}: a pretraining run of this name is there; give the search another name"
            )
        return wanted
    if differences := [*_differing_keys(existing, wanted), *_differing_images(existing, wanted)]:
        raise RequestError(
            f"{store.address}: a search of this name with another configuration is there already:\n  "
            + "\n  ".join(differences)
            + "\ngive the search another name, or the same values to go on with it"
        )
    there, here = existing.job["search"], wanted.job["search"]
    outcome = {} if any(here[key] > there[key] for key in MAY_GROW) else existing.outcome
    return replace(existing, job=wanted.job, outcome=outcome, evaluated_on=wanted.evaluated_on)


def _differing_keys(existing: SearchState, wanted: SearchState) -> Iterator[str]:
    there, here = existing.job["base"], wanted.job["base"]
    # no stage may be made longer: trials that ended have all of them behind them
    for line in differing_keys(
        there, here, mutable_keys(kinds()[here["kind"]], "search"), stages_passed=len(there.get("stages", ()))
    ):
        yield f"base.{line}"
    old, new = flatten(existing.job["search"]), flatten(wanted.job["search"])
    for key in sorted({*old, *new}):
        grew = key in MAY_GROW and new[key] > old[key]
        if old.get(key) != new.get(key) and key not in MAY_CHANGE and not grew:
            yield f"search.{key}: {old.get(key)!r} there, {new.get(key)!r} here"


def _differing_images(existing: SearchState, wanted: SearchState) -> Iterator[str]:
    """A set that trials are evaluated on may not come or go either."""
    if existing.train_digest != wanted.train_digest:
        yield f"the training images: digest {existing.train_digest[:12]} there, {wanted.train_digest[:12]} here"
    for name in sorted({*existing.evaluated_on, *wanted.evaluated_on}):
        there, here = existing.evaluated_on.get(name, "none"), wanted.evaluated_on.get(name, "none")
        if there != here:
            yield f"the images that trials are evaluated on, {name}: digest {there[:12]} there, {here[:12]} here"


def trials_at_once(plan: SearchPlan) -> int:
    """How many trials run at once.

    Raises:
        RequestError: if the cluster does not hold one, or not as many as asked for, or if it is autoscaled and the job
            gives no number.
    """
    if cluster_grows():
        return _asked_of_a_growing_cluster(plan)
    resources = plan.loaded.job.resources
    sizes = [node.size for node in live_nodes()]
    requests = _requests(resources)
    fit = trials_that_fit(sizes, requests)
    asked = plan.loaded.search.max_concurrent
    if fit == 0 or (asked or 0) > fit:
        room = ", ".join(f"{cpus:g} CPUs and {gpus} GPUs" for cpus, gpus in sizes)
        each = f"{len(requests)} workers with {requests[0].cpus:g} CPUs and {requests[0].gpus:g} GPUs"
        remedy = f"lower it to {fit} or leave it out" if fit else "lower base.resources, or use a larger cluster"
        raise RequestError(
            f"search.max_concurrent: {asked or 1} trials of {each} are asked for at once, and {fit} fit into this Ray "
            f"(nodes: {room}); {remedy}"
        )
    return min(asked or fit, plan.most_trials)


def _asked_of_a_growing_cluster(plan: SearchPlan) -> int:
    """An autoscaler makes room for what is asked for, and does not say for how much."""
    asked = plan.loaded.search.max_concurrent
    if asked is None:
        raise RequestError(
            "search.max_concurrent: left out, and this cluster grows with what is asked of it; say how many trials may "
            "run at once"
        )
    return min(asked, plan.most_trials)


def _requests(resources: ResourcesConfig) -> list[ResourceRequest]:
    return [ResourceRequest(resources.cpus_per_worker, gpus_per_worker(resources))] * resources.max_workers


def _search(controller: SearchController, side_by_side: int) -> None:
    """Train the search's trials: the published weights, then those left unfinished, then new ones."""
    plan, known = controller.plan, of_search(controller.trials)
    suggestions = Suggestions(plan.loaded.search, plan.space, plan.goal.metrics, plan.goal.modes, known)
    first = [] if known else [Trial(trial_name(plan, 0), 0, dict(plan.published))]
    waiting = first + _left_over(known)
    controller.begin(waiting, plan.loaded.search.trials - len(first) - len(known), suggestions)
    scheduler = scheduler_of(plan, known)
    run_trials(controller, scheduler, side_by_side)
    controller.begin(_worth_another_try(of_search(controller.trials)), suggestions=suggestions)
    run_trials(controller, scheduler, side_by_side)


def _confirm(controller: SearchController, side_by_side: int) -> None:
    """Repeat the best trials and the published weights with further seeds, to the end."""
    plan = controller.plan
    first = plan.loaded.job.seed
    wanted = [
        Trial(f"{trial.name}-seed{seed}", trial.number, trial.params, seed)
        for seed in range(first + 1, first + 1 + plan.loaded.search.confirm_seeds)
        for trial in candidates(controller.trials, plan.goal)
    ]
    known = {trial.name: trial for trial in controller.trials}
    controller.begin(_left_over(known.get(trial.name, trial) for trial in wanted))
    run_trials(controller, FIFOScheduler(), side_by_side)
    controller.begin(_worth_another_try(trial for trial in controller.trials if trial.seed is not None))
    run_trials(controller, FIFOScheduler(), side_by_side)


def _worth_another_try(trials: Iterable[Trial]) -> list[Trial]:
    """Failed trials, but for those that were refused: a machine may have been short of something for a while."""
    return [trial for trial in trials if trial.status == "failed" and not trial.reason.startswith(REFUSED)]


def _left_over(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if not trial.settled]
