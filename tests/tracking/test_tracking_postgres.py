"""A tracking server on PostgreSQL keeps the same promises as one on sqlite."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow_server import MlflowServer, Wire, free_port
from safetensors.torch import save_file

from dira_dist.models.model_files import write_checksums
from dira_dist.registry.registry import Metric, register_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.pretrain.task import packaged

WAIT_S = 60
# PostgreSQL refuses to run as root.
USER = {"user": "nobody"} if os.geteuid() == 0 else {}

pytestmark = pytest.mark.skipif(
    not (shutil.which("initdb") and shutil.which("postgres")), reason="no PostgreSQL on this machine"
)


@pytest.fixture
def database() -> Iterator[str]:
    """An empty database; its address."""
    # Not under pytest's own folders: they are closed to the other user, at a depth that pytest-xdist changes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if USER:
        shutil.chown(folder, **USER)
    port = free_port()
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(["initdb", "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"], check=True, **quiet, **USER)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen(["postgres", "-D", data, *options], **quiet, **USER)
    deadline = time.monotonic() + WAIT_S
    ready = ["pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, **quiet).returncode:
        assert server.poll() is None, "PostgreSQL ended"
        assert time.monotonic() < deadline, "PostgreSQL does not start"
        time.sleep(0.1)
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    server.terminate()
    server.wait(timeout=WAIT_S)
    shutil.rmtree(folder)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, "--artifacts-destination", str(tmp_path / "artifacts"), backend=database)
    yield server.start()
    server.stop()


def test_an_outage_a_lost_answer_and_a_registration(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, client = Wire(server.port), MlflowClient(server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(uri=wire.uri, register_as="m", system_metrics_every_s=0)
    run = TrackingRun.create(config, "job", {"a": 1})
    assert run.flush(WAIT_S)
    wire.lose_answers_to = b"runs/log-batch"
    for step in range(5):
        run.log_metrics({"loss": 0.5, "rate": float(step)}, step)
    assert run.flush(WAIT_S)
    wire.connected = False
    for step in range(5, 10):
        run.log_metrics({"loss": 0.5, "rate": float(step)}, step)
    assert not run.flush(0.3)
    wire.connected = True
    assert run.finish("FINISHED", timeout_s=WAIT_S)
    assert wire.lost_answers == 1
    for name in ("loss", "rate"):
        assert [metric.step for metric in client.get_metric_history(run.run_id, name)] == list(range(10))

    (tmp_path / "model").mkdir()
    save_file({"encoder.weight": torch.ones(1)}, tmp_path / "model" / "unet.safetensors")
    write_checksums(tmp_path / "model")
    for metric in (Metric("probe/auroc", 0.7), Metric("probe/auroc", 0.9)):  # the second time it is known already
        done = register_version(config, run.run_id, packaged(tmp_path / "model"), metric=metric, timeout_s=0)
        assert (done.version, done.is_best) == (1, True)
    wire.close()
