"""Several hosts on one machine: network namespaces around a bridge, each with an address, a /dev/shm and a folder of
Ray's of its own. A head, two workers, a job that needs both.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from dira_dist.quickstart.phantom import write_archive

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TAG = f"d{os.getpid() % 100000}"  # of interfaces and namespaces; a name holds 15 characters
SUBNET = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 200}"
INTERFACE = "pod0"

pytestmark = pytest.mark.timeout(1500)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Names of three namespaces; the n-th has address ``SUBNET.(10 + n)``, the machine itself ``SUBNET.1``."""
    names = [f"{TAG}h{number}" for number in range(3)]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces want root and iproute2")
    try:
        ip("link", "add", TAG, "type", "bridge")
        ip("addr", "add", f"{SUBNET}.1/24", "dev", TAG)
        ip("link", "set", TAG, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", INTERFACE, "netns", name)
            ip("link", "set", f"{name}v", "master", TAG, "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{10 + number}/24", "dev", INTERFACE)
            ip("-n", name, "link", "set", INTERFACE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode()[-200:]}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", TAG], capture_output=True, check=False)


@pytest.fixture(scope="module")
def environment(hosts: list[str]) -> Iterator[dict[str, str]]:
    """What the pods' ConfigMap and Secret give: the S3 server, the token, the interface of the collectives."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=f"{SUBNET}.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": f"{SUBNET}.0/24,{','.join(f'{SUBNET}.{n}' for n in (1, 10, 11, 12))}",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "RAY_memory_monitor_refresh_ms": "0",  # what else this machine does is no reason to kill workers
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    yield environment
    server.stop()


@pytest.fixture(scope="module")
def dashboard(hosts: list[str], environment: dict[str, str]) -> Iterator[str]:
    start = "ray start --block --disable-usage-stats --object-store-memory=83886080"
    nodes = [f"{start} --head --num-cpus=0 --dashboard-host=0.0.0.0 --node-ip-address={SUBNET}.10"]
    nodes += [f"{start} --num-cpus=1 --address={SUBNET}.10:6379 --node-ip-address={SUBNET}.{n}" for n in (11, 12)]
    scratch = [tempfile.mkdtemp(prefix="ray-", dir="/tmp") for _ in hosts]  # short names, for sockets lie below
    processes = []
    try:
        for number, (name, node) in enumerate(zip(hosts, nodes, strict=True)):
            # a node that did not register in Ray's 30 s tries again
            node += f" --temp-dir={scratch[number]}"
            script = f"mount -t tmpfs tmpfs /dev/shm; {node} || {node} || {node}"
            command = ["ip", "netns", "exec", name, "bash", "-c", script]
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL))
            _wait(f"http://{SUBNET}.{10 + number}:52365/api/local_raylet_healthz")
        _wait(f"http://{SUBNET}.10:8265/api/gcs_healthz")
        yield f"http://{SUBNET}.10:8265"
    finally:
        for name in hosts:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
        for process in processes:
            process.wait(30)
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 240
    while True:
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.3)


def test_a_job_trains_across_hosts(environment: dict[str, str], dashboard: str, tmp_path: Path) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    s3.create_bucket(Bucket="hosts")
    write_archive(tmp_path / "archive", 32, size_px=64)
    shard = [str(BIN / "dira-dist"), "shard", str(tmp_path / "archive" / "images"), "s3://hosts/shards"]
    subprocess.run([*shard, "--image-size", "0"], env=environment, check=True, capture_output=True)
    overrides = [
        "name=across-hosts",
        "data={train: s3://hosts/shards, image_size: 32, global_batch: 8, loader_workers: 0}",
        "model.encoder=tu-test_resnet",
        "stages=[{objective: dira, steps: 2}]",
        "probe=null",
        "tracking={}",
        "checkpoint.storage=s3://hosts/runs",
    ]
    words = [word for override in overrides for word in ("--set", override)]
    command = [str(BIN / "dira-dist"), "submit", "jobs/pretrain-quickstart.yaml", "--address", dashboard, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    # each host has one CPU and each of the two workers takes one: they met over the bridge
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "across-hosts: finished, 2 steps" in done.stdout
    assert s3.list_objects_v2(Bucket="hosts", Prefix="runs/across-hosts/")["KeyCount"] > 0
