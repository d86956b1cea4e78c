"""Heat maps and boxes of `predict --heatmaps`, against the call that locates in one image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from dira_dist.config import RequestError
from dira_dist.evaluation.locate import locate
from dira_dist.models.fine_tuned_files import load_classifier, read_fine_tuned
from dira_dist.prediction.options import PredictOptions
from dira_dist.prediction.predict import predict
from tests.prediction.conftest import MakeModel


def table(dest: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(dest / "predictions.parquet").to_pylist()
    return found


def test_maps_and_boxes_lie_on_the_image_as_it_is_in_its_file(
    make_model: MakeModel, labelled: Path, tmp_path: Path
) -> None:
    """From a shard set, whose images are stored as the network is asked about them."""
    model, source = make_model("classify"), labelled / "shards" / "test"
    options = PredictOptions(processes=1, heatmaps=True)
    predict(str(model), str(source), str(tmp_path / "maps"), options)
    predict(str(model), str(source), str(tmp_path / "plain"), PredictOptions(processes=1))
    rows, plain = table(tmp_path / "maps"), table(tmp_path / "plain")
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain, "the answers are the same"

    facts = read_fine_tuned(model)
    seen = 0
    for row in rows:
        said = [label for label in facts.classes if row[f"decision {label}"]]
        files = (row["heatmap"] or "").split("|") if row["heatmap"] else []
        assert len(files) == len(said)
        for label, file in zip(said, files, strict=True):
            heat = np.asarray(Image.open(tmp_path / "maps" / file))
            assert heat.shape == (40, 40) and heat.dtype == np.uint8
            boxes = json.loads(row[f"boxes {label}"])
            for box in boxes:
                assert 0 <= box["x"] < box["x"] + box["width"] <= 40 and 0 <= box["y"] < box["y"] + box["height"] <= 40
                assert 0 < box["score"] <= 1
            assert bool(boxes) == bool(heat.any())
            seen += bool(boxes)
    assert seen > 5


def test_a_file_gets_what_locate_finds_in_it(make_model: MakeModel, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(source / "a.png")
    model = make_model("classify")
    predict(str(model), str(source), str(tmp_path / "out"), PredictOptions(processes=1, heatmaps=True))
    (row,) = table(tmp_path / "out")
    network, facts = load_classifier(model)
    (found,) = locate(network, facts, torch.from_numpy(pixels)[None, None])
    assert set(found) == {label for label in facts.classes if row[f"decision {label}"]}
    for label, each in found.items():
        (file,) = [name for name in row["heatmap"].split("|") if f".{label}." in name]
        heat = np.asarray(Image.open(tmp_path / "out" / file))
        assert np.abs(heat - each.heat * 255).max() <= 1
        boxes = json.loads(row[f"boxes {label}"])
        assert [(box["y"], box["x"]) for box in boxes] == [tuple(one.box.low) for one in each.boxes]
        scores = [box["score"] * each.probability for box in boxes]
        assert scores == pytest.approx([one.score for one in each.boxes], abs=1e-5)


def test_a_segmenter_has_none(make_model: MakeModel, labelled: Path, tmp_path: Path) -> None:
    model, images = str(make_model("segment")), str(labelled / "images")
    with pytest.raises(RequestError, match="heatmaps: are a classifier's"):
        predict(model, images, str(tmp_path / "out"), PredictOptions(heatmaps=True))
