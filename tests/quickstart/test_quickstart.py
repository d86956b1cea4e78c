"""The real thing, end to end: HTTP to an S3 server, two Ray Train workers under DDP, MLflow on sqlite, weights out.

One run of the quickstart is made for all tests of this file, as it is but for fewer images, epochs and fits; what it
left behind is looked at from several sides.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.jobs.load import load_job
from dira_dist.metrics import find
from dira_dist.quickstart import quickstart
from dira_dist.quickstart.quickstart import QuickstartReport, run_quickstart
from dira_dist.quickstart.subjects import Radiographs
from dira_dist.runs.run import read_run
from dira_dist.training.precision import native_bf16, settle

pytestmark = pytest.mark.timeout(1500)

REPORT = {"bootstrap": 100, "localization": None}
FITS = [f"quickstart-labels-{start}-0.1-lr0.001-seed{seed}" for start in ("random", "pretrained") for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radiographs]:
    """What is shown in place of the usual radiographs."""
    usual, place = Radiographs(), tmp_path_factory.mktemp("jobs")
    pretrain, compare = (yaml.safe_load(file.read_text()) for file in (usual.job_file, usual.compare_file))
    pretrain["data"]["global_batch"] = 32
    for stage, epochs in zip(pretrain["stages"], (4, 10, 4), strict=True):
        stage["epochs"] = epochs
    compare |= {"label_fractions": [0.1], "seeds": 2, "learning_rates": [1.0e-3]}
    compare["base"] |= {"epochs": 4, "early_stopping": {"every_epochs": 2}, "report": REPORT}
    with pytest.MonkeyPatch.context() as patch:
        files = [_written(place / "pretrain.yaml", pretrain), _written(place / "compare.yaml", compare)]
        fewer = replace(usual, count=240, job_file=files[0], compare_file=files[1])
        patch.setattr(quickstart, "Radiographs", lambda: fewer)
        yield fewer


def _written(path: Path, job: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(job, sort_keys=False))  # the first start is what the others are compared with
    return path


@pytest.fixture(scope="module")
def report(folder: Path, short: Radiographs) -> QuickstartReport:
    return run_quickstart(folder)


@pytest.fixture(scope="module")
def client(folder: Path, report: QuickstartReport) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def test_restoration_is_learned(report: QuickstartReport) -> None:
    assert set(report.losses) == {"discriminative", "restorative", "adversarial", "discriminator"}
    first, last = report.losses["restorative"]
    assert last < first
    untrained, trained = (report.outcome.quality[label] for label in ("untrained", "3-dira"))
    assert trained["val/psnr"] > untrained["val/psnr"] + 2
    assert trained["val/ssim"] > untrained["val/ssim"] + 0.1


def test_mlflow_holds_one_finished_run_of_each_job(client: MlflowClient, report: QuickstartReport) -> None:
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert runs == dict.fromkeys(["quickstart", "quickstart-labels", *FITS], "FINISHED")


def test_the_run_of_the_pretraining_has_every_metric(client: MlflowClient, report: QuickstartReport) -> None:
    run = client.get_run(report.outcome.run_id)
    losses = {"discriminative", "restorative", "adversarial"}
    wanted = {f"train/{kind}/{loss}" for kind in ("loss", "weighted") for loss in losses}
    wanted |= {"train/loss/total", "train/loss/discriminator", "train/grad_norm", "train/learning_rate"}
    wanted |= {"train/images_per_s", "train/step_s", "train/data_wait_share", "train/memory_peak_bytes"}
    wanted |= {"train/skipped_steps", "train/bad_samples", "train/stage"}
    wanted |= {"val/psnr", "val/ssim", "val/rankme", "probe/knn_accuracy", "probe/knn_auroc", "probe/auroc"}
    assert wanted <= set(run.data.metrics)
    assert all(find(name) for name in run.data.metrics), "every reported figure is in the catalogue"
    assert run.data.params["method.name"] == "barlow_twins"
    assert run.data.params["stages.2.objective"] == "dira"
    assert run.inputs.dataset_inputs[0].dataset.name == "train"


def test_weighted_losses_are_the_losses_times_their_weights(client: MlflowClient, report: QuickstartReport) -> None:
    metrics = client.get_run(report.outcome.run_id).data.metrics
    assert metrics["train/weighted/restorative"] == pytest.approx(10 * metrics["train/loss/restorative"], rel=1e-4)
    assert metrics["train/weighted/adversarial"] == pytest.approx(1e-3 * metrics["train/loss/adversarial"], rel=1e-4)
    parts = sum(metrics[f"train/weighted/{part}"] for part in ("discriminative", "restorative", "adversarial"))
    assert metrics["train/loss/total"] == pytest.approx(parts, rel=1e-3)


def test_steps_have_neither_gaps_nor_doubles(client: MlflowClient, report: QuickstartReport) -> None:
    steps = [metric.step for metric in client.get_metric_history(report.outcome.run_id, "train/loss/total")]
    assert steps == sorted(set(steps))
    assert steps[-1] == report.outcome.steps
    assert max(later - earlier for earlier, later in zip([0, *steps], steps, strict=False)) <= 10


def test_the_precision_is_settled_by_what_the_workers_have(
    client: MlflowClient, folder: Path, report: QuickstartReport
) -> None:
    state = read_run(open_store(str(folder / "runs" / "quickstart")))
    assert state is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert state.precision == settle([native_bf16(device)])
    assert client.get_run(report.outcome.run_id).data.tags["dira.precision"] == state.precision


def test_pictures_of_every_stage(report: QuickstartReport) -> None:
    found: dict[str, list[int]] = {}
    for path in report.pictures:
        name, _, step = path.stem.rpartition("-")
        found.setdefault(name, []).append(int(step))
    ends = found["restorations"]
    assert (len(ends), ends[0], ends[-1]) == (4, 0, report.outcome.steps)
    assert found == {
        "restorations": ends,
        "probe-features": ends,
        "discriminator-scores": ends[-1:],
        "starts": ends[-1:],
        "loss-curves": ends[-1:],
    }
    width, height = Image.open(report.pictures[0]).size
    assert min(width, height) > 300


def test_checkpoints_are_in_storage_and_their_addresses_in_mlflow(
    client: MlflowClient, report: QuickstartReport
) -> None:
    assert sorted(path.name for path in Path(report.outcome.checkpoint).iterdir()) == ["manifest.json", "state.pt"]
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id], "name LIKE 'checkpoint-%'")
    assert report.outcome.checkpoint in {model.tags["dira.address"] for model in models}


def test_the_pulled_encoder_loads_strictly_into_timm(report: QuickstartReport) -> None:
    scope: dict[str, torch.nn.Module] = {}
    exec(report.pulled.loading_lines, scope)
    reference = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    reference.load_state_dict(load_file(report.pulled.path), strict=True)
    images = torch.rand(2, 1, 48, 48)
    assert torch.equal(scope["model"].eval()(images), reference.eval()(images))


def test_the_encoder_of_the_checkpoint_is_that_of_the_registry(report: QuickstartReport, tmp_path: Path) -> None:
    pulled = dira_dist.pull(report.outcome.checkpoint, tmp_path, format="timm")
    ours, registered = load_file(pulled.path), load_file(report.pulled.path)
    assert ours.keys() == registered.keys()
    assert all(torch.equal(ours[name], registered[name]) for name in ours)
    three = dira_dist.pull(report.outcome.checkpoint, tmp_path, format="smp", in_channels=3)
    assert load_file(three.path)["encoder.model.conv1.0.weight"].shape[1] == 3


def test_the_same_call_again_finds_everything_done(folder: Path, report: QuickstartReport) -> None:
    again = run_quickstart(folder)
    assert again.outcome.already_done
    assert again.outcome.run_id == report.outcome.run_id
    assert again.pulled.sha256 == report.pulled.sha256
    assert again.compared is not None and report.compared is not None
    assert again.compared.already_done and again.compared.table == report.compared.table
    assert [path.name for path in again.pictures] == [path.name for path in report.pictures]


def test_both_starts_have_the_same_labels_and_settings(folder: Path, report: QuickstartReport) -> None:
    names = (FITS[0], FITS[2])
    states = [read_run(open_store(str(folder / "runs" / name))) for name in names]
    assert states[0] is not None and states[1] is not None
    jobs = [dict(state.job) for state in states if state]
    starts = [job.pop("start")["from"] for job in jobs]
    assert starts == ["random", report.outcome.model]
    assert {key for key in jobs[0] if jobs[0][key] != jobs[1][key]} == {"name"}
    drawn = [json.loads((folder / "runs" / name / "report" / "report.json").read_text())["drawn"] for name in names]
    assert drawn[0] == drawn[1]


def test_the_starts_are_compared_on_the_test_images(folder: Path, report: QuickstartReport) -> None:
    found = json.loads((folder / "runs" / "quickstart-labels" / "comparison.json").read_text())
    means = {cell["start"]: cell["mean"]["value"] for cell in found["cells"]}
    for start, names in (("random", FITS[:2]), ("pretrained", FITS[2:])):
        reports = [json.loads((folder / "runs" / name / "report" / "report.json").read_text()) for name in names]
        aurocs = [each["metrics"]["test/auroc"] for each in reports]
        assert means[start] == pytest.approx(sum(aurocs) / len(aurocs), abs=1e-4)
    assert report.compared is not None and set(report.compared.sentences) == {"pretrained"}


def test_another_configuration_under_the_same_name_is_refused(
    folder: Path, short: Radiographs, report: QuickstartReport
) -> None:
    shards = folder / "other"
    options = dira_dist.ShardOptions(image_size=None, processes=1)
    dira_dist.shard(folder / "archive" / "images", shards, options)
    loaded = load_job(
        short.job_file,
        [f"data.train={shards}", "data.val=null", "probe=null", f"checkpoint.storage={folder / 'runs'}", "seed=1"],
    )
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    with pytest.raises(RequestError, match=r"seed: 0 there, 1 here"):
        dira_dist.run(loaded)
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before


def test_the_report_says_what_a_person_wants_to_know(report: QuickstartReport) -> None:
    text = "\n".join(report.lines())
    wanted = (
        "restoration PSNR",
        "k-NN probe",
        "against random",
        "starts-",
        "mlflow ui --backend-store-uri",
        "dira-dist shard",
        "load_state_dict",
    )
    for words in wanted:
        assert words in text
