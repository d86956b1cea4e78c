"""What a run was made with: source, versions, and the machines it ran on."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dira_dist.version import __version__

PACKAGES = (
    "boto3",
    "mlflow",
    "numpy",
    "ray",
    "segmentation_models_pytorch",
    "timm",
    "torch",
    "torchvision",
    "webdataset",
)
GIT_WITHIN_S = 10


@cache
def source_tags() -> dict[str, str]:
    """Tags for a run: git commit (and whether files were changed since), version of this package and of others."""
    tags = {"mlflow.source.name": "dira_dist", "mlflow.source.type": "PROJECT", "dira.version": __version__}
    if commit := git_commit(Path(__file__).parent):
        tags |= {"mlflow.source.git.commit": commit[0], "dira.source_changed": str(commit[1]).lower()}
    return tags | {f"version.{name}": version for name, version in versions()}


def git_commit(folder: Path) -> tuple[str, bool] | None:
    """The commit that the source in a folder is of, and whether it was changed since; none where that is unknown.

    A folder that merely lies inside of somebody's repository, as a virtual environment does, is not that repository's.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None:
        commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ".")
        return None if commit is None or changes is None else (commit, bool(changes))
    try:
        installed = importlib.metadata.distribution("dira-dist").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    commit = json.loads(installed or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else (commit, False)


def versions() -> Iterator[tuple[str, str]]:
    """Names and versions of Python, CUDA and the packages that decide about a run's figures."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a floor can be used without those above it
            continue
    if torch.version.cuda:
        yield "cuda", torch.version.cuda
        yield "cudnn", str(torch.backends.cudnn.version())


def host_row(rank: int, device: torch.device) -> dict[str, Any]:
    """One worker's row of the table of hosts and devices; see :meth:`dira_dist.tracking.run.TrackingRun.log_table`.

    Args:
        rank: the worker's, among all.
        device: it computes on.
    """
    row = {
        "rank": rank,
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": str(device),
        "device_name": _processor(),
        "device_memory_GB": None,
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        row |= {"device_name": facts.name, "device_memory_GB": round(facts.total_memory / 1e9, 1)}
    return row


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _git(folder: Path, *words: str) -> str | None:
    """What git answers, or none where it refuses, is missing or takes too long."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
