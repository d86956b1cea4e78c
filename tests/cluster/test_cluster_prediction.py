"""Predictions over a Ray cluster: the results of one machine."""

from pathlib import Path

import pytest
import ray

import dira_dist
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import RequestError
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.prediction import work
from tests.prediction.conftest import MakeModel, labelled, make_model, make_package
from tests.prediction.test_prediction_files import files_of

__all__ = ["labelled", "make_model", "make_package"]


def test_a_cluster_writes_what_one_process_writes(
    make_model: MakeModel, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_CHUNK", 16)
    model, images = str(make_model("segment")), str(labelled / "images")
    seen: list[tuple[int, int]] = []
    with embedded_ray(ResourcesConfig(workers=2)):
        dira_dist.predict(
            model,
            images,
            str(tmp_path / "ray"),
            address="auto",
            progress=lambda done, total: seen.append((done, total)),
        )
        features = dira_dist.embed(model, images, str(tmp_path / "features"), address="auto")
        with pytest.raises(RequestError, match="device 'cuda': allowed on this cluster are cpu"):
            dira_dist.embed(model, images, str(tmp_path / "no"), dira_dist.EmbedOptions(device="cuda"), address="auto")
    assert not ray.is_initialized() and features.rows == 72
    assert seen[0] == (0, 72) and seen[-1] == (72, 72) and len(seen) == 6
    dira_dist.predict(model, images, str(tmp_path / "here"), dira_dist.PredictOptions(processes=1))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")


def test_without_a_cluster_it_is_said(make_model: MakeModel, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--address no-address: no Ray cluster answers there"):
        dira_dist.predict(
            str(make_model("segment")), str(labelled / "images"), str(tmp_path / "out"), address="no-address"
        )
    assert not (tmp_path / "out").exists()
