"""The report on a set of another place: the model's own thresholds, and no patient that it knows."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.models.fine_tuned_files import GROUPS
from dira_dist.models.model_files import write_checksums
from dira_dist.prediction.evaluate import evaluate
from dira_dist.quickstart.phantom import write_archive
from tests.prediction.conftest import MakeModel


@pytest.mark.parametrize("task", ["classify", "findings", "regions"])
def test_on_val_it_finds_what_the_run_found(make_model: MakeModel, labelled: Path, tmp_path: Path, task: str) -> None:
    model = make_model(task)
    found = evaluate(str(model), str(labelled / "shards" / "val"), str(tmp_path / "report"), device="cpu")
    own = json.loads((model / "report" / "report.json").read_text())
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["sets"]["set"] == own["sets"]["val"]
    assert found.metrics == told["metrics"] and all(name.startswith("test/") for name in found.metrics)
    assert "stand in val, on which the model was chosen" in found.text
    assert (tmp_path / "report" / "report.md").read_text() == found.text
    pictures = list((tmp_path / "report" / "pictures").iterdir())
    assert pictures and all(Image.open(file).size[0] > 100 for file in pictures)
    if task != "regions":
        assert told["thresholds"] == own["thresholds"] and told["calibration"] == own["calibration"]
        shift = told["prevalence"]["effusion"]
        assert shift["here"] == shift["calibrated_at"]


def test_patients_that_it_learned_from_are_refused(make_model: MakeModel, labelled: Path, tmp_path: Path) -> None:
    model = make_model("classify")
    with pytest.raises(RequestError, match=r"29|\d+ of its \d+ patients .* stand in the set that .* was trained on"):
        evaluate(str(model), str(labelled / "shards" / "train"), device="cpu")
    older = tmp_path / "older"
    shutil.copytree(model, older)
    (older / GROUPS).unlink()
    write_checksums(older)
    with pytest.raises(RequestError, match="was trained on"):  # by its sets, while they can be reached
        evaluate(str(older), str(labelled / "shards" / "train"), device="cpu")
    job = older / "job.yaml"
    job.write_text(job.read_text().replace(str(labelled), "/nowhere"))
    write_checksums(older)
    assert (
        "does not say whom it learned from"
        in evaluate(str(older), str(labelled / "shards" / "test"), device="cpu").text
    )


def test_another_prevalence_is_told(make_model: MakeModel, tmp_path: Path) -> None:
    write_archive(tmp_path, 24, seed=5, size_px=48)
    kept = [line for line in (tmp_path / "labels.csv").read_text().splitlines() if ",nodule," not in line]
    (tmp_path / "labels.csv").write_text("\n".join(kept))
    shard(
        tmp_path / "images",
        tmp_path / "set",
        ShardOptions(image_size=40, processes=1, labels=str(tmp_path / "labels.csv"), group_by="none"),
    )
    shard(tmp_path / "images", tmp_path / "bare", ShardOptions(image_size=40, processes=1))
    found = dira_dist.evaluate(str(make_model("classify")), str(tmp_path / "set"), device="cpu")
    assert "## Shift of prevalence" in found.text and "| nodule | 0.0% | " in found.text
    assert "nodule is absent in the set" in found.text
    with pytest.raises(RequestError, match=r"no sample has a label that the model answers \(finding: .*\)"):
        evaluate(str(make_model("classify")), str(tmp_path / "bare"), device="cpu")
    with pytest.raises(RequestError, match="no sample has a mask"):
        evaluate(str(make_model("binary")), str(tmp_path / "bare"), device="cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(RequestError, match="holds files; give a new or empty folder"):
        evaluate(str(make_model("classify")), str(tmp_path / "set"), str(tmp_path / "full"), device="cpu")
