"""What a person sees: the run's page on a real MLflow server, in a real browser."""

import asyncio
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow_server import MlflowServer
from PIL import Image

from dira_dist.evaluation.evaluator import Evaluation, LabelledFeatures, PatchScores, Restorations
from dira_dist.evaluation.pictures import LOSSES, evaluation_pictures
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.history import draw_losses
from dira_dist.tracking.provenance import git_commit, host_row
from dira_dist.tracking.run import TrackingRun
from tests.tracking.chromium import Chromium

LOSS_NAMES = ("discriminative", "restorative", "adversarial")
PICTURES = ("restorations", "discriminator scores", "probe features", "loss curves")
WITHIN_S = 90
# Pictures and charts on the page, once there are as many as wanted; it draws them when they come in sight.
DRAWN = """(() => {
    const pictures = [...document.images].filter(i => i.naturalWidth > 0).map(i => decodeURIComponent(i.src))
        .filter(s => s.includes('images/')).map(s => s.match(/images\\/([^+]+)\\+step\\+(\\d+)/).slice(1, 3));
    const charts = document.querySelectorAll('.js-plotly-plot').length;
    return pictures.length >= PICTURES && charts >= CHARTS ? JSON.stringify({pictures, charts}) : '';
})()"""


def a_run(config: TrackingConfig) -> TrackingRun:
    """A run with something of everything."""
    run = TrackingRun.create(config, "cxr14-dira", {"model": {"encoder": "resnet50"}})
    images, generator = torch.linspace(0, 1, 64).expand(6, 1, 64, 64).clone(), torch.Generator().manual_seed(0)
    for step in (0, 50, 100):
        noise = torch.rand(images.shape, generator=generator)
        restorations = Restorations(noise, (images + (1 - step / 100) * noise) / 2, images)
        scores = PatchScores(torch.ones(6, 1, 8, 8), torch.rand(6, 1, 8, 8, generator=generator))
        features = LabelledFeatures(torch.randn(40, 8, generator=generator), ["ill", "well"] * 20)
        for name, picture in evaluation_pictures(Evaluation({}, restorations, scores, features)).items():
            run.log_picture(name, picture, step)
    for step in range(0, 101, 10):
        run.log_metrics({f"train/loss/{name}": 5 / (step + 10) for name in LOSS_NAMES}, step)
    run.log_table([host_row(0, torch.device("cpu"))], "hosts/step-000000000.json")
    run.log_dataset("train", "ab" * 32, "s3://images/train", "training", {"samples": 400})
    node = TrackingRun.attach(config.model_copy(update={"system_metrics_every_s": 0.1}), run.run_id)
    time.sleep(0.5)
    assert node.finish("FINISHED")
    assert run.flush()
    curves = draw_losses(config, run.run_id, {0: "1-di", 50: "2-dir"})
    assert curves is not None
    run.log_picture(LOSSES, curves, 100)
    assert run.finish("FINISHED")
    return run


async def look(run: TrackingRun, folder: Path) -> dict[str, str]:
    """What stands on each tab; screenshots are left in the folder."""
    seen = {}
    tabs = {
        "": "document.body?.innerText?.includes('Finished') && document.body?.innerText",
        "/model-metrics": DRAWN.replace("PICTURES", str(len(PICTURES))).replace("CHARTS", str(len(LOSS_NAMES))),
        "/system-metrics": DRAWN.replace("PICTURES", "0").replace("CHARTS", "5"),
        "/artifacts/hosts/step-000000000.json": (
            "document.body?.innerText?.includes('device_name') && document.body?.innerText"
        ),
    }
    profile = folder / "profile"
    profile.mkdir()
    async with Chromium(profile) as browser:
        for tab, script in tabs.items():
            await browser.open(run.page + tab)
            seen[tab] = await browser.wait_for(script, WITHIN_S)
            await browser.screenshot(folder / f"page{tab.replace('/', '-')}.png")
    return seen


@pytest.mark.skipif(Chromium.path() is None, reason="no Chromium on this machine")
def test_the_runs_page_shows_pictures_charts_machines_and_origin(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    config = TrackingConfig(uri=mlflow_server.uri, experiment="page", system_metrics_every_s=0)
    seen = asyncio.run(look(a_run(config), tmp_path))
    assert all(seen.values()), seen
    commit = git_commit(Path(__file__).parents[2] / "dira_dist" / "tracking")
    assert commit is None or commit[0][:7] in seen[""]
    assert "train (abab" in seen[""]
    assert socket.gethostname() in seen["/artifacts/hosts/step-000000000.json"]
    shown = json.loads(seen["/model-metrics"])
    assert sorted(name for name, _ in shown["pictures"]) == sorted(PICTURES)  # one place for each, with a slider
    shot = np.asarray(Image.open(tmp_path / "page-model-metrics.png").convert("RGB"))
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 100  # not an empty page
