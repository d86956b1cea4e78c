"""What a comparison is refused for, or lays out, before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import dira_dist
from dira_dist.config import RequestError
from dira_dist.jobs.compare_plan import ComparisonPlan, plan_comparison
from dira_dist.jobs.load import LoadedComparison, dump_job, load_job
from dira_dist.quickstart.phantom import write_archive
from dira_dist.search.trial import Trial

PRETRAIN = {
    "kind": "pretrain",
    "name": "any",
    "data": {"train": "a", "image_size": 32, "global_batch": 4},
    "model": {"encoder": "tu-test_resnet"},
    "stages": [{"objective": "di", "epochs": 1}],
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_archive(folder / "archive", 40, size_px=40)
    options = dira_dist.ShardOptions(
        image_size=None,
        processes=1,
        labels=str(folder / "archive" / "labels.csv"),
        group_by="patient",
        split=dira_dist.parse_split("train=0.6,val=0.2,test=0.2"),
    )
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    return folder / "shards"


def values(sets: Path | str = "s", **changes: Any) -> dict[str, Any]:
    data = {name: f"{sets}/{name}" for name in ("train", "val", "test")} | {"image_size": 32, "global_batch": 4}
    base = {
        "kind": "finetune",
        "data": data,
        "model": {"encoder": "tu-test_resnet"},
        "task": {"name": "classify", "label": "finding"},
    }
    common = {
        "kind": "compare",
        "name": "c",
        "starts": {"random": "random", "dira": "models:/dira@best"},
        "label_fractions": [{"fraction": 1.0, "epochs": 7, "every_epochs": 2}, 0.5],
        "seeds": 2,
        "learning_rates": [1e-4, 5e-4],
        "base": base,
    }
    return common | changes


def loaded(source: dict[str, Any], *overrides: str) -> LoadedComparison:
    found = load_job(source, overrides)
    assert isinstance(found, LoadedComparison)
    return found


def plan(source: dict[str, Any]) -> ComparisonPlan:
    """Without a look at its sets and starts."""
    found = loaded(source)
    return ComparisonPlan(found, plan_goal(), {}, "", (), ())


def plan_goal() -> Any:
    from dira_dist.search.ranking import Goal

    return Goal(("val/auroc",), ("max",))


def job_of(of: ComparisonPlan, trial: Trial) -> Any:
    return of.trial(trial.name, trial.params, trial.seed).job


def test_the_written_form_is_the_same_job() -> None:
    found = loaded(values())
    assert load_job(yaml.safe_load(dump_job(found.public))) == loaded(found.public)
    assert loaded(found.public).comparison == found.comparison


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("base.start.from=models:/x@best", "found base.start; it is the comparison's: what each fit starts from"),
        ("base.data.label_fraction=0.5", "found base.data.label_fraction"),
        ("base.optimizer.lr=0.5", "found base.optimizer.lr; it is the comparison's: the rates stand under"),
        ("base.tracking.register_as=x", "no fit is registered"),
        ("base.name=other", "fits are named by the comparison"),
        ("base.data.test=null", "found no base.data.test; starts are compared on patients"),
        ("base.kind=pretrain", "base.kind: found 'pretrain'; allowed: 'finetune'"),
        ("starts={random: random}", "at least 2"),
        ("starts.dira={from: x, optimizer: {lr: 0.1}}", "found lr; each start's rate is chosen on val"),
        ("starts.dira={from: [a, b, c]}", "found 3 models in starts.dira.from and seeds 2"),
        ("starts.dira=nowhere.yaml", "nowhere.yaml: no such file"),
        ("starts.dira={from: {kind: finetune}}", "a job of kind 'finetune'; give one of kind pretrain, or a model"),
        ("label_fractions=[0.5, 0.5]", "give each value once"),
        ("label_fractions=[0]", "greater than 0"),
        ("learning_rates=[]", "at least 1"),
        ("seeds=1", "seeds: found 1; allowed: greater than or equal to 2"),
        ("seed=3", "unknown key; did you mean 'seeds'"),
        ("name=" + "n" * 70, "a run's name has 80 at most: shorten"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(override: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_job(values(), [override])
    assert words in str(caught.value)


def test_a_fit_is_the_base_with_what_differs() -> None:
    starts = {"random": "random", "dira": {"from": ["a", "b"], "parts": "encoder", "optimizer": {"freeze_epochs": 1}}}
    found = plan(values(starts=starts))
    job = job_of(found, found.fit("dira", 1.0, 5e-4, 1))
    assert (job.name, job.seed, job.start.address, job.start.parts) == ("c-dira-1-lr0.0005-seed1", 1, "b", "encoder")
    assert (job.optimizer.lr, job.optimizer.freeze_epochs, job.epochs) == (5e-4, 1, 7)
    assert (job.data.label_fraction, job.data.fraction_seed, job.early_stopping.every_epochs) == (1.0, 1, 2)
    other = job_of(found, found.fit("random", 0.5, 1e-4, 0))
    assert (other.start.is_random, other.start.parts, other.optimizer.freeze_epochs) == (True, None, 0)
    assert (other.data.label_fraction, other.data.fraction_seed, other.epochs) == (0.5, 0, 100)


def test_a_seed_is_the_same_for_all_starts_and_begins_with_that_of_the_base() -> None:
    source = values()
    source["base"]["seed"], source["base"]["data"]["fraction_seed"] = 4, 9
    found = plan(source)
    jobs = [job_of(found, found.fit(start, 0.5, 1e-4, 5)) for start in ("random", "dira")]
    assert {(job.seed, job.data.fraction_seed) for job in jobs} == {(5, 10)}
    assert {trial.seed for trial in found.choosing()} == {4}


def test_rates_are_tried_with_the_first_seed_and_kept_for_the_others() -> None:
    found = plan(values(seeds=3))
    assert len(found.choosing()) == 2 * 2 * 2
    repeated = found.repeated({("dira", 0.5): 5e-4, ("random", 1.0): 1e-4})
    assert [trial.name for trial in repeated] == [
        "c-dira-0.5-lr0.0005-seed1",
        "c-dira-0.5-lr0.0005-seed2",
        "c-random-1-lr0.0001-seed1",
        "c-random-1-lr0.0001-seed2",
    ]
    assert found.most_trials == 8 + 2 * 2 * 2


def test_a_pretraining_is_run_with_each_seed_beside_the_fits(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    source = values(starts={"random": "random", "dira": f"{tmp_path}/pretrain.yaml"})
    source["base"] |= {"checkpoint": {"storage": "there"}, "tracking": {"experiment": "mine"}}
    found = plan(source)
    first, second = (job_of(found, trial) for trial in found.pretrainings())
    assert (first.kind, first.name, first.seed, second.seed) == ("pretrain", "c-pretrain-dira-seed0", 0, 1)
    assert (first.checkpoint.storage, first.tracking.experiment) == ("there", "mine")
    assert job_of(found, found.fit("dira", 0.5, 1e-4, 1)).start.address == "there/c-pretrain-dira-seed1"
    assert found.starts["dira"].of_several_models
    (tmp_path / "pretrain.yaml").unlink()
    assert loaded(found.loaded.public).comparison == found.loaded.comparison, "what it names stands in it"


def test_the_plan_counts_fits_and_images(sets: Path) -> None:
    pretrain = PRETRAIN | {
        "data": {"train": f"{sets}/train", "image_size": 32, "global_batch": 4},
        "method": {"queue_size": 16},
    }
    found = plan_comparison(loaded(values(sets, starts={"random": "random", "dira": {"from": pretrain}})))
    text = "\n".join(found.lines())
    assert found.images[0.5] < found.images[1.0]
    assert "fits     8 with the first seed and 4 with 1 further ones, after 2 pretrainings" in text
    assert f"0.5 ({found.images[0.5]} images), 1 ({found.images[1.0]} images)" in text
    assert "warning  seeds: 2; with so few" in text


def test_what_the_plan_finds_is_told_with_the_start(sets: Path) -> None:
    with pytest.raises(RequestError, match=r"starts\.dira: .*nowhere"):
        plan_comparison(loaded(values(sets, starts={"random": "random", "dira": "nowhere/at-all"})))
    pretrain = PRETRAIN | {
        "data": {"train": f"{sets}/train", "image_size": 32, "global_batch": 4},
        "method": {"queue_size": 16},
    }
    source = values(sets, starts={"random": "random", "dira": {"from": pretrain}})
    source["base"] = {key: value for key, value in source["base"].items() if key != "model"}
    with pytest.raises(
        RequestError, match=r"its network is tu-test_resnet, and that of random is resnet50: give base\.model"
    ):
        plan_comparison(loaded(source))
    elastic = values(sets)
    elastic["base"]["resources"] = {"workers": [1, 2]}
    with pytest.raises(
        RequestError, match=r"base\.resources\.workers: found \[1, 2\]; the fits of a comparison run on"
    ):
        plan_comparison(loaded(elastic))


def test_a_cluster_made_for_it_is_as_large_as_it_says() -> None:
    assert loaded(values(max_concurrent=3)).side_by_side() == 3
    with pytest.raises(RequestError, match="max_concurrent: how many fits run side by side is left to the cluster"):
        loaded(values()).side_by_side()
