"""Fine-tuning from end to end: two workers, one killed, and the same classifier and segmenter all the same."""

import csv
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chaos import ChaosJob, different, when, worker_processes
from mlflow import MlflowClient
from PIL import Image

import dira_dist
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.report import read_report
from tests.tracking.conftest import bare_python

pytestmark = pytest.mark.timeout(1500)

TASKS = {
    "classify": "{name: classify, label: finding, imbalance: weights}",
    "segment": "{name: segment, regions: {lungs: [1, 2], right: [1]}}",
}
METRICS = {"classify": "val/auroc", "segment": "val/dice"}


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with embedded_ray(ResourcesConfig(workers=2)):
        yield


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 phantoms of 60 patients, split by patient, with findings and the masks of organs."""
    folder = tmp_path_factory.mktemp("labelled")
    write_archive(folder / "archive", 120, size_px=40)
    dira_dist.shard(
        folder / "archive" / "images",
        folder / "shards",
        dira_dist.ShardOptions(
            image_size=None,
            processes=1,
            labels=str(folder / "archive" / "labels.csv"),
            masks=str(folder / "archive" / "masks"),
            group_by="patient",
            split=dira_dist.parse_split("train=0.6,val=0.2,test=0.2"),
        ),
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def make_job(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ChaosJob]:
    folder = tmp_path_factory.mktemp("finetune")

    def make(name: str, task: str, *, more: str = "") -> ChaosJob:
        job = ChaosJob(folder, name, 0, f"{folder}/runs")
        job.file.write_text(f"""
kind: finetune
name: {name}
start: {{from: random}}
data:
  {{train: {labelled}/train, val: {labelled}/val, test: {labelled}/test, image_size: 32, global_batch: 8,
    loader_workers: 0, label_fraction: 0.6}}
model: {{encoder: resnet18, decoder_channels: [8, 8, 8, 8, 8]}}
task: {TASKS[task]}
optimizer: {{lr: 1.0e-3, layer_decay: 0.8, head_lr_factor: 2, freeze_epochs: 1, schedule: plateau}}
epochs: 6
early_stopping: {{patience_epochs: 3}}
report: {{bootstrap: 100}}
precision: fp32
resources: {{workers: 2, resize_every_s: 5}}
checkpoint: {{storage: "{job.storage}", every_steps: 4, keep: 2}}
tracking: {{uri: "sqlite:///{folder}/{name}.db", register_as: {task}, log_every_steps: 1, system_metrics_every_s: 0}}
{more}
""")
        return job

    return make


@pytest.mark.parametrize("task", TASKS)
def test_a_killed_worker_changes_nothing_of_what_is_chosen(
    make_job: Callable[..., ChaosJob], labelled: Path, task: str, tmp_path: Path
) -> None:
    unbroken, broken = make_job(f"{task}-unbroken", task), make_job(f"{task}-broken", task)
    outcome = unbroken.run()
    with when(lambda: broken.has_reached(8), lambda: worker_processes()[0].kill()):
        broken.run()
    assert broken.setbacks()[0] == 1
    assert broken.history("train/loss/supervised") == unbroken.history("train/loss/supervised")
    assert broken.history(METRICS[task]) == unbroken.history(METRICS[task])
    assert different(broken.final().tensors, unbroken.final().tensors) == []
    assert reports(broken)["metrics"] == reports(unbroken)["metrics"]

    _assert_best_is_published(unbroken, outcome, task)
    again = unbroken.run()
    assert again.already_done and again.model == outcome.model
    by_hand = dira_dist.register(f"{unbroken.storage}/{unbroken.name}", name=task, tracking_uri=unbroken.database)
    assert by_hand.version == 1, "the same weights of the same run"
    _assert_used_where_nothing_of_this_is(unbroken, outcome, task, labelled, tmp_path)


def reports(job: ChaosJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_report(open_store(f"{job.storage}/{job.name}"))["report.json"])
    return found


def _assert_best_is_published(job: ChaosJob, outcome: Outcome, task: str) -> None:
    """The networks of the best epoch on val; which is kept whatever ``keep`` says; and every epoch was validated."""
    evaluations = read_evaluations(open_store(f"{job.storage}/{job.name}"))
    values = [value for _, value in job.history(METRICS[task])]
    best = max(evaluations, key=lambda each: each.metrics[METRICS[task]])
    assert best.metrics[METRICS[task]] == max(values)
    assert outcome.best.endswith(best.checkpoint) and best.checkpoint in job.checkpoints.names()
    assert 4 <= len(values) <= 6
    registered = MlflowClient(job.database).get_model_version(task, "1")
    assert registered.tags["dira.task"] == task and registered.tags["dira.label_fraction"] == "0.6"
    drawn = reports(job)["drawn"]
    assert drawn["units"] == round(0.6 * drawn["of_units"]) and len(set(drawn["samples"])) == len(drawn["samples"])


def _assert_used_where_nothing_of_this_is(
    job: ChaosJob, outcome: Outcome, task: str, labelled: Path, tmp_path: Path
) -> None:
    """The pyfunc and the plain weights answer as the run's own report has it."""
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(labelled.parent.glob("archive/images/*.png"))])
    np.save(tmp_path / "images.npy", images[:, None])
    script = (
        "import mlflow, numpy, sys\n"
        "from importlib.util import find_spec\n"
        "assert not find_spec('dira_dist') and not find_spec('segmentation_models_pytorch')\n"
        f"model = mlflow.pyfunc.load_model('{outcome.model}')\n"
        "numpy.save('answers.npy', model.predict(numpy.load('images.npy')))\n"
    )
    (tmp_path / "script.py").write_text(script)
    python = bare_python(tmp_path / "bare", "mlflow", "torch")
    subprocess.run(
        [python, "-I", "script.py"],
        cwd=tmp_path,
        check=True,
        env={"HOME": str(tmp_path), "MLFLOW_TRACKING_URI": job.database},
    )
    answers = np.load(tmp_path / "answers.npy")
    files = read_report(open_store(f"{job.storage}/{job.name}"))
    if task == "classify":
        rows = list(csv.reader(files["predictions-test.csv"].decode().splitlines()))
        classes = (len(rows[0]) - 2) // 2
        said = np.array([[float(cell) for cell in row[2 + classes :]] for row in rows[1:]])
        assert answers.shape == (len(images), classes)
        nearest = np.abs(answers[None] - said[:, None]).max(axis=2).min(axis=1)
        assert nearest.max() < 1e-4, "each prediction of the report is one of the pyfunc's"
    else:
        assert answers.shape == (len(images), 2, *images.shape[1:]) and answers.dtype == bool
    pulled = dira_dist.pull(
        outcome.model,
        tmp_path / "weights",
        format="torchvision" if task == "classify" else "smp",
        tracking_uri=job.database,
    )
    names: dict[str, Any] = {}
    exec(pulled.loading_lines, names)
    with torch.no_grad():
        logits = names["model"](torch.rand(2, 1, 32, 32))
    assert logits.shape[:2] == ((2, len(reports(job)["classes"])))
    with pytest.raises(RequestError, match=r"--format timm: .* give --format"):
        dira_dist.pull(outcome.model, tmp_path / "no", format="timm", tracking_uri=job.database)
