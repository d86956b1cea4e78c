"""The ways into a running cluster: a head and two worker nodes in processes of their own, behind a token, with an S3
server and an MLflow server beside them, the servers set up by the same variables as in the manifests.
"""

import http.server
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import boto3
import pytest
import ray
from mlflow import MlflowClient

import dira_dist
from dira_dist.config import RequestError
from dira_dist.quickstart.phantom import write_archive

ROOT = Path(__file__).parents[2]
JOB = "jobs/pretrain-quickstart.yaml"
BIN = Path(sys.executable).parent
BUCKET = "submitted"

pytestmark = pytest.mark.timeout(1500)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Site:
    """Everything that stands before a job comes.

    Attributes:
        environment: what a shell beside the cluster has: the project's programs, the token, the servers' addresses.
        dashboard: address of the head's.
        metrics: address of its metrics.
        mlflow: address of the tracking server.
    """

    environment: dict[str, str]
    dashboard: str
    metrics: str
    mlflow: str

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("ray", "job", "submit", "--address", self.dashboard, *words)

    def dira(self, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("dira-dist", verb, "--address", self.dashboard, *words, **environment)


def started(command: list[str], environment: dict[str, str], ready: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """The process, once it is ready. Ray's own 30 s for a node to register are not enough for a busy machine: twice it
    may try again.
    """
    said = ""
    for _ in range(3):
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            deadline = time.monotonic() + 180
            while process.poll() is None and time.monotonic() < deadline:
                if ready():
                    return process
                time.sleep(0.2)
            process.kill()
            log.seek(0)
            said = log.read()[-3000:].decode()
    pytest.fail(f"{command}: {said}")


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def site(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    gcs, dashboard, metrics, mlflow = (free_port() for _ in range(4))
    aws = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    environment = {**os.environ, **aws, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}", "RAY_metrics_report_interval_ms": "500"}
    environment |= {"RAY_memory_monitor_refresh_ms": "0"}  # what else this machine does is no reason to kill workers
    environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for absent in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environment.pop(absent, None)
    server = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db"}
    server |= {"MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/artifacts", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server |= {"MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{mlflow}"}
    boto3.client("s3", endpoint_url=s3_endpoint, **_keys(aws)).create_bucket(Bucket=BUCKET)
    # A folder for each node: nodes that share one unpack the uploaded working directory over each other's. Short names,
    # for sockets lie below.
    scratch = [tempfile.mkdtemp(prefix="ray-", dir="/tmp") for _ in range(3)]
    start = [str(BIN / "ray"), "start", "--block", f"--object-store-memory={80 * 2**20}", "--disable-usage-stats"]
    head = ["--head", f"--temp-dir={scratch[0]}", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    head += [f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={free_port()}"]
    places = [f"http://127.0.0.1:{port}" for port in (dashboard, metrics, mlflow)]
    site = Site(environment, *places)
    processes = [started([*start, *head], environment, lambda: answers(f"{site.dashboard}/api/gcs_healthz"))]
    try:
        command = [str(BIN / "mlflow"), "server", "--port", str(mlflow), "--workers", "1"]
        processes.append(started(command, environment | server, lambda: answers(f"{site.mlflow}/health")))
        for place in scratch[1:]:
            agent = free_port()
            worker = [
                f"--temp-dir={place}",
                f"--address=127.0.0.1:{gcs}",
                "--num-cpus=1",
                f"--dashboard-agent-listen-port={agent}",
            ]
            health = f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
            processes.append(started([*start, *worker], environment, lambda health=health: answers(health)))
        yield site
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)
        for place in scratch:
            shutil.rmtree(place, ignore_errors=True)


def _keys(aws: dict[str, str]) -> dict[str, str]:
    names = ("aws_access_key_id", "aws_secret_access_key")
    return {name: aws[name.upper()] for name in names} | {"region_name": aws["AWS_DEFAULT_REGION"]}


@pytest.fixture(scope="module")
def overrides(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The quickstart's job on a few images of its own, short, everything in S3."""
    folder = tmp_path_factory.mktemp("submitted")
    write_archive(folder / "archive", 32, size_px=64)
    shards = site.run("dira-dist", "shard", f"{folder}/archive/images", f"s3://{BUCKET}/shards", "--image-size", "0")
    assert shards.returncode == 0, shards.stderr
    return [
        f"data={{train: s3://{BUCKET}/shards, image_size: 32, global_batch: 8, loader_workers: 0}}",
        "model.encoder=tu-test_resnet",
        "stages=[{objective: di, steps: 2}]",
        "probe=null",
        f"checkpoint.storage=s3://{BUCKET}/runs",
    ]


def named(name: str, overrides: list[str]) -> list[str]:
    own = [f"name={name}", f"tracking={{experiment: ways-in, register_as: '{name}'}}"]
    return [word for override in (*overrides, *own) for word in ("--set", override)]


def assert_registered(site: Site, name: str) -> None:
    """The job ended in the registry, its files in S3 behind the tracking server."""
    client = MlflowClient(site.mlflow)
    (version,) = client.search_model_versions(f"name='{name}'")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    names = [each.path for each in client.list_artifacts(version.run_id)]
    assert names
    s3 = boto3.client("s3", endpoint_url=site.environment["AWS_ENDPOINT_URL"], **_keys(site.environment))
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="artifacts/")["KeyCount"] > 0
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{name}/")["KeyCount"] > 0


def test_ray_job_submit_uploads_the_working_directory(site: Site, overrides: list[str]) -> None:
    done = site.ray("--working-dir", ".", "--", JOB, *named("by-ray", overrides))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "by-ray: finished, 2 steps" in done.stdout
    assert_registered(site, "by-ray")


def test_ray_job_submit_finds_the_file_on_the_cluster(site: Site, overrides: list[str]) -> None:
    done = site.ray("--", JOB, *named("by-file", overrides))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "by-file: finished, 2 steps" in done.stdout
    assert_registered(site, "by-file")


def test_our_submit_hands_over_variables_and_looks_after_the_job(site: Site, overrides: list[str]) -> None:
    taken = site.dira("submit", JOB, "--no-wait", "--env", "WAY", *named("${env:WAY}", overrides), WAY="by-us")
    assert taken.returncode == 0, taken.stderr
    assert "finished" not in taken.stdout
    job_id = taken.stderr.rpartition("submitted as ")[2].strip()
    followed = site.dira("logs", job_id, "--follow")
    assert followed.returncode == 0, followed.stdout[-3000:]
    assert "by-us: finished, 2 steps" in followed.stdout
    assert followed.stdout.count("by-us: finished") == 1  # nothing is shown twice
    assert site.dira("logs", job_id).stdout == followed.stdout
    (line,) = site.dira("status", job_id).stdout.splitlines()
    assert line.split()[:2] == [job_id, "SUCCEEDED"]
    assert line in site.dira("status").stdout.splitlines()
    assert "had ended already" in site.dira("stop", job_id).stdout
    assert_registered(site, "by-us")


def test_a_stopped_job_fails_whoever_follows_it(site: Site, overrides: list[str]) -> None:
    endless = [*overrides, "stages=[{objective: di, steps: 9999}]"]
    taken = site.dira("submit", JOB, "--no-wait", *named("stopped", endless))
    job_id = taken.stderr.rpartition("submitted as ")[2].strip()
    assert "stopping" in site.dira("stop", job_id).stdout
    assert site.dira("logs", job_id, "--follow").returncode == 1
    assert site.dira("status", job_id).stdout.split()[1] == "STOPPED"


def test_a_job_that_the_cluster_cannot_hold_fails_at_once(site: Site, overrides: list[str]) -> None:
    """Valid where it is submitted, refused where it runs, and the submission ends as the job does."""
    larger = [*overrides, "data.global_batch=32", "resources.workers=[4, 8]"]
    done = site.dira("submit", JOB, *named("too-large", larger))
    assert done.returncode == 2
    assert "4 workers with 1 CPUs and 0 GPUs each are asked for, and this cluster holds 2 of them" in done.stdout


PROBE = """
import os
import time
import ray
from dira_dist.cluster.session import check_capacity
from dira_dist.cluster.fit.prometheus import JobMetrics
from dira_dist.config import RequestError
from dira_dist.jobs.base import ResourcesConfig

ray.init(log_to_driver=False)
check_capacity(ResourcesConfig(workers=(2, 64)), 0)
for changed, gpus in ({"cpus_per_worker": 2}, 0), ({}, 1):
    try:
        check_capacity(ResourcesConfig(**changed), gpus)
    except RequestError as error:
        print(error)
os.environ["KUBERAY_GEN_RAY_START_CMD"] = "ray start --head --no-monitor"  # as KubeRay tells of an autoscaler
check_capacity(ResourcesConfig(workers=64), 0)
metrics = JobMetrics("measured")
metrics.update({"train/images_per_s": 12.5, "train/loss/restorative": 0.25, "other": 1.0}, step=7)
metrics.update({"train/bad_samples": 2.0}, step=7)
metrics.update({"train/bad_samples": 3.0, "train/skipped_steps": 0.0}, step=8)
metrics.checkpointed(step=6)
time.sleep(5)
"""


def test_capacity_and_metrics_on_the_cluster(site: Site, tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    taken = subprocess.Popen(
        [BIN / "ray", "job", "submit", "--address", site.dashboard, "--", "python", script],
        env=site.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: dict[str, float] = {}
    while taken.poll() is None:
        with urllib.request.urlopen(f"{site.metrics}/metrics", timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if 'job="measured"' in line]
        seen |= {line.partition("{")[0]: float(line.split()[-1]) for line in lines}
        time.sleep(0.5)
    assert taken.stdout is not None
    said = taken.stdout.read()
    assert "1 workers with 2 CPUs and 0 GPUs each are asked for, and this cluster holds 0 of them" in said
    assert "1 workers with 1 CPUs and 1 GPUs each are asked for, and this cluster holds 0 of them" in said
    assert seen["ray_dira_images_per_second"] == 12.5
    assert seen["ray_dira_loss"] == 0.25
    assert seen["ray_dira_bad_samples_total"] == 5.0
    assert seen["ray_dira_step"] == 8.0
    assert seen["ray_dira_checkpoint_step"] == 6.0
    assert abs(seen["ray_dira_checkpoint_timestamp_seconds"] - time.time()) < 600
    assert "ray_dira_skipped_steps_total" not in seen


def test_a_wrong_token_or_none_is_named_as_such(site: Site) -> None:
    for changed in ({"RAY_AUTH_TOKEN": secrets.token_hex(32)}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}):
        refused = site.dira("submit", JOB, **changed)
        assert refused.returncode == 2, refused.stderr
        assert f"the Ray cluster at {site.dashboard} refuses the token" in refused.stderr
        assert site.environment["RAY_AUTH_TOKEN"] not in refused.stderr


class Dashboard(http.server.BaseHTTPRequestHandler):
    """The few answers of Ray's dashboard that are needed to see what no small cluster shows: its limit, the package."""

    packages: ClassVar[list[bytes]] = []
    status: ClassVar[str] = "RUNNING"
    told: ClassVar[dict[str, object]] = {}
    limit_bytes: ClassVar[int] = 1 << 30

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self._answer(200, json.dumps({"version": "4", "ray_version": ray.__version__}).encode())
        elif self.path.startswith("/api/jobs/"):
            job = {"type": "SUBMISSION", "submission_id": "a", "status": self.status, "entrypoint": ""}
            job |= self.told
            answers = {"/api/jobs/": [job], "/api/jobs/a": job, "/api/jobs/a/logs": {"logs": "one\n"}}
            self._answer(200, json.dumps(answers[self.path]).encode())
        else:
            self._answer(404, b"no such package")

    def do_PUT(self) -> None:
        package = self.rfile.read(int(self.headers["Content-Length"]))
        if len(package) > self.limit_bytes:
            self._answer(500, f"Package size ({len(package)} B) exceeds the maximum size of 1 KiB.".encode())
            return
        self.packages.append(package)
        self._answer(200, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b'{"job_id": "a", "submission_id": "a"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None: ...  # noqa: A002


@pytest.fixture
def dashboard() -> Iterator[tuple[str, type[Dashboard]]]:
    """The address of a dashboard, and what it has taken."""
    handler = type("Own", (Dashboard,), {"packages": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with a job, two shard sets made beside it, and a folder that merely holds an ``index.json``."""
    for place in ("shards/train", "old [1]/set"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "index.json").write_text("{}")
        (tmp_path / place / "000000.tar").write_bytes(secrets.token_bytes(5000))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text("{}")
    (tmp_path / "secret.db").write_text("")
    (tmp_path / ".gitignore").write_text("*.db\n/shards/\n")
    shutil.copy(ROOT / JOB, tmp_path / "job.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("train", "sets"),
    [("s3://bucket/train", set()), ("shards/train", {"shards/train"}), ("./old [1]/set/", {"old [1]/set"})],
)
def test_shard_sets_travel_only_where_the_job_names_them(
    dashboard: tuple[str, type[Dashboard]], tree: Path, train: str, sets: set[str]
) -> None:
    address, taken = dashboard
    dira_dist.submit(tree / "job.yaml", [f"data.train={train!r}"], address=address, working_dir=tree)
    (package,) = taken.packages
    names = {name for name in zipfile.ZipFile(io.BytesIO(package)).namelist() if not name.endswith("/")}
    expected = {f"{found}/{name}" for found in sets for name in ("index.json", "000000.tar")}
    assert names == {"job.yaml"} | expected
    assert "RAY_RUNTIME_ENV_IGNORE_GITIGNORE" not in os.environ


def test_nothing_travels_that_nobody_named(
    dashboard: tuple[str, type[Dashboard]], tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a working tree holds beside: credentials, keys, a salt, a patient's image, what the job will write."""
    for name in (".env", ".netrc", ".aws/credentials", "id_rsa", "k8s/secrets/a.env", "scan.dcm", "runs/old/run.json"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("SECRET")
    (tree / "weights.pt").write_bytes(b"weights")
    address, taken = dashboard
    overrides = ["model.init=weights.pt", "checkpoint.storage=runs/old", "data.train=s3://bucket/train"]
    dira_dist.submit(tree / "job.yaml", overrides, address=address, working_dir=tree, include=["site", "secret.db"])
    said = capsys.readouterr().err
    assert f"uploading job.yaml, weights.pt, site, secret.db; nothing else of {tree} (--include PATH adds" in said
    package = zipfile.ZipFile(io.BytesIO(taken.packages[0]))
    files = {name for name in package.namelist() if not name.endswith("/")}
    assert files == {"job.yaml", "weights.pt", "site/index.json", "secret.db"}
    for wrong in ("not-there", "../elsewhere"):
        with pytest.raises(RequestError, match=r"there is no such file or folder|not inside"):
            dira_dist.submit(tree / "job.yaml", overrides, address=address, working_dir=tree, include=[wrong])


def test_a_tree_beyond_the_limit_is_no_lost_cluster(
    dashboard: tuple[str, type[Dashboard]], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, taken = dashboard
    monkeypatch.setattr(taken, "limit_bytes", 100)
    with pytest.raises(RequestError, match=f"{address} is there, but does not do .*exceeds the maximum size"):
        dira_dist.submit(tree / "job.yaml", address=address, working_dir=tree)


def test_a_log_that_is_followed_comes_while_the_job_runs(dashboard: tuple[str, type[Dashboard]]) -> None:
    address, taken = dashboard
    words = [BIN / "dira-dist", "logs", "a", "--follow", "--address", address]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=buffered) as following:
        assert following.stdout is not None
        line = ThreadPoolExecutor(1).submit(following.stdout.readline)
        try:
            assert line.result(30) == "one\n"
        finally:
            taken.status = "SUCCEEDED"
        assert following.wait(60) == 0


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        ("FAILED", {"driver_exit_code": 2}, 2),
        ("FAILED", {"driver_exit_code": -9}, 1),
        ("FAILED", {}, 1),
        ("STOPPED", {"driver_exit_code": 143}, 1),
        ("SUCCEEDED", {"driver_exit_code": 0}, 0),
    ],
)
def test_who_follows_a_job_ends_as_it_does(
    dashboard: tuple[str, type[Dashboard]], status: str, told: dict[str, object], code: int
) -> None:
    address, taken = dashboard
    taken.status, taken.told = status, told
    assert dira_dist.submission("a", address=address).follow(lambda text: None) == code


def test_a_job_is_one_line(dashboard: tuple[str, type[Dashboard]]) -> None:
    address, taken = dashboard
    message = (
        "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nsecond\n"
    )
    taken.status, taken.told = "FAILED", {"message": message}
    (job,) = dira_dist.submissions(address=address)
    assert dira_dist.describe(job) == "a  FAILED     -  -  Job entrypoint command failed with exit code 2"


def test_invalid_jobs_and_lost_addresses_are_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RequestError, match="did you mean 'seed'"):
        dira_dist.submit(ROOT / JOB, ["sead=1"], address=lost, working_dir=ROOT)
    with pytest.raises(RequestError, match="NOT_SET_ANYWHERE"):
        dira_dist.submit(ROOT / JOB, address=lost, env=["NOT_SET_ANYWHERE"], working_dir=ROOT)
    with pytest.raises(RequestError, match="not inside"):
        dira_dist.submit(ROOT / JOB, address=lost, working_dir=ROOT / "docs")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")  # what is said on the command line wins
    for ask in (
        lambda: dira_dist.submit(ROOT / JOB, address=lost, working_dir=ROOT),
        lambda: dira_dist.submission("x", address=lost),
        lambda: dira_dist.submissions(address=lost),
    ):
        with pytest.raises(RequestError, match=f"no Ray cluster takes jobs at {lost}: .*refused"):
            ask()
    with pytest.raises(RequestError, match="looks like http://host:8265"):
        dira_dist.submissions(address="http://[nonsense")
