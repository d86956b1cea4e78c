"""A job file as Kubernetes manifests: a KubeRay RayJob whose pods have exactly what the job's ``resources`` ask for.

The manifests name what ``k8s/base`` sets up in the namespace: the service account ``dira-ray``, the ConfigMap
``dira-environment`` and the Secret ``dira-s3``. Overlays in ``k8s/overlays`` add what belongs to a cluster and not to a
job: tolerations, node selectors, queues.
"""

import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dira_dist.config import RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import AnyLoaded, Driver, load_job
from dira_dist.version import __version__

DEFAULT_IMAGE = f"dira-dist:{__version__}"
# Ray marks a node as draining when its pod is asked to end, and waits so long for the last checkpoint; the pod's grace
# period covers that and the end of Ray's own processes, and the two minutes that spot machines are given cover all.
DRAIN_TIMEOUT_S = 90
GRACE_PERIOD_S = 110

_GIB = 2**30
_MEMORY_GIB_PER_CPU = 4  # what general-purpose machines have
_NAME_LENGTH = 47  # KubeRay appends to a RayJob's name, and a label holds 63
_JOB_FILE = "/etc/dira-dist/job.yaml"
_KEPT_AFTER_END_S = 300
_RETRIES = 3

Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodSize:
    """What one Ray pod has; Ray gets the same figures that Kubernetes enforces.

    A quarter of the memory is ``/dev/shm``, which counts as the pod's memory; half of that is Ray's object store, the
    rest is left to the loaders.
    """

    cpus: int
    memory_gib: int
    gpus: int = 0

    @property
    def shm_gib(self) -> int:
        return max(1, self.memory_gib // 4)

    def resources(self) -> Manifest:
        """Requests equal to limits: no pod is throttled or evicted for what it was promised."""
        amounts: Manifest = {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi"}
        if self.gpus:
            amounts["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": dict(amounts), "limits": dict(amounts)}

    def ray_start_params(self, *, schedulable: bool) -> dict[str, str]:
        """``ray start`` options; a node that is not schedulable, the head, takes no training worker."""
        return {
            "num-cpus": str(self.cpus if schedulable else 0),
            "num-gpus": str(self.gpus),
            "memory": str((self.memory_gib - self.shm_gib) * _GIB),
            "object-store-memory": str(self.shm_gib * _GIB // 2),
            "metrics-export-port": "8080",
        }


HEAD_SIZE = PodSize(cpus=2, memory_gib=8)
SEARCH_HEAD_SIZE = PodSize(cpus=4, memory_gib=16)  # the drivers of all trials run there
_HEAD_SIZES: dict[Driver, PodSize] = {
    "fit": HEAD_SIZE,
    "search": SEARCH_HEAD_SIZE,
    "compare": SEARCH_HEAD_SIZE,
    "folds": SEARCH_HEAD_SIZE,
}


@dataclass(frozen=True)
class Fleet:
    """The worker pods of a job.

    Attributes:
        head: size of the head's pod.
        size: of each worker's.
        min_pods: pods the job starts with and never has less of.
        max_pods: more than ``min_pods`` for an elastic run, whose pods the autoscaler adds and removes.
        evaluation: size of a pod whose GPU is for evaluations; none where they take no GPU.
        evaluation_pods: how many of those.
    """

    head: PodSize
    size: PodSize
    min_pods: int
    max_pods: int
    evaluation: PodSize | None = None
    evaluation_pods: int = 0

    @property
    def elastic(self) -> bool:
        return self.max_pods > self.min_pods


def fleet(loaded: AnyLoaded, *, workers_per_pod: int = 1, memory_gib: int | None = None) -> Fleet:
    """The pods that a job's ``resources`` ask for; for a search, so many times as trials run side by side.

    Args:
        workers_per_pod: training workers in one pod. Workers of one pod reach each other through shared memory and
            NVLink, workers of two pods through the network.
        memory_gib: of one pod; 4 GiB per CPU where left out. ``/dev/shm`` is part of it.

    Raises:
        RequestError: if the workers do not fill whole pods, a search's base is elastic, or the job does not say how
            many trials run side by side.
    """
    resources = loaded.job.resources
    trials = loaded.side_by_side()
    for workers in resources.worker_range:
        if workers % workers_per_pod:
            raise RequestError(
                f"--workers-per-pod {workers_per_pod}: resources.workers is {resources.workers}, and {workers} workers "
                f"do not fill whole pods of {workers_per_pod}; take a common divisor of {list(resources.worker_range)}"
            )
    cpus = math.ceil(resources.cpus_per_worker * workers_per_pod)
    gpus = math.ceil((resources.gpus_per_worker or 0) * workers_per_pod)
    size = PodSize(cpus, memory_gib or max(4, _MEMORY_GIB_PER_CPU * cpus), gpus)
    head = _HEAD_SIZES[loaded.driver]
    fewest, most = (trials * workers // workers_per_pod for workers in resources.worker_range)
    evaluation = _evaluation_size(loaded.job)
    return Fleet(head, size, fewest, most, evaluation, trials if evaluation else 0)


def _evaluation_size(job: TrainingJob) -> PodSize | None:
    """Of the pod beside the workers' that evaluates on a GPU, where the job asks for one."""
    threads, gpus = job.evaluation.threads, job.evaluation.gpus(job.resources.gpus_per_worker)
    if not (gpus and job.is_evaluated_beside):
        return None
    return PodSize(threads, max(4, _MEMORY_GIB_PER_CPU * threads), gpus)


def render(
    job: Path | str,
    overrides: Sequence[str] = (),
    *,
    image: str | None = None,
    workers_per_pod: int = 1,
    memory_gib: int | None = None,
) -> str:
    """The manifests of one job as YAML: its file in a ConfigMap, its RayJob, its PodDisruptionBudgets.

    The RayJob's name comes from the job's name alone, and the run of that name is what a retry goes on with.

    Args:
        job: path of a job file.
        overrides: ``key.path=value`` each; they are kept in the RayJob's entrypoint.
        image: of every pod; the project's own where left out.
        workers_per_pod: see :func:`fleet`.
        memory_gib: see :func:`fleet`.

    Raises:
        RequestError: for an invalid job, or one that keeps something in a folder, which pods do not share, or that
            begins with weights which no pod has.
    """
    loaded = load_job(Path(job), overrides)
    _refuse_folders(loaded.job)
    _refuse_local_weights(loaded.job, image)
    pods = fleet(loaded, workers_per_pod=workers_per_pod, memory_gib=memory_gib)
    name = object_name(loaded.job.name)
    documents = [
        _job_file(name, Path(job).read_text()),
        _ray_job(name, image or DEFAULT_IMAGE, pods, overrides),
        *_disruption_budgets(name, pods),
    ]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


def object_name(job_name: str) -> str:
    """A job's name as a Kubernetes object may be called: lower case, no dots; a digest keeps long names apart."""
    name = re.sub(r"[^a-z0-9-]+", "-", job_name.lower()).strip("-")
    if not name[0].isalpha():
        name = f"job-{name}"
    if name == job_name and len(name) <= _NAME_LENGTH:
        return name
    digest = hashlib.sha256(job_name.encode()).hexdigest()[:6]
    return f"{name[: _NAME_LENGTH - 7].rstrip('-')}-{digest}"


def _refuse_folders(job: TrainingJob) -> None:
    addresses = {job.key_of(name): address for name, address, _ in job.shard_sets()}
    addresses["checkpoint.storage"] = job.checkpoint.storage
    folders = [f"{key}: {address}" for key, address in addresses.items() if "://" not in address]
    if (uri := job.tracking.uri or "").startswith("sqlite:"):
        folders.append(f"tracking.uri: {uri}")
    if folders:
        raise RequestError(
            "these are files of one machine, and the pods of a job share none:\n  "
            + "\n  ".join(folders)
            + "\ngive addresses in a bucket (s3://bucket/prefix), in the file or with --set; leave tracking.uri out"
        )


def _refuse_local_weights(job: TrainingJob, image: str | None) -> None:
    """Only an image of the user's own may hold a file that every pod has."""
    for key, file in job.weight_files():
        if image is None or not Path(file).is_absolute():
            raise RequestError(
                f"{key}: {file} is a file of one machine, and no pod of the job has it; put it into an image of your "
                f"own (FROM dira-dist, COPY), give that with --image, and {key} the file's absolute path there; or "
                f"leave {key} out"
            )


def _metadata(name: str, job: str, component: str) -> Manifest:
    return {"name": name, "labels": _labels(job, component)}


def _labels(job: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/part-of": "dira-dist",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": component,
    }


def _job_file(name: str, text: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{name}-job", name, "job"),
        "data": {"job.yaml": text},
    }


def _disruption_budgets(name: str, pods: Fleet) -> Iterator[Manifest]:
    """Nothing but the end of a machine takes the head or a worker that the run cannot go on without."""
    for component, count in (("ray-head", 1), ("ray-worker", pods.min_pods + pods.evaluation_pods)):
        yield {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(f"{name}-{component.removeprefix('ray-')}", name, component),
            # an integer: pods that a custom resource owns have no scale to take a share of
            "spec": {"minAvailable": count, "selector": {"matchLabels": _labels(name, component)}},
        }


def _ray_job(name: str, image: str, pods: Fleet, overrides: Sequence[str]) -> Manifest:
    words = ["dira-dist", "run", _JOB_FILE]
    words += [word for override in overrides for word in ("--set", override)]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, name, "job"),
        "spec": {
            "entrypoint": shlex.join(words),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _KEPT_AFTER_END_S,
            "backoffLimit": _RETRIES,
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": 2},
            "submitterPodTemplate": _submitter(name, image),
            "rayClusterSpec": _cluster(name, image, pods),
        },
    }


def _submitter(name: str, image: str) -> Manifest:
    container = _container("ray-job-submitter", image, PodSize(cpus=1, memory_gib=1).resources())
    del container["envFrom"]  # it hands over a line of text and follows a log: no secret is its business
    spec = _pod_spec(container, [_tmp(1)], needs_kubernetes=False) | {"restartPolicy": "Never"}
    return {"metadata": {"labels": _labels(name, "submitter")}, "spec": spec}


def _cluster(name: str, image: str, pods: Fleet) -> Manifest:
    cluster: Manifest = {"rayVersion": version("ray"), "authOptions": {"mode": "token"}}
    if pods.elastic:
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": _autoscaler()}
    return cluster | {
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"} | pods.head.ray_start_params(schedulable=False),
            "template": _head(name, image, pods.head, needs_kubernetes=pods.elastic),
        },
        "workerGroupSpecs": list(_worker_groups(name, image, pods)),
    }


def _worker_groups(name: str, image: str, pods: Fleet) -> Iterator[Manifest]:
    """The training's, and one whose GPUs are for evaluations: without CPUs for Ray, so that no worker goes there."""
    yield _worker_group("workers", _worker(name, image, pods.size), pods.size, (pods.min_pods, pods.max_pods))
    if pods.evaluation is not None:
        counts = (pods.evaluation_pods, pods.evaluation_pods)
        yield _worker_group("evaluation", _worker(name, image, pods.evaluation), pods.evaluation, counts, trains=False)


def _worker_group(
    name: str, template: Manifest, size: PodSize, counts: tuple[int, int], *, trains: bool = True
) -> Manifest:
    return {
        "groupName": name,
        "replicas": counts[0],
        "minReplicas": counts[0],
        "maxReplicas": counts[1],
        "rayStartParams": size.ray_start_params(schedulable=trains),
        "template": template,
    }


def _autoscaler() -> Manifest:
    return {
        "version": "v2",
        "idleTimeoutSeconds": 120,
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "1Gi"}},
        "securityContext": _hardened(),
        "env": [{"name": "HOME", "value": "/tmp"}],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _head(name: str, image: str, size: PodSize, *, needs_kubernetes: bool) -> Manifest:
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
    container = _container("ray-head", image, size.resources(), ports, _probes("8265/api/gcs_healthz"))
    container["volumeMounts"] += [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "job", "mountPath": str(Path(_JOB_FILE).parent), "readOnly": True},
    ]
    volumes = [_tmp(10), _shm(size), {"name": "job", "configMap": {"name": f"{name}-job"}}]
    spec = _pod_spec(container, volumes, needs_kubernetes=needs_kubernetes)
    return {"metadata": {"labels": _labels(name, "ray-head")}, "spec": spec | {"restartPolicy": "Never"}}


def _worker(name: str, image: str, size: PodSize) -> Manifest:
    container = _container("ray-worker", image, size.resources(), {"metrics": 8080}, _probes())
    container["volumeMounts"] += [{"name": "shm", "mountPath": "/dev/shm"}]
    spec = _pod_spec(container, [_tmp(50), _shm(size)], needs_kubernetes=False)
    return {"metadata": {"labels": _labels(name, "ray-worker")}, "spec": spec | {"restartPolicy": "Never"}}


def _pod_spec(container: Manifest, volumes: list[Manifest], *, needs_kubernetes: bool) -> Manifest:
    """``needs_kubernetes``: only the autoscaler beside the head talks to the API server."""
    return {
        "serviceAccountName": "dira-ray",
        "automountServiceAccountToken": needs_kubernetes,
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 100,
            "fsGroup": 100,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _container(
    name: str,
    image: str,
    resources: Manifest,
    ports: dict[str, int] | None = None,
    probes: Manifest | None = None,
) -> Manifest:
    container: Manifest = {"name": name, "image": image, "imagePullPolicy": "IfNotPresent"}
    if ports:
        container["ports"] = [{"name": purpose, "containerPort": port} for purpose, port in ports.items()]
    return container | {
        "env": [
            {"name": "HOME", "value": "/tmp"},  # the root file system is read-only
            {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(DRAIN_TIMEOUT_S)},
        ],
        "envFrom": [{"configMapRef": {"name": "dira-environment"}}, {"secretRef": {"name": "dira-s3"}}],
        "resources": resources,
        "securityContext": _hardened(),
        **(probes or {}),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _hardened() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _probes(*more: str) -> Manifest:
    """Asked inside the pod, where no token is needed and no network policy stands in the way."""
    asked = " && ".join(
        f"wget -q -t 1 -T 4 -O - http://127.0.0.1:{place} | grep -q success"
        for place in ("52365/api/local_raylet_healthz", *more)
    )
    check = {"exec": {"command": ["bash", "-c", asked]}, "timeoutSeconds": 10}
    return {
        "startupProbe": check | {"periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": check | {"periodSeconds": 10, "failureThreshold": 6},
        "livenessProbe": check | {"periodSeconds": 15, "failureThreshold": 20},
    }


def _tmp(size_gib: int) -> Manifest:
    return {"name": "tmp", "emptyDir": {"sizeLimit": f"{size_gib}Gi"}}


def _shm(size: PodSize) -> Manifest:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}}


class _Dumper(yaml.SafeDumper):
    """Writes every value out in full, and text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
