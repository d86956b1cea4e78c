"""The lines of docs/models.md do what they say, in an environment with mlflow and torch alone."""

import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow_server import MlflowServer

from dira_dist.models.model_files import ModelFacts, write_model_folder
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.registry.registry import register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.task import packaged
from tests.tracking.conftest import bare_python

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LOADER = """
import torch
torch.manual_seed(0)
labels = torch.arange(8) % 2
images = (labels[:, None, None, None] * 100 + torch.randint(0, 100, (8, 1, 40, 50))).to(torch.uint8)
class Loader(list):
    def __iter__(self):
        for _ in range(10):
            losses.append(loss.item() if "loss" in globals() else None)
            yield images, labels
losses, loader = [], Loader()
"""


def blocks(page: Path) -> list[str]:
    return [block.partition("```")[0] for block in page.read_text().split("```python\n")[1:]]


def test_fine_tuning_in_five_lines_with_mlflow_and_torch_alone(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrackingConfig(uri=mlflow_server.uri, register_as="dira-cxr14", system_metrics_every_s=0)
    torch.manual_seed(0)
    network = UNet(UNetConfig(encoder="tu-test_resnet", decoder_channels=(8, 8, 8, 8, 8))).eval()
    facts = ModelFacts("dira-cxr14", "tu-test_resnet", 1, 32)
    run = TrackingRun.create(config, "job", {})
    folder = write_model_folder(tmp_path / "model", network.state_dict(), facts, job="kind: pretrain\n")
    register_version(config, run.run_id, packaged(folder), timeout_s=0)
    assert run.finish("FINISHED")

    tuning, features = blocks(PAGE)
    loop = tuning.index("for images")
    assert len(tuning[:loop].strip().splitlines()) <= 5
    script = (
        LOADER
        + tuning[:loop]
        + "start = {name: p.detach().clone() for name, p in model.named_parameters()}\n"
        + tuning[loop:]
        + textwrap.dedent("""
            changed = [name for name, p in model.named_parameters() if not torch.equal(p, start[name])]
            assert any("graph" in name for name in changed), "the encoder learns"
            assert losses[1:] == sorted(losses[1:], reverse=True), losses
        """)
        + features.replace("images", "images.numpy()")
        + "import numpy\nnumpy.save('features.npy', features)\nnumpy.save('images.npy', images.numpy())\n"
    )
    (tmp_path / "script.py").write_text(script)
    python = bare_python(tmp_path / "bare", "mlflow", "torch")
    environment = {"HOME": str(tmp_path), "MLFLOW_TRACKING_URI": mlflow_server.uri}
    done = subprocess.run([python, "-I", "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))
    from dira_dist.evaluation.features import extract_features

    expected = extract_features(network.encoder, [images], image_size=32, in_channels=1, device="cpu")
    assert np.abs(np.load(tmp_path / "features.npy") - expected.numpy()).max() < 1e-5
