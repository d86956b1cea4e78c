"""What the cluster of ``RAY_ADDRESS``, or this machine, has room for; and a job file drafted for it."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import torch

from dira_dist.cluster.session import cluster_at, live_nodes
from dira_dist.config import RequestError
from dira_dist.jobs.draft import DraftKind, Room, draft, find_sets
from dira_dist.jobs.load import load_job
from dira_dist.registry.starting import find_start
from dira_dist.tracking.config import TrackingConfig

_LOCAL_TRACKING = "sqlite:///runs/mlflow.db"


def init(shards: str, file: Path | str, kind: DraftKind = "pretrain", *, start: str | None = None) -> Path:
    """Write a commented job file for a shard set and what there is to run it on.

    Args:
        shards: address of a set, or of the parts of a split.
        file: to write; one that stands there is left as it is.
        kind: of job.
        start: for finetune and compare: the pretrained model.

    Returns:
        The file.

    Raises:
        RequestError: the file is there already, there is no set or no such model, or they lack what the kind of job
            asks for.
    """
    file = Path(file)
    if file.exists():
        raise RequestError(f"{file} is there already; give another name with --output, or remove it")
    tracked = "MLFLOW_TRACKING_URI" in os.environ
    text = draft(
        kind,
        find_sets(shards),
        find_room(),
        storage=f"s3://{urlsplit(shards).netloc}/runs" if shards.startswith("s3://") else "runs",
        tracking="${env:MLFLOW_TRACKING_URI}" if tracked else _LOCAL_TRACKING,
        start=start,
        network=_network_of(start) if kind == "compare" and start is not None else None,
    )
    file.write_text(text)
    load_job(file)  # what init writes is a job
    file.chmod(0o755)
    return file


def _network_of(start: str) -> dict[str, Any]:
    """The section of a pretrained model's network, without what is left out of it; empty where nobody tells."""
    config = TrackingConfig() if "MLFLOW_TRACKING_URI" in os.environ else TrackingConfig(uri=_LOCAL_TRACKING)
    model = find_start(start, config).model or {}
    return {key: value for key, value in model.items() if value not in (None, False)}


def find_room() -> Room:
    """CPUs and GPUs of the cluster of ``RAY_ADDRESS``, else of this machine.

    Raises:
        RequestError: no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None and not ray.is_initialized():
        cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
        return Room(cpus, gpus, f"this machine ({cpus} CPUs, {gpus} GPUs)")
    with cluster_at(str(address), f"RAY_ADDRESS={address}"):
        sizes = [node.size for node in live_nodes()]
    cpus, gpus = int(sum(size[0] for size in sizes)), sum(size[1] for size in sizes)
    return Room(cpus, gpus, f"a Ray cluster of {len(sizes)} machines ({cpus} CPUs, {gpus} GPUs)")
