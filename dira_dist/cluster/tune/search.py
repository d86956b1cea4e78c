"""``kind: tune``: Ray Tune over a pretraining job, each trial a Ray Train run with workers of its own."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from rich.console import Console

from dira_dist.cluster.outcome import JobOutcome
from dira_dist.cluster.tune.controller import SearchController, trial_name
from dira_dist.cluster.tune.driving import claim_state, drive, wanted_state
from dira_dist.cluster.tune.room import at_once
from dira_dist.cluster.tune.trials import TrialProgress, left_over, worth_another_try
from dira_dist.cluster.tune.tuner import run_trials, scheduler_of
from dira_dist.config import flatten, mutable_keys
from dira_dist.data.store import Store
from dira_dist.jobs.kinds import kinds
from dira_dist.jobs.load import LoadedSearch
from dira_dist.jobs.search_plan import SearchPlan, plan_search
from dira_dist.runs.folder import WINNER
from dira_dist.runs.run import differing_keys
from dira_dist.runs.search import SearchState
from dira_dist.search.ranking import candidates
from dira_dist.search.suggestions import Suggestions
from dira_dist.search.trial import Trial, of_search

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
        here = shlex.quote(self.best) if "://" not in self.best else f"{WINNER}, once it is fetched"
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
    wanted = wanted_state(loaded.job, loaded.public, plan.facts.train.digest)
    return drive(
        loaded.job,
        claim=lambda store: claim_search(store, wanted),
        outcome=SearchOutcome,
        room=lambda: trials_at_once(plan),
        work=partial(_searched, plan),
        warnings=plan.facts.warnings,
        console=console,
    )


def _searched(plan: SearchPlan, store: Store, state: SearchState, console: Console, side_by_side: int) -> SearchOutcome:
    with SearchController(plan, store, state, console) as controller, TrialProgress(controller, console):
        _search(controller, side_by_side)
        _confirm(controller, side_by_side)
        return _concluded(controller)


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


def claim_search(store: Store, wanted: SearchState) -> SearchState:
    """The search this job goes on with. Nothing is written here.

    Raises:
        RequestError: if a search of this name with another configuration or other images is there.
    """
    return claim_state(store, wanted, _differing_keys, _grew)


def _grew(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return any(here["search"][key] > there["search"][key] for key in MAY_GROW)


def _differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    before, now = there["base"], here["base"]
    # no stage may be made longer: trials that ended have all of them behind them
    for line in differing_keys(
        before, now, mutable_keys(kinds()[now["kind"]], "search"), stages_passed=len(before.get("stages", ()))
    ):
        yield f"base.{line}"
    old, new = flatten(there["search"]), flatten(here["search"])
    for key in sorted({*old, *new}):
        grew = key in MAY_GROW and new[key] > old[key]
        if old.get(key) != new.get(key) and key not in MAY_CHANGE and not grew:
            yield f"search.{key}: {old.get(key)!r} there, {new.get(key)!r} here"


def trials_at_once(plan: SearchPlan) -> int:
    """How many trials run at once.

    Raises:
        RequestError: see :func:`dira_dist.cluster.tune.room.at_once`.
    """
    asked = plan.loaded.search.max_concurrent
    return at_once(plan.loaded.job, asked, plan.most_trials, key="search.max_concurrent", member="trials")


def _search(controller: SearchController, side_by_side: int) -> None:
    """Train the search's trials: the published weights, then those left unfinished, then new ones."""
    plan, known = controller.plan, of_search(controller.trials)
    suggestions = Suggestions(plan.loaded.search, plan.space, plan.goal.metrics, plan.goal.modes, known)
    first = [] if known else [Trial(trial_name(plan, 0), 0, dict(plan.published))]
    waiting = first + left_over(known)
    controller.begin(waiting, plan.loaded.search.trials - len(first) - len(known), suggestions)
    scheduler = scheduler_of(plan, known)
    run_trials(controller, scheduler, side_by_side)
    controller.begin(worth_another_try(of_search(controller.trials)), suggestions=suggestions)
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
    controller.begin(left_over(known.get(trial.name, trial) for trial in wanted))
    run_trials(controller, FIFOScheduler(), side_by_side)
    controller.begin(worth_another_try(trial for trial in controller.trials if trial.seed is not None))
    run_trials(controller, FIFOScheduler(), side_by_side)
