"""A real cross-validation on phantoms: folds side by side, interrupted, gone on with, pooled, joined, and used."""

import csv
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from sklearn.metrics import roc_auc_score

import dira_dist
from dira_dist.cluster.session import embedded_ray
from dira_dist.cluster.tune.folds import FoldsOutcome
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store
from dira_dist.evaluation.calibration import Calibration
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.prediction.model import files_of, load_fine_tuned
from dira_dist.quickstart.phantom import write_archive
from dira_dist.registry.model_folder import fetch_model_folder
from dira_dist.runs.report import read_report
from dira_dist.runs.search import read_search
from dira_dist.search.trial import Trial
from dira_dist.tracking.config import TrackingConfig
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.prediction import SetReader, predict_classes
from dira_dist.training.finetune.report_tables import read_rows
from dira_dist.training.finetune.samples import FinetuneSamples
from tests.tracking.conftest import bare_python

pytestmark = pytest.mark.timeout(1200)

FOLDS = (1, 2, 3)
JOB = """
kind: finetune
name: c
data:
  {train: FOLDER/shards/train, test: FOLDER/shards/test, folds: 3, image_size: 32, global_batch: 8, loader_workers: 0}
model: {encoder: tu-test_resnet, decoder_channels: [8, 8, 8, 8, 8]}
task: {name: classify, label: finding}
optimizer: {lr: 1.0e-3}
epochs: 2
report: {bootstrap: 100, subgroups: [sex]}
precision: fp32
resources: {workers: 1}
checkpoint: {storage: FOLDER/runs, every_steps: 1000, keep: 1}
tracking: {uri: "sqlite:///FOLDER/runs.db", register_as: joined, log_every_steps: 5, system_metrics_every_s: 0}
"""


@dataclass(frozen=True)
class CrossValidated:
    """A cross-validation in a folder, and what it left there."""

    folder: Path
    outcome: FoldsOutcome
    finished_before: dict[str, Trial]

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder}/runs.db"

    def files(self, name: str) -> dict[str, bytes]:
        return read_report(open_store(f"{self.folder}/runs/{name}"))

    def report(self, name: str = "c") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files(name)["report.json"])
        return found


def finished(folder: Path) -> dict[str, Trial]:
    state = read_search(open_store(f"{folder}/runs/c"))
    return {trial.name: trial for trial in state.trials if trial.status == "finished"} if state else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """80 phantoms with findings and masks, a quarter of their patients to test, the job file, and a Ray."""
    folder = tmp_path_factory.mktemp("folds")
    write_archive(folder / "archive", 80, size_px=40)
    options = dira_dist.ShardOptions(
        image_size=None,
        processes=1,
        labels=str(folder / "archive" / "labels.csv"),
        masks=str(folder / "archive" / "masks"),
        group_by="patient",
        split=dira_dist.parse_split("train=0.75,test=0.25"),
    )
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    (folder / "job.yaml").write_text(JOB.replace("FOLDER", str(folder)))
    with embedded_ray(ResourcesConfig()):
        yield folder


@pytest.fixture(scope="module")
def made(folder: Path) -> CrossValidated:
    """First a driver that is stopped once a fold is finished; then one that goes on."""
    _stopped_once_a_fold_is_finished(folder)
    before = finished(folder)
    outcome = dira_dist.run(dira_dist.load_job(folder / "job.yaml"))
    assert isinstance(outcome, FoldsOutcome)
    return CrossValidated(folder, outcome, before)


def _stopped_once_a_fold_is_finished(folder: Path) -> None:
    """As by Ctrl-C."""
    driver = threading.main_thread().ident
    assert driver is not None

    def stop() -> None:
        while not finished(folder):
            time.sleep(0.1)
        signal.pthread_kill(driver, signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(JobFailedError, match=r"c was stopped; .* the same command goes on"):
        dira_dist.run(dira_dist.load_job(folder / "job.yaml", ["max_concurrent=1"]))


def test_each_fold_has_a_fit_and_a_stopped_driver_goes_on_where_it_was(made: CrossValidated) -> None:
    assert list(finished(made.folder)) == [f"c-fold{fold}" for fold in FOLDS]
    assert made.finished_before, "the first driver was stopped after that"
    for name, trial in made.finished_before.items():
        assert finished(made.folder)[name] == trial, "what was finished is kept as it was"
    client = MlflowClient(made.tracking)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    names = {str(run.info.run_name): run for run in runs}
    assert len(names) == len(runs) == 4, "one run each, whatever was interrupted"
    parent = names.pop("c")
    assert {run.data.tags["mlflow.parentRunId"] for run in names.values()} == {parent.info.run_id}
    assert {(run.data.params["data.fold"], run.data.params["data.test"]) for run in names.values()} == {
        (str(fold), "None") for fold in FOLDS
    }
    assert parent.data.metrics["test/auroc"] == pytest.approx(made.report()["metrics"]["test/auroc"])


def test_each_sample_is_judged_by_the_fit_that_did_not_see_its_patient(made: CrossValidated) -> None:
    train = read_samples(f"{made.folder}/shards/train", read_index(f"{made.folder}/shards/train"))
    group_of = dict(zip(train.keys, train.groups, strict=True))
    held_out = [read_rows(made.files(f"c-fold{fold}"), "val") for fold in FOLDS]
    keys = [key for rows in held_out for key in rows.keys]
    assert sorted(keys) == sorted(train.keys), "each once"
    groups = [{group_of[key] for key in rows.keys} for rows in held_out]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(set(train.groups))
    for fold in FOLDS:
        report = made.report(f"c-fold{fold}")
        assert set(report["sets"]) == {"val"}, "no fit sees the test set"
        assert sorted(report["drawn"]["held_out"]) == sorted(held_out[fold - 1].keys)


def test_the_report_is_of_the_pooled_predictions_out_of_fold(made: CrossValidated) -> None:
    held_out = [read_rows(made.files(f"c-fold{fold}"), "val") for fold in FOLDS]
    chances = np.concatenate([rows.values for rows in held_out])
    truth = np.concatenate([rows.truth for rows in held_out if rows.truth is not None])
    report = made.report()
    for place, name in enumerate(report["classes"]):
        row = report["sets"]["val"]["per_image"][name]
        assert row["images"] == len(chances) and row["positives"] == truth[:, place].sum()
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(truth[:, place], chances[:, place]))
        assert row["brier"]["value"] == pytest.approx(((chances[:, place] - truth[:, place]) ** 2).mean())
    assert report["calibration"]["slopes"] == [1.0] * len(report["classes"]), "each fold is calibrated by itself"
    page = made.files("c")["report.md"].decode()
    assert "## Out of fold" in page and "ensemble of the 3 folds' networks" in page
    assert any(line.startswith("val/auroc") and "out of fold" in line for line in made.outcome.lines())


def test_the_ensemble_is_the_plain_mean_of_its_members(made: CrossValidated, tmp_path: Path) -> None:
    means, keys = np.zeros(()), ()
    for fold in FOLDS:
        folder = fetch_model_folder(
            f"{made.folder}/runs/c-fold{fold}", tmp_path / str(fold), TrackingConfig(), files_of, as_registered=True
        )
        member = load_fine_tuned(folder, "member")
        data = member.recipe.data.model_copy(update={"test": f"{made.folder}/shards/test"})
        recipe = member.recipe.model_copy(update={"data": data})
        network: Any = member.network
        reader = SetReader(recipe, FinetuneSamples(per_epoch=1), FinetuneNetworks(network), torch.device("cpu"))
        said = predict_classes(reader, "test")
        calibration = Calibration(said.kind, **member.facts.calibration)
        means, keys = means + calibration.chances(said.logits) / len(FOLDS), tuple(said.keys)
    ensemble = read_rows(made.files("c"), "test")
    assert tuple(ensemble.keys) == keys
    np.testing.assert_allclose(ensemble.values, means, atol=1e-6)


def test_the_ensemble_is_one_model_that_answers_without_this_package(made: CrossValidated, tmp_path: Path) -> None:
    assert made.outcome.model == "models:/joined/1"
    images = np.stack([np.asarray(Image.open(file)) for file in sorted((made.folder / "archive/images").glob("*.png"))])
    np.save(tmp_path / "images.npy", images[:, None])
    script = (
        "import mlflow, numpy\n"
        "from importlib.util import find_spec\n"
        "assert not find_spec('dira_dist') and not find_spec('timm')\n"
        "model = mlflow.pyfunc.load_model('models:/joined/1')\n"
        "numpy.save('answers.npy', model.predict(numpy.load('images.npy')))\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {"HOME": str(tmp_path), "MLFLOW_TRACKING_URI": made.tracking, "OMP_NUM_THREADS": "1"}
    python = bare_python(tmp_path / "bare", "mlflow", "torch")
    subprocess.run([python, "-I", "script.py"], cwd=tmp_path, check=True, env=environment)
    answers, said = np.load(tmp_path / "answers.npy"), read_rows(made.files("c"), "test").values
    assert answers.shape == (len(images), said.shape[1])
    assert np.abs(answers[None] - said[:, None]).max(axis=2).min(axis=1).max() < 1e-4


def test_the_ensemble_is_pulled_evaluated_and_registered_like_any_model(made: CrossValidated, tmp_path: Path) -> None:
    pulled = dira_dist.pull(made.outcome.model, tmp_path, format="timm", tracking_uri=made.tracking)
    assert [file.name for file in sorted(tmp_path.glob("*.safetensors"))] == [
        f"tu-test_resnet-timm-fold{fold}.safetensors" for fold in FOLDS
    ]
    names: dict[str, Any] = {}
    exec(pulled.loading_lines, names)

    test = f"{made.folder}/shards/test"
    for model in (made.outcome.model, f"{made.folder}/runs/c"):
        found = dira_dist.evaluate(model, test, tracking_uri=made.tracking)
        own = made.report()["metrics"]
        assert found.metrics == pytest.approx({name: own[name] for name in found.metrics}, abs=1e-5)
    with pytest.raises(RequestError, match=r"stand in the set that .* was trained on"):
        dira_dist.evaluate(made.outcome.model, f"{made.folder}/shards/train", tracking_uri=made.tracking)
    again = dira_dist.register(f"{made.folder}/runs/c", tracking_uri=made.tracking)
    assert again.version == 1, "the same weights of the same run"


def test_the_ensemble_predicts_files_and_says_what_it_does_not(made: CrossValidated, tmp_path: Path) -> None:
    images = made.folder / "archive" / "images"
    dira_dist.predict(made.outcome.model, str(images), str(tmp_path / "out"), tracking_uri=made.tracking)
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 80
    with pytest.raises(RequestError, match=r"heatmaps: are of one network, .* give the run of one of its folds"):
        options = dira_dist.PredictOptions(heatmaps=True)
        dira_dist.predict(made.outcome.model, str(images), str(tmp_path / "no"), options, tracking_uri=made.tracking)
    with pytest.raises(RequestError, match="an encoder each: give the run of one of its folds"):
        dira_dist.embed(made.outcome.model, str(images), str(tmp_path / "no"), tracking_uri=made.tracking)


def test_a_finished_one_is_told_again_and_another_one_refused(made: CrossValidated) -> None:
    again = dira_dist.run(dira_dist.load_job(made.folder / "job.yaml", ["max_concurrent=1"]))
    assert isinstance(again, FoldsOutcome) and again.already_done
    assert (again.figures, again.model) == (made.outcome.figures, made.outcome.model)
    with pytest.raises(
        RequestError, match=r"cross-validation of this name with another configuration.*\n.*data\.folds"
    ):
        dira_dist.run(dira_dist.load_job(made.folder / "job.yaml", ["data.folds=4"]))
    with pytest.raises(RequestError, match=r"a cross-validation \(data.folds\) of this name is there"):
        dira_dist.run(dira_dist.load_job(made.folder / "job.yaml", ["data.fold=1"]))
    with pytest.raises(RequestError, match="a fine-tuning run of this name is there; give the cross-validation"):
        dira_dist.run(dira_dist.load_job(made.folder / "job.yaml", ["name=c-fold1"]))


def test_masks_are_pooled_and_joined_likewise(folder: Path) -> None:
    overrides = [
        "name=m",
        "data.folds=2",
        "task={name: segment, regions: {lungs: [1, 2], right: [1]}}",
        "epochs=1",
        "report.subgroups=[]",
        "tracking.register_as=masks",
    ]
    outcome = dira_dist.run(dira_dist.load_job(folder / "job.yaml", overrides))
    assert isinstance(outcome, FoldsOutcome)
    joined = CrossValidated(folder, outcome, {})
    train = read_samples(f"{folder}/shards/train", read_index(f"{folder}/shards/train"))
    held_out = [read_rows(joined.files(f"m-fold{fold}"), "val") for fold in (1, 2)]
    dice, report = np.concatenate([rows.values for rows in held_out]), joined.report("m")
    for place, name in enumerate(report["classes"]):
        row = report["sets"]["val"]["per_image"][name]
        assert row["images"] == len(dice) == len(train)
        assert row["dice"]["value"] == pytest.approx(np.nanmean(dice[:, place]), abs=1e-4)
    found = dira_dist.evaluate(outcome.model, f"{folder}/shards/test", tracking_uri=joined.tracking)
    assert found.metrics["test/dice"] == pytest.approx(report["metrics"]["test/dice"], abs=1e-6)
