"""The pods of a Ray cluster on Kubernetes: what they have, may do, and are asked.

They name what ``k8s/base`` sets up in the namespace: the service account ``dira-ray``, the ConfigMap
``dira-environment`` and the Secret ``dira-s3``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray marks a node as draining when its pod is asked to end, and waits so long for the last checkpoint; the pod's grace
# period covers that and the end of Ray's own processes, and the two minutes that spot machines are given cover all.
DRAIN_TIMEOUT_S = 90
GRACE_PERIOD_S = 110
JOB_FILE = "/etc/dira-dist/job.yaml"
JOB_ANNOTATION = "dira-dist/job-file"
SALT_FILE = "/etc/dira-salt/salt"

_GIB = 2**30
# Absent where the pods' service account is an identity of the cloud's (IRSA, workload identity).
_STORAGE_KEYS: dict[str, Any] = {"secretRef": {"name": "dira-s3", "optional": True}}

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
        """Of ``/dev/shm``, in GiB."""
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


def labels(job: str, component: str) -> dict[str, str]:
    """What policies, budgets and monitors find the pods of a job or cluster by."""
    return {
        "app.kubernetes.io/part-of": "dira-dist",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": component,
    }


def autoscaler() -> Manifest:
    """Ray's own, which KubeRay puts beside the head of a cluster that grows and shrinks."""
    return {
        "version": "v2",
        "idleTimeoutSeconds": 120,
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "1Gi"}},
        "securityContext": _hardened(),
        "env": [{"name": "HOME", "value": "/tmp"}],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def head_pod(
    name: str, image: str, size: PodSize, *, needs_kubernetes: bool, job_file: str | None = None, has_salt: bool = False
) -> Manifest:
    """The template of a head.

    Args:
        name: of the job or cluster.
        image: of the pod.
        size: of the pod.
        needs_kubernetes: whether an autoscaler stands beside the head.
        job_file: its text; none where the cluster is made for no job file.
        has_salt: see :func:`worker_pod`.
    """
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
    container = _container("ray-head", image, size.resources(), ports, _probes("8265/api/gcs_healthz"))
    container["volumeMounts"] += [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "ray-logs", "mountPath": "/tmp/ray"},
    ]
    # KubeRay mounts a volume of this name into the autoscaler, too, and makes one without a bound where there is none
    volumes = [_tmp(10), {"name": "ray-logs", "emptyDir": {"sizeLimit": "10Gi"}}, _shm(size)]
    # a cluster autoscaler that makes room does not take a head: with it goes the run's driver
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    if has_salt:
        _add_salt(container, volumes)
    if job_file is not None:
        _add_job_file(container, volumes)
        annotations[JOB_ANNOTATION] = job_file
    spec = _pod_spec(container, volumes, needs_kubernetes=needs_kubernetes)
    metadata = {"labels": labels(name, "ray-head"), "annotations": annotations}
    return {"metadata": metadata, "spec": spec | {"restartPolicy": "Never"}}


def _add_job_file(container: Manifest, volumes: list[Manifest]) -> None:
    """The text of a job file travels in an annotation, which the pod reads as a file.

    So it lives and goes with the RayJob, and whoever hands jobs in needs no right on ConfigMaps.
    """
    folder, file = str(Path(JOB_FILE).parent), Path(JOB_FILE).name
    container["volumeMounts"] += [{"name": "job", "mountPath": folder, "readOnly": True}]
    text = {"fieldPath": f"metadata.annotations['{JOB_ANNOTATION}']"}
    volumes += [{"name": "job", "downwardAPI": {"items": [{"path": file, "fieldRef": text}]}}]


def _add_salt(container: Manifest, volumes: list[Manifest]) -> None:
    container["volumeMounts"] += [{"name": "salt", "mountPath": str(Path(SALT_FILE).parent), "readOnly": True}]
    volumes += [{"name": "salt", "secret": {"secretName": "dira-salt", "optional": True}}]


def worker_pod(name: str, image: str, size: PodSize, *, has_salt: bool = False) -> Manifest:
    """The template of a worker; ``has_salt``: with the secret behind shard sets' keys as a file, if there is one."""
    container = _container("ray-worker", image, size.resources(), {"metrics": 8080}, _probes())
    container["volumeMounts"] += [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [_tmp(50), _shm(size)]
    if has_salt:
        _add_salt(container, volumes)
    spec = _pod_spec(container, volumes, needs_kubernetes=False)
    return {"metadata": {"labels": labels(name, "ray-worker")}, "spec": spec | {"restartPolicy": "Never"}}


def submitter_pod(name: str, image: str) -> Manifest:
    """The template of the pod that hands the job to its cluster and follows its log: no secret is its business."""
    container = _container("ray-job-submitter", image, PodSize(cpus=1, memory_gib=1).resources())
    del container["envFrom"]
    spec = _pod_spec(container, [_tmp(1)], needs_kubernetes=False) | {"restartPolicy": "Never"}
    return {"metadata": {"labels": labels(name, "submitter")}, "spec": spec}


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
        "envFrom": [{"configMapRef": {"name": "dira-environment"}}, _STORAGE_KEYS],
        "resources": resources,
        # the last lines of a container that failed stand in the pod's status, and in KubeRay's events when it is gone
        "terminationMessagePolicy": "FallbackToLogsOnError",
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
