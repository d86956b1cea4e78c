"""Presets: what they fill in, that the file wins, what `check` says of it, and what a lift cannot be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dira_dist.config import RequestError, flatten
from dira_dist.data.shards import ImageInfo, PixelRange, ShardInfo, ShardSetIndex
from dira_dist.jobs.load import LoadedComparison, dump_job, load_job
from dira_dist.jobs.presets import _PRESETS
from dira_dist.jobs.pretrain import PretrainJob

JOBS = Path(__file__).parents[2] / "jobs"


def job(*overrides: str, **values: Any) -> PretrainJob:
    found = load_job({"name": "a", "data": {"train": "x"}, **values}, overrides).job
    assert isinstance(found, PretrainJob)
    return found


@pytest.mark.parametrize("preset", _PRESETS)
def test_a_preset_fills_in_every_key_it_has(preset: str) -> None:
    found = flatten(job(preset=preset).model_dump(mode="json"))
    wanted = flatten({key: value for key, value in _PRESETS[preset].items() if key != "stages"})
    assert {key: found[key] for key in wanted} == wanted
    stages = job(preset=preset).stages
    assert [stage.objective for stage in stages] == [stage["objective"] for stage in _PRESETS[preset]["stages"]]
    assert all(stage.optimizer == job(preset=preset).optimizer for stage in stages)


def test_the_dira_preset_is_what_a_job_without_one_has_but_for_its_channels() -> None:
    plain, preset = (job(**each).model_dump(mode="json") for each in ({}, {"preset": "dira"}))
    differing = {key for key, value in flatten(preset).items() if flatten(plain).get(key) != value}
    assert differing <= {"preset", "model.in_channels", "stages.2.global_batch", "data.global_batch", "data.image_size"}


def test_what_the_file_says_wins_key_by_key() -> None:
    found = job("optimizer.lr=0.5", "views.distortion.shuffle_windows=7", preset="models_genesis")
    assert found.optimizer.lr == found.stages[0].optimizer.lr == 0.5 and found.optimizer.halve_every_epochs == 40
    assert found.views.distortion.name == "models_genesis"
    assert flatten(found.views.model_dump())["distortion.shuffle_windows"] == 7
    assert found.views.jitter.probability == 0
    adam = job(preset="models_genesis", optimizer={"name": "adamw"}).optimizer
    assert (adam.name, adam.lr, adam.schedule) == ("adamw", 5e-4, "cosine"), "of another one nothing is taken over"
    flat = job(preset="models_genesis", model={"encoder": "resnet18"}, data={"train": "x", "image_size": 64})
    assert flat.model.dims == 2 and flat.views.distortion.name == "models_genesis"
    other = job(preset="transvw", views={"distortion": {"name": "models_genesis"}}, method={"name": "simsiam"})
    assert (other.views.distortion.name, other.method.name, other.views.blur.probability) == (
        "models_genesis",
        "simsiam",
        0,
    )
    stages = job(preset="rubik", stages=[{"objective": "rea", "steps": 3}]).stages
    assert [(stage.objective, stage.loss_weights.restorative) for stage in stages] == [("rea", 100)]


def test_what_was_filled_in_is_told() -> None:
    found = job("optimizer.lr=0.5", preset="models_genesis", stages=[{"objective": "dir", "steps": 9}])
    lines = found.filled_in()
    assert "models_genesis fills in what the file leaves out:" in lines
    assert "optimizer.lr: 0.5 (the file's; models_genesis has 1.0)" in lines
    assert "optimizer.schedule: step" in lines and "views.distortion.name: models_genesis" in lines
    assert "stages: dir 9 steps (the file's; models_genesis has re 240 epochs)" in lines
    assert job().filled_in() == []
    told = job(preset="rubik", views={"distortion": {"name": "dira"}}, method={"name": "simsiam"}).filled_in()
    assert "views.distortion.grid: not here, for the file chose another views.distortion" in told


def test_a_job_with_a_preset_is_read_again_as_it_was() -> None:
    loaded = load_job({"name": "a", "data": {"train": "x"}, "preset": "transvw", "optimizer": {"lr": 0.1}})
    assert load_job(yaml.safe_load(dump_job(loaded.public))).job == loaded.job


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "jigsaw"}, "preset: found 'jigsaw'; allowed: 'dira', 'models_genesis', 'rubik' or 'transvw'"),
        ({"method": {"name": "rubik"}}, "method.name is rubik and views.distortion.name dira.*to rubik"),
        (
            {"method": {"name": "rubik"}, "views": {"distortion": {"name": "rubik"}}},
            "method.pieces: found 8.*has 4; set method.pieces",
        ),
        (
            {"method": {"name": "rubik", "pieces": 4}, "views": {"distortion": {"name": "rubik"}}},
            "method.orders: found 1000.*has 24; set method.orders",
        ),
        ({"preset": "rubik", "views": {"distortion": {"grid": 3}}}, r"grid: found 3 and views of \[64, 64, 64\]"),
        ({"preset": "rubik", "execution": {"compile": True}}, "execution.compile is true and adversarial.loss wgan_gp"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        job(**values)


def test_a_distortion_is_nobodys_business_where_no_stage_discriminates() -> None:
    assert job(method={"name": "rubik"}, stages=[{"objective": "re", "steps": 1}]).method.name == "rubik"


def a_set(*labels: str, **classes: tuple[str, ...]) -> ShardSetIndex:
    sides = PixelRange(min=64, median=64, max=64)
    image = ImageInfo(
        mode="volume", encoding="npy", array_type="uint16", height_px=sides, width_px=sides, depth_px=sides
    )
    shard = ShardInfo(name="000000.tar", samples=300, bytes=1, sha256="0" * 64)
    return ShardSetIndex(shards=(shard,), image=image, labels=labels, classes=classes)


def test_words_are_asked_of_the_training_set_before_anything_starts() -> None:
    words = job(preset="transvw")
    words.check_sets({"train": a_set("word")})
    words.check_sets({"train": a_set("word", word=("0", "43"))})
    with pytest.raises(RequestError, match=r"train set does not go with the method visual_words.*none of its labels"):
        words.check_sets({"train": a_set("age")})
    with pytest.raises(RequestError, match="has the value '44'"):
        words.check_sets({"train": a_set("word", word=("0", "44"))})
    job(preset="transvw", stages=[{"objective": "re", "steps": 1}]).check_sets({"train": a_set()})


def test_the_comparison_of_lifts_gives_every_start_the_same_steps() -> None:
    found = load_job(JOBS / "compare-lift.yaml")
    assert isinstance(found, LoadedComparison)
    settled = {name: start.pretraining for name, start in found.comparison.settled_starts().items()}
    starts = {name: each for name, each in settled.items() if each is not None}
    assert {tuple((stage.objective, stage.steps) for stage in each.stages) for each in starts.values()} == {
        ((objective, 600),) for objective in ("re", "dir", "rea", "dira")
    }
    assert {name.split("-")[0] for name in starts} == {"genesis", "rubik"} and len(starts) == 8
