"""Which search a folder goes on with, and which trials ASHA stops, without a cluster."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dira_dist.cluster.record import RunRecord
from dira_dist.cluster.trial import OBJECTIVE, RUNG_STEP
from dira_dist.cluster.tune import _claim, _scheduler
from dira_dist.config import RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.job import load_job
from dira_dist.search.ledger import SearchRecord, Trial
from dira_dist.search.ranking import Goal
from dira_dist.search.rungs import Rungs

SPACE = {"loss_weights.restorative": {"low": 1, "high": 100}}


def wanted(*overrides: str) -> SearchRecord:
    values: dict[str, Any] = {"kind": "tune", "name": "s", "search": {"space": SPACE}, "base": {"data": {"train": "a"}}}
    return SearchRecord(load_job(values, overrides).record, "digest")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path))
    finished = Trial("s-000", 0, {}, status="finished", history=[(9, {"m": 1.0})])
    replace(wanted(), run_id="run", trials=(finished,), outcome={"name": "s"}).write(store)
    return store


def test_the_same_search_is_gone_on_with_and_a_finished_one_told(store: Store, tmp_path: Path) -> None:
    assert _claim(open_store(str(tmp_path / "new")), wanted()) == wanted()
    found = _claim(store, wanted("search.max_concurrent=3", "base.resources.cpus_per_worker=2"))
    assert (found.run_id, found.outcome, len(found.trials)) == ("run", {"name": "s"}, 1)


@pytest.mark.parametrize("override", ["search.trials=30", "search.confirm_seeds=9"])
def test_a_finished_search_may_grow(store: Store, override: str) -> None:
    found = _claim(store, wanted(override))
    assert found.outcome == {}
    assert [trial.status for trial in found.trials] == ["finished"], "what was done is kept"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trials=5", "search.trials: 20 there, 5 here"),
        ("search.sampler=random", "search.sampler: 'optuna' there"),
        ("search.space={optimizer.lr: {low: 0.1, high: 1}}", "search.space.optimizer.lr.low: None there"),
        ("base.seed=1", "base.seed: 0 there, 1 here"),
    ],
)
def test_another_search_of_the_name_is_refused(store: Store, override: str, words: str) -> None:
    with pytest.raises(RequestError, match="another configuration is there already") as caught:
        _claim(store, wanted(override))
    assert words in str(caught.value)


def test_other_images_and_a_pretraining_of_the_name_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="training images"):
        _claim(store, replace(wanted(), train_digest="other"))
    taken = open_store(str(tmp_path / "taken"))
    RunRecord({"name": "s"}, "digest").write(taken)
    with pytest.raises(RequestError, match="a pretraining run of this name is there"):
        _claim(taken, wanted())


def plan(rungs: Rungs | None) -> Any:
    return SimpleNamespace(rungs=rungs, goal=Goal(("m",), ("min",)))


def at(scheduler: TrialScheduler, number: int, step: int, objective: float) -> str:
    trial = SimpleNamespace(trial_id=f"new-{number}", config={"trial": {"number": number}})
    scheduler.on_trial_add(None, trial)
    return str(scheduler.on_trial_result(None, trial, {RUNG_STEP: step, OBJECTIVE: objective}))


def test_asha_compares_with_the_trials_of_an_earlier_start() -> None:
    earlier = [
        Trial(
            f"t{number}", number, {}, status="stopped", history=[(0, {"m": 9.0}), (10, {"m": loss}), (90, {"m": 0.0})]
        )
        for number, loss in enumerate((1.0, 2.0, 3.0))
    ]
    unsettled = Trial("t3", 3, {}, status="running", history=[(10, {"m": 0.0})])
    scheduler = _scheduler(plan(Rungs(10, 3, 10, 90)), [*earlier, unsettled])
    assert at(scheduler, 4, 10, -2.5) == TrialScheduler.STOP, "a third goes on"
    assert at(scheduler, 5, 10, -0.9) == TrialScheduler.CONTINUE
    assert at(scheduler, 6, 5, -99.0) == TrialScheduler.CONTINUE, "before the first rung nothing is stopped"
    assert at(scheduler, 0, 10, -99.0) == TrialScheduler.CONTINUE, "the published weights go to the end"
    alone = _scheduler(plan(Rungs(10, 3, 10, 90)), [])
    assert at(alone, 4, 10, -2.5) == TrialScheduler.CONTINUE, "it knew from earlier"


def test_without_rungs_nothing_stops() -> None:
    assert isinstance(_scheduler(plan(None), []), FIFOScheduler)
