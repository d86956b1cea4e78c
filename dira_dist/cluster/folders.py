"""Folders of this machine that a job names: on a cluster of several machines each of them must see the same."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dira_dist.cluster.session import live_nodes
from dira_dist.config import RequestError
from dira_dist.data.generations import plain_address
from dira_dist.data.shards import INDEX_NAME
from dira_dist.jobs.base import TrainingJob
from dira_dist.runs.folder import RUN

_SQLITE = "sqlite:///"


def check_shared(job: TrainingJob) -> None:
    """Look for the job's files on every machine that may get a worker. Call it once ``run.json`` is there.

    Machines that an autoscaler adds later are not asked.

    Raises:
        RequestError: a machine lacks one of them.
    """
    files = list(_local_files(job))
    if files:
        check_seen(files, other_machines())


def check_seen(files: list[str], machines: Mapping[str, str]) -> None:
    """Have each machine look for the files.

    Args:
        files: absolute paths.
        machines: a Ray node's id by the machine's address.

    Raises:
        RequestError: a machine lacks one of them.
    """
    answers = {address: _on(node).remote(files) for address, node in machines.items()}
    for address, answer in answers.items():
        if missing := ray.get(answer):
            raise RequestError(
                f"{missing[0]}: the machine {address} may get workers of this job and does not have it; give s3:// "
                "addresses and the address of an MLflow server, or folders that all machines of the cluster share"
            )


def _local_files(job: TrainingJob) -> Iterator[str]:
    """Files that are there by now, one for each address that is a folder or a database of this machine."""
    folders = [(job.run_folder, RUN), *((plain_address(address), INDEX_NAME) for _, address, _ in job.shard_sets())]
    yield from (str(Path(folder) / file) for folder, file in folders if "://" not in folder)
    uri = job.tracking.uri or ""
    if uri.startswith(_SQLITE):
        yield uri.removeprefix(_SQLITE)
    yield from (str(Path(file).absolute()) for _, file in job.weight_files())


def other_machines() -> dict[str, str]:
    """Ray nodes that may get work, by the machine's address, without this one."""
    here = ray.util.get_node_ip_address()
    return {node.address: node.node_id for node in live_nodes() if node.cpus > 0 and node.address != here}


def _on(node: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(_missing)


def _missing(files: Iterable[str]) -> list[str]:
    return [file for file in files if not Path(file).exists()]
