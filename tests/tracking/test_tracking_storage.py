"""The whole way of a model: real MLflow servers, artifacts in real S3, and environments that hold almost nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from line import LineJob
from mlflow import MlflowClient
from mlflow_server import MlflowServer

from dira_dist.cli import main
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.evaluation.features import extract_features
from dira_dist.jobs.load import load_job
from dira_dist.models import model_files
from dira_dist.registry.publish import publish, register
from dira_dist.registry.pull import pull
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint, write_checkpoint
from tests.conftest import S3Server
from tests.tracking.conftest import bare_python

SIZE_PX = 32
WAIT_S = 60
DATA = {"address": "s3://images/train", "images": 400, "digest": "ab" * 32}


@pytest.fixture
def through_the_server(s3: S3Server, tmp_path: Path) -> Iterator[MlflowServer]:
    """A server that keeps artifacts in the bucket and hands them through."""
    server = MlflowServer(tmp_path, "--artifacts-destination", s3.address("artifacts"))
    yield server.start()
    server.stop()


@pytest.fixture
def beside_the_server(s3: S3Server, tmp_path: Path) -> Iterator[MlflowServer]:
    """A server that only says where in the bucket artifacts are."""
    server = MlflowServer(tmp_path, "--no-serve-artifacts", "--default-artifact-root", s3.address("direct"))
    yield server.start()
    server.stop()


def config_of(server: MlflowServer) -> TrackingConfig:
    return TrackingConfig(uri=server.uri, register_as="dira-cxr14", system_metrics_every_s=0)


def a_job(name: str, storage: str, encoder: str = "tu-test_resnet") -> dict[str, Any]:
    """A recorded job, as a checkpoint carries it."""
    values = {
        "name": name,
        "data": {"train": "shards", "image_size": SIZE_PX, "global_batch": 4},
        "model": {"encoder": encoder, "decoder_channels": [8, 8, 8, 8, 8]},
        "adversarial": {"discriminator": {"channels": [4, 8]}},
        "stages": [{"objective": "dira", "steps": 5}],
        "checkpoint": {"storage": storage},
        "tracking": {"register_as": "dira-cxr14"},
    }
    return load_job(values).public


def networks_of(record: dict[str, Any], seed: int = 0) -> PretrainNetworks:
    job = load_job(record).job
    return build_networks(job.model, job.method, job.adversarial, seed=seed).eval()


def checkpoint_of(networks: PretrainNetworks, job: dict[str, Any], run_id: str, step: int) -> Checkpoint:
    return Checkpoint(Position(step_in_stage=step, step=step), job, run_id, tensors={"networks": networks.state_dict()})


def stored(checkpoint: Checkpoint, scratch: Path, quality: dict[str, float]) -> str:
    """The checkpoint in its run's folder, with the evaluation beside it; its address."""
    step, name = checkpoint.position.step, f"step-{checkpoint.position.step:09d}-abc"
    store = open_store(f"{checkpoint.job['checkpoint']['storage']}/{checkpoint.job['name']}")
    write_checkpoint(scratch / name, checkpoint)
    CheckpointFolder(store).upload(name, scratch / name)
    add_evaluation(store, EvaluationEntry(f"step-{step}", step, name, quality))
    return store.join(name)


def ours(networks: PretrainNetworks, images: Any) -> Any:
    """The features that the trainer's own encoder gives."""
    views = [torch.from_numpy(images)]
    return extract_features(networks.unet.encoder, views, image_size=SIZE_PX, in_channels=1, device="cpu").numpy()


def run_bare(python: Path, script: str, folder: Path, **environment: str) -> str:
    """What a script prints in an environment that knows nothing of this checkout."""
    (folder / "script.py").write_text(script)
    found = subprocess.run(
        [python, "-I", folder / "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"HOME": str(folder), **environment},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


ABSENT = """
from importlib.util import find_spec
present = [name for name in {names} if find_spec(name)]
assert not present, present
"""


def test_from_a_restarted_run_to_features_in_bare_environments(
    through_the_server: MlflowServer, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, client = config_of(through_the_server), MlflowClient(through_the_server.uri)
    job = a_job("first", s3.address("runs"))
    run = TrackingRun.create(config, "first", job)
    run.log_metrics({"train/loss/total": 2.0}, 1)
    run.log_picture("restorations", np.full((40, 60, 3), 7, np.uint8), 1)
    assert run.flush(WAIT_S)
    again = TrackingRun.attach(config, run.run_id)  # the process of before is gone
    again.log_metrics({"train/loss/total": 1.0}, 2)
    again.log_picture("restorations", np.full((40, 60, 3), 9, np.uint8), 2)
    assert again.finish("FINISHED", timeout_s=WAIT_S)
    assert [metric.step for metric in client.get_metric_history(run.run_id, "train/loss/total")] == [1, 2]
    checkpoint = checkpoint_of(networks_of(job), job, run.run_id, 2)
    assert publish(config, run.run_id, checkpoint, {"probe/auroc": 0.7}, DATA).version == 1

    best_after = []
    for number, (auroc, encoder) in enumerate(((0.6, "tu-test_resnet"), (0.8, "resnet18")), start=2):
        other = a_job(f"run-{number}", s3.address("runs"), encoder)
        networks, next_run = networks_of(other), TrackingRun.create(config, f"run-{number}", other)
        checkpoint = checkpoint_of(networks, other, next_run.run_id, 5)
        address = stored(checkpoint, tmp_path / "w", {"probe/auroc": auroc})
        next_run.log_checkpoint(address, 5)
        assert next_run.finish("FINISHED", timeout_s=WAIT_S)
        source = f"runs:/{next_run.run_id}" if number == 2 else address  # by the run, and by the checkpoint
        assert register(source, tracking_uri=config.uri).version == number
        best_after.append(int(client.get_registered_model("dira-cxr14").aliases["best"]))
    assert best_after == [1, 3]
    keys = [each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=s3.bucket)["Contents"]]
    assert sum(key.startswith("artifacts/") and key.endswith("features.pt2") for key in keys) == 3
    assert sum(key.endswith("pictures/restorations.png") for key in keys) == 1

    images = np.random.default_rng(0).integers(0, 256, (4, 1, 40, 50), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    expected = ours(networks, images)
    pyfunc = ABSENT.format(names=["dira_dist", "torchvision", "timm", "segmentation_models_pytorch", "ray"]) + (
        "import mlflow, numpy\n"
        "model = mlflow.pyfunc.load_model('models:/dira-cxr14@best')\n"
        "numpy.save('features.npy', model.predict(numpy.load('images.npy')))\n"
    )
    run_bare(bare_python(tmp_path / "mlflow", "mlflow", "torch"), pyfunc, tmp_path, MLFLOW_TRACKING_URI=str(config.uri))
    assert np.abs(np.load(tmp_path / "features.npy") - expected).max() < 1e-5

    grey = torch.from_numpy(np.random.default_rng(1).random((3, 1, 64, 64), np.float32))
    np.save(tmp_path / "x.npy", grey.numpy())
    with torch.no_grad():
        direct = networks.unet.pooled(networks.unet.encode(grey)).numpy()
    environments = {
        "torchvision": ("torchvision", "safetensors"),
        "smp": ("segmentation-models-pytorch", "safetensors"),
    }
    for library, packages in environments.items():
        pulled = pull("models:/dira-cxr14@best", tmp_path / "weights", format=library, tracking_uri=config.uri)
        features = "model(x)" if library == "torchvision" else "model.encoder(x)[-1].mean((-2, -1))"
        lines = ABSENT.format(names=["dira_dist", "mlflow", "ray"]) + (
            f"import numpy, torch\n{pulled.loading_lines}\nx = torch.from_numpy(numpy.load('x.npy'))\n"
            f"numpy.save('features.npy', {features}.detach().numpy())\n"
        )
        run_bare(bare_python(tmp_path / library, *packages), lines, tmp_path)
        assert np.abs(np.load(tmp_path / "features.npy") - direct).max() < 1e-5


def test_artifacts_that_lie_beside_the_server(
    beside_the_server: MlflowServer, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(beside_the_server)
    job = a_job("direct", s3.address("runs"))
    run = TrackingRun.create(config, "direct", job)
    run.log_dataset("train", "cd" * 32, "s3://images/train", "training", {"samples": 3})
    run.log_picture("restorations", np.zeros((8, 8, 3), np.uint8), 1)
    networks = networks_of(job)
    run.log_checkpoint(stored(checkpoint_of(networks, job, run.run_id, 1), tmp_path / "a", {"val/rankme": 9.0}), 1)
    run.log_checkpoint(stored(checkpoint_of(networks, job, run.run_id, 2), tmp_path / "b", {"val/rankme": 8.0}), 2)
    assert run.finish("KILLED", "stopped by hand", timeout_s=WAIT_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dira-dist", "register", f"runs:/{run.run_id}", "--tracking-uri", str(config.uri)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code in (0, None)
    assert "models:/dira-cxr14/1 is @best" in capsys.readouterr().out
    version = MlflowClient(beside_the_server.uri).get_model_version("dira-cxr14", "1")
    assert version.source.startswith(s3.address("direct"))
    wanted = {
        "dira.metric": "val/rankme",
        "dira.metric_value": "8.0",
        "dira.method": "moco_v2",
        "dira.weight.restorative": "10.0",
    }
    assert wanted.items() <= version.tags.items()
    assert version.tags["dira.train_digest"] == ("cd" * 32)[:36]
    pulled = pull(
        "models:/dira-cxr14@best", tmp_path / "weights", format="timm", file_format="pt", tracking_uri=config.uri
    )
    state = torch.load(pulled.path, weights_only=True)
    assert torch.equal(state["conv1.0.weight"], networks.unet.encoder.model.conv1[0].weight)
    assert "torch.load" in pulled.loading_lines
    names: dict[str, Any] = {}
    exec(pulled.loading_lines, names)
    assert [path.name for path in (tmp_path / "weights").iterdir() if path.name.startswith(".")] == []

    folder = s3.address("runs/direct")  # the newest checkpoint of a run's folder
    same = pull(folder, tmp_path / "same", format="timm", file_format="pt")
    assert torch.equal(torch.load(same.path, weights_only=True)["conv1.0.weight"], state["conv1.0.weight"])


def test_a_checkpoint_without_a_run_gets_one_when_it_is_registered(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job = a_job("untracked", str(tmp_path / "runs"))
    address = stored(checkpoint_of(networks_of(job), job, "", 7), tmp_path / "w", {"probe/auroc": 0.6})
    done = register(address, name="other", tracking_uri=uri)
    assert (done.address, done.is_best) == ("models:/other/1", True)
    client = MlflowClient(uri)
    run = client.get_run(str(client.get_model_version("other", "1").run_id))
    assert (run.info.status, run.data.tags["dira.recorded"]) == ("FINISHED", "afterwards")
    assert run.data.metrics["probe/auroc"] == 0.6
    seen: list[tuple[int, int]] = []
    pulled = pull(
        "models:/other@best",
        tmp_path / "weights",
        format="timm",
        tracking_uri=uri,
        progress=lambda *at: seen.append(at),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 1_000_000
    assert json.loads((tmp_path / "runs" / "untracked" / "evaluations.json").read_text())["evaluations"][0]["step"] == 7
    assert pulled.path.is_file()


def test_versions_are_compared_by_the_figure_of_their_task_and_in_its_direction(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", register_as="line", system_metrics_every_s=0)
    job = LineJob.model_validate({"name": "line", "data": {"train": "a"}}).model_dump(mode="json")
    run = TrackingRun.create(config, "line", job)
    moved = []
    for number, error in enumerate((0.3, 0.5, 0.1)):
        weights = {"line.weight": torch.full((1, 1), float(number)), "line.bias": torch.zeros(1)}
        checkpoint = Checkpoint(Position(step=5), job, run.run_id, tensors={"networks": weights})
        quality = {"val/rankme": -float(number), "val/error": error}
        moved.append(publish(config, run.run_id, checkpoint, quality, DATA).is_best)
    run.finish("FINISHED")
    assert moved == [True, False, True]
    tags = MlflowClient(config.uri).get_model_version_by_alias("line", "best").tags
    assert (tags["dira.metric"], tags["dira.metric_value"]) == ("val/error", "0.1")


def test_what_cannot_be_pulled_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    job = a_job("job", str(tmp_path / "runs"))
    address = stored(checkpoint_of(networks_of(job), job, "", 7), tmp_path / "w", {})
    cases: dict[str, dict[str, Any]] = {
        "possible for this encoder: timm, smp": {},
        "--format 'keras': allowed are torchvision, timm, smp, torch, monai, onnx": {"format": "keras"},
        "--in-channels 0: allowed are numbers from 1": {"in_channels": 0},
        "input channels: found 4, of a network that takes 1; allowed: 1 (grey) and 3": {"in_channels": 4},
        "--file-format 'bin': allowed are safetensors, pt": {"file_format": "bin"},
    }
    for words, options in cases.items():
        with pytest.raises(RequestError) as refused:
            pull(address, tmp_path / "weights", **options)
        assert words in str(refused.value)
        assert not list((tmp_path / "weights").glob("*"))
    state = Path(address) / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(RequestError, match=r"state\.pt is damaged where it is stored"):
        pull(address, tmp_path / "weights", format="timm")


def test_a_pull_that_was_broken_off_while_it_wrote_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job("job", str(tmp_path / "runs"))
    address = stored(checkpoint_of(networks_of(job), job, "", 7), tmp_path / "w", {})

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_files, "write_checksums", interrupted)
        pull(address, tmp_path / "weights", format="timm")
    assert list((tmp_path / "weights").glob(".pulling-*/model/unet.safetensors"))
    pulled = pull(address, tmp_path / "weights", format="timm")
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        pulled.path.name,
        f"{pulled.path.name}.sha256",
    ]


def test_what_cannot_be_registered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrackingConfig(uri=uri, system_metrics_every_s=0)
    job = a_job("job", str(tmp_path / "runs"))
    job["tracking"]["register_as"] = None
    run = TrackingRun.create(config, "job", job)
    run.log_checkpoint(str(tmp_path / "runs" / "gone"), 3)
    assert run.finish("FAILED", "by hand", timeout_s=WAIT_S)
    address = stored(checkpoint_of(networks_of(job), job, "0" * 32, 7), tmp_path / "w", {})
    (tmp_path / "empty").mkdir()
    cases = {
        (f"runs:/{'1' * 32}", uri, "m"): "there is no such run",
        (run.run_id, uri, "m"): r"no checkpoint of this run is in storage; recorded were: .*gone",
        (str(tmp_path / "empty"), uri, "m"): "nor a checkpoint",
        (address, uri, None): "--name",
        (address, uri, "m"): f"knows no run {'0' * 32}",
        (address, None, "m"): "MLFLOW_TRACKING_URI",
    }
    for (source, where, name), words in cases.items():
        with pytest.raises(RequestError, match=words):
            register(source, name=name, tracking_uri=where)
    assert MlflowClient(uri).search_registered_models() == []
