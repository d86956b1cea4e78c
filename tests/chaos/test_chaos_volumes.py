"""A pretraining on cubes through the real driver: killed and resumed, evaluated, registered, pulled."""

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from chaos import ChaosJob, different, driver_of
from cube_sets import write_cubes
from mlflow import MlflowClient

import dira_dist
from dira_dist.config import RequestError

pytestmark = pytest.mark.timeout(900)

JOB = """
name: {name}
data: {{train: {folder}/train, image_size: [16, 16, 16], global_batch: 4, loader_workers: 0}}
model: {{name: unet3d, width: 4, levels: 3, gradient_checkpointing: true}}
method: {{name: moco_v2, queue_size: 8, outputs: 8}}
adversarial: {{discriminator: {{channels: [4, 8, 8, 8]}}}}
stages: [{{objective: di, steps: 4}}, {{objective: dir, steps: 4}}, {{objective: dira, steps: 8}}]
precision: fp32
resources: {{workers: 1}}
checkpoint: {{storage: "{folder}/runs", every_steps: 3, keep: 20}}
tracking: {{uri: "sqlite:///{folder}/{name}.db", log_every_steps: 1, system_metrics_every_s: 0}}
"""

LOAD = """
import sys
{lines}
import torch
x = torch.load("x.pt")
with torch.no_grad():
    torch.save({features}, "features.pt")
assert "dira_dist" not in sys.modules
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cubes")
    write_cubes(str(folder / "train"), 20)
    write_cubes(str(folder / "val"), 12, first=100)
    return folder


def job_in(folder: Path, name: str) -> ChaosJob:
    job = ChaosJob(folder, name, 16, str(folder / "runs"))
    job.file.write_text(JOB.format(folder=folder, name=name))
    return job


@pytest.fixture(scope="module")
def unbroken(sets: Path) -> ChaosJob:
    """Evaluated and registered as well, which changes nothing of what is trained."""
    job, val = job_in(sets, "unbroken"), f"{sets}/val"
    probe = f"{{train: {sets}/train, val: {val}, label: size, bootstrap: 20, label_fractions: [1.0], k: 3}}"
    job.run(f"data.val={val}", f"probe={probe}", "tracking.register_as=cubes-unbroken")
    return job


def test_a_killed_run_ends_as_an_unbroken_one_bit_for_bit(sets: Path, unbroken: ChaosJob) -> None:
    job = job_in(sets, "killed")
    with driver_of(job, lambda: job.has_reached(6)):
        pass
    assert not job.run().already_done
    assert job.history("train/loss/total") == unbroken.history("train/loss/total")
    assert different(job.final().tensors, unbroken.final().tensors) == []
    assert job.final().position.stage == 3


def test_what_is_registered_runs_without_this_package(unbroken: ChaosJob, tmp_path: Path) -> None:
    name = f"cubes-{unbroken.name}"
    version = MlflowClient(unbroken.database).get_model_version_by_alias(name, "best")
    address = f"models:/{name}@best"
    with pytest.raises(RequestError, match="possible for this network: torch"):
        dira_dist.pull(address, tmp_path / "wrong", tracking_uri=unbroken.database)
    pulled = dira_dist.pull(address, tmp_path, format="torch", tracking_uri=unbroken.database)
    assert pulled.path.name == "unet3d-4-torch.safetensors" and (tmp_path / "unet3d_network.py").is_file()
    cubes = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.save(cubes, tmp_path / "x.pt")
    features = pulled.loading_lines.rpartition("features: ")[2]
    (tmp_path / "load.py").write_text(LOAD.format(lines=pulled.loading_lines, features=features))
    subprocess.run([sys.executable, "load.py"], cwd=tmp_path, env={}, check=True)
    mlflow.set_tracking_uri(unbroken.database)
    model = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
    expected = torch.load(tmp_path / "features.pt")
    torch.testing.assert_close(torch.from_numpy(model.predict(cubes.numpy())), expected, rtol=1e-4, atol=1e-5)


def test_networks_are_evaluated_and_shown_as_slices(unbroken: ChaosJob) -> None:
    for figure in ("val/psnr", "val/ssim", "val/rankme", "probe/auroc"):
        assert unbroken.history(figure), figure
