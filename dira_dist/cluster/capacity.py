"""Whether the cluster can ever hold a job, asked before anything starts: Ray itself waits, for ever if need be."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from dira_dist.config import RequestError
from dira_dist.job import ResourcesConfig
from dira_dist.search.fitting import Share, trials_that_fit

Node = tuple[float, int]


def check_capacity(resources: ResourcesConfig, gpus_per_worker: float) -> None:
    """Refuse a job whose smallest number of workers the cluster cannot hold, even grown to its largest.

    What other jobs hold at the moment is not looked at: they end.

    Args:
        resources: the job's.
        gpus_per_worker: settled for this cluster.

    Raises:
        RequestError: with what the cluster has and what the job wants.
    """
    nodes, grows = _largest_cluster()
    worker = Share(resources.cpus_per_worker, gpus_per_worker)
    low = resources.min_workers
    if trials_that_fit(nodes, [worker] * low, most=1):
        return
    held = trials_that_fit(nodes, [worker], most=low)
    what = "can grow to" if grows else "has"
    raise RequestError(
        f"resources: {low} workers with {worker.cpus:g} CPUs and {worker.gpus:g} GPUs each are asked for, and this "
        f"cluster holds {held} of them: it {what} {_described(nodes)}. Lower resources.workers (of [min, max] the min) "
        "or what a worker takes, or give the cluster more nodes"
    )


def _largest_cluster() -> tuple[list[Node], bool]:
    """CPUs and GPUs of every node there can be, and whether that is more than there are now."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    groups = _autoscaled_groups()
    if not groups:
        return [_node(resources) for resources in alive], False
    return [_node(resources) for resources, count in groups for _ in range(count)], True


def _autoscaled_groups() -> list[tuple[Mapping[str, float], int]]:
    """Resources and largest count of each group of nodes that the autoscaler has made known; empty without one."""
    config: Any = ray._private.state.state.get_cluster_config()
    if config is None:
        return []
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs]


def _node(resources: Mapping[str, float]) -> Node:
    return resources.get("CPU", 0.0), int(resources.get("GPU", 0))


def _described(nodes: Sequence[Node]) -> str:
    counts = {node: nodes.count(node) for node in dict.fromkeys(nodes)}
    return ", ".join(f"{count} x ({cpus:g} CPUs, {gpus} GPUs)" for (cpus, gpus), count in counts.items()) or "no nodes"
