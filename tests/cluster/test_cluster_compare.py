"""A real comparison on phantoms: pretrainings first, fits side by side, interrupted, gone on with, and told again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import dira_dist
from dira_dist.cluster.session import embedded_ray
from dira_dist.cluster.tune.compare import ComparisonOutcome
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.search import read_search
from dira_dist.search.trial import Trial

pytestmark = pytest.mark.timeout(1200)

JOB = """
kind: compare
name: c
starts:
  random: random
  di: {from: FOLDER/pretrain.yaml, parts: encoder, optimizer: {head_lr_factor: 2}}
label_fractions: [{fraction: 0.5, epochs: 2}]
seeds: 2
learning_rates: [1.0e-3]
base:
  kind: finetune
  data: {train: FOLDER/shards/train, val: FOLDER/shards/val, test: FOLDER/shards/test, image_size: 32,
    global_batch: 8, loader_workers: 0}
  model: {encoder: tu-test_resnet, decoder_channels: [8, 8, 8, 8, 8]}
  task: {name: classify, label: finding}
  epochs: 9
  report: {bootstrap: 100}
  precision: fp32
  resources: {workers: 1}
  checkpoint: {storage: FOLDER/runs, every_steps: 1000, keep: 1}
  tracking: {uri: "sqlite:///FOLDER/runs.db", log_every_steps: 5, system_metrics_every_s: 0}
"""
PRETRAIN = """
kind: pretrain
name: any
data: {train: FOLDER/shards/train, image_size: 32, global_batch: 8, loader_workers: 0}
model: {encoder: tu-test_resnet, decoder_channels: [8, 8, 8, 8, 8]}
method: {queue_size: 16}
stages: [{objective: di, steps: 2}]
precision: fp32
resources: {workers: 1}
"""


@dataclass(frozen=True)
class Compared:
    """A comparison in a folder, and what it left there."""

    folder: Path
    outcome: ComparisonOutcome
    finished_before: dict[str, Trial]

    @property
    def trials(self) -> dict[str, Trial]:
        return trials(self.folder)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "runs" / "c" / "comparison.json").read_text())
        return found

    def runs(self) -> dict[str, Run]:
        client = MlflowClient(f"sqlite:///{self.folder}/runs.db")
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        assert len({run.info.run_name for run in found}) == len(found), "one run each, whatever was interrupted"
        return {str(run.info.run_name): run for run in found}


def trials(folder: Path) -> dict[str, Trial]:
    state = read_search(open_store(f"{folder}/runs/c"))
    return {trial.name: trial for trial in state.trials} if state else {}


def finished(folder: Path) -> dict[str, Trial]:
    return {name: trial for name, trial in trials(folder).items() if trial.status == "finished"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """First a driver that is killed once a fit is finished; then one that goes on."""
    folder = tmp_path_factory.mktemp("compare")
    write_archive(folder / "archive", 60, size_px=40)
    options = dira_dist.ShardOptions(
        image_size=None,
        processes=1,
        labels=str(folder / "archive" / "labels.csv"),
        group_by="patient",
        split=dira_dist.parse_split("train=0.6,val=0.2,test=0.2"),
    )
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    for name, text in (("job", JOB), ("pretrain", PRETRAIN)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    _drive_until_a_fit_is_finished(folder)
    before = finished(folder)
    with embedded_ray(ResourcesConfig()):
        outcome = dira_dist.run(dira_dist.load_job(folder / "job.yaml"))
        assert isinstance(outcome, ComparisonOutcome)
        yield Compared(folder, outcome, before)


def _drive_until_a_fit_is_finished(folder: Path) -> None:
    command = [sys.executable, "-m", "dira_dist", "run", str(folder / "job.yaml")]
    with (folder / "first.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
        try:
            while not any("lr" in name for name in finished(folder)):
                assert driver.poll() is None, (folder / "first.log").read_text()
                time.sleep(0.1)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def test_every_start_has_a_fit_for_each_fraction_and_seed(compared: Compared) -> None:
    fits = {
        f"c-{start}-{share}-lr0.001-seed{seed}" for start in ("random", "di") for share in ("0.5",) for seed in (0, 1)
    }
    assert set(compared.trials) == fits | {"c-pretrain-di-seed0", "c-pretrain-di-seed1"}
    assert {trial.status for trial in compared.trials.values()} == {"finished"}
    assert compared.finished_before, "the first driver was killed after that"
    for name, trial in compared.finished_before.items():
        assert compared.trials[name] == trial, "what was finished is kept as it was"


def test_a_fit_is_the_base_with_what_differs(compared: Compared) -> None:
    runs = compared.runs()
    parent = runs.pop("c")
    assert set(runs) == set(compared.trials)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.data.tags["dira.comparison"] for run in (parent, *runs.values())} == {"c"}
    half = runs["c-di-0.5-lr0.001-seed1"].data.params
    assert half["epochs"] == "2.0", "of few images another number of passes"
    assert (half["data.label_fraction"], half["data.fraction_seed"], half["seed"]) == ("0.5", "1", "1")
    assert half["start.from"].endswith("/runs/c-pretrain-di-seed1"), "each seed from a pretraining of its own"
    assert (half["start.parts"], half["optimizer.head_lr_factor"]) == ("encoder", "2.0")
    random = runs["c-random-0.5-lr0.001-seed1"].data.params
    assert (random["start.from"], random["optimizer.head_lr_factor"]) == ("random", "1.0")
    assert runs["c-pretrain-di-seed1"].data.params["seed"] == "1"


def test_the_end_is_a_table_with_sentences_and_curves(compared: Compared) -> None:
    page = (compared.folder / "runs" / "c" / "comparison.md").read_text()
    cells = compared.data["cells"]
    assert [(cell["start"], cell["fraction"]) for cell in cells] == [
        (start, share) for start in ("random", "di") for share in (0.5,)
    ]
    for cell in cells:
        reports = [
            json.loads(
                (
                    compared.folder
                    / "runs"
                    / f"c-{cell['start']}-{cell['fraction']:g}-lr0.001-seed{seed}"
                    / "report"
                    / "report.json"
                ).read_text()
            )
            for seed in (0, 1)
        ]
        assert cell["by_seed"] == pytest.approx([report["metrics"]["test/auroc"] for report in reports], abs=1e-4)
        assert cell["mean"]["value"] == pytest.approx(sum(cell["by_seed"]) / 2)
        assert set(cell["calibration"]) == {"Brier score", "calibration error"}
    assert all(line in page for line in compared.outcome.table)
    assert list(compared.outcome.sentences) == ["di"]
    assert compared.outcome.sentences["di"] in page
    assert "the method di" in page, "there are several pretrainings"
    assert (compared.folder / "runs" / "c" / "learning-curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_parent_run_has_the_curves(compared: Compared) -> None:
    client, parent = MlflowClient(f"sqlite:///{compared.folder}/runs.db"), compared.runs()["c"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["dira.found.di"] == compared.outcome.sentences["di"]
    curve = client.get_metric_history(parent.info.run_id, "compare/di/auroc")
    cells = [cell for cell in compared.data["cells"] if cell["start"] == "di"]
    assert [(each.step, each.value) for each in sorted(curve, key=lambda each: each.step)] == [
        (cell["images"], pytest.approx(cell["mean"]["value"])) for cell in cells
    ]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.md", "comparison.json", "job.yaml"} <= files
    assert any("learning curves" in file.path for file in client.list_artifacts(parent.info.run_id, "images"))


def test_a_finished_comparison_is_told_again_and_another_one_refused(compared: Compared) -> None:
    again = dira_dist.run(dira_dist.load_job(compared.folder / "job.yaml", ["max_concurrent=1"]))
    assert isinstance(again, ComparisonOutcome)
    assert again.already_done
    assert (again.table, again.sentences) == (compared.outcome.table, compared.outcome.sentences)
    with pytest.raises(RequestError, match=r"comparison of this name with another configuration.*\n.*learning_rates"):
        dira_dist.run(dira_dist.load_job(compared.folder / "job.yaml", ["learning_rates=[0.01]"]))
    with pytest.raises(RequestError, match=r"seeds: found 1"):
        dira_dist.load_job(compared.folder / "job.yaml", ["seeds=1"])
