"""The plane of this folder's tests. They run where ``DIRA_K8S_BIN`` names a folder of the binaries, and skip elsewhere.

It holds etcd, kube-apiserver, kubectl, kube-controller-manager, kube-scheduler, kuberay-operator and kueue, and under
``crds/`` the definitions of the two operators; a test names those that it needs.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from control_plane import ControlPlane, Dashboard, Kubelets, nodes, running, until

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"


@pytest.fixture(scope="session")
def binaries() -> Path:
    folder = os.environ.get("DIRA_K8S_BIN")
    if folder is None:
        pytest.skip("DIRA_K8S_BIN names no folder of Kubernetes' binaries")
    for name in ("etcd", "kube-apiserver", "kubectl", "crds"):
        if not (Path(folder) / name).exists():
            pytest.skip(f"no {name} in DIRA_K8S_BIN={folder}")
    return Path(folder)


@pytest.fixture(scope="session")
def plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """With namespaces, policies, secrets and the operators' definitions; nothing else stands in it."""
    with running(ControlPlane(binaries, tmp_path_factory.mktemp("plane"))) as started:
        for file in sorted((binaries / "crds").glob("*.yaml")):
            started.kubectl("apply", "--server-side", "-f", file)
        kinds = {"rayjobs.ray.io", "rayclusters.ray.io"}
        until(lambda: kinds <= set(started.kubectl("api-resources", "-o", "name").split()), "KubeRay's kinds are known")
        started.kubectl("apply", "-k", K8S / "cluster")
        secrets = shutil.copytree(K8S / "secrets", tmp_path_factory.mktemp("made") / "secrets")
        for example in secrets.glob("*.example"):
            example.with_suffix("").write_text(example.read_text().replace("=\n", "=x\n"))
        started.kubectl("apply", "-k", secrets)
        yield started


@pytest.fixture(scope="session")
def machines(plane: ControlPlane, dashboard: Dashboard) -> Iterator[Kubelets]:
    """Nodes, and kubelets that are stood in for."""
    for name in ("kube-controller-manager", "kube-scheduler"):
        if not plane.has(name):
            pytest.skip(f"no {name} in {plane.binaries}")
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(nodes()))
    kubelets = Kubelets(plane, dashboard)
    kubelets.start()
    yield kubelets
    kubelets.stop()


@pytest.fixture(scope="session")
def dashboard() -> Iterator[Dashboard]:
    found = Dashboard()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def operator(plane: ControlPlane, machines: Kubelets, dashboard: Dashboard) -> Kubelets:
    """KubeRay's, on the plane; what it gives back are the machines that its pods run on."""
    if not plane.has("kuberay-operator"):
        pytest.skip(f"no kuberay-operator in {plane.binaries}")
    reached = {"KUBECONFIG": str(plane.kubeconfig), "HTTP_PROXY": dashboard.address, "NO_PROXY": "127.0.0.1"}
    words = ["--metrics-addr=127.0.0.1:0", "--health-probe-bind-address=127.0.0.1:0", "--enable-leader-election=false"]
    plane.run("kuberay-operator", *words, environment=reached)
    return machines
