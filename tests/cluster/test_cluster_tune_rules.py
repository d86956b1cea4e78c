"""Which search a folder goes on with, and which trials ASHA stops, without a cluster."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from rich.console import Console

import dira_dist
from dira_dist.cluster.tune import controller as controller_module
from dira_dist.cluster.tune import tuner
from dira_dist.cluster.tune.search import claim_search, trials_at_once
from dira_dist.cluster.tune.trial import OBJECTIVE, RUNG_STEP
from dira_dist.cluster.tune.tuner import run_trials, scheduler_of
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import LoadedSearch, load_job
from dira_dist.jobs.search_plan import SearchPlan, plan_search
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.run import RunState
from dira_dist.runs.search import SearchState, read_search
from dira_dist.search.ranking import Goal
from dira_dist.search.rungs import Rungs
from dira_dist.search.suggestions import Suggestions
from dira_dist.search.trial import Trial

SPACE = {"loss_weights.restorative": {"low": 1, "high": 100}}


def wanted(*overrides: str) -> SearchState:
    values: dict[str, Any] = {"kind": "tune", "name": "s", "search": {"space": SPACE}}
    values["base"] = {"data": {"train": "a"}, "stages": [{"objective": "dir", "epochs": 200}]}
    return SearchState(load_job(values, overrides).public, "digest", evaluated_on={"val": "v", "probe-val": "p"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path))
    finished = Trial("s-000", 0, {}, status="finished", history=[(9, {"m": 1.0})])
    replace(wanted(), run_id="run", trials=(finished,), outcome={"name": "s"}).write(store)
    return store


def test_the_same_search_is_gone_on_with_and_a_finished_one_told(store: Store, tmp_path: Path) -> None:
    assert claim_search(open_store(str(tmp_path / "new")), wanted()) == wanted()
    moved = ["base.data.train=b", "base.data.val=c", "base.tracking.experiment=other", "base.evaluation.threads=1"]
    found = claim_search(store, wanted("search.max_concurrent=3", "base.resources.cpus_per_worker=2", *moved))
    assert (found.run_id, found.outcome, len(found.trials)) == ("run", {"name": "s"}, 1)


@pytest.mark.parametrize("override", ["search.trials=30", "search.confirm_seeds=9"])
def test_a_finished_search_may_grow(store: Store, override: str) -> None:
    found = claim_search(store, wanted(override))
    assert found.outcome == {}
    assert [trial.status for trial in found.trials] == ["finished"], "what was done is kept"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trials=5", "search.trials: 20 there, 5 here"),
        ("search.sampler=random", "search.sampler: 'optuna' there"),
        ("search.space={optimizer.lr: {low: 0.1, high: 1}}", "search.space.optimizer.lr.low: None there"),
        ("base.seed=1", "base.seed: 0 there, 1 here"),
        ("base.evaluation.every_steps=7", "base.evaluation.every_steps: None there, 7 here"),
        ("base.stages.0.epochs=300", "base.stages.0.epochs: 200.0 there, 300.0 here"),
    ],
)
def test_another_search_of_the_name_is_refused(store: Store, override: str, words: str) -> None:
    with pytest.raises(RequestError, match="another configuration is there already") as caught:
        claim_search(store, wanted(override))
    assert words in str(caught.value)


def test_a_search_over_a_task_without_stages_is_gone_on_with(tmp_path: Path) -> None:
    def without_stages(steps: int) -> SearchState:
        job = wanted().job
        base = {key: value for key, value in job["base"].items() if key != "stages"} | {"steps": steps}
        return replace(wanted(), job={**job, "base": base})

    store = open_store(str(tmp_path))
    replace(without_stages(40), run_id="run").write(store)
    assert claim_search(store, without_stages(40)).run_id == "run"
    with pytest.raises(RequestError, match=r"base\.steps: 40 there, 41 here"):
        claim_search(store, without_stages(41))


def test_other_images_and_a_pretraining_of_the_name_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="training images"):
        claim_search(store, replace(wanted(), train_digest="other"))
    with pytest.raises(RequestError, match="evaluated on, val: digest v there, other here"):
        claim_search(store, replace(wanted(), evaluated_on={"val": "other", "probe-val": "p"}))
    with pytest.raises(RequestError, match="evaluated on, probe-val: digest p there, none here"):
        claim_search(store, replace(wanted(), evaluated_on={"val": "v"}))
    taken = open_store(str(tmp_path / "taken"))
    RunState({"name": "s"}, {}).write(taken)
    with pytest.raises(RequestError, match="a pretraining run of this name is there"):
        claim_search(taken, wanted())


def plan(rungs: Rungs | None) -> Any:
    return SimpleNamespace(rungs=rungs, goal=Goal(("m",), ("min",)))


def at(scheduler: TrialScheduler, number: int, step: int, objective: float) -> str:
    """What becomes of a trial, which Tune calls by a new id whenever it is begun."""
    trial = SimpleNamespace(trial_id=uuid4().hex, config={"trial": {"name": f"t{number}", "number": number}})
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
    scheduler = scheduler_of(plan(Rungs(10, 3, 10, 90)), [*earlier, unsettled])
    assert at(scheduler, 4, 10, -2.5) == TrialScheduler.STOP, "a third goes on"
    assert at(scheduler, 5, 10, -0.9) == TrialScheduler.CONTINUE
    assert at(scheduler, 6, 5, -99.0) == TrialScheduler.CONTINUE, "before the first rung nothing is stopped"
    assert at(scheduler, 0, 10, -99.0) == TrialScheduler.CONTINUE, "the published weights go to the end"
    alone = scheduler_of(plan(Rungs(10, 3, 10, 90)), [])
    assert at(alone, 4, 10, -2.5) == TrialScheduler.CONTINUE, "it knew from earlier"


def test_a_trial_that_is_begun_again_counts_once_at_a_rung() -> None:
    scheduler = scheduler_of(plan(Rungs(10, 3, 10, 90)), [])
    for number, objective in enumerate((-1.0, -2.0, -3.0), start=1):
        at(scheduler, number, 10, objective)
    for _ in range(5):  # its driving process is lost, and it tells its evaluations again
        assert at(scheduler, 1, 10, -1.0) == TrialScheduler.CONTINUE
    assert at(scheduler, 4, 10, -1.2) == TrialScheduler.CONTINUE, "the best third of four begins below the best one"
    lost = SimpleNamespace(trial_id="any", config={"trial": {"name": "t4", "number": 4}})
    scheduler.on_trial_complete(None, lost, {RUNG_STEP: 10, OBJECTIVE: -1.2})
    assert at(scheduler, 4, 10, -1.2) == TrialScheduler.CONTINUE
    scheduler.on_trial_remove(None, lost)


def test_without_rungs_nothing_stops() -> None:
    assert isinstance(scheduler_of(plan(None), []), FIFOScheduler)


class SearchController:
    """As much of a controller as Tune's failures concern."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace(
            loaded=load_job({"name": "s", "data": {"train": "a"}, "resources": {"max_failures": 2}})
        )
        self.to_run, self.taken_back = 3, list[str]()

    def take_back(self, reason: str) -> None:
        self.taken_back.append(reason)


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_tune_is_begun_again_as_often_as_workers_may_fail(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [RuntimeError("Caught unexpected exception: out of memory\nlong story")] * failures
    controller: Any = SearchController()

    def once(*_: object) -> None:
        if left:
            raise left.pop()
        controller.to_run = 0

    monkeypatch.setattr(tuner, "_tune_once", once)
    monkeypatch.setattr(tuner, "_wait_for_trials_to_end", lambda: None)
    if failures > 2:
        with pytest.raises(JobFailedError, match="RuntimeError: Caught unexpected exception: out of memory\n"):
            run_trials(controller, FIFOScheduler(), 1)
        return
    run_trials(controller, FIFOScheduler(), 1)
    assert controller.to_run == 0
    assert controller.taken_back == ["RuntimeError: Caught unexpected exception: out of memory"] * failures


@pytest.fixture
def found(tmp_path: Path) -> SearchPlan:
    shards = tmp_path / "shards"
    write_archive(tmp_path / "archive", 16, size_px=48)
    dira_dist.shard(tmp_path / "archive" / "images", shards, dira_dist.ShardOptions(image_size=None, processes=1))
    data = {"train": str(shards), "val": str(shards), "image_size": 32, "global_batch": 8}
    base = {"data": data, "model": {"encoder": "tu-test_resnet"}, "checkpoint": {"storage": str(tmp_path / "runs")}}
    loaded = load_job({"kind": "tune", "name": "s", "search": {"space": SPACE, "trials": 3}, "base": base})
    assert isinstance(loaded, LoadedSearch)
    return plan_search(loaded)


def test_a_trial_that_may_stop_early_is_evaluated_where_it_ends(
    found: SearchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(found.loaded.job), "publishes_best", True)  # as a fine-tuning does
    store, state = open_store(found.loaded.job.run_folder), SearchState(found.loaded.public, "digest")
    with controller_module.SearchController(found, store, state, Console(quiet=True)) as controller:
        controller.begin([Trial("s-000", 0, dict(found.published))])
        trial = controller.next_trial()
        assert trial is not None
        ended = replace(trial, status="finished", history=[(3, {"val/rankme": 1.0})])
    assert ended.evaluated_at_end and not ended.not_evaluated_at_end


def test_what_tune_had_begun_is_handed_out_again(found: SearchPlan) -> None:
    loaded, store = found.loaded, open_store(found.loaded.job.run_folder)
    with controller_module.SearchController(
        found, store, SearchState(loaded.public, "digest"), Console(quiet=True)
    ) as controller:
        suggestions = Suggestions(loaded.search, found.space, found.goal.metrics, found.goal.modes)
        controller.begin([Trial("s-000", 0, dict(found.published))], 2, suggestions)
        first, second = controller.next_trial(), controller.next_trial()
        assert first is not None
        assert second is not None
        assert first.total_steps == second.total_steps == found.facts.plan.steps
        controller.ended(first.name, status="finished", run_id="")
        controller.started(second.name)
        controller.take_back("lost")
        again, third = controller.next_trial(), controller.next_trial()
        assert again == second
        assert third is not None
        assert (third.name, controller.next_trial(), controller.to_run) == ("s-002", None, 0)
        controller.started(third.name)
    kept = read_search(store)
    assert kept is not None
    assert [trial.status for trial in kept.trials] == ["finished", "waiting", "running"]
    with controller_module.SearchController(found, store, kept, Console(quiet=True)) as controller:
        assert controller.line().startswith("trials: 0 running, 1 done"), "nobody runs what a lost driver had begun"


def test_what_goes_wrong_beside_the_trials_is_told(found: SearchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr(controller_module, "search_pictures", broken)
    console = Console(file=io.StringIO(), width=500)
    store = open_store(found.loaded.job.run_folder)
    with controller_module.SearchController(
        found, store, SearchState(found.loaded.public, "digest"), console
    ) as controller:
        controller.begin([Trial("s-000", 0, {}), Trial("s-001", 1, {})])
        for trial in filter(None, (controller.next_trial(), controller.next_trial())):
            controller.evaluated(trial.name, 3, {"val/rankme": 2.0})
            controller.ended(trial.name, status="finished", run_id="")
        with pytest.raises(JobFailedError, match=r"s-001: trained for .* and not evaluated at its end"):
            controller.conclude()
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert told.count("page in MLflow is not up to date: ValueError('no fonts')") == 1, "once, not for each trial"
    assert "trial s-000: trained for" in told


@pytest.mark.parametrize(("asked", "trials", "at_once"), [(3, 20, 3), (30, 20, 20)])
def test_a_growing_cluster_is_asked_for_what_the_search_says(
    monkeypatch: pytest.MonkeyPatch, asked: int, trials: int, at_once: int
) -> None:
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor")
    search = SimpleNamespace(max_concurrent=asked)
    job = SimpleNamespace(resources=ResourcesConfig())
    plan: Any = SimpleNamespace(loaded=SimpleNamespace(search=search, job=job), most_trials=trials)
    assert trials_at_once(plan) == at_once
    search.max_concurrent = None
    with pytest.raises(RequestError, match=r"search\.max_concurrent: left out, and this cluster grows"):
        trials_at_once(plan)
