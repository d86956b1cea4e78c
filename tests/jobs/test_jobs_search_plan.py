"""What is known of a search before anything starts: figures, keys, published weights, rungs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import ShardWriter

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.shards import Sample
from dira_dist.jobs.load import LoadedSearch, load_job
from dira_dist.jobs.search_plan import SearchPlan, plan_search
from dira_dist.quickstart.phantom import write_archive

SPACE: dict[str, Any] = {"loss_weights.restorative": {"low": 1, "high": 100}}
STAGES = [{"objective": "di", "steps": 30}, {"objective": "dira", "steps": 60}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_archive(folder / "archive", 24, size_px=48)
    labels = folder / "labels.csv"
    rows = (folder / "archive" / "labels.csv").read_text().splitlines()
    labels.write_text("\n".join([f"{rows[0]},same", *(f"{row},all" for row in rows[1:])]))
    options = dira_dist.ShardOptions(
        image_size=None, labels=str(labels), label_columns=("finding", "same"), processes=1
    )
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    (folder / "salt").write_text("the same split everywhere")
    halves = options.model_copy(update={"split": {"train": 0.5, "val": 0.5}, "salt_file": str(folder / "salt")})
    dira_dist.shard(folder / "archive" / "images", folder / "halves", halves)
    return folder


def probe_of(folder: Path, label: str) -> dict[str, str]:
    return {"train": str(folder / "halves" / "train"), "val": str(folder / "halves" / "val"), "label": label}


def plan(folder: Path, search: dict[str, Any] | None = None, **base: Any) -> SearchPlan:
    shards = str(folder / "shards")
    values: dict[str, Any] = {
        "data": {"train": shards, "val": shards, "image_size": 32, "global_batch": 8},
        "model": {"encoder": "tu-test_resnet"},
        "stages": STAGES,
        "probe": probe_of(folder, "finding"),
    }
    found = load_job({"kind": "tune", "name": "s", "search": {"space": SPACE} | (search or {}), "base": values | base})
    assert isinstance(found, LoadedSearch)
    return plan_search(found)


def refusal(folder: Path, search: dict[str, Any] | None = None, **base: Any) -> str:
    with pytest.raises(RequestError) as caught:
        plan(folder, search, **base)
    return str(caught.value)


def test_the_figure_is_the_probes_where_there_is_one(folder: Path) -> None:
    assert (plan(folder).goal.metrics, plan(folder).goal.modes) == (("probe/auroc",), ("max",))
    assert plan(folder, probe=None).goal.metrics == ("val/rankme",)
    goal = plan(folder, {"metric": ["val/rankme", "val/uniformity"]}).goal
    assert goal.modes == ("max", "min"), "what is better of a known figure is known"
    assert plan(folder, {"metric": "val/psnr", "mode": "min"}).goal.modes == ("min",)


def test_a_figure_that_nobody_reports_is_refused(folder: Path) -> None:
    message = refusal(folder, {"metric": "val/rankmi"})
    assert "nobody reports 'val/rankmi'" in message
    assert "did you mean 'val/rankme'" in message
    assert "nobody reports 'probe/auroc'" in refusal(folder, {"metric": "probe/auroc"}, probe=None)
    blind = {"train": str(folder / "shards"), "image_size": 32, "global_batch": 8}
    assert "nothing compares the trials" in refusal(folder, None, data=blind, probe=None)


def test_sets_that_the_network_cannot_be_fed_are_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    cube = io.BytesIO()
    np.save(cube, np.zeros((32, 32, 32), np.uint16))
    with ShardWriter(str(tmp_path), mode="volume", encoding="npy") as writer:
        for number in range(8):
            writer.add(Sample(f"k{number}", cube.getvalue(), "npy", 32, 32))
    data = {"train": str(tmp_path), "val": str(folder / "shards"), "image_size": [32, 64], "global_batch": 8}
    assert "the train set has samples with 3 spatial axes, and the model takes 2" in refusal(folder, None, data=data)
    assert "has 3 axes, the images have 2" in refusal(folder, None, data=data | {"image_size": [32, 32, 32]})


def test_a_probe_set_with_one_class_is_refused(folder: Path) -> None:
    message = refusal(folder, None, probe=probe_of(folder, "same"))
    assert "probe.label: 'same' has a single value" in message


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"loss_weight.restorative": {"low": 1, "high": 2}}, ["no such key", "mean 'loss_weights.restorative'"]),
        ({"loss_weights": {"low": 1, "high": 2}}, ["this is a section", "loss_weights.adversarial"]),
        ({"seed": {"choices": [1, 2]}}, ["the same in all trials", "confirm_seeds"]),
        ({"probe.k": {"low": 1, "high": 20}}, ["the same in all trials"]),
        ({"checkpoint.keep": {"low": 1, "high": 3}}, ["the same in all trials"]),
        ({"method.name": {"low": 1, "high": 3}}, ["'moco_v2'", "give choices"]),
        ({"method.name": {"choices": ["moco_v2", "byol"]}}, ["'byol' is refused", "'barlow_twins'"]),
        ({"optimizer.momentum": {"low": 0.5, "high": 1.5}}, ["1.5 is refused", "optimizer.momentum"]),
        ({"data.global_batch": {"choices": [8, 7]}}, []),
    ],
)  # fmt: skip
def test_keys_and_values_that_the_job_would_refuse_are_refused_at_once(
    folder: Path, space: dict[str, Any], words: list[str]
) -> None:
    if not words:
        assert plan(folder, {"space": space})  # valid one by one; a trial is checked again before it begins
        return
    message = refusal(folder, {"space": space})
    assert not [word for word in [*space, *words] if word not in message], message


def test_a_weight_that_no_stage_takes_is_refused(folder: Path) -> None:
    space = {"loss_weights.adversarial": {"low": 0.001, "high": 1}}
    assert "no stage takes it" in refusal(folder, {"space": space}, stages=[{"objective": "dir", "steps": 9}])
    assert plan(folder, {"space": space})
    own = [{"objective": "dira", "steps": 9, "loss_weights": {"adversarial": 0.1}}]
    assert "no stage takes it" in refusal(folder, {"space": space}, stages=own)
    below = {"stages.0.loss_weights.adversarial": {"low": 0.001, "high": 1}}
    assert plan(folder, {"space": below}, stages=own)


def test_views_may_be_searched_unless_they_are_the_yardstick(folder: Path) -> None:
    space = {"views.blur.probability": {"low": 0.1, "high": 0.9}}
    assert plan(folder, {"space": space})
    assert "measured on what base.views makes" in refusal(folder, {"space": space, "metric": "val/psnr"})


def test_the_published_weights_come_first_whatever_the_base_says(folder: Path) -> None:
    assert plan(folder).published == {"loss_weights.restorative": 10.0}
    other = plan(folder, loss_weights={"adversarial": 0.5})
    assert other.published == {"loss_weights.restorative": 10.0, "loss_weights.adversarial": 0.001}
    own = plan(folder, stages=[*STAGES, {"objective": "dir", "steps": 9, "loss_weights": {"discriminative": 3}}])
    trial = own.trial("t", own.published).job
    assert {tuple(stage.loss_weights.model_dump().values()) for stage in trial.stages} == {(1.0, 10.0, 0.001)}


def test_trials_are_evaluated_at_the_rungs_and_registered_nowhere(folder: Path) -> None:
    found = plan(folder, tracking={"register_as": "dira"})
    assert found.rungs is not None
    assert (found.rungs.steps, found.rungs.evaluate_every_steps) == ((10, 30), 10)
    trial = found.trial("s-001", {"loss_weights.restorative": 2.0}).job
    assert (trial.evaluation.every_steps, trial.tracking.register_as, trial.seed) == (10, None, 0)
    repeated = found.trial("s-001-seed4", {"loss_weights.restorative": 2.0}, seed=4).job
    assert (repeated.evaluation.every_steps, repeated.tracking.register_as, repeated.seed) == (None, None, 4)
    winner = found.winner({"loss_weights.restorative": 2.0})
    assert (winner.job.name, winner.job.tracking.register_as, winner.job.evaluation.every_steps) == (
        "s-best",
        "dira",
        None,
    )
    assert load_job(winner.public) == winner, "a complete job file"


def test_rungs_fit_the_shortest_trial(folder: Path) -> None:
    found = plan(folder, {"space": {"stages.1.steps": {"low": 6, "high": 600}}})
    assert found.rungs is not None
    assert found.rungs.total_steps == 36
    assert plan(folder, {"scheduler": "fifo"}).rungs is None
    assert "none would be stopped after 90" in refusal(folder, {"grace_steps": 90})


def test_a_trial_with_another_batch_has_steps_of_its_own(folder: Path) -> None:
    found = plan(
        folder, {"space": {"data.global_batch": {"choices": [8, 7]}}}, stages=[{"objective": "di", "epochs": 7}]
    )
    assert found.steps(found.loaded.job) == 21, "7 epochs of 24 images by 8"
    assert found.steps(found.trial("s-001", {"data.global_batch": 7}).job) == 21, "24 images by 7 are 21 in 7 lanes"


def test_a_range_of_workers_is_refused(folder: Path) -> None:
    assert "fixed number of workers" in refusal(folder, resources={"workers": [1, 2]})


def test_the_plan_is_told(folder: Path) -> None:
    lines = "\n".join(plan(folder, {"trials": 8, "confirm_seeds": 2}).lines())
    for words in ("by probe/auroc (max)", "1 to 100, log", "trials   8", "at most 8 repetitions", "at steps 10, 30"):
        assert words in lines, lines
