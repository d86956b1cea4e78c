"""What a job with folds is refused for, and how it is laid out, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import read_index
from dira_dist.jobs.folds_plan import FoldsPlan, plan_folds
from dira_dist.jobs.load import LoadedFolds, LoadedJob, load_job
from dira_dist.jobs.preflight import preflight
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.finetune.samples import FinetuneSamples


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 phantoms of 20 patients or so, 10 of them to test."""
    folder = tmp_path_factory.mktemp("sets")
    write_archive(folder / "archive", 40, size_px=40)
    dira_dist.shard(
        folder / "archive" / "images",
        folder / "shards",
        dira_dist.ShardOptions(
            image_size=None,
            processes=1,
            labels=str(folder / "archive" / "labels.csv"),
            group_by="patient",
            split=dira_dist.parse_split("train=0.75,test=0.25"),
        ),
    )
    return folder / "shards"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def values(sets: Path) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "name": "a",
        "data": {
            "train": f"{sets}/train",
            "test": f"{sets}/test",
            "folds": 3,
            "image_size": 32,
            "global_batch": 4,
        },
        "model": {"encoder": "tu-test_resnet"},
        "task": {"name": "classify", "label": "finding"},
        "tracking": {"register_as": "a"},
    }


def loaded(sets: Path, *overrides: str) -> LoadedFolds:
    found = load_job(values(sets), overrides)
    assert isinstance(found, LoadedFolds)
    return found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.val=elsewhere"], "data: found folds beside val; each fold is held out in its place: leave val out"),
        (["data.folds=1"], "data.folds: found 1; "),
        (["data.fold=4"], "data: found fold 4 and folds 3; allowed are folds from 1 to folds"),
        (["data.folds=null", "data.fold=1", "data.val=v"], "data: found fold 1 and folds None"),
        (["data.folds=null"], "data: found no val; .* or folds"),
        (["data.fold=1", "max_concurrent=2"], "found max_concurrent 2; it says how many folds run side by side"),
    ],
)
def test_what_cannot_be_is_refused(sets: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_job(values(sets), overrides)


def test_fewer_patients_than_folds_are_refused(sets: Path) -> None:
    table = read_samples(f"{sets}/train", read_index(f"{sets}/train"))
    count = len(set(table.groups))
    with pytest.raises(RequestError, match=rf"fold 1 of 20: {count} groups .* choose {count} folds at most"):
        plan_folds(loaded(sets, "data.folds=20"))


def test_a_set_that_shares_a_patient_with_test_is_refused(sets: Path) -> None:
    with pytest.raises(RequestError, match=r"fold 1 of 3: data.test: \d+ of its \d+ patients .* stand in data.train"):
        plan_folds(loaded(sets, f"data.test={sets}/train"))


def test_elastic_fits_are_refused_and_a_cluster_of_its_own_wants_a_number(sets: Path) -> None:
    with pytest.raises(RequestError, match=r"resources.workers: found \[1, 2\]; the fits of the folds run on a fixed"):
        plan_folds(loaded(sets, "resources.workers=[1, 2]"))
    with pytest.raises(RequestError, match="max_concurrent: how many folds run side by side"):
        loaded(sets).side_by_side()
    assert loaded(sets, "max_concurrent=2").side_by_side() == 2


def test_it_is_laid_out_fold_by_fold(sets: Path) -> None:
    found = dira_dist.check(loaded(sets))
    assert isinstance(found, FoldsPlan)
    images = read_index(f"{sets}/train").samples
    assert sum(fold.held_out for fold in found.folds) == images
    assert all(fold.learned == images - fold.held_out and fold.groups > 0 for fold in found.folds)
    lines = list(found.lines())
    assert [line.split()[:4] for line in lines if line.startswith("fold ")] == [
        ["fold", str(fold), "of", "3:"] for fold in (1, 2, 3)
    ]
    assert "ensemble of 3 networks, judged on test" in lines
    many = plan_folds(loaded(sets, "data.folds=8", "data.test=null"))
    assert any("fewer than the 8 folds" in line for line in many.lines()), "of 30 images some finding is rare"
    without = list(plan_folds(loaded(sets, "data.test=null")).lines())
    assert any(line.startswith("ensemble of 3 networks, judged out of fold alone") for line in without)


def test_what_the_ensemble_is_not_judged_by_is_said_where_it_is_asked_for(sets: Path) -> None:
    asked, left_out = (plan_folds(loaded(sets, *more)).warnings for more in (["report.localization={}"], []))
    assert [any("of the ensemble it is not" in line for line in each) for each in (asked, left_out)] == [True, False]


def test_a_fit_sees_neither_the_fold_nor_the_test_set(sets: Path) -> None:
    plan, table = plan_folds(loaded(sets)), read_samples(f"{sets}/train", read_index(f"{sets}/train"))
    held_out: list[int] = []
    for trial in plan.trials():
        fit = plan.trial(trial.name, trial.params)
        assert fit.job.name == f"a-fold{trial.number}" and fit.job.tracking.register_as is None
        assert [name for name, _, _ in fit.job.shard_sets()] == ["train"]
        samples = preflight(fit.job.resolve_paths()).samples
        assert isinstance(samples, FinetuneSamples) and samples.selection is not None
        judged = samples.evaluated["val"]
        learned_from = {table.groups[place] for place in samples.selection.ids}
        assert not learned_from & {table.groups[place] for place in judged}
        held_out += judged
    assert sorted(held_out) == list(range(len(table)))


def test_a_fit_starts_from_what_the_name_stood_for(sets: Path) -> None:
    plan = plan_folds(loaded(sets))
    pinned = plan.job.start.model_copy(update={"pinned": "models:/x/3"})
    later = FoldsPlan(**{**vars(plan), "job": plan.job.model_copy(update={"start": pinned})})
    job: Any = later.trial("a-fold1", {"fold": 1}).job
    assert job.start.address == "models:/x/3"


def test_one_fold_alone_is_an_ordinary_fit(sets: Path) -> None:
    found = load_job(values(sets), ["data.fold=2"])
    assert isinstance(found, LoadedJob)
    facts = preflight(found.job.resolve_paths())
    assert facts.samples.record["fold"] == 2
    assert set(facts.samples.evaluated) == {"val", "test"}  # type: ignore[attr-defined]


def test_a_share_of_the_labels_is_drawn_of_the_other_folds(sets: Path) -> None:
    whole, half = (
        preflight(load_job(values(sets), ["data.fold=1", f"data.label_fraction={share}"]).job.resolve_paths()).samples
        for share in (1, 0.5)
    )
    assert whole.record["held_out"] == half.record["held_out"], "the fold stays whole"
    assert whole.selection is not None and half.selection is not None
    assert set(half.selection.ids) < set(whole.selection.ids)


SEARCH = {"metric": "val/auroc", "mode": "max", "trials": 2, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-3}}}


def test_a_search_or_comparison_is_of_one_split_and_may_be_of_one_fold(sets: Path) -> None:
    base = {key: value for key, value in values(sets).items() if key != "tracking"}
    tune = {"kind": "tune", "name": "t", "search": SEARCH, "base": base}
    with pytest.raises(
        RequestError, match=r"base.data.folds.*: found 3; a search's trials are of one split.*data.fold"
    ):
        load_job(tune)
    compare = {
        "kind": "compare",
        "name": "c",
        "starts": {"a": "random", "b": "models:/b@best"},
        "learning_rates": [1e-3],
        "base": base | {"name": "c"},
    }
    with pytest.raises(RequestError, match=r"found base.data.folds; a comparison's fits are of one split.*data.fold"):
        load_job(compare)
    for job in (tune, compare):
        copied = json.loads(json.dumps(job))
        copied["base"]["data"]["fold"] = 1
        assert load_job(copied).job.data.fold == 1  # type: ignore[attr-defined]
