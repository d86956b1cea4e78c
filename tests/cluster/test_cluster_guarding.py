"""Warnings reach the person in front of the driver and the MLflow page: of the recipe, of evaluations, of the run."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from dira_dist.cluster.fit.coordinator import Coordinator, start_coordinator
from dira_dist.cluster.fit.driver import fit
from dira_dist.cluster.fit.evaluations import EVALUATION_WARNINGS_TAG
from dira_dist.cluster.fit.guarding import WARNINGS_TAG, GuardWatch
from dira_dist.cluster.session import embedded_ray
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import load_job
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.evaluations import EvaluationEntry
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.running_guards import WON_REPORTS, PretrainGuards

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with embedded_ray(ResourcesConfig()):
        yield


@pytest.fixture
def overlapping(tmp_path: Path) -> dict[str, str]:
    """A set, and a probe whose val is a part of its train."""
    write_archive(tmp_path / "archive", 48, size_px=48)
    (tmp_path / "salt").write_text("the same split everywhere")
    options = ShardOptions(
        image_size=None,
        labels=str(tmp_path / "archive" / "labels.csv"),
        salt_file=str(tmp_path / "salt"),
        processes=1,
    )
    shard(tmp_path / "archive" / "images", tmp_path / "all", options)
    halves = options.model_copy(update={"split": {"train": 0.5, "val": 0.5}, "samples_per_shard": 4})
    shard(tmp_path / "archive" / "images", tmp_path / "halves", halves)
    return {"train": str(tmp_path / "all"), "val": str(tmp_path / "halves" / "val")}


def test_a_run_tells_of_its_recipe_and_of_its_probe_sets(
    cluster: None, tmp_path: Path, overlapping: dict[str, str]
) -> None:
    job: dict[str, Any] = {
        "name": "warned",
        "data": {"train": overlapping["train"], "image_size": 32, "global_batch": 8},
        "model": {"encoder": "tu-test_resnet", "decoder_channels": [8, 8, 8, 8, 8]},
        "method": {"name": "moco_v2", "queue_size": 40, "momentum": 0.5},
        "stages": [{"objective": "di", "steps": 3}],
        "probe": {**overlapping, "label": "finding", "bootstrap": 0, "label_fractions": [1.0]},
        "checkpoint": {"storage": str(tmp_path / "runs")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics_every_s": 0},
    }
    shown = io.StringIO()
    outcome = fit(load_job(job), console=Console(file=shown, soft_wrap=True))
    tags = MlflowClient(job["tracking"]["uri"]).get_run(outcome.run_id).data.tags
    stale, common = "40 keys at a batch of 8 (stages.0) wait 5 steps", "100.0% of the images read of probe.val"
    assert shown.getvalue().count(stale) == 1
    assert shown.getvalue().count(common) == 1, "once, though both evaluations find it"
    assert stale in tags[WARNINGS_TAG]
    assert common in tags[EVALUATION_WARNINGS_TAG]
    assert outcome.quality["untrained"]["probe/common_groups"] == 1
    assert set(outcome.quality["untrained"]) == set(outcome.quality["1-di"]), "the untrained encoder is judged alike"


def test_what_guards_find_is_shown_and_kept_with_what_was_known(cluster: None, tmp_path: Path) -> None:
    coordinator = start_coordinator(stall_s=60)
    run = TrackingRun.create(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", system_metrics_every_s=0), "job", {})
    watch, heard = GuardWatch(PretrainGuards("lsgan"), coordinator, run, ["a recipe"]), []
    watch.catch_up([EvaluationEntry("untrained", 0, "step-0", {"val/rankme": 40.0})])
    for step in range(WON_REPORTS):
        for _ in range(3):  # the view reads more often than workers report
            watch.reported(step + 1, {"train/loss/discriminator": 0.001})
            if step < WON_REPORTS - 1:
                assert coordinator.call(Coordinator.read).warnings == []
    watch.before(lambda *evaluation: heard.append(evaluation))("1-di", 9, {"val/rankme": 4.0})
    watch.before(None)("2-dir", 12, {"val/rankme": 3.0})
    assert heard == [("1-di", 9, {"val/rankme": 4.0})]
    won, lost = coordinator.call(Coordinator.read).warnings
    assert "discriminator has won" in won
    assert "at 1-di the features lose dimensions" in lost
    assert run.finish("FINISHED")
    tags = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run.run_id).data.tags
    assert tags[WARNINGS_TAG].splitlines() == ["a recipe", won, lost]
