"""Registered models served by MLflow, and asked over HTTP, where dira_dist is not installed."""

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from PIL import Image

import dira_dist
from dira_dist.models import predictor, sent_images
from dira_dist.models.fine_tuned_files import NETWORK, FineTunedFacts, write_fine_tuned_folder
from dira_dist.models.model_files import ModelFacts, example_input, write_model_folder
from dira_dist.models.supervised import Classifier, Segmenter
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.registry.registry import register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.task import packaged
from dira_dist.training.task import Package
from dira_dist.views import center_view, frame_view
from tests.tracking.conftest import bare_python

SIZE_PX = 32
CONFIG = UNetConfig(encoder="resnet18", in_channels=1, decoder_channels=(8, 8, 8, 8, 8))
START_S = 240


def png(image: npt.NDArray[Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("served")
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics_every_s=0)


def fine_tuned(folder: Path, task: Any) -> Package:
    """A classifier of two classes or a segmenter of one, as a fine-tuning leaves it."""
    torch.manual_seed(0)
    network = Classifier(CONFIG, 2) if task == "classify" else Segmenter(CONFIG, 1)
    classes, calibration = ("a", "b"), {"slopes": [2.0, 0.5], "intercepts": [0.1, 0.0]}
    facts = FineTunedFacts(
        name=task,
        task=task,
        kind="multilabel" if task == "classify" else "binary",
        classes=classes if task == "classify" else ("lung",),
        encoder="resnet18",
        in_channels=1,
        image_size=SIZE_PX,
        fit="crop" if task == "classify" else "fit",
        calibration=calibration if task == "classify" else {},
        thresholds=(0.5, 0.5) if task == "classify" else (),
        label=("finding",),
        quality={},
        settings={},
        data={},
        origin={},
    )
    write_fine_tuned_folder(folder, network.eval(), facts, job="kind: finetune\n", report={}, pictures={})
    code = [Path(str(module.__file__)) for module in (predictor, center_view, frame_view, sent_images)]
    example = example_input(1, SIZE_PX)
    usual = predictor.OUTPUTS[task][0]
    return Package(folder, NETWORK, code, f"dira-{task}", "", parameters={"output": usual}, example=example)


def encoder(folder: Path) -> Package:
    torch.manual_seed(0)
    facts = ModelFacts("e", "resnet18", 1, SIZE_PX, trained=("discriminative",))
    state = {name: weight for name, weight in UNet(CONFIG).state_dict().items() if name.startswith("encoder.")}
    return packaged(write_model_folder(folder, state, facts, job=""), example_input(1, SIZE_PX))


@pytest.fixture(scope="module")
def models(registry: TrackingConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Address of each kind of model."""
    folder = tmp_path_factory.mktemp("packages")
    packages = {
        "classify": fine_tuned(folder / "c", "classify"),
        "segment": fine_tuned(folder / "s", "segment"),
        "encoder": encoder(folder / "e"),
    }
    found = {}
    for name, package in packages.items():
        config = registry.model_copy(update={"register_as": name})
        run = TrackingRun.create(config, name, {})
        found[name] = register_version(config, run.run_id, package, timeout_s=0).address
        run.finish("FINISHED")
    return found


@pytest.fixture(scope="module")
def bare(registry: TrackingConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An interpreter without this package, and its environment."""
    folder = tmp_path_factory.mktemp("bare")
    python = bare_python(folder / "env", "mlflow", "numpy", "pillow", "torch")
    command = python.with_name("uvicorn")  # as pip writes it, which serves MLflow's models
    command.write_text(f"#!{python} -I\nfrom uvicorn.main import main\nmain()\n")
    command.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    return python, {"HOME": str(folder), "PATH": path, "MLFLOW_TRACKING_URI": str(registry.uri)}


@contextmanager
def served(bare: tuple[Path, dict[str, str]], model: str, log: Path) -> Iterator[str]:
    """``mlflow models serve`` of a model; the address of its server."""
    python, environment = bare
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-I", "-m", "mlflow", "models", "serve", "-m", model, "-p", str(port), "--env-manager", "local"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 15)
        server.wait(30)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no server: {log.read_text()[-3000:]}")


def ask(address: str, **content: Any) -> npt.NDArray[Any]:
    body = json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return np.asarray(json.load(answer)["predictions"])


@pytest.mark.timeout(400)
def test_a_served_classifier_takes_files_and_numbers(
    models: dict[str, str], bare: tuple[Path, dict[str, str]], registry: TrackingConfig, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(registry.uri)
    here = mlflow.pyfunc.load_model(models["classify"])
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    expected = here.predict(images[:, None])
    assert expected.std() > 1e-3, "images are told apart"
    files = [png(image) for image in images]
    with served(bare, models["classify"], tmp_path / "log.txt") as address:
        assert np.allclose(ask(address, inputs=files), expected, atol=1e-5)
        assert np.allclose(ask(address, inputs=images[:, None].tolist()), expected, atol=1e-5)
        assert np.allclose(ask(address, inputs=(images[:, None] / 255).tolist()), expected, atol=1e-4)
        assert np.allclose(ask(address, instances=files), expected, atol=1e-5)
        table = {"columns": ["image"], "data": [[file] for file in files]}
        assert np.allclose(ask(address, dataframe_split=table), expected, atol=1e-5)
        decisions = ask(address, inputs=files, params={"output": "decisions"})
        assert np.array_equal(decisions, expected > 0.5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, inputs=[files[0], "no file"])
        assert refused.value.code == 400
        assert "image 1: no base64 of a PNG or JPEG file" in refused.value.read().decode()


@pytest.mark.timeout(400)
def test_mlflow_predicts_from_the_example_that_each_model_brings(
    models: dict[str, str], bare: tuple[Path, dict[str, str]], registry: TrackingConfig, tmp_path: Path
) -> None:
    python, environment = bare
    mlflow.set_tracking_uri(registry.uri)
    for name, shape in {"classify": (1, 2), "segment": (1, 1, SIZE_PX, SIZE_PX), "encoder": (1, 512)}.items():
        model = mlflow.pyfunc.load_model(models[name])
        here = model.predict(model.input_example)
        assert here.shape == shape
    example = Path(mlflow.artifacts.download_artifacts(f"{models['encoder']}/serving_input_example.json"))
    answer = tmp_path / "answer.json"
    command = [python, "-I", "-m", "mlflow", "models", "predict", "-m", models["encoder"], "-i", example, "-o", answer]
    subprocess.run([*command, "--env-manager", "local"], env=environment, cwd=tmp_path, check=True)
    assert np.allclose(json.loads(answer.read_text())["predictions"], here, atol=1e-4)


@pytest.mark.parametrize("name", ["classify", "encoder"])
def test_the_onnx_file_of_a_registered_model_says_what_it_says(
    models: dict[str, str], registry: TrackingConfig, name: str, tmp_path: Path
) -> None:
    pulled = dira_dist.pull(models[name], tmp_path, format="onnx", tracking_uri=registry.uri)
    assert pulled.path == tmp_path / "resnet18.onnx"
    images = np.random.default_rng(0).integers(0, 256, (3, 1, SIZE_PX, SIZE_PX), dtype=np.uint8)
    names: dict[str, Any] = {"images": images}
    exec(pulled.loading_lines, names)
    mlflow.set_tracking_uri(registry.uri)
    model = mlflow.pyfunc.load_model(models[name])
    params = None if name == "encoder" else {"output": "probabilities"}
    expected = model.predict(images, params=params)
    assert np.abs(names["features" if name == "encoder" else "probabilities"] - expected).max() < 1e-4
    kept = onnxruntime.InferenceSession(pulled.path).get_modelmeta().custom_metadata_map
    assert json.loads(kept["dira_dist"])["image_size"] == SIZE_PX
    with pytest.raises(dira_dist.RequestError, match="channels"):
        dira_dist.pull(models[name], tmp_path, format="onnx", in_channels=2, tracking_uri=registry.uri)
