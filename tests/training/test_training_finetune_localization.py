"""Localisation in a fine-tuning's report, on phantoms whose lesions are known; and the model it leaves."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dira_dist
from dira_dist.config import RequestError
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.localization import IOU, MODEL, TrueLesion, known_boxes, map_figures
from dira_dist.evaluation.locate import locate
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.metrics import TEST_LOCALIZATION, find
from dira_dist.models.fine_tuned_files import load_classifier
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.recipe import FinetuneRecipe
from dira_dist.training.stages import Position
from dira_dist.training.task import About
from dira_dist.training.validation import Report

Check = Callable[..., Preflight]
CPU = torch.device("cpu")


def shard(archive: Path, to: Path, **options: Any) -> None:
    split = dira_dist.parse_split("train=0.4,val=0.3,test=0.3")
    named = {"labels": str(archive / "labels.csv"), "group_by": "patient", "split": split} | options
    dira_dist.shard(archive / "images", to, dira_dist.ShardOptions(image_size=None, processes=1, **named))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, wider than high, so that a cropped frame does not show all of them."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, 60, size_px=40)
    for file in (*(folder / "images").iterdir(), *(folder / "masks").iterdir()):
        Image.fromarray(np.pad(np.asarray(Image.open(file)), ((0, 0), (8, 0)))).save(file)
    with (folder / "boxes.csv").open() as lines:
        rows = [{**row, "x": int(row["x"]) + 8} for row in csv.DictReader(lines)]
    with (folder / "boxes.csv").open("w") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def check(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Check:
    folder = tmp_path_factory.mktemp("sets")
    shard(archive, folder / "boxed", boxes=str(archive / "boxes.csv"), masks=str(archive / "masks"))
    shard(archive, folder / "bare")

    def checked(*overrides: str, name: str = "boxed") -> Preflight:
        sets = {part: f"{folder / name}/{part}" for part in ("train", "val", "test")}
        values = {
            "kind": "finetune",
            "name": "a",
            "data": {**sets, "image_size": 64, "global_batch": 4},
            "model": {"encoder": "resnet18"},
            "task": {"name": "classify", "label": "findings"},
            "report": {"bootstrap": 100},
            "precision": "fp32",
        }
        return preflight(load_job(values, overrides).job.resolve_paths())

    return checked


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def networks_of(facts: Preflight) -> FinetuneNetworks:
    """Drawn, and with a last layer that finds something in every image."""
    recipe = facts.job
    assert isinstance(recipe, FinetuneRecipe)
    networks = recipe.build_task(facts.samples).build()
    torch.manual_seed(0)
    torch.nn.init.normal_(networks.network.head.weight)  # type: ignore[union-attr, arg-type]
    return networks


def reported(facts: Preflight) -> Report:
    recipe = facts.job
    assert isinstance(recipe, FinetuneRecipe)
    report = recipe.build_task(facts.samples).validator(networks_of(facts), CPU).report()
    assert report is not None
    return report


def found_by(facts: Preflight) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(reported(facts).files["report.json"])
    return dict(whole["localization"])


def test_the_report_and_the_model_say_where_lesions_lie(check: Check, archive: Path, tmp_path: Path) -> None:
    facts = check("report.localization.threshold=0.4", "report.localization.tolerance=0.1")
    report = reported(facts)
    found = json.loads(report.files["report.json"])["localization"]
    assert found["set"] == "test"
    assert list(found["by"]) == ["model", "centre of the image", "mean box of the class", "untrained network"]
    assert list(found["beyond"]) == list(found["by"])[1:]
    rows = list(csv.DictReader(io.StringIO(report.files["localization-test.csv"].decode())))
    assert found["by"]["model"]["mean"]["images"] == len(rows) > 10
    assert 0 < np.mean([float(row["model: energy"]) for row in rows]) < 1
    assert report.metrics["test/localization/hit_rate"] == found["by"]["model"]["mean"]["hit_rate"]["value"]
    assert find("test/localization/hit_rate") is TEST_LOCALIZATION
    text = report.files["report.md"].decode()
    assert "## Where lesions lie, on test" in text and "or within 0.1 of the image's longer side" in text
    assert report.pictures["localization"].shape[2] == 3

    # The model's folder gives the same maps and boxes of the files that the shards were made of.
    recipe, networks = facts.job, networks_of(facts)
    assert isinstance(recipe, FinetuneRecipe)
    task = recipe.build_task(facts.samples)
    task.package({"networks": networks.state_dict()}, Position(), tmp_path / "model", About("m", report=report.files))
    network, facts_file = load_classifier(tmp_path / "model")
    assert facts_file.localization["settings"]["tolerance"] == 0.1
    assert facts_file.localization["thresholds"] == dict.fromkeys(facts_file.classes, 0.4)
    numbers = [[f"{float(row[f'model: {name}']):.3f}" for name in ("hit", IOU, "energy")] for row in rows]
    wanted = [(row["class"], row["boxes"], *each) for row, each in zip(rows, numbers, strict=True)]
    assert len(set(wanted)) > 5 and not Counter(wanted) - Counter(figures_of_files(network, facts_file, archive))


def figures_of_files(network: Any, facts: Any, archive: Path) -> list[tuple[str, ...]]:
    """Each finding that has a box, of all files of the archive."""
    with (archive / "boxes.csv").open() as lines:
        boxes = list(csv.DictReader(lines))
    found = []
    for file in sorted({row["image"] for row in boxes}):
        own = [{**row, "label": row["finding"]} for row in boxes if row["image"] == file]
        labels = sorted({row["label"] for row in own})
        image = torch.from_numpy(np.asarray(Image.open(archive / "images" / file)).copy())[None, None]
        settings = LocalizationConfig(threshold=0.4, gate=0.0)
        (located,) = locate(network, facts, image, classes=labels, settings=settings)
        for label in labels:
            truth = TrueLesion(tuple(known_boxes(own, label, facts.classes, labels)))
            figures = map_figures(located[label].heat, located[label].boxes, truth, 0.1)
            numbers = [f"{figures[name]:.3f}" for name in ("hit", IOU, "energy")]
            found.append((label, str(len(truth.boxes)), *numbers))
    return found


def test_boxes_of_classes_that_are_said_to_be_there(check: Check, archive: Path, tmp_path: Path) -> None:
    facts = check()
    recipe = facts.job
    assert isinstance(recipe, FinetuneRecipe)
    recipe.build_task(facts.samples).package(
        {"networks": networks_of(facts).state_dict()}, Position(), tmp_path / "model", About("m")
    )
    network, said = load_classifier(tmp_path / "model")
    images = torch.stack(
        [torch.from_numpy(np.asarray(Image.open(archive / "images" / f"{n:06d}.png")).copy())[None] for n in range(4)]
    )
    found = locate(network, said, images)
    thresholds = dict(zip(said.classes, said.thresholds, strict=True))
    assert any(found)
    for each in found:
        for label, located in each.items():
            assert located.probability > thresholds[label]
            assert located.heat.shape == images.shape[2:] and located.heat.max() in (0, 1)
            assert all(0 < box.score <= located.probability for box in located.boxes)
    asked = locate(network, said, images, classes=said.classes)
    assert all(set(each) == set(said.classes) for each in asked)
    assert all(bool(each[name].boxes) <= (each[name].probability > thresholds[name]) for each in asked for name in each)
    with pytest.raises(RequestError, match=r"classes: found 'fracture'; the model knows"):
        locate(network, said, images, classes=["fracture"])
    with pytest.raises(RequestError, match="found tuned, and the model knows no thresholds"):
        locate(network, said, images, settings=LocalizationConfig(threshold="tuned"))


def test_each_setting_changes_what_is_found(check: Check) -> None:
    usual = "report.localization.stages=before_last"  # 4 x 4
    plain = found_by(check(usual))["by"]["model"]["mean"]

    def differs(*names: str, **settings: Any) -> None:
        found = found_by(check(usual, *(f"report.localization.{name}={value}" for name, value in settings.items())))
        changed = found["by"]["model"]["mean"]
        for name in names:
            assert changed[name] != plain[name], (name, settings)

    differs("hit_rate", "mean_iou", "energy", stages="last")
    differs("energy", stages="both")
    differs("mean_iou", threshold=0.8)
    differs("mean_iou", threshold="otsu")
    differs("mean_iou", gate=0.5)
    differs("hit_rate", tolerance=0.3)
    differs("energy", truth="masks")
    several = usual, "report.localization.threshold=0.3"
    largest, every, some = (
        found_by(check(*several, *(f"report.localization.{more}" for more in each)))["by"]["model"]["mean"]["mean_iou"]
        for each in ((), ("components=all", "least_peak=0"), ("components=all", "least_peak=1"))
    )
    assert every not in (largest, some)


def test_tuned_thresholds_are_chosen_on_val_by_class(check: Check) -> None:
    found = found_by(check("report.localization.threshold=tuned"))
    assert set(found["thresholds"].values()) <= {0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    decision = found_by(check("report.localization.gate=decision"))["by"]["model"]["mean"]
    assert decision["mean_iou"] != found["by"]["model"]["mean"]["mean_iou"]


def test_where_it_is_not_judged(check: Check) -> None:
    for facts in (check(name="bare"), check("report.localization=null")):
        report = reported(facts)
        assert "localization" not in json.loads(report.files["report.json"]) and "localization" not in report.pictures
        assert not any(MODEL in name or "localization" in name for name in report.files)
        assert not any("localization" in line for line in facts.warnings)
    asked = check("report.localization.threshold=0.4", name="bare")
    assert any("no sample of data.test has boxes, so that it is not judged" in line for line in asked.warnings)


def test_what_is_refused(check: Check) -> None:
    with pytest.raises(RequestError, match=r"tuned, and no sample of data\.val has boxes"):
        check("report.localization.threshold=tuned", name="bare")
    with pytest.raises(RequestError, match=r"found report\.localization, and the task segments"):
        check("task={name: segment}", "report.localization.threshold=0.4")
    some = check("task={name: classify, label: findings, classes: [nodule, effusion]}")
    assert any(
        "boxes of no class of the task are left out of localisation: cardiomegaly" in line for line in some.warnings
    )
