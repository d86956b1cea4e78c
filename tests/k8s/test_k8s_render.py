"""`dira-dist k8s render`: any job file as a RayJob, its pods as its resources say."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.protocols import Validator
from typer.testing import CliRunner

from dira_dist.cli import app
from dira_dist.cluster.submit.kubernetes import DEFAULT_IMAGE, STANDING, VERBS, object_name, render, render_verb
from dira_dist.cluster.submit.pods import JOB_ANNOTATION, JOB_FILE, SALT_FILE
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
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 8)
    assert "replicas" not in group  # the autoscaler's
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
    job = ray_job(override)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"][JOB_ANNOTATION] == JOB.read_text()
    (volume,) = (each for each in head["spec"]["volumes"] if each["name"] == "job")
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{JOB_ANNOTATION}']"
    (mount,) = (each for each in head["spec"]["containers"][0]["volumeMounts"] if each["name"] == "job")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words == ["dira-dist", "run", f"{mount['mountPath']}/{item['path']}", "--set", override]
    assert words[2] == JOB_FILE


def test_a_job_is_one_object_so_that_nothing_is_left_when_it_is_deleted() -> None:
    for overrides in ([], ["resources.workers=[2, 4]"], ["evaluation.device=cuda", "resources.gpus_per_worker=1"]):
        (document,) = yaml.safe_load_all(render(JOB, overrides))
        assert document["kind"] == "RayJob"


def test_a_file_too_large_for_kubernetes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(JOB.read_text() + "# \N{LATIN SMALL LETTER E WITH ACUTE}\n" * 45_000)
    with pytest.raises(RequestError, match=r"the RayJob has 2\d{5} bytes, job file included, and 250000 are allowed"):
        render(file)
    file.write_text(JOB.read_text() + "# e\n" * 45_000)
    assert "cxr14-dira-moco" in render(file)


def test_a_retry_resumes_because_the_name_stays() -> None:
    first, second = ray_job(), ray_job()
    assert first == second
    assert first["metadata"]["name"] == load_job(JOB).job.name
    assert first["spec"]["backoffLimit"] > 0
    assert first["spec"]["shutdownAfterJobFinishes"] is True
    assert first["spec"]["ttlSecondsAfterFinished"] == 0  # GPUs of a job that has ended are the next one's at once
    assert first["spec"]["preRunningDeadlineSeconds"] > 0  # those of one that does not start, too, some time


@pytest.mark.parametrize("name", ["CXR.14_moco", "7-days", "x" * 100, "a--b-"])
def test_names_are_fit_for_kubernetes_and_stay_apart(name: str) -> None:
    made = object_name(name)
    assert len(made) <= 47
    assert made[0].isalpha()
    assert made == made.lower()
    assert not set(made) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert made != object_name(name + "x")
    assert object_name("cxr14-dira-moco") == "cxr14-dira-moco"


def test_names_of_what_stands_are_changed() -> None:
    for name in STANDING:
        assert object_name(name) != name
        assert object_name(name).startswith(f"{name}-")
        assert object_name(f"{name}-head") == f"{name}-head"  # whose Service is NAME-head-head-svc
        assert ray_job(f"name={name}")["metadata"]["name"] == object_name(name)


def test_a_queue_takes_a_fixed_number_of_pods() -> None:
    label = "kueue.x-k8s.io/queue-name"
    assert ray_job(queue="team-a")["metadata"]["labels"][label] == "team-a"
    assert label not in ray_job()["metadata"]["labels"]
    with pytest.raises(
        RequestError, match=r"--queue team-a: resources\.workers makes 2 to 8 pods, .* leave --queue out"
    ):
        ray_job("resources.workers=[2, 8]", queue="team-a")


def test_the_image_comes_from_the_command_the_environment_or_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIRA_DIST_IMAGE", raising=False)
    assert images(render(JOB)) == {DEFAULT_IMAGE}
    monkeypatch.setenv("DIRA_DIST_IMAGE", "registry.example/dira-dist:0.2.0")
    assert images(render(JOB)) == {"registry.example/dira-dist:0.2.0"}
    assert images(render_verb(["shard", "s3://a", "s3://b"], name="x")) == {"registry.example/dira-dist:0.2.0"}
    assert images(render(JOB, image="registry.example/mine:1.0")) == {"registry.example/mine:1.0"}


def images(manifest: str) -> set[str]:
    return set(re.findall(r"\bimage: (\S+)", manifest))


WORDS = {
    "shard": ["shard", "s3://b/images", "s3://b/set"],
    "predict": ["predict", "models:/m@best", "s3://b/images", "s3://b/out"],
    "embed": ["embed", "models:/m@best", "s3://b/images", "s3://b/out"],
    "evaluate": ["evaluate", "models:/m@best", "s3://b/set", "--dest", "s3://b/out"],
    "words": ["words", "s3://b/set", "s3://b/out", "--encoder", "models:/m@best"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_works_in_pods_that_have_what_it_asks_for(verb: str, kuberay: dict[str, Validator]) -> None:
    (job,) = yaml.safe_load_all(render_verb(WORDS[verb], name="nih", cpus=6, gpus=1))
    kuberay["RayJob"].validate(job)
    limits = workers(job)["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "1"}
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[: len(WORDS[verb]) + 1] == ["dira-dist", *WORDS[verb]]
    spreads = verb in ("predict", "embed")
    assert (words[-2:] == ["--address", "auto"] or "--address" in words) == spreads
    assert ("entrypointNumGpus" in job["spec"]) != spreads  # Ray starts the others where the GPU is
    salted = verb in ("shard", "predict", "embed")
    assert (SALT_FILE in words) == salted
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], workers(job)):
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert str(Path(SALT_FILE).parent) in [mount["mountPath"] for mount in mounts]


def test_files_are_shared_among_the_pods_of_verbs_that_can() -> None:
    (job,) = yaml.safe_load_all(render_verb(WORDS["predict"], name="nih", pods=4))
    assert workers(job)["replicas"] == 4
    with pytest.raises(RequestError, match=r"--pods 4: `shard` works in one pod; only predict and embed"):
        render_verb(WORDS["shard"], name="nih", pods=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "x"], "'train': no verb that works long without a job file; allowed: shard, predict"),
        ([], "'': no verb"),
        (["shard", "images", "s3://b/set"], "images: of one machine, and the pods of a job share none"),
        (["shard", "s3://b/i", "s3://b/set", "--labels=tables/l.csv"], "--labels=tables/l.csv: of one machine"),
        (["embed", "/models/m", "s3://b/i", "s3://b/o"], "/models/m: of one machine"),
        ([*WORDS["predict"], "--address", "auto"], "--address: the RayJob has a cluster of its own"),
        ([*WORDS["predict"], "--address=auto"], "--address: the RayJob has a cluster of its own"),
    ],
)
def test_a_verb_that_no_pod_can_do_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        render_verb(words, name="x")
    if "/models/m" in words:
        assert "/models/m" in render_verb(words, name="x", image="registry.example/mine:1.0")


def test_the_command_reads_a_verbs_words_as_the_pod_will() -> None:
    options = ["--name", "nih", "--cpus", "3", "--queue", "team-a"]
    printed = CliRunner().invoke(app, ["k8s", "render-verb", *options, *WORDS["shard"], "--image-size", "0"])
    assert printed.exit_code == 0, printed.output
    assert printed.output == render_verb([*WORDS["shard"], "--image-size", "0"], name="nih", cpus=3, queue="team-a")
    refused = CliRunner().invoke(app, ["k8s", "render-verb", "--name", "nih", *WORDS["shard"], "--imge-size", "0"])
    assert refused.exit_code == 2
    assert "No such option: --imge-size" in refused.output


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
