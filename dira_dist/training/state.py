"""A checkpoint on disk: whole or not a checkpoint.

    checkpoint/
        state.pt        tensors and numbers of networks and optimisers, loadable with ``weights_only=True``
        manifest.json   written last: position, MLflow run, the resolved job, size and SHA-256 of every file

A folder without a manifest, or with a file that differs from it, is refused. Nothing in it depends on the number of
workers that wrote it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field

from dira_dist.config import MAY_CHANGE, Section
from dira_dist.files import check_not_compressed, sha256_of
from dira_dist.formats import FileFormat, FormatError
from dira_dist.runs.folder import MANIFEST, STATE
from dira_dist.training.stages import Position

CHECKPOINT_FILES = (STATE, MANIFEST)


class CheckpointConfig(Section):
    """Where and how often a run is saved."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    storage: str = Field("runs", description="folder or s3:// prefix that all nodes reach; a run lies under its name")
    every_steps: int = Field(500, ge=1, description="optimiser steps between checkpoints, the most a crash can cost")
    keep: int = Field(3, ge=1, description="newest checkpoints kept")
    best: str | None = Field(
        None,
        description="figure by which one more is kept, the one where it was best; "
        "left out: the task's own (of pretraining probe/auroc, or val/rankme without a probe)",
    )
    storage_timeout_s: float = Field(
        1800,
        gt=0,
        description="seconds of storage trouble borne where a run ends or stops, for its last checkpoint",
    )


class BrokenCheckpointError(RuntimeError):
    """A checkpoint that is not whole. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        position: where the run stood.
        job: the resolved job, secrets left out.
        run_id: the MLflow run, or an empty string.
        label: what the evaluation of these networks is filed under; empty where nobody is to evaluate them.
        figures: what they were found to be, where that was known when they were saved.
        pending_metrics: figures measured but not yet with the tracking server.
    """

    position: Position
    job: dict[str, Any]
    run_id: str = ""
    label: str = ""
    figures: dict[str, float] | None = None
    pending_metrics: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint(Manifest):
    """What is saved and resumed.

    Attributes:
        tensors: nested mapping of tensors, numbers and strings (networks, optimisers, queue).
    """

    tensors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _FileFacts:
    """Size and SHA-256 of a file of the checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ManifestFile(Manifest):
    """The manifest as it is written: with the facts of every file, by its name."""

    files: dict[str, _FileFacts] = field(default_factory=dict)


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """No task measured its own networks then."""
    return {"figures": None, **values}


FORMAT = FileFormat(ManifestFile, version=2, upgrades={1: _from_1})


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write into an empty or new folder; the manifest comes last and makes it a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(checkpoint.tensors), folder / STATE)
    facts = _FileFacts((folder / STATE).stat().st_size, sha256_of(folder / STATE))
    said = {each.name: getattr(checkpoint, each.name) for each in fields(Manifest)}
    partial = folder / f"{MANIFEST}.partial"
    partial.write_bytes(FORMAT.dump(ManifestFile(**said, files={STATE: facts})))
    partial.replace(folder / MANIFEST)


def read_checkpoint(folder: Path, address: str = "") -> Checkpoint:
    """Read a checkpoint, every file checked against the manifest, its tensors on the CPU.

    Args:
        folder: on this disk.
        address: where it came from, for messages; the folder if empty.

    Raises:
        BrokenCheckpointError: if it is not whole, or of another format.
    """
    address = address or str(folder)
    if not (folder / MANIFEST).is_file():
        raise BrokenCheckpointError(f"{address}: no {MANIFEST}; it was never finished and cannot be used")
    manifest = read_manifest((folder / MANIFEST).read_bytes(), address)
    for name, expected in manifest.files.items():
        _check_file(folder / name, expected, f"{address}/{name}")
    try:
        check_not_compressed(folder / STATE)
        tensors = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many for a file that is none of its own
        raise BrokenCheckpointError(f"{address}/{STATE}: PyTorch does not read it: {error}") from error
    if not isinstance(tensors, dict):
        raise BrokenCheckpointError(f"{address}/{STATE}: holds a {type(tensors).__name__}, not the state of a run")
    said = {each.name: getattr(manifest, each.name) for each in fields(Manifest)}
    return Checkpoint(**said, tensors=tensors)


def read_manifest(content: bytes, address: str) -> ManifestFile:
    """The manifest of a checkpoint.

    Raises:
        BrokenCheckpointError: if it is damaged, or of another format.
    """
    try:
        manifest = FORMAT.load(content, f"{address}/{MANIFEST}")
    except FormatError as error:
        raise BrokenCheckpointError(str(error)) from error
    if set(manifest.files) != {STATE}:
        raise BrokenCheckpointError(f"{address}/{MANIFEST}: names the files {sorted(manifest.files)}, not {STATE}")
    if min(asdict(manifest.position).values()) < 0:
        raise BrokenCheckpointError(f"{address}/{MANIFEST}: a position below 0: {manifest.position}")
    return manifest


def _check_file(path: Path, expected: _FileFacts, address: str) -> None:
    if not path.is_file():
        raise BrokenCheckpointError(f"{address}: listed in the manifest but missing")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BrokenCheckpointError(f"{address}: {size} bytes where the manifest says {expected.bytes}")
    if (digest := sha256_of(path)) != expected.sha256:
        raise BrokenCheckpointError(f"{address}: SHA-256 {digest[:12]}… differs from the manifest")
