"""A checkpoint on disk: whole or not a checkpoint.

    checkpoint/
        state.pt        tensors and numbers of networks and optimisers, loadable with ``weights_only=True``
        manifest.json   written last: position, MLflow run, the resolved job, size and SHA-256 of every file

A folder without a manifest, or with a file that differs from it, is refused. Nothing in it depends on the number of
workers that wrote it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from dira_dist.config import Section
from dira_dist.training.stages import Position

FORMAT_VERSION = 1
_STATE, _MANIFEST = "state.pt", "manifest.json"
CHECKPOINT_FILES = (_STATE, _MANIFEST)


class CheckpointConfig(Section):
    """Where and how often a run is saved."""

    storage: str = Field("runs", description="folder or s3:// prefix that all nodes reach; a run lies under its name")
    every_steps: int = Field(500, ge=1, description="optimiser steps between checkpoints, the most a crash can cost")
    keep: int = Field(3, ge=1, description="newest checkpoints kept")


class BrokenCheckpointError(RuntimeError):
    """A checkpoint folder that is not whole. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and resumed.

    Attributes:
        position: where the run stood.
        tensors: nested mapping of tensors, numbers and strings (networks, optimisers, queue).
        job: the resolved job, secrets left out.
        run_id: the MLflow run, or an empty string.
        quality: what the networks were judged to be so far, by stage and figure.
        pending_metrics: figures measured but not yet with the tracking server.
    """

    position: Position
    tensors: Mapping[str, Any]
    job: dict[str, Any]
    run_id: str = ""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    pending_metrics: list[list[Any]] = field(default_factory=list)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write into an empty or new folder; the manifest comes last and makes it a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(checkpoint.tensors), folder / _STATE)
    manifest = {
        "version": FORMAT_VERSION,
        "position": asdict(checkpoint.position),
        "run_id": checkpoint.run_id,
        "job": checkpoint.job,
        "quality": checkpoint.quality,
        "pending_metrics": checkpoint.pending_metrics,
        "files": {_STATE: {"bytes": (folder / _STATE).stat().st_size, "sha256": _sha256(folder / _STATE)}},
    }
    partial = folder / f"{_MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(folder / _MANIFEST)


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, every file checked against the manifest.

    Raises:
        BrokenCheckpointError: if it is not whole, or of a later format.
    """
    if not (folder / _MANIFEST).is_file():
        raise BrokenCheckpointError(f"{folder}: no {_MANIFEST}; it was never finished and cannot be used")
    manifest = json.loads((folder / _MANIFEST).read_text())
    if manifest["version"] != FORMAT_VERSION:
        raise BrokenCheckpointError(
            f"{folder}: checkpoint format {manifest['version']}; this version reads format {FORMAT_VERSION}"
        )
    for name, expected in manifest["files"].items():
        _check_file(folder / name, expected)
    tensors = torch.load(folder / _STATE, map_location=device, weights_only=True)
    return Checkpoint(
        Position(**manifest["position"]),
        tensors,
        manifest["job"],
        manifest["run_id"],
        manifest["quality"],
        manifest["pending_metrics"],
    )


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    if not path.is_file():
        raise BrokenCheckpointError(f"{path}: listed in the manifest but missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise BrokenCheckpointError(f"{path}: {size} bytes where the manifest says {expected['bytes']}")
    if (digest := _sha256(path)) != expected["sha256"]:
        raise BrokenCheckpointError(f"{path}: SHA-256 {digest[:12]}… differs from the manifest")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
