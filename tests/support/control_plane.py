"""A real control plane on loopback, and stand-ins for what needs machines: the kubelets and Ray's dashboard."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import requests
import urllib3
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

Manifest = dict[str, Any]
Found = TypeVar("Found")

ADMIN, SUBMITTER = "admin-token", "submitter-token"
TOKENS = f'{ADMIN},admin,1,"system:masters"\n{SUBMITTER},alice,2,"dira-submitters"\n'
WAIT_S = 60

urllib3.disable_warnings()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(found: Callable[[], Found | None], what: str, wait_s: float = WAIT_S) -> Found:
    """What a function finds at last."""
    deadline = time.monotonic() + wait_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {wait_s:.0f} s: {what}"
        time.sleep(0.3)
    return result


class ControlPlane:
    """etcd, the API server, and, where they are built, controllers and scheduler; each ends with :meth:`stop`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder
        self.port = free_port()
        self.address = f"https://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.session = requests.Session()
        self.session.verify, self.session.trust_env = False, False
        self.session.headers["Authorization"] = f"Bearer {ADMIN}"

    def has(self, name: str) -> bool:
        return (self.binaries / name).is_file()

    def start(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        (self.folder / "sa.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        )
        (self.folder / "tokens.csv").write_text(TOKENS)
        etcd, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.run(
            "etcd",
            "--data-dir",
            self.folder / "etcd",
            "--listen-client-urls",
            etcd,
            "--advertise-client-urls",
            etcd,
            "--listen-peer-urls",
            peers,
            "--initial-advertise-peer-urls",
            peers,
            "--initial-cluster",
            f"default={peers}",
            "--unsafe-no-fsync",
        )
        issuer = "https://kubernetes.default.svc"
        self.run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self.folder}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--service-account-issuer={issuer}",
            f"--service-account-key-file={self.folder / 'sa.key'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--endpoint-reconciler-type=none",
            "--enable-priority-and-fairness=false",
        )
        until(self._is_ready, "the API server is ready")
        self.kubeconfig = self._kubeconfig("admin", ADMIN)
        self.submitters = self._kubeconfig("submitter", SUBMITTER)
        if self.has("kube-controller-manager") and self.has("kube-scheduler"):
            by = ["--leader-elect=false", "--bind-address=127.0.0.1", f"--cert-dir={self.folder}"]
            by += [f"--{part}kubeconfig={self.kubeconfig}" for part in ("", "authentication-", "authorization-")]
            self.run(
                "kube-controller-manager",
                *by,
                f"--secure-port={free_port()}",
                "--use-service-account-credentials",
                f"--service-account-private-key-file={self.folder / 'sa.key'}",
                "--node-monitor-grace-period=24h",
                "--root-ca-file=" + str(self.folder / "apiserver.crt"),
            )
            self.run("kube-scheduler", *by, f"--secure-port={free_port()}")

    def _is_ready(self) -> bool:
        try:
            return self.session.get(f"{self.address}/readyz", timeout=5).text == "ok"
        except requests.RequestException:
            return False

    def run(
        self, program: str, *words: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process of the plane, its log beside the data."""
        with (self.folder / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(
                [self.binaries / program, *words], stdout=log, stderr=log, env=os.environ | (environment or {})
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def _kubeconfig(self, name: str, token: str) -> Path:
        file = self.folder / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "t", "cluster": {"server": self.address, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "t", "user": "u"}}],
            "current-context": "c",
        }
        file.write_text(yaml.safe_dump(config))
        return file

    def kubectl(self, *words: str | Path, stdin: str | None = None, submitter: bool = False, check: bool = True) -> str:
        """What kubectl prints, errors included where it is not to be checked."""
        done = subprocess.run(
            [self.binaries / "kubectl", "--kubeconfig", self.submitters if submitter else self.kubeconfig, *words],
            input=stdin,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if check else subprocess.STDOUT,
        )
        assert not check or done.returncode == 0, (words, done.stderr)
        return done.stdout

    def items(self, kind: str, namespace: str = "dira", **labels: str) -> list[Manifest]:
        selector = [f"--selector={','.join(f'{key}={value}' for key, value in labels.items())}"] if labels else []
        where = ["-n", namespace] if namespace else ["--all-namespaces"]
        found = json.loads(self.kubectl("get", kind, "-o", "json", *where, *selector))
        return list(found["items"])

    def get(self, kind: str, name: str, namespace: str = "dira") -> Manifest | None:
        text = self.kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text else None


class Kubelets:
    """Pods of all nodes run at once, or fail as they are told to; those that are told to end do, and are remembered.

    Attributes:
        failing: a text that the names of failing pods hold, and their last words.
        notified: pods that were told to end, and how many seconds they were given.
    """

    def __init__(self, plane: ControlPlane, dashboard: "Dashboard") -> None:
        self._plane, self._dashboard = plane, dashboard
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._address = 1
        self.failing: dict[str, str] = {}
        self.notified: dict[str, int] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        session = requests.Session()
        session.verify, session.trust_env = False, False
        session.headers["Authorization"] = f"Bearer {ADMIN}"
        while not self._over.wait(0.3):
            try:
                for pod in session.get(f"{self._plane.address}/api/v1/pods", timeout=10).json()["items"]:
                    self._see_to(session, pod)
            except requests.RequestException:
                continue

    def _see_to(self, session: requests.Session, pod: Manifest) -> None:
        name, spec, status = pod["metadata"]["name"], pod["spec"], pod["status"]
        place = f"{self._plane.address}/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{name}"
        if "deletionTimestamp" in pod["metadata"]:
            self.notified[name] = pod["metadata"].get("deletionGracePeriodSeconds", 0)
            session.delete(place, json={"gracePeriodSeconds": 0}, timeout=10)
        elif status.get("phase") == "Running" and _follows_a_log(pod) and self._dashboard.has_ended:
            kind = {"Content-Type": "application/merge-patch+json"}
            session.patch(f"{place}/status", data='{"status": {"phase": "Succeeded"}}', headers=kind, timeout=10)
        elif "nodeName" in spec and status.get("phase") == "Pending":
            words = next((last for part, last in self.failing.items() if part in name), None)
            self._address += 1
            body = {"status": _status(spec, f"10.244.{self._address // 250}.{self._address % 250 + 1}", words)}
            kind = {"Content-Type": "application/strategic-merge-patch+json"}
            session.patch(f"{place}/status", data=json.dumps(body), headers=kind, timeout=10)


def _follows_a_log(pod: Manifest) -> bool:
    """Whether it is the pod that handed a job in, and ends with it."""
    return bool(pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "submitter")


def _status(spec: Manifest, address: str, last_words: str | None) -> Manifest:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    runs = last_words is None
    ended = {
        "terminated": {"exitCode": 1, "reason": "Error", "message": last_words, "startedAt": now, "finishedAt": now}
    }
    done = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}}
    state = {"running": {"startedAt": now}} if runs else ended

    def of(containers: Sequence[Manifest], now_is: Manifest, *, ready: bool) -> list[Manifest]:
        common = {"restartCount": 0, "ready": ready, "imageID": "", "state": now_is}
        return [{"name": each["name"], "image": each["image"], **common} for each in containers]

    conditions = {"Initialized": True, "Ready": runs, "ContainersReady": runs, "PodScheduled": True}
    return {
        "phase": "Running" if runs else "Failed",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": [
            {
                "type": kind,
                "status": str(is_so),
                "lastTransitionTime": now,
                **({} if is_so else {"reason": "ContainersNotReady"}),
            }
            for kind, is_so in conditions.items()
        ],
        "containerStatuses": of(spec["containers"], state, ready=runs),
        "initContainerStatuses": of(spec.get("initContainers", []), done, ready=True),
    }


def nodes() -> list[Manifest]:
    """Two of CPUs, two of 8 GPUs with NVIDIA's taint, one of them on the spot market."""
    gpus = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    spot = [{"key": "karpenter.sh/capacity-type", "value": "spot", "effect": "NoSchedule"}]
    found = [_node(f"cpu-{number}", 32, "on-demand", 0, []) for number in range(2)]
    return [*found, _node("gpu-0", 96, "on-demand", 8, gpus), _node("spot-0", 96, "spot", 8, gpus + spot)]


def _node(name: str, cpus: int, market: str, gpus: int, taints: list[Manifest]) -> Manifest:
    has = {
        "cpu": str(cpus),
        "memory": f"{cpus * 4}Gi",
        "pods": "110",
        "ephemeral-storage": "500Gi",
        "nvidia.com/gpu": str(gpus),
    }
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "karpenter.sh/capacity-type": market}
    labels |= {"nvidia.com/gpu.present": "true"} if gpus else {}
    ready = {"type": "Ready", "status": "True", "reason": "StoodInFor"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {"allocatable": has, "capacity": has, "conditions": [ready]},
    }


class Dashboard:
    """Ray's dashboard, for every cluster: the operator reaches it as a proxy, so that no name must be resolved.

    Attributes:
        status: of every job: ``RUNNING``, ``SUCCEEDED``, ``FAILED``; none where no job is known.
        has_token: of each request, whether it carried a cluster's token.
    """

    def __init__(self) -> None:
        self.status: str | None = "RUNNING"
        self.has_token: list[bool] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                names = ("Authorization", "X-Ray-Authorization")
                outer.has_token.append(any(self.headers.get(name) for name in names))
                body = json.dumps(outer._answer(self.path)).encode()
                self.send_response(404 if outer.status is None and "/api/jobs/" in self.path else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *words: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def has_ended(self) -> bool:
        """Whether jobs are over, well or not."""
        return self.status in {"SUCCEEDED", "FAILED"}

    def _answer(self, path: str) -> Manifest:
        if "/stop" in path:
            return {"stopped": True}
        if "/api/jobs/" in path:
            now_ms = int(time.time() * 1000)
            job = {
                "job_id": "01",
                "submission_id": path.rpartition("/")[2],
                "status": self.status,
                "type": "SUBMISSION",
            }
            return job | {"entrypoint": "x", "message": "", "start_time": now_ms, "end_time": now_ms}
        return {"result": True}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def running(plane: ControlPlane) -> Iterator[ControlPlane]:
    """A plane while the block runs."""
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
