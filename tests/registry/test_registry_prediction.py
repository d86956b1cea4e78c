"""Predictions by a registered model, its run or a checkpoint: the same answers, and nothing of them in MLflow."""

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

import dira_dist
from dira_dist.models.fine_tuned_files import GROUPS
from dira_dist.registry.fetch import fetch
from dira_dist.registry.registry import register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from tests.prediction.conftest import MakePackage, labelled, make_package

__all__ = ["labelled", "make_package"]


def test_wherever_the_model_is_its_answers_are_the_same(
    make_package: MakePackage, labelled: Path, server_config: TrackingConfig, mlflow_server: Any, tmp_path: Path
) -> None:
    made, shards = make_package("segment"), str(labelled / "shards" / "test")
    run = TrackingRun.create(server_config, "job", {})
    done = register_version(server_config, run.run_id, made.package)
    run.finish("FINISHED")
    client = MlflowClient(mlflow_server.uri)
    before = sorted(path for path in mlflow_server.folder.rglob("*") if path.is_file() and "artifacts" in path.parts)
    tables = set()
    places = (done.address, f"models:/{done.name}@best", f"runs:/{run.run_id}", made.checkpoint, made.package.folder)
    for number, place in enumerate(places):
        dest = tmp_path / str(number)
        dira_dist.predict(
            str(place), shards, str(dest), dira_dist.PredictOptions(processes=1), tracking_uri=mlflow_server.uri
        )
        tables.add((dest / "predictions.csv").read_bytes())
    assert len(tables) == 1
    after = sorted(path for path in mlflow_server.folder.rglob("*") if path.is_file() and "artifacts" in path.parts)
    assert before == after and client.get_run(run.run_id).data.metrics == {}
    folder = fetch(done.address, tmp_path / "got", server_config, only=(GROUPS, "model.json"))
    assert set(json.loads((folder / GROUPS).read_text())) == {"train", "val"}
    fed = json.loads((folder / "model.json").read_text())["fed"]
    assert (fed["image_size"], fed["content"], fed["mode"]) == (40, "images", "L")
