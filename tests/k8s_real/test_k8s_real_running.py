"""What KubeRay's operator, the controllers and the scheduler make of the manifests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from control_plane import ControlPlane, Dashboard, Kubelets, Manifest, until

from dira_dist.cluster.submit.kubernetes import render

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
JOB = ROOT / "jobs" / "pretrain.yaml"
HEAD, WORKER = ({"app.kubernetes.io/component": f"ray-{part}"} for part in ("head", "worker"))


def running(plane: ControlPlane, count: int, instance: str, **labels: str) -> list[Manifest] | None:
    """Pods of a job or cluster that run, once there are so many and none is on its way out."""
    found = plane.items("pods", **{"app.kubernetes.io/instance": instance, **labels})
    there = [each for each in found if "deletionTimestamp" not in each["metadata"]]
    return there if len(there) == count and {each["status"]["phase"] for each in there} <= {"Running"} else None


def evicted(plane: ControlPlane, pod: Manifest) -> int:
    """The answer's code when the pod is asked to leave, as a drain does."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    place = f"{plane.address}/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    return plane.session.post(place, json=body, timeout=30).status_code


def job_of(plane: ControlPlane, name: str) -> Manifest:
    found = plane.get("rayjob", name)
    assert found is not None
    return found


def deployment_status(plane: ControlPlane, name: str) -> str:
    return str(job_of(plane, name).get("status", {}).get("jobDeploymentStatus", ""))


def clusters_of(plane: ControlPlane, name: str) -> list[str]:
    return [each["metadata"]["name"] for each in plane.items("rayclusters", **{"app.kubernetes.io/instance": name})]


@pytest.fixture(scope="module")
def platform(plane: ControlPlane, operator: Kubelets) -> Iterator[ControlPlane]:
    """The one for GPUs, its everyday cluster's head running."""
    plane.kubectl("apply", "-k", K8S / "overlays" / "gpu")
    until(lambda: running(plane, 1, "everyday", **HEAD), "the everyday head runs")
    yield plane
    plane.kubectl("delete", "-k", K8S / "overlays" / "gpu")


@pytest.fixture
def name(platform: ControlPlane, dashboard: Dashboard, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a test's own job, which is taken away behind it, and leaves nothing."""
    dashboard.status = "RUNNING"
    found = request.node.name.replace("_", "-").removeprefix("test-")[:20].strip("-")
    yield found
    platform.kubectl("-n", "dira", "delete", "rayjob", found, "--ignore-not-found", "--wait=false")
    labelled = {"app.kubernetes.io/instance": found}
    kinds = ("pods", "rayclusters", "configmaps", "poddisruptionbudgets", "secrets", "services", "jobs")

    def left() -> list[str]:
        named = [each for kind in ("services", "jobs", "secrets") for each in platform.items(kind)]
        named = [each for each in named if each["metadata"]["name"].startswith(f"{found}-")]
        return [
            str(each["metadata"]["name"])
            for each in [*named, *(x for kind in kinds for x in platform.items(kind, **labelled))]
        ]

    until(lambda: not left(), f"nothing is left of {found}")


def apply(plane: ControlPlane, name: str, *overrides: str) -> str:
    text = render(JOB, [f"name={name}", "resources={workers: 2, cpus_per_worker: 2}", *overrides])
    plane.kubectl("-n", "dira", "apply", "-f", "-", stdin=text, submitter=True)  # as who may do no more
    return text


def test_pods_of_the_operator_pass_quota_and_confinement(platform: ControlPlane, name: str) -> None:
    apply(platform, name)
    head, *_ = until(lambda: running(platform, 1, name, **HEAD), "the head runs")
    until(lambda: running(platform, 2, name, **WORKER), "both workers run")
    until(lambda: running(platform, 1, name, **{"app.kubernetes.io/component": "submitter"}), "the submitter runs")
    until(lambda: deployment_status(platform, name) == "Running", "the job runs")
    assert head["metadata"]["annotations"]["dira-dist/job-file"] == JOB.read_text()
    assert head["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    quota = platform.items("resourcequotas")[0]["status"]["used"]
    assert int(quota["pods"]) >= 5


def test_logs_of_a_growing_head_have_a_bound(platform: ControlPlane) -> None:
    (head,) = until(lambda: running(platform, 1, "everyday", **HEAD), "the everyday head runs")
    assert [each["name"] for each in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    (logs,) = (each for each in head["spec"]["volumes"] if each["name"] == "ray-logs")
    assert logs["emptyDir"]["sizeLimit"] == "10Gi"
    for container in head["spec"]["containers"]:
        assert "ray-logs" in [mount["name"] for mount in container["volumeMounts"]]


def test_a_drain_tells_workers_and_waits_for_heads(platform: ControlPlane, operator: Kubelets, name: str) -> None:
    apply(platform, name)
    until(lambda: running(platform, 2, name, **WORKER), "both workers run")
    worker, _ = until(lambda: running(platform, 2, name, **WORKER), "both workers run")
    assert evicted(platform, worker) == 201
    gone = worker["metadata"]["name"]
    assert until(lambda: operator.notified.get(gone), "the worker is told") == 110
    for instance in (name, "everyday"):
        (head,) = until(lambda instance=instance: running(platform, 1, instance, **HEAD), "the head runs")
        assert evicted(platform, head) == 429


def test_a_job_that_ended_gives_its_pods_back_at_once(platform: ControlPlane, dashboard: Dashboard, name: str) -> None:
    apply(platform, name)
    until(lambda: deployment_status(platform, name) == "Running", "the job runs")
    dashboard.status = "SUCCEEDED"
    until(lambda: deployment_status(platform, name) == "Complete", "the job is complete")
    until(
        lambda: not platform.items("pods", **{"app.kubernetes.io/instance": name, **WORKER}), "the workers are gone", 15
    )
    assert job_of(platform, name)["status"]["jobStatus"] == "SUCCEEDED"
    assert platform.items("jobs", **{"app.kubernetes.io/instance": name}) or platform.get("job", name)  # its log


def test_a_failed_job_is_tried_anew_on_another_cluster(platform: ControlPlane, dashboard: Dashboard, name: str) -> None:
    apply(platform, name)
    until(lambda: deployment_status(platform, name) == "Running", "the job runs")
    first = job_of(platform, name)["status"]["rayClusterName"]
    dashboard.status = "FAILED"
    until(lambda: job_of(platform, name)["status"].get("failed", 0) >= 1, "the try is counted")
    dashboard.status = "RUNNING"
    until(lambda: deployment_status(platform, name) == "Running", "the job runs again")
    again = job_of(platform, name)["status"]["rayClusterName"]
    assert again != first


def test_a_suspended_job_gives_its_pods_back_and_goes_on(platform: ControlPlane, name: str) -> None:
    apply(platform, name)
    until(lambda: deployment_status(platform, name) == "Running", "the job runs")
    for suspended, status in (("true", "Suspended"), ("false", "Running")):
        patch = f'{{"spec": {{"suspend": {suspended}}}}}'
        platform.kubectl("-n", "dira", "patch", "rayjob", name, "--type=merge", "-p", patch)
        until(lambda status=status: deployment_status(platform, name) == status, f"the job is {status}")
        count = 2 if status == "Running" else 0
        until(lambda count=count: running(platform, count, name, **WORKER) is not None, f"{count} workers run")


def test_a_head_that_fails_at_its_start_has_a_deadline(platform: ControlPlane, operator: Kubelets, name: str) -> None:
    """With a shorter one than a job has; its last words can be read while it fails."""
    text = render(JOB, [f"name={name}", "resources={workers: 2, cpus_per_worker: 2}"])
    assert "preRunningDeadlineSeconds: 1800" in text
    operator.failing = {f"{name}-": "no such image layer"}
    try:
        short = text.replace("preRunningDeadlineSeconds: 1800", "preRunningDeadlineSeconds: 10").replace(
            "backoffLimit: 3", "backoffLimit: 0"
        )
        platform.kubectl("-n", "dira", "apply", "-f", "-", stdin=short)
        words = until(lambda: last_words(platform, name), "a head has said why")
        assert "no such image layer" in words
        until(lambda: deployment_status(platform, name) == "Failed", "the job has failed")
        assert job_of(platform, name)["status"]["reason"] == "PreRunningDeadlineExceeded"
        until(
            lambda: not platform.items("pods", **{"app.kubernetes.io/instance": name, **WORKER}), "the workers are gone"
        )
    finally:
        operator.failing = {}


def last_words(plane: ControlPlane, name: str) -> str:
    pods = plane.items("pods", **{"app.kubernetes.io/instance": name})
    states = [each["state"] for pod in pods for each in pod["status"].get("containerStatuses", [])]
    return "".join(state["terminated"].get("message", "") for state in states if "terminated" in state)


def test_a_lost_head_ends_the_try_and_not_the_job(platform: ControlPlane, dashboard: Dashboard, name: str) -> None:
    apply(platform, name)
    until(lambda: deployment_status(platform, name) == "Running", "the job runs")
    (head,) = until(lambda: running(platform, 1, name, **HEAD), "the head runs")
    platform.kubectl("-n", "dira", "delete", "pod", head["metadata"]["name"], "--wait=false")
    until(lambda: running(platform, 1, name, **HEAD) not in (None, [head]), "another head runs")
    assert deployment_status(platform, name) in {"Running", "Retrying", "Initializing"}


def test_a_cluster_that_grew_stays_grown_when_its_manifest_is_applied_again(platform: ControlPlane) -> None:
    grown = '[{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 2}]'
    platform.kubectl("-n", "dira", "patch", "raycluster", "everyday", "--type=json", "-p", grown)
    before = until(lambda: running(platform, 2, "everyday", **WORKER), "two workers run")
    platform.kubectl("apply", "-k", K8S / "overlays" / "gpu")
    head = platform.items("pods", **{"app.kubernetes.io/instance": "everyday", **HEAD})[0]
    names = {each["metadata"]["name"] for each in before}
    after = running(platform, 2, "everyday", **WORKER)
    assert after is not None
    assert {each["metadata"]["name"] for each in after} == names
    assert "deletionTimestamp" not in head["metadata"]


def test_a_new_image_reaches_head_and_workers_of_the_everyday_cluster(platform: ControlPlane) -> None:
    text = platform.kubectl("kustomize", K8S / "overlays" / "gpu")
    (cluster,) = (each for each in yaml.safe_load_all(text) if each["kind"] == "RayCluster")
    newer = json.dumps(cluster).replace("dira-dist:0.2.0", "dira-dist:9.9.9")
    platform.kubectl("apply", "-f", "-", stdin=newer)

    def images() -> set[str]:
        pods = running(platform, 1, "everyday", **HEAD) or []
        return {container["image"] for pod in pods for container in pod["spec"]["containers"]}

    until(lambda: images() == {"dira-dist:9.9.9"}, "the head has the new image")


def test_a_changed_setting_makes_the_everyday_cluster_anew(platform: ControlPlane) -> None:
    (head,) = until(lambda: running(platform, 1, "everyday", **HEAD), "the everyday head runs")
    text = platform.kubectl("kustomize", K8S / "overlays" / "gpu")
    (cluster,) = (each for each in yaml.safe_load_all(text) if each["kind"] == "RayCluster")
    other = json.dumps(cluster).replace("everyday-environment-", "everyday-environment-x")
    platform.kubectl("apply", "-f", "-", stdin=other)
    until(
        lambda: (running(platform, 1, "everyday", **HEAD) or [head])[0]["metadata"]["uid"] != head["metadata"]["uid"],
        "another head runs",
    )
    service = platform.get("service", "everyday-head-svc")
    assert service is not None and service["spec"]["selector"]["ray.io/cluster"] == "everyday"
