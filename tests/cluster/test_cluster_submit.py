"""Jobs handed to a running Ray: by Ray's own command on an executable job file, and by ours."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dira_dist
from dira_dist.cluster.submit import submit
from dira_dist.config import RequestError
from dira_dist.data.phantom import write_archive

ROOT = Path(__file__).parents[2]
JOB = "jobs/pretrain-quickstart.yaml"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(600)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a shell with the project's environment activated has, and a token that opens the cluster."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**os.environ, **token, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """A Ray head in processes of its own; the address of its dashboard."""
    port, dashboard = free_port(), free_port()
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += ["--num-cpus=2", f"--object-store-memory={128 * 2**20}", "--disable-usage-stats"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield f"http://127.0.0.1:{dashboard}"
    head.terminate()
    head.wait(60)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The quickstart's job on a few images of its own, short."""
    folder = tmp_path_factory.mktemp("submitted")
    write_archive(folder / "archive", 48, size_px=64)
    options = dira_dist.ShardOptions(image_size=None, processes=1)
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    return [
        f"data={{train: {folder}/shards, image_size: 32, global_batch: 8, loader_workers: 0}}",
        "stages=[{objective: di, steps: 1}, {objective: dira, steps: 1}]",
        "probe=null",
        f"checkpoint.storage={folder}/runs",
        "tracking={}",
    ]


def test_ray_job_submit_runs_a_job_file(cluster: str, overrides: list[str], environment: dict[str, str]) -> None:
    words = [word for override in (*overrides, "name=by-ray") for word in ("--set", override)]
    command = [BIN / "ray", "job", "submit", "--address", cluster, "--working-dir", ".", "--", JOB, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "by-ray: finished, 2 steps" in done.stdout


def test_our_submit_hands_over_variables_and_follows_the_log(
    cluster: str, overrides: list[str], environment: dict[str, str]
) -> None:
    words = [word for override in (*overrides, "name=${env:SOME_SETTING}") for word in ("--set", override)]
    command = [BIN / "dira-dist", "submit", JOB, "--address", cluster, "--env", "SOME_SETTING", *words]
    environment = {**environment, "SOME_SETTING": "by-us"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "by-us: finished, 2 steps" in done.stdout


def test_a_failing_job_fails_the_submission(cluster: str, overrides: list[str], environment: dict[str, str]) -> None:
    # valid where it is submitted, refused where it runs: there is no such set
    words = [word for override in (*overrides, "data.train=absent") for word in ("--set", override)]
    command = [BIN / "dira-dist", "submit", JOB, "--address", cluster, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 1
    assert "data.train: no shard set can be read at" in done.stdout


def test_invalid_jobs_and_lost_addresses_are_refused_here(cluster: str) -> None:
    with pytest.raises(RequestError, match="did you mean 'seed'"):
        submit(ROOT / JOB, ["sead=1"], address=cluster, working_dir=ROOT)
    with pytest.raises(RequestError, match="NOT_SET_ANYWHERE"):
        submit(ROOT / JOB, address=cluster, env=["NOT_SET_ANYWHERE"], working_dir=ROOT)
    with pytest.raises(RequestError, match="not inside"):
        submit(ROOT / JOB, address=cluster, working_dir=ROOT / "docs")
    with pytest.raises(RequestError, match="no Ray cluster takes jobs at"):
        submit(ROOT / JOB, address=f"http://127.0.0.1:{free_port()}", working_dir=ROOT)
