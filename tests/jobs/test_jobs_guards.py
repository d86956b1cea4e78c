"""What `check` and the run warn of: each warning provoked, with its remedy, and silence where all is well."""

from pathlib import Path
from typing import Any

import pytest

from dira_dist.jobs.guards import warnings
from dira_dist.jobs.load import load_job

JOBS = sorted(
    each
    for each in (Path(__file__).parents[2] / "jobs").glob("*.yaml")
    if "finetune" not in each.stem and "compare" not in each.stem
)
SMALL: dict[str, Any] = {
    "name": "a",
    "data": {"train": "shards", "global_batch": 16, "image_size": 64},
    "model": {"encoder": "resnet18"},
    "stages": [{"objective": "dira", "steps": 1}],
}


def warned(*overrides: str) -> str:
    return "\n".join(warnings(load_job(SMALL, overrides).job))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_jobs_of_the_project_are_not_warned_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert warnings(load_job(path).job) == []


@pytest.mark.parametrize(
    ("workers", "words"),
    [("4", ""), ("8", "2 images"), ("[2, 8]", "2 images"), ("16", "one image")],
)
def test_few_images_per_batch_norm(workers: str, words: str) -> None:
    found = warned(f"resources.workers={workers}")
    assert bool(found) == bool(words) and words in found
    if words:
        assert "stages.0.global_batch: 16 on " in found and "resources.workers" in found


def test_what_helps_against_few_images_per_batch_norm() -> None:
    few, simsiam = "resources.workers=8", "method={name: simsiam}"
    assert warned(few, "data.global_batch=32") == ""
    assert "execution.sync_batchnorm" in warned(few, simsiam)
    assert warned(few, simsiam, "execution.sync_batchnorm=true") == ""
    assert "execution.sync_batchnorm" not in warned(few)
    assert "2 images" in warned(few, "execution.sync_batchnorm=true"), (
        "those of MoCo's key encoder are not synchronised"
    )


def test_few_images_are_enough_where_nothing_normalises_over_them() -> None:
    layer_norms = ["resources.workers=16", "model.encoder=tu-convnext_atto"]
    assert warned(*layer_norms, "stages.0.objective=di") == ""
    assert "batch norm" in warned(*layer_norms), "the decoder has batch norms"
    assert "batch norm" in warned(*layer_norms, "stages.0.objective=di", "method={name: simsiam}"), "so have the heads"


def test_micro_batches_leave_few_images_to_the_encoders_batch_norms() -> None:
    parts = "execution.micro_batch=2"
    assert "in micro-batches of 2 leaves 2 images" in warned(parts) and "raise execution.micro_batch" in warned(parts)
    assert warned("execution.micro_batch=5") == "", "four parts of four"
    layer_norms = ["model.encoder=tu-convnext_atto", "stages.0.objective=di", "method={name: simsiam}"]
    assert warned(*layer_norms, parts) == "", "heads see the whole batch"
    assert warned("execution.micro_batch=3", "resources.workers=8").endswith("lower resources.workers")


BARLOW = "method={name: barlow_twins}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([BARLOW], []),
        ([BARLOW, "optimizer.lr_batch=null"], ["stages.0.optimizer.lr: 0.2 with a batch of 16", "0.013 here", "256"]),
        ([BARLOW, "optimizer={lr: 0.02, lr_batch: null}"], []),
        ([BARLOW, "optimizer={name: sgd, lr: 0.2}"], []),
        (["method={name: simsiam}", "optimizer.lr_batch=null", "data.global_batch=1024"], ["0.2 here"]),
        (["data.global_batch=256"], []),
        (["data.global_batch=4096"], ["stages.0.optimizer.lr: 0.03", "batches of 16 to 256", "0.48 here"]),
        (["data.global_batch=4096", "optimizer.lr_batch=256"], []),
        (["optimizer.lr=0.3"], ["0.03 here: set lr so"]),
        (["optimizer.lr=0.3", "data.global_batch=64"], ["0.03 here: set lr so"]),
        (["optimizer.lr=0.3", "loss_weights.discriminative=0"], []),
    ],
)
def test_a_rate_of_another_batch(overrides: list[str], words: list[str]) -> None:
    """LARS at 0.2 with a batch of 16, for one."""
    found = warned("stages.0={objective: dira, epochs: 100}", *overrides)
    assert bool(found) == bool(words) and not [word for word in words if word not in found], found


def test_a_stage_that_is_all_warm_up() -> None:
    assert "stages.0.optimizer.warmup_epochs: 10, and the stage has 3" in warned(
        BARLOW, "stages.0={objective: di, epochs: 3}"
    )
    assert warned(BARLOW, "stages.0={objective: di, epochs: 30}") == ""


def test_few_lanes() -> None:
    assert "67 are read in 1 lanes" in warned("data.global_batch=67")
    assert "data.shuffle_window" in warned("data.lanes=2")
    assert warned("data.global_batch=24", "data.lanes=8") == ""
    assert warned("data.global_batch=5", "optimizer.lr_batch=16") == "", "each sample of a batch has a lane of its own"
