"""A storage and a tracking server that are away while a run goes on, or when it starts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import boto3
import pytest
from chaos import ChaosJob, when
from flaky_s3 import FlakyS3, flaky_s3
from mlflow_server import MlflowServer, Wire

pytestmark = pytest.mark.timeout(1500)

OUTAGE_S = 60


@pytest.fixture
def flaky() -> Iterator[FlakyS3]:
    with flaky_s3("runs") as server:
        yield server


def test_an_outage_of_the_storage_costs_a_warning(
    flaky: FlakyS3, make_job: Callable[..., ChaosJob], capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job("outage", workers="1", steps=150, every_steps=5, storage="s3://runs/here")

    began_s: list[float] = []

    def fail() -> None:
        flaky.failing.set()
        began_s.append(time.monotonic())

    def trained_through_it() -> bool:
        return bool(began_s) and time.monotonic() > began_s[0] + OUTAGE_S and job.has_measured(100)

    with when(lambda: job.has_reached(15), fail), when(trained_through_it, flaky.failing.clear):
        job.run()
    assert flaky.refused > 10
    job.assert_whole()
    assert job.setbacks() == (0, 0)
    assert job.final().position.step == job.steps
    said = capfd.readouterr().err
    troubles = ("is not written yet", "was not written in time", "old checkpoints were not removed")
    assert any(trouble in said for trouble in troubles), "which of them depends on what the outage hit"
    names = job.checkpoints.names()
    assert len(names) == 3
    assert len(list_keys("here/outage/")) == 2 * len(names) + 1, "state and manifest of each, and run.json"


def test_an_outage_of_the_tracking_server_delays_figures_and_loses_none(make_job: Callable[..., ChaosJob]) -> None:
    job = make_job("unrecorded", workers="1", steps=80, every_steps=5)
    server = MlflowServer(job.folder, backend=job.database).start()
    wire = Wire(server.port)

    def cut() -> None:
        wire.connected = False

    def trained_through_it() -> bool:
        return not wire.connected and wire.refused.is_set() and job.has_reached(40)

    def mend() -> None:
        assert job.history("train/loss/total")[-1][0] < 40, "what was measured meanwhile waits"
        wire.connected = True

    try:
        with when(lambda: job.has_reached(15), cut), when(trained_through_it, mend):
            job.run(f"tracking.uri={wire.uri}")
    finally:
        wire.close()
        server.stop()
    job.assert_whole()
    assert [step for step, _ in job.history("train/loss/total")] == list(range(1, job.steps + 1))
    assert job.setbacks() == (0, 0)
    assert job.mlflow_run().info.status == "FINISHED"


def list_keys(prefix: str) -> list[str]:
    return [each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket="runs", Prefix=prefix)["Contents"]]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("checkpoint.storage=s3://runs/here", "AWS_ENDPOINT_URL"),
        ("tracking.uri=http://127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_servers_that_are_away_at_the_start_are_a_clear_error(
    make_job: Callable[..., ChaosJob], setting: str, said: str
) -> None:
    job = make_job("nowhere")
    command = [sys.executable, "-m", "dira_dist", "run", str(job.file), "--set", setting]
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = subprocess.run(command, env={**os.environ, **away}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
