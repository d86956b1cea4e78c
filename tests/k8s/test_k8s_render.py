"""`dira-dist k8s render`: any job file as a RayJob, its pods as its resources say."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.protocols import Validator
from typer.testing import CliRunner

from dira_dist.cli import app
from dira_dist.cluster.submit.kubernetes import object_name, render
from dira_dist.config import RequestError
from dira_dist.jobs.load import load_job

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "pretrain.yaml"
IN_A_BUCKET = ["data.train=s3://b/train", "checkpoint.storage=s3://b/runs"]


def ray_job(*overrides: str, **options: Any) -> dict[str, Any]:
    (found,) = (
        each for each in yaml.safe_load_all(render(JOB, overrides, **options)) if each and each["kind"] == "RayJob"
    )
    return dict(found)


def workers(job: dict[str, Any]) -> dict[str, Any]:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return dict(group)


@pytest.mark.parametrize(
    "resources",
    ["{workers: 3, cpus_per_worker: 2}", "{workers: [2, 8], gpus_per_worker: 1, cpus_per_worker: 1.5}"],
)
def test_any_job_meets_the_definition(resources: str, kuberay: dict[str, Validator]) -> None:
    lanes = ["data.lanes=24", "stages=[{objective: di, epochs: 1, global_batch: 24}]"]
    kuberay["RayJob"].validate(ray_job(f"resources={resources}", *lanes))


def test_pods_come_from_the_resources() -> None:
    fixed = ray_job("resources={workers: 4, gpus_per_worker: 1, cpus_per_worker: 6}")
    group = workers(fixed)
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (4, 4, 4)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "1"}
    assert "enableInTreeAutoscaling" not in fixed["spec"]["rayClusterSpec"]

    elastic = ray_job("resources={workers: [2, 8], cpus_per_worker: 1.5}")
    group = workers(elastic)
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 2, 8)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "8Gi"}
    assert elastic["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_evaluations_on_a_gpu_have_a_pod_of_their_own(kuberay: dict[str, Validator]) -> None:
    """As large as the evaluation's threads, with no CPU that a training worker could take."""
    gpus = "resources={workers: 4, gpus_per_worker: 1, cpus_per_worker: 6}"
    job = ray_job(gpus, "evaluation.device=cuda", "evaluation.threads=3")
    kuberay["RayJob"].validate(job)
    training, evaluating = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert training == workers(ray_job(gpus))
    assert (evaluating["minReplicas"], evaluating["replicas"], evaluating["maxReplicas"]) == (1, 1, 1)
    limits = evaluating["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "3", "memory": "12Gi", "nvidia.com/gpu": "1"}
    assert (evaluating["rayStartParams"]["num-cpus"], evaluating["rayStartParams"]["num-gpus"]) == ("0", "1")
    budgets = yaml.safe_load_all(render(JOB, [gpus, "evaluation.device=cuda"]))
    assert [each["spec"]["minAvailable"] for each in budgets if each["kind"] == "PodDisruptionBudget"] == [1, 5]


@pytest.mark.parametrize(("gpus", "groups"), [(0, 1), (1, 2)])
def test_evaluations_follow_the_workers_where_the_job_says_auto(gpus: int, groups: int) -> None:
    job = ray_job(f"resources={{workers: 4, gpus_per_worker: {gpus}, cpus_per_worker: 6}}", "evaluation.device=auto")
    assert len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) == groups


def test_workers_share_pods_that_they_fill() -> None:
    job = ray_job("resources={workers: [4, 8], gpus_per_worker: 0.5, cpus_per_worker: 4}", workers_per_pod=4)
    group = workers(job)
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 2)
    assert group["rayStartParams"]["num-gpus"] == "2"
    assert group["rayStartParams"]["num-cpus"] == "16"
    with pytest.raises(RequestError, match="do not fill whole pods of 3"):
        ray_job(workers_per_pod=3)
    assert "memory: 100Gi" in render(JOB, memory_gib=100)


def test_the_job_goes_with_its_manifests_and_overrides() -> None:
    override = 'loss_weights={discriminative: 1, restorative: 10, adversarial: "0.001"}'.replace('"', "")
    documents = list(yaml.safe_load_all(render(JOB, [override])))
    job_file, job = (next(each for each in documents if each["kind"] == kind) for kind in ("ConfigMap", "RayJob"))
    assert job_file["data"]["job.yaml"] == JOB.read_text()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (each for each in head["volumes"] if each["name"] == "job")
    assert volume["configMap"]["name"] == job_file["metadata"]["name"]
    (mount,) = (each for each in head["containers"][0]["volumeMounts"] if each["name"] == "job")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words == ["dira-dist", "run", f"{mount['mountPath']}/job.yaml", "--set", override]


def test_a_retry_resumes_because_the_name_stays() -> None:
    first, second = ray_job(), ray_job()
    assert first == second
    assert first["metadata"]["name"] == load_job(JOB).job.name
    assert first["spec"]["backoffLimit"] > 0
    assert first["spec"]["shutdownAfterJobFinishes"] is True
    assert first["spec"]["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("name", ["CXR.14_moco", "7-days", "x" * 100, "a--b-"])
def test_names_are_fit_for_kubernetes_and_stay_apart(name: str) -> None:
    made = object_name(name)
    assert len(made) <= 47
    assert made[0].isalpha()
    assert made == made.lower()
    assert not set(made) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert made != object_name(name + "x")
    assert object_name("cxr14-dira-moco") == "cxr14-dira-moco"


def test_disruption_budgets_keep_head_and_smallest_size() -> None:
    documents = yaml.safe_load_all(render(JOB, ["resources.workers=[2, 8]"]))
    budgets = [each["spec"]["minAvailable"] for each in documents if each["kind"] == "PodDisruptionBudget"]
    assert budgets == [1, 2]


def test_files_of_one_machine_are_refused() -> None:
    with pytest.raises(RequestError, match=r"data\.train: shards/here\n.*checkpoint\.storage: runs"):
        render(JOB, ["data.train=shards/here", "checkpoint.storage=runs"])
    with pytest.raises(RequestError, match=r"tracking\.uri: sqlite"):
        render(JOB, ["tracking.uri=sqlite:///x.db"])


def test_weights_that_no_pod_has_are_refused() -> None:
    for init, image in (("weights.pth", None), ("/weights/w.pth", None), ("weights.pth", "registry/x:1.0")):
        with pytest.raises(
            RequestError, match=r"model\.init: .*weights/?.*no pod of the job has it; put it into an image"
        ):
            render(JOB, [f"model.init={init}"], image=image)
    assert "model.init=/weights/w.pth" in render(JOB, ["model.init=/weights/w.pth"], image="registry/x:1.0")


def test_no_secret_of_the_environment_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "https://user:hunter2@mlflow")
    assert "hunter2" not in render(JOB, ["tracking.uri=${env:PLACE}"])


def test_the_command_prints_what_the_function_returns() -> None:
    printed = CliRunner().invoke(
        app, ["k8s", "render", str(JOB), "--image", "registry/x:1.0", "--workers-per-pod", "2"]
    )
    assert printed.exit_code == 0
    assert printed.output == render(JOB, image="registry/x:1.0", workers_per_pod=2)
    assert "image: registry/x:1.0" in printed.output


def test_a_search_gets_the_workers_of_its_trials(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    base = "{data: {train: s3://b/train}, resources: {workers: 4}, checkpoint: {storage: s3://b/runs}}"
    space = "{loss_weights.restorative: {low: 1, high: 100, scale: log}}"
    file.write_text(f"kind: tune\nname: weights\nsearch: {{space: {space}, metric: val/rankme}}\nbase: {base}\n")
    with pytest.raises(RequestError, match=r"search\.max_concurrent"):
        render(file)
    documents = yaml.safe_load_all(render(file, ["search.max_concurrent=3"]))
    (job,) = (each for each in documents if each["kind"] == "RayJob")
    group = workers(job)
    assert (group["minReplicas"], group["maxReplicas"]) == (12, 12)  # three trials of four workers each
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    assert job["metadata"]["name"] == "weights"
    with pytest.raises(RequestError, match=r"base\.resources\.workers: found \[2, 4\]; .* give one number"):
        render(file, ["search.max_concurrent=3", "base.resources.workers=[2, 4]"])
