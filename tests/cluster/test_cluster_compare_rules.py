"""How a comparison chooses rates, ends, and is gone on with, without a cluster: fits are written down as if trained."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dira_dist.cluster.tune.compare import ComparisonController, ComparisonOutcome, _differing_keys, _grew
from dira_dist.cluster.tune.driving import claim_state
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.store import Store, open_store
from dira_dist.evaluation.classification import ClassPredictions
from dira_dist.jobs.compare_plan import FRACTION, RATE, START, ComparisonPlan
from dira_dist.jobs.load import LoadedComparison, load_job
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation
from dira_dist.runs.report import write_report
from dira_dist.runs.search import SearchState, read_search
from dira_dist.search.ranking import Goal
from dira_dist.search.trial import Trial
from dira_dist.training.finetune.report_tables import predictions_csv, predictions_file

SAMPLES = 400
SKILLS = {"random": {0.1: 0.3, 1.0: 1.3}, "dira": {0.1: 1.3, 1.0: 2.3}}


def loaded(folder: Path, *overrides: str) -> LoadedComparison:
    values = {
        "kind": "compare",
        "name": "c",
        "starts": {"random": "random", "dira": "models:/dira@best"},
        "label_fractions": [0.1, 1.0],
        "seeds": 3,
        "learning_rates": [1e-4, 5e-4],
        "base": {
            "kind": "finetune",
            "data": {"train": "a", "val": "b", "test": "c", "image_size": 32},
            "task": {"name": "classify", "label": "finding"},
            "report": {"bootstrap": 200},
            "checkpoint": {"storage": str(folder)},
        },
    }
    found = load_job(values, overrides)
    assert isinstance(found, LoadedComparison)
    return found


def plan(folder: Path, *overrides: str) -> ComparisonPlan:
    return ComparisonPlan(loaded(folder, *overrides), Goal(("val/auroc",), ("max",)), {0.1: 60, 1.0: 600}, "d", (), ())


def write_fit(folder: Path, trial: Trial, val: float) -> None:
    """What a fit leaves: the figures of its epochs, and predictions of the same test samples in an order of its own."""
    store = open_store(f"{folder}/{trial.name}")
    for step, figure in ((1, val - 0.2), (2, val), (3, val - 0.1)):
        add_evaluation(store, EvaluationEntry(f"step-{step}", step, f"step-{step}", {"val/auroc": figure}))
    truth = np.random.default_rng(0).random(SAMPLES) < 0.4
    noise = np.random.default_rng([trial.seed or 0, len(trial.name), int(1000 * trial.params[FRACTION])])
    logits = SKILLS[trial.params[START]][trial.params[FRACTION]] * (truth - 0.5) + noise.normal(size=SAMPLES)
    chances = 1 / (1 + np.exp(-logits))
    order = noise.permutation(SAMPLES)
    predictions = ClassPredictions(
        keys=[f"k{number:03d}" for number in order],
        groups=[f"p{number // 2}" for number in order],
        logits=logits[order, None],
        targets=truth[order, None].astype(np.float32),
        classes=("finding",),
        kind="binary",
    )
    content = predictions_csv(predictions, chances[order, None]).encode()
    write_report(store, {"report.json": json.dumps({"metrics": {}}).encode(), predictions_file("test"): content})


def controller(folder: Path, trials: list[Trial], *overrides: str) -> tuple[ComparisonController, Store, io.StringIO]:
    found = plan(folder, *overrides)
    store, said = open_store(f"{folder}/c"), io.StringIO()
    state = SearchState(found.loaded.public, "digest", trials=tuple(trials))
    return ComparisonController(found, store, state, Console(file=said, width=500)), store, said


def trained(folder: Path, *, best: float = 5e-4, failed: str = "") -> list[Trial]:
    """All fits: the rate ``best`` is better on val with the first seed, and kept for the others."""
    found = plan(folder)
    rates = {(start, fraction): best for start in SKILLS for fraction in (0.1, 1.0)}
    trials = []
    for trial in (*found.choosing(), *found.repeated(rates)):
        if trial.name == failed:
            trials.append(replace(trial, status="failed", reason="out of memory"))
            continue
        write_fit(folder, trial, 0.9 if trial.params[RATE] == best else 0.8)
        trials.append(replace(trial, status="finished"))
    return trials


@pytest.mark.parametrize("best", [1e-4, 5e-4])
def test_each_start_and_fraction_has_the_rate_that_is_best_on_val(tmp_path: Path, best: float) -> None:
    with controller(tmp_path, trained(tmp_path, best=best))[0] as found:
        assert found.rates() == {(start, fraction): best for start in SKILLS for fraction in (0.1, 1.0)}


def test_a_planted_better_start_is_said_to_need_fewer_labels(tmp_path: Path) -> None:
    found, store, _ = controller(tmp_path, trained(tmp_path))
    with found:
        outcome = found.conclude()
        assert found.line().startswith("fits: 0 running, 16 done of 16")
    assert outcome.sentences["dira"].startswith("this model (dira) ")
    assert "is better than random with 0.1 of the labels (60 images): AUROC +0." in outcome.sentences["dira"]
    page, data = store.read_bytes("comparison.md").decode(), json.loads(store.read_bytes("comparison.json"))
    assert "## Calibration" in page
    assert outcome.sentences["dira"] in page
    assert (data["patients"], data["samples"]) == (200, SAMPLES)
    assert [cell["learning_rate"] for cell in data["cells"]] == [5e-4] * 4
    assert all(0 < cell["calibration"]["Brier score"]["value"] < 0.5 for cell in data["cells"])
    assert data["cells"][2]["difference"]["low"] > 0
    assert store.read_bytes("learning-curves.png").startswith(b"\x89PNG")
    state = read_search(store)
    assert state is not None
    again = ComparisonOutcome.of_earlier(state.outcome)
    assert (again.already_done, again.table, again.sentences) == (True, outcome.table, outcome.sentences)
    assert any(line.startswith("found       this model (dira)") for line in again.lines())


def test_a_fit_that_failed_is_told_and_tried_again(tmp_path: Path) -> None:
    """Its seed is left out for all starts, and the comparison is not over."""
    found, store, _ = controller(tmp_path, trained(tmp_path, failed="c-dira-1-lr0.0005-seed2"))
    with found:
        outcome = found.conclude()
    assert "c-dira-1-lr0.0005-seed2 failed: out of memory" in outcome.notes
    assert "Left out for all starts, since a fit with it is missing: seed 2." in outcome.notes
    assert [len(cell["by_seed"]) for cell in json.loads(store.read_bytes("comparison.json"))["cells"]] == [2] * 4
    state = read_search(store)
    assert state is not None
    assert state.outcome == {}, "the same command goes on"


def test_too_few_fits_are_an_error_with_the_reasons(tmp_path: Path) -> None:
    trials = [replace(trial, status="failed", reason="no disk") for trial in trained(tmp_path) if trial.seed]
    first = [trial for trial in trained(tmp_path) if not trial.seed]
    with controller(tmp_path, first + trials)[0] as found, pytest.raises(JobFailedError) as caught:
        found.conclude()
    assert "fits of 1 seed(s) came to their end from all starts, and 2 are needed" in str(caught.value)
    assert "c-random-0.1-lr0.0005-seed1: no disk" in str(caught.value)


def state(folder: Path, *overrides: str) -> SearchState:
    return SearchState(loaded(folder, *overrides).public, "digest", evaluated_on={"val": "v", "test": "t"})


def claimed(store: Store, wanted: SearchState) -> SearchState:
    return claim_state(store, wanted, _differing_keys, _grew)


def test_the_same_comparison_is_gone_on_with_and_may_have_more_seeds(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "c"))
    replace(state(tmp_path), run_id="run", outcome={"name": "c"}).write(store)
    moved = ["max_concurrent=2", "base.tracking.experiment=other", "base.resources.cpus_per_worker=2"]
    assert claimed(store, state(tmp_path, *moved)).outcome == {"name": "c"}
    grown = claimed(store, state(tmp_path, "seeds=5"))
    assert (grown.run_id, grown.outcome) == ("run", {})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeds=2", "seeds: 3 there, 2 here"),
        ("learning_rates=[0.1]", "learning_rates.0: 0.0001 there, 0.1 here"),
        ("starts.dira=other", "starts.dira: 'models:/dira@best' there"),
        ("base.epochs=3", "base.epochs: 100.0 there, 3.0 here"),
    ],
)
def test_another_comparison_of_the_name_is_refused(tmp_path: Path, override: str, words: str) -> None:
    store = open_store(str(tmp_path / "c"))
    state(tmp_path).write(store)
    with pytest.raises(RequestError, match="a comparison of this name with another configuration") as caught:
        claimed(store, state(tmp_path, override))
    assert words in str(caught.value)


def test_a_search_of_the_name_is_no_comparison(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "c"))
    search: dict[str, Any] = {"kind": "tune", "name": "c", "search": {}, "base": {}}
    SearchState(search, "digest").write(store)
    with pytest.raises(RequestError, match="a search of this name is there; give the comparison another name"):
        claimed(store, state(tmp_path))
