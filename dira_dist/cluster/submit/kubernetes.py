"""A job file, or a verb of the command line, as a KubeRay RayJob whose pods have what it asks for.

The manifests name what ``k8s/base`` sets up in the namespace, see :mod:`dira_dist.cluster.submit.pods`. Overlays in
``k8s/overlays`` add what belongs to a cluster and not to a job: tolerations, node selectors, queues.
"""

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from dira_dist.cluster.submit.pods import (
    JOB_FILE,
    SALT_FILE,
    Manifest,
    PodSize,
    autoscaler,
    head_pod,
    labels,
    submitter_pod,
    worker_pod,
)
from dira_dist.config import RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import AnyLoaded, Driver, load_job
from dira_dist.version import __version__

DEFAULT_IMAGE = f"dira-dist:{__version__}"
IMAGE_VARIABLE = "DIRA_DIST_IMAGE"
STANDING = frozenset({"everyday"})
"""Names that stand in the namespace: KubeRay would lead the Service of such a cluster to a job of the same name."""
VERBS = ("shard", "predict", "embed", "evaluate", "words")
"""What works long without a job file."""

_MEMORY_GIB_PER_CPU = 4  # what general-purpose machines have
_NAME_LENGTH = 47  # KubeRay appends to a RayJob's name, and a label holds 63
_STARTS_WITHIN_S = 1800  # a machine that is made, and an image of 12 GB; then the pods that came are given back
_RETRIES = 3
# `kubectl apply` keeps the whole manifest in an annotation beside the job file's, and an object's may hold 256 KiB.
_MOST_BYTES = 250_000
_SALTED = ("shard", "predict", "embed")
_SPREADING = ("predict", "embed")  # over all pods; the other verbs take one

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
    queue: str | None = None,
) -> str:
    """The manifest of one job as YAML: a RayJob that holds the job's file, so that nothing is left when it is deleted.

    The RayJob's name comes from the job's name alone, and the run of that name is what a retry goes on with.

    Args:
        job: path of a job file.
        overrides: ``key.path=value`` each; they are kept in the RayJob's entrypoint.
        image: of every pod; that of ``DIRA_DIST_IMAGE`` if none, else the project's own, which no registry serves.
        workers_per_pod: see :func:`fleet`.
        memory_gib: see :func:`fleet`.
        queue: Kueue's LocalQueue that the job waits in.

    Raises:
        RequestError: for an invalid job, or one that keeps something in a folder, which pods do not share, that
            begins with weights which no pod has, that is elastic and is to wait in a queue, or is too large.
    """
    loaded = load_job(Path(job), overrides)
    image = image or os.environ.get(IMAGE_VARIABLE)
    _refuse_folders(loaded.job)
    _refuse_local_weights(loaded.job, image)
    pods = fleet(loaded, workers_per_pod=workers_per_pod, memory_gib=memory_gib)
    _refuse_elastic(pods, queue)
    name, image = object_name(loaded.job.name), image or DEFAULT_IMAGE
    words = ["dira-dist", "run", JOB_FILE, *(word for override in overrides for word in ("--set", override))]
    cluster = _cluster(name, image, pods, Path(job).read_text())
    return _as_yaml(_ray_job(name, image, words, cluster, queue))


def render_verb(
    words: Sequence[str],
    *,
    name: str,
    image: str | None = None,
    pods: int = 1,
    cpus: int = 8,
    gpus: int = 0,
    memory_gib: int | None = None,
    queue: str | None = None,
) -> str:
    """The manifest of a verb that works long: ingestion, prediction, embedding, evaluation, visual words.

    ``predict`` and ``embed`` share their files among all pods; the others work in one, and Ray starts them there.

    Args:
        words: of the command line, without ``dira-dist``.
        name: of the RayJob.
        image: see :func:`render`.
        pods: how many work.
        cpus: of each.
        gpus: of each.
        memory_gib: of each; 4 GiB per CPU if none.
        queue: see :func:`render`.

    Raises:
        RequestError: the verb is none of :data:`VERBS`, names a folder, brings a cluster of its own, or cannot use
            several pods.
    """
    verb, image = _verb_of(words, image), image or os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
    if pods > 1 and verb not in _SPREADING:
        raise RequestError(f"--pods {pods}: `{verb}` works in one pod; only {' and '.join(_SPREADING)} share theirs")
    words = ["dira-dist", *words]
    if verb in _SPREADING:
        words += ["--address", "auto"]
    if verb in _SALTED and not _has_option(words, "--salt-file"):  # each pod's home would have one of its own
        words += ["--salt-file", SALT_FILE]
    size = PodSize(cpus, memory_gib or max(4, _MEMORY_GIB_PER_CPU * cpus), gpus)
    name = object_name(name)
    cluster = _cluster(name, image, Fleet(HEAD_SIZE, size, pods, pods), None)
    manifest = _ray_job(name, image, words, cluster, queue)
    if verb not in _SPREADING:  # Ray starts it in the pod that has these, and not on the head
        manifest["spec"] |= {"entrypointNumCpus": cpus} | ({"entrypointNumGpus": gpus} if gpus else {})
    return _as_yaml(manifest)


def _has_option(words: Sequence[str], option: str) -> bool:
    return any(word.partition("=")[0] == option for word in words)


def _verb_of(words: Sequence[str], image: str | None) -> str:
    """Of the command line, which reads and writes what every pod reaches.

    Raises:
        RequestError: no such verb, or it names a file or folder of this machine.
    """
    verb = words[0] if words else ""
    if verb not in VERBS:
        raise RequestError(f"{verb!r}: no verb that works long without a job file; allowed: {', '.join(VERBS)}")
    if _has_option(words, "--address"):
        raise RequestError("--address: the RayJob has a cluster of its own; leave it out")
    places = [*takewhile(lambda word: not word.startswith("-"), words[1:]), *(word for word in words if "/" in word)]
    here = [word for word in dict.fromkeys(places) if not _in_every_pod(word.rpartition("=")[2], image)]
    if here:
        raise RequestError(
            f"{', '.join(here)}: of one machine, and the pods of a job share none; give addresses in a bucket "
            "(s3://bucket/prefix), models by models:/NAME@ALIAS, or with --image absolute paths in an image of your own"
        )
    return verb


def _in_every_pod(place: str, image: str | None) -> bool:
    if "://" in place or place.startswith(("models:/", "runs:/", SALT_FILE)):
        return True
    return image is not None and Path(place).is_absolute()


def _as_yaml(manifest: Manifest) -> str:
    """Raises:
    RequestError: Kubernetes does not take an object of this size from ``kubectl apply``.
    """
    size = len(json.dumps(manifest, ensure_ascii=False).encode())
    if size > _MOST_BYTES:
        raise RequestError(
            f"the RayJob has {size} bytes, job file included, and {_MOST_BYTES} are allowed; put long tables and lists "
            "of the job file into files in the bucket, or the job file into an image of your own"
        )
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120)


def object_name(job_name: str) -> str:
    """A job's name as a Kubernetes object may be called: lower case, no dots; a digest keeps apart what was changed.

    So it does a name of :data:`STANDING`.
    """
    name = re.sub(r"[^a-z0-9-]+", "-", job_name.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"job-{name}".rstrip("-")
    if name == job_name and len(name) <= _NAME_LENGTH and name not in STANDING:
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


def _refuse_elastic(pods: Fleet, queue: str | None) -> None:
    """Kueue admits a number of pods, and refuses a cluster that changes it."""
    if queue is not None and pods.elastic:
        raise RequestError(
            f"--queue {queue}: resources.workers makes {pods.min_pods} to {pods.max_pods} pods, and a queue admits a "
            "fixed number; give one number (--set resources.workers=4), or leave --queue out"
        )


def _ray_job(name: str, image: str, words: Sequence[str], cluster: Manifest, queue: str | None) -> Manifest:
    marks = labels(name, "job") | ({"kueue.x-k8s.io/queue-name": queue} if queue else {})
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": marks},
        "spec": {
            "entrypoint": shlex.join(words),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,  # the pods; RayJob, events and the driver's log stay
            "preRunningDeadlineSeconds": _STARTS_WITHIN_S,
            "backoffLimit": _RETRIES,
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": 2},
            "submitterPodTemplate": submitter_pod(name, image),
            "rayClusterSpec": cluster,
        },
    }


def _cluster(name: str, image: str, pods: Fleet, job_file: str | None) -> Manifest:
    cluster: Manifest = {"rayVersion": version("ray"), "authOptions": {"mode": "token"}}
    if pods.elastic:
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": autoscaler()}
    return cluster | {
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"} | pods.head.ray_start_params(schedulable=False),
            "template": head_pod(
                name, image, pods.head, needs_kubernetes=pods.elastic, job_file=job_file, has_salt=job_file is None
            ),
        },
        "workerGroupSpecs": list(_worker_groups(name, image, pods, has_salt=job_file is None)),
    }


def _worker_groups(name: str, image: str, pods: Fleet, *, has_salt: bool) -> Iterator[Manifest]:
    """The training's, and one whose GPUs are for evaluations: without CPUs for Ray, so that no worker goes there."""
    template = worker_pod(name, image, pods.size, has_salt=has_salt)
    yield _worker_group("workers", template, pods.size, (pods.min_pods, pods.max_pods))
    if pods.evaluation is not None:
        counts = (pods.evaluation_pods, pods.evaluation_pods)
        template = worker_pod(name, image, pods.evaluation)
        yield _worker_group("evaluation", template, pods.evaluation, counts, trains=False)


def _worker_group(
    name: str, template: Manifest, size: PodSize, counts: tuple[int, int], *, trains: bool = True
) -> Manifest:
    """Of an elastic group ``replicas`` is the autoscaler's business: it stands in no manifest that is applied again."""
    fixed = {"replicas": counts[0]} if counts[0] == counts[1] else {}
    return {
        "groupName": name,
        **fixed,
        "minReplicas": counts[0],
        "maxReplicas": counts[1],
        "rayStartParams": size.ray_start_params(schedulable=trains),
        "template": template,
    }


class _Dumper(yaml.SafeDumper):
    """Writes every value out in full, and text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
