"""Whether the cluster can ever hold a job, asked before anything starts: Ray itself waits, for ever if need be."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from dira_dist.config import RequestError
from dira_dist.jobs.job import ResourcesConfig
from dira_dist.search.fitting import ResourceRequest, trials_that_fit

Node = tuple[float, int]


def check_capacity(resources: ResourcesConfig, gpus_per_worker: float) -> None:
    """Refuse a job whose smallest number of workers the cluster cannot hold.

    What other jobs hold at the moment is not looked at: they end. A cluster with an autoscaler is not evaluated either:
    Ray does not know how far it grows.

    Args:
        resources: the job's.
        gpus_per_worker: settled for this cluster.

    Raises:
        RequestError: with what the cluster has and what the job wants.
    """
    nodes = [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]
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
    """Whether an autoscaler adds nodes, as told on the head, where drivers run.

    KubeRay starts the head of an autoscaled cluster without Ray's own monitor, for its autoscaler runs beside it;
    ``ray up`` leaves its configuration in the head's home.
    """
    by_kuberay = "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    return by_kuberay or Path("~/ray_bootstrap_config.yaml").expanduser().exists()


def _node(resources: Mapping[str, float]) -> Node:
    return resources.get("CPU", 0.0), int(resources.get("GPU", 0))


def _described(nodes: Sequence[Node]) -> str:
    counts = {node: nodes.count(node) for node in dict.fromkeys(nodes)}
    return ", ".join(f"{count} x ({cpus:g} CPUs, {gpus} GPUs)" for (cpus, gpus), count in counts.items()) or "no nodes"
