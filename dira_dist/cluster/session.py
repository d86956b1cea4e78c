"""Ray for one job: the cluster of ``RAY_ADDRESS``, or an embedded one that lives as long as the job.

Whether the cluster can ever hold the job is asked before anything starts: Ray itself waits, for ever if need be.
"""

import logging
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray

from dira_dist.cluster.answering import check_answers
from dira_dist.cluster.ray_internals import AUTHENTICATION_LOGGER
from dira_dist.config import JobFailedError, RequestError
from dira_dist.environment import VERBOSE, environment
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.search.fitting import ResourceRequest, trials_that_fit

OBJECT_STORE_BYTES = 128 * 2**20
# No notice comes that a single machine is taken away, and there is no other to go on with.
_ON_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_GCS_PORT, _FOUND_BY_RAY = 6379, ("auto", "local")

# Ray's own defaults wait for ever, or half an hour, where a training should report a failure.
_RAY_SETTINGS = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a spot machine's notice is short
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # of one try; resources.start_timeout_s bounds all of them
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # the next evaluation finds torch imported
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """Be connected to a Ray that can run a job of these resources; a connection that stands already is left standing.

    Raises:
        RequestError: if there is no cluster at ``RAY_ADDRESS``, or it can never hold the fewest workers.
    """
    if ray.is_initialized():
        check_capacity(resources, gpus_per_worker(resources))
        yield
    elif "RAY_ADDRESS" in os.environ:
        with cluster_at(os.environ["RAY_ADDRESS"], f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}"):
            check_capacity(resources, gpus_per_worker(resources))
            yield
    else:
        with embedded_ray(resources):
            yield


@contextmanager
def embedded_ray(resources: ResourcesConfig) -> Iterator[None]:
    """A Ray of this machine alone, whatever ``RAY_ADDRESS`` says, that ends with the block.

    It has at least the CPUs that the smallest run asks for, so that two workers run on a laptop with one core, slowly.

    Raises:
        RequestError: if this machine lacks the GPUs, or the process is connected to a Ray already.
        JobFailedError: if Ray does not start here.
    """
    if ray.is_initialized():
        raise RequestError("this process is connected to a Ray already; call ray.shutdown() first")
    logging.getLogger(AUTHENTICATION_LOGGER).setLevel(logging.ERROR)
    _settle_environment()
    with environment(**_ON_ONE_MACHINE, **_token_for_a_home_that_takes_none()):
        _start_embedded(max(os.cpu_count() or 1, math.ceil(resources.min_workers * resources.cpus_per_worker)))
        try:
            _check_gpus(resources)
            yield
        finally:
            ray.shutdown()


def _start_embedded(cpus: int) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            **_chatter(),
        )
    except Exception as error:  # Ray has no class for a node that comes too late
        raise JobFailedError(
            f"Ray did not start on this machine ({_first_line(error)}); nothing was begun: run the same job "
            "again, with less beside it on this machine where it is busy"
        ) from error


def _chatter() -> dict[str, Any]:
    """What Ray says of itself, and what workers print, is for who asks for it."""
    asked = os.environ.get(VERBOSE) == "1"
    return {"log_to_driver": asked, "logging_level": logging.INFO if asked else logging.WARNING}


def _token_for_a_home_that_takes_none() -> dict[str, str]:
    """Ray keeps the token of its clusters in ``~/.ray``; where that cannot be written, one for this cluster alone."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return {}
    folder = Path(os.path.expanduser("~/.ray"))  # noqa: PTH111  (Path's own raises where nobody knows a home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = folder.is_absolute() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    return {} if writable else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def losses_explained(name: str) -> Iterator[None]:
    """Of what Ray itself loses while a job runs, in one sentence, and how to go on.

    Args:
        name: of the job.

    Raises:
        JobFailedError: in the place of what Ray raised; not of what raised in a task of ours.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise JobFailedError(
            f"{name}: the cluster, or a part of Ray that ran this job, was lost ({type(error).__name__}: "
            f"{_first_line(error)}); run the same job again, and it goes on from its newest checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def cluster_at(address: str, said: str) -> Iterator[None]:
    """Be connected to a cluster; a connection that stands already is left standing.

    Args:
        address: as Ray takes it: ``auto``, ``host:port`` or ``ray://host:port``.
        said: how a person gave it, for messages.

    Raises:
        RequestError: none answers there.
    """
    if ray.is_initialized():
        yield
        return
    _settle_environment()
    try:
        if address and address not in _FOUND_BY_RAY:
            check_answers(address, _GCS_PORT)
        ray.init(address=address, **_chatter())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"{said}: no Ray cluster answers there ({error}); correct it, "
            "or unset it to run on an embedded Ray on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _settle_environment() -> None:
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)


def _check_gpus(resources: ResourcesConfig) -> None:
    found, each = ray.cluster_resources().get("GPU", 0), gpus_per_worker(resources)
    if resources.min_workers * each > found:
        raise RequestError(
            f"resources: {resources.min_workers} workers with {each:g} GPUs each want {resources.min_workers * each:g} "
            f"GPUs, and this machine has {found:g}; set RAY_ADDRESS to a cluster, lower resources.workers, or set "
            f"resources.gpus_per_worker to a fraction or to 0"
        )


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """The job's figure, or where it leaves it out 1 on a cluster with GPUs and 0 elsewhere."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


class RayNode(NamedTuple):
    """A machine of the cluster that is alive."""

    node_id: str
    address: str
    cpus: float
    gpus: int

    @property
    def size(self) -> tuple[float, int]:
        return self.cpus, self.gpus


def live_nodes() -> list[RayNode]:
    """The machines of the cluster that this process is connected to."""
    return [
        RayNode(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_capacity(resources: ResourcesConfig, gpus_per_worker: float) -> None:
    """Refuse a job whose smallest number of workers the cluster cannot hold.

    What other jobs hold at the moment does not count, for they end. A cluster with an autoscaler is not checked: Ray
    does not know how far it grows.

    Args:
        resources: the job's.
        gpus_per_worker: settled for this cluster.

    Raises:
        RequestError: with what the cluster has and what the job wants.
    """
    nodes = [node.size for node in live_nodes()]
    worker, low = ResourceRequest(resources.cpus_per_worker, gpus_per_worker), resources.min_workers
    if cluster_grows() or trials_that_fit(nodes, [worker] * low, most=1):
        return
    held = trials_that_fit(nodes, [worker], most=low)
    raise RequestError(
        f"resources: {low} workers with {worker.cpus:g} CPUs and {worker.gpus:g} GPUs each are asked for, and this "
        f"cluster holds {held} of them: it has {_described(nodes)}. Lower resources.workers (of [min, max] the min) "
        "or what a worker takes, or give the cluster more nodes"
    )


def cluster_grows() -> bool:
    """Whether an autoscaler adds nodes, as is known on the head, where drivers run.

    KubeRay starts the head of an autoscaled cluster without Ray's own monitor, for its autoscaler runs beside it;
    ``ray up`` leaves its configuration in the head's home.
    """
    by_kuberay = "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    return by_kuberay or Path(os.path.expanduser("~/ray_bootstrap_config.yaml")).exists()  # noqa: PTH111


def _described(nodes: Sequence[tuple[float, int]]) -> str:
    counts = {node: nodes.count(node) for node in dict.fromkeys(nodes)}
    return ", ".join(f"{count} x ({cpus:g} CPUs, {gpus} GPUs)" for (cpus, gpus), count in counts.items()) or "no nodes"
