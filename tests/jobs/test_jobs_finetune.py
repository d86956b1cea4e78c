"""What a fine-tuning job is refused for, or says, before anything starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import read_index
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import Preflight, estimate_memory, preflight
from dira_dist.quickstart.phantom import FINDINGS, write_archive
from dira_dist.training.finetune.samples import FinetuneSamples

Check = Callable[..., Preflight]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_archive(folder / "archive", 60, size_px=40)
    archive = folder / "archive"
    for number in range(0, 60, 7):
        (archive / "masks" / f"{number:06d}.png").unlink()
    dira_dist.shard(
        archive / "images",
        folder / "shards",
        dira_dist.ShardOptions(
            image_size=None,
            processes=1,
            labels=str(archive / "labels.csv"),
            masks=str(archive / "masks"),
            group_by="patient",
            split=dira_dist.parse_split("train=0.6,val=0.2,test=0.2"),
        ),
    )
    return folder / "shards"


@pytest.fixture
def check(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def checked(*overrides: str, **sections: Any) -> Preflight:
        values = {
            "kind": "finetune",
            "name": "a",
            "data": {"train": f"{sets}/train", "val": f"{sets}/val", "image_size": 32, "global_batch": 4},
            "model": {"encoder": "resnet18"},
            "task": {"name": "classify", "label": "finding"},
            **sections,
        }
        return preflight(load_job(values, overrides).job.resolve_paths())

    return checked


def test_what_is_settled_before_anything_starts(check: Check) -> None:
    facts = check("task.imbalance=weights", "data.label_fraction=0.5")
    assert facts.changes["task"]["classes"][0] == "cardiomegaly" and facts.changes["task"]["exclusive"] is True
    assert isinstance(facts.samples, FinetuneSamples)
    assert facts.samples.class_weights is not None and len(facts.samples.class_weights) == 6
    assert facts.samples.per_epoch == len(facts.samples.selection.ids) == len(facts.samples.record["samples"])  # type: ignore[union-attr]
    assert any("data.label_fraction: 8 of 16 groups" in line for line in facts.warnings)
    assert all(size > 0 for size in estimate_memory(facts.job).values())


def test_fractions_of_one_seed_lie_within_each_other(check: Check) -> None:
    drawn = [set(check(f"data.label_fraction={share}").samples.selection.ids.tolist()) for share in (0.4, 0.7, 1.0)]  # type: ignore[union-attr]
    assert drawn[0] < drawn[1] < drawn[2]
    other = check("data.label_fraction=0.4", "data.fraction_seed=1").samples.selection
    assert other is not None and set(other.ids.tolist()) != drawn[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task.label=fracture"],
            "no sample of the train set has 'fracture'; known there: finding, findings",
        ),
        (["task.classes=[nodule, flu]"], "task.classes: no sample of any set has 'flu'"),
        (["data.label_fraction=0"], "data.label_fraction: found 0; allowed: "),
        (["data.folds=5"], "data: found folds beside val; .* leave val out"),
        (["start.parts=encoder_decoder", "start.from=nowhere.pt"], "start.from: no file of weights at .*nowhere.pt"),
        (["early_stopping.metric=test/auroc"], "early_stopping.metric: found 'test/auroc'"),
        (["optimizer.layer_decay=1.5"], "optimizer.layer_decay: found 1.5"),
        (["report.operating_point=best"], "report.operating_point: found 'best'"),
        (
            ["task={name: segment, classes: [right]}"],
            r"data.train: masks with values 2, 3.* is 1: name all of them",
        ),
        (
            ["task={name: segment, regions: {none: [99]}}"],
            "data.train: no mask holds any value of task.regions; found: 0, 1",
        ),
        (["task={name: segment, regions: {a: [1]}, classes: [b]}"], "found classes and regions.*: keep one"),
    ],
)
def test_what_cannot_be_is_refused(check: Check, overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(*overrides)


def test_val_is_needed(check: Check, sets: Path) -> None:
    with pytest.raises(RequestError, match=r"data: found no val; the networks are chosen on it"):
        check(data={"train": f"{sets}/train", "image_size": 32, "global_batch": 4})


def test_a_patient_in_two_sets_is_refused_with_the_count(check: Check, sets: Path) -> None:
    with pytest.raises(RequestError, match=r"data.test: 8 of its 8 patients \(or groups\) stand in data.val, too"):
        check(f"data.test={sets}/val")


def test_masks_that_are_missing_are_left_out_and_said(check: Check) -> None:
    facts = check("task={name: segment}", "data.label_fraction=1")
    (line,) = (line for line in facts.warnings if "have no mask" in line)
    left_out = int(line.split()[0])
    assert left_out > 0 and facts.samples.per_epoch == facts.train.samples - left_out


def test_a_class_that_is_absent_is_said_and_one_that_nobody_can_be_told_by_is_refused(check: Check, sets: Path) -> None:
    """Of all of one kind there is nothing to tell apart."""
    table = read_samples(f"{sets}/val", read_index(f"{sets}/val"))
    there = {word for labels in table.labels for word in labels["findings"]}
    absent = sorted(set(FINDINGS) - there)
    facts = check("task.label=findings")
    said = [line for line in facts.warnings if "so that its figures are n/a" in line]
    assert [any(name in line for line in said) for name in absent] == [True] * len(absent)


def test_a_start_is_tried_and_every_key_told(check: Check, tmp_path: Path) -> None:
    """The paper's baseline: weights of ImageNet from a file of torchvision's."""
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    facts = check(f"start.from={tmp_path}/resnet18.pth")
    assert facts.start is not None
    report = "\n".join(facts.start.report)
    assert "120 weights taken over" in report and "left behind: 2" in report and "head.bias" in report
    assert facts.changes["start"]["parts"] == "encoder"

    torch.save({"layer": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(RequestError, match=r"start.from: the weights fit none of its weights"):
        check(f"start.from={tmp_path}/other.pth")
    with pytest.raises(RequestError, match=r"encoder_decoder, and .* has no trained decoder"):
        check("task={name: segment}", "start.parts=encoder_decoder", f"start.from={tmp_path}/resnet18.pth")
    with pytest.raises(RequestError, match="a classifier has no decoder"):
        check("start.parts=encoder_decoder", f"start.from={tmp_path}/resnet18.pth")
    with pytest.raises(RequestError, match=r"start.from: "):
        check("model.encoder=resnet34", f"start.from={tmp_path}/resnet18.pth")


def test_a_search_may_be_over_fine_tunings(sets: Path) -> None:
    found = dira_dist.check(
        load_job(
            {
                "kind": "tune",
                "name": "rates",
                "search": {
                    "metric": "val/auroc",
                    "mode": "max",
                    "trials": 2,
                    "max_concurrent": 1,
                    "space": {
                        "optimizer.lr": {"low": 1e-4, "high": 1e-3, "scale": "log"},
                        "augmentation.strength": {"low": 0, "high": 2, "scale": "linear"},
                        "optimizer.layer_decay": {"choices": [0.7, 1.0]},
                    },
                },
                "base": {
                    "kind": "finetune",
                    "data": {"train": f"{sets}/train", "val": f"{sets}/val", "image_size": 32, "global_batch": 4},
                    "model": {"encoder": "resnet18"},
                    "task": {"name": "classify", "label": "finding"},
                    "epochs": 2,
                },
            }
        )
    )
    assert any("val/auroc (max)" in line for line in found.lines())
