"""A checkpoint brought here from wherever a run keeps it."""

from dataclasses import dataclass
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.data.store import StoreError, asking, open_store
from dira_dist.registry.download import Progress, StoreSource, download, download_unchecked
from dira_dist.registry.fetch import check_sum
from dira_dist.registry.lookup import ADDRESS_FORMS
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.folder import MANIFEST
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.state import BrokenCheckpointError, Checkpoint, read_checkpoint, read_manifest


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint and its evaluation.

    Attributes:
        address: where it lies.
        quality: the figures of its networks; empty where they were not evaluated.
    """

    address: str
    checkpoint: Checkpoint
    quality: dict[str, float]


def download_checkpoint(
    address: str, folder: Path, progress: Progress | None = None, sha256: str | None = None
) -> FoundCheckpoint:
    """Fetch a checkpoint, or the newest of a run's folder; a call that was broken off is gone on with.

    Args:
        address: folder or prefix of a checkpoint, or of a run with checkpoints below it.
        folder: on this disk.
        progress: called with the bytes that are here and the bytes in all.
        sha256: of its manifest, where it is known from elsewhere.

    Raises:
        RequestError: there is no checkpoint, it is damaged or another one, or its storage does not answer.
    """
    place = _place(address.rstrip("/"))
    try:
        source = StoreSource(place)
        check_sum(file := download_unchecked(source, MANIFEST, folder), sha256)
        manifest = read_manifest(file.read_bytes(), place)
        download(source, {name: facts.sha256 for name, facts in manifest.files.items()}, folder, progress)
        return FoundCheckpoint(place, read_checkpoint(folder, place), _quality(place))
    except (StoreError, BrokenCheckpointError, ValueError) as error:
        raise RequestError(f"{address}: this checkpoint cannot be used: {error}") from error


def is_checkpoint(address: str) -> bool:
    """Whether a finished checkpoint lies there.

    Raises:
        RequestError: with the remedy, where the storage does not answer in seconds.
    """
    with asking(address) as store:
        return store.stat(MANIFEST) is not None


def _place(address: str) -> str:
    if is_checkpoint(address):
        return address
    with asking(address) as store:
        folder = CheckpointFolder(store)
        names = folder.names()
    if not names:
        raise RequestError(f"{address}: neither a model ({ADDRESS_FORMS}) nor a checkpoint, nor a run's folder of them")
    return folder.address(names[-1])


def _quality(address: str) -> dict[str, float]:
    """From the evaluations beside the run's checkpoints."""
    parent, _, name = address.rpartition("/")
    evaluations = read_evaluations(open_store(parent)) if parent else []
    return next((each.metrics for each in evaluations if each.checkpoint == name), {})
