"""The quickstart in 3D, end to end: volumes to cubes in S3, two Ray workers, three stages, MLflow, weights out."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from dira_dist.config import RequestError
from dira_dist.quickstart import quickstart
from dira_dist.quickstart.quickstart import run_quickstart
from dira_dist.quickstart.subjects import Volumes

pytestmark = pytest.mark.timeout(900)


def test_in_3d_as_in_2d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for fewer volumes and epochs."""
    usual = Volumes()
    job = yaml.safe_load(usual.job_file.read_text())
    job["stages"] = [{"objective": stage["objective"], "epochs": 2} for stage in job["stages"]]
    job["method"]["queue_size"], job["tracking"]["log_every_steps"] = 16, 1  # so few steps tell of a full queue
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(job))
    short = replace(usual, count=8, cubes_per_volume=6, job_file=tmp_path / "short.yaml")
    monkeypatch.setattr(quickstart, "Volumes", lambda: short)
    report = run_quickstart(tmp_path / "place", volumes=True)
    first, last = report.losses["restorative"]
    assert last < first
    for figure in ("val/psnr", "val/ssim", "val/rankme", "probe/knn_auroc"):
        assert figure in report.outcome.quality["3-dira"]
    assert report.compared is None
    with pytest.raises(RequestError, match="compares starts on radiographs"):
        run_quickstart(tmp_path / "other", volumes=True, compare=True)
    text = "\n".join(report.lines())
    assert "DiRA on 48 cubes of 8 synthetic CT volumes" in text and "--content cubes" in text
    assert any(path.name.startswith("restorations") for path in report.pictures)

    monkeypatch.setattr(sys, "path", [str(report.pulled.path.parent), *sys.path])
    scope: dict[str, torch.nn.Module] = {}
    exec(report.pulled.loading_lines, scope)  # strict, with the file beside the weights, and without this package
    with torch.no_grad():
        assert scope["model"](torch.rand(2, 1, 24, 24, 16)).shape == (2, 1, 24, 24, 16)
