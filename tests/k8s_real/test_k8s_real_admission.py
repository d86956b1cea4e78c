"""What a real API server takes of the manifests, and refuses."""

import subprocess
from pathlib import Path

import pytest
import yaml
from control_plane import ControlPlane, until

from dira_dist.cluster.submit.kubernetes import object_name, render, render_verb
from dira_dist.config import RequestError

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
JOB = ROOT / "jobs" / "pretrain.yaml"
PLATFORMS = ["database", "overlays/gpu", "overlays/spot", "overlays/smoke", "overlays/kueue"]
JOBS = sorted(
    str(file.parent.relative_to(K8S))
    for file in K8S.rglob("kustomization.yaml")
    if len(file.relative_to(K8S).parts) == 4
)
ODD = ["CXR.14_moco", "7-days", "x" * 100, "a--b-", "everyday", "-_-x", "ÄÖÜ", "a" * 47, "kubernetes", "mlflow"]


@pytest.mark.parametrize("way", ["--server-side=false", "--server-side=true"])
@pytest.mark.parametrize("folder", PLATFORMS)
def test_platforms_are_taken_twice_and_go_again(plane: ControlPlane, folder: str, way: str) -> None:
    apply = ["apply", "--validate=strict", way, "--force-conflicts" if way.endswith("true") else "--prune=false"]
    plane.kubectl(*apply, "-k", K8S / folder)
    before = generations(plane)
    plane.kubectl(*apply, "-k", K8S / folder)
    assert generations(plane) == before  # nothing was changed, so nothing starts anew
    plane.kubectl("delete", "-k", K8S / folder, "--wait=false")
    until(lambda: not generations(plane) and not plane.get("namespace", "dira-smoke"), "the platform is gone")
    assert plane.get("namespace", "dira-tracking")


def generations(plane: ControlPlane) -> set[tuple[str, str, int]]:
    """Of what has pods: the number that grows with each change of what is wanted."""
    kinds = ("statefulsets", "rayclusters", "rayjobs")
    found = [each for kind in kinds for each in plane.items(kind, "")]
    return {(each["kind"], each["metadata"]["name"], each["metadata"]["generation"]) for each in found}


@pytest.mark.parametrize("folder", JOBS)
def test_jobs_are_taken(plane: ControlPlane, folder: str) -> None:
    plane.kubectl("apply", "--validate=strict", "--dry-run=server", "-k", K8S / folder)


@pytest.mark.parametrize("name", [*ODD, *(f"job.{number}" for number in range(3))])
def test_jobs_of_odd_names_are_taken(plane: ControlPlane, name: str) -> None:
    try:
        text = render(JOB, [f"name={name}"])
    except RequestError:
        text = render_verb(["shard", "s3://b/i", "s3://b/s"], name=name)  # a job's name may hold less
    plane.kubectl("-n", "dira", "apply", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text)


def test_a_job_of_the_most_bytes_is_taken_as_people_apply_it(plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(JOB.read_text() + "# e\n" * 47_000)
    plane.kubectl("-n", "dira", "apply", "-f", "-", stdin=render(file, ["name=large"]))
    plane.kubectl("-n", "dira", "delete", "rayjob", "large", "--wait=false")


def test_a_name_that_stands_is_refused_and_render_gives_another(plane: ControlPlane) -> None:
    text = render(JOB, ["name=everyday"])
    mine = text.replace(object_name("everyday"), "everyday")
    refused = plane.kubectl("-n", "dira", "apply", "-f", "-", stdin=mine, check=False)
    assert "everyday is the name of the cluster that stands" in refused


def test_a_job_under_way_refuses_a_change_but_not_to_be_suspended(plane: ControlPlane) -> None:
    text = render(JOB, ["name=changes"])
    plane.kubectl("-n", "dira", "create", "-f", "-", stdin=text)
    apply = ["-n", "dira", "apply", "--server-side", "--force-conflicts", "-f", "-"]
    bigger = render(JOB, ["name=changes", "resources.workers=2"])
    plane.kubectl(*apply, stdin=bigger)  # not begun: taken
    status = '{"status": {"jobDeploymentStatus": "Running"}}'
    patch = ["-n", "dira", "patch", "rayjob", "changes", "--type=merge", "-p"]
    plane.kubectl(*patch, status, "--subresource=status")
    refused = plane.kubectl(*apply, stdin=text, check=False)
    assert "the job is under way and would not take the change" in refused
    plane.kubectl(*apply, stdin=bigger)  # the same again is no change
    plane.kubectl(*patch, '{"spec": {"suspend": true}}')
    plane.kubectl(*apply, stdin=text)
    plane.kubectl("-n", "dira", "delete", "rayjob", "changes", "--wait=false")


CAN = [
    ("create", "rayjobs.ray.io", "dira"),
    ("delete", "rayjobs.ray.io", "dira"),
    ("get", "jobs.batch", "dira"),
    ("get", "pods/log", "dira"),
    ("list", "events", "dira"),
    ("list", "events.events.k8s.io", "dira"),
    ("list", "resourcequotas", "dira"),
    ("list", "workloads.kueue.x-k8s.io", "dira"),
    ("get", "secrets/everyday", "dira"),
    ("create", "pods/some --subresource=portforward", "dira"),
    ("create", "pods/mlflow-0 --subresource=portforward", "dira-tracking"),
]
CANNOT = [
    ("get", "secrets/dira-s3", "dira"),
    ("list", "secrets", "dira"),
    ("create", "configmaps", "dira"),
    ("patch", "configmaps/dira-environment", "dira"),
    ("delete", "configmaps/dira-environment", "dira"),
    ("create", "pods", "dira"),
    ("create", "pods/some --subresource=exec", "dira"),
    ("patch", "rayclusters.ray.io", "dira"),
    ("delete", "poddisruptionbudgets.policy", "dira"),
    ("patch", "resourcequotas", "dira"),
    ("delete", "namespaces", "dira"),
    ("get", "secrets/dira-postgres", "dira-tracking"),
    ("patch", "configmaps", "dira-tracking"),
    ("create", "pods/postgres-0 --subresource=portforward", "dira-tracking"),
    ("get", "pods/postgres-0", "dira-tracking"),
    ("delete", "poddisruptionbudgets.policy", "dira-tracking"),
    ("create", "rayjobs.ray.io", "dira-tracking"),
]


@pytest.fixture
def roles(plane: ControlPlane) -> ControlPlane:
    for folder in ("base", "tracking"):
        text = plane.kubectl("kustomize", K8S / folder)
        found = [each for each in yaml.safe_load_all(text) if each["kind"] in {"Role", "RoleBinding"}]
        plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(found))
    return plane


def test_submitters_can_do_what_they_are_told_to_and_no_more(roles: ControlPlane) -> None:
    def may(verb: str, what: str, namespace: str) -> bool:
        said = roles.kubectl("auth", "can-i", verb, *what.split(), "-n", namespace, submitter=True, check=False)
        return said.strip().splitlines()[-1] == "yes"

    assert [each for each in CAN if not may(*each)] == []
    assert [each for each in CANNOT if may(*each)] == []


def test_pods_that_are_not_confined_are_refused(plane: ControlPlane) -> None:
    for namespace in ("dira", "dira-tracking"):
        words = ["-n", namespace, "run", "root", "--image=x:1.0", "--dry-run=server"]
        assert "violates PodSecurity" in plane.kubectl(*words, check=False)


def test_the_example_secrets_name_every_key(plane: ControlPlane) -> None:
    for namespace, name in (("dira", "dira-s3"), ("dira", "dira-salt"), ("dira-tracking", "dira-postgres")):
        assert plane.get("secret", name, namespace)


def test_the_binaries_are_the_version_that_was_tried(plane: ControlPlane) -> None:
    said = subprocess.run([plane.binaries / "kube-apiserver", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("Kubernetes v1.")
