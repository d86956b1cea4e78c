"""Files brought here: streamed, gone on with where an earlier call broke off, and believed only by their checksum."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dira_dist.config import RequestError
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.retry import Backoff, retried
from dira_dist.data.store import RetryPolicy, StoreError, open_store
from dira_dist.files import sha256_of
from dira_dist.registry.mlflow_internals import HttpArtifactRepository, ask_artifact_server
from dira_dist.tracking.server import credentials_advice, in_one_sentence, is_unauthorised

Progress = Callable[[int, int], None]  # bytes here, bytes in all
ATTEMPTS = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0
DOWNLOAD_RETRY = RetryPolicy(timeout_s=30.0)  # a person waits for the files, and can run the same command again
BLOCK_BYTES = 1 << 20
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


class Source(Protocol):
    """A folder somewhere."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below it, by its path relative to the folder."""

    def open(self, name: str, start: int) -> tuple[int, Iterator[bytes]]:
        """Where reading begins (at byte ``start``, or at 0 where a file can only be read whole), and the content."""


def source_of(address: str, tracking_uri: str | None = None) -> Source:
    """The folder at an address: of MLflow's artifacts, in a bucket, or on this disk."""
    repository = get_artifact_repository(address, tracking_uri=tracking_uri)
    if isinstance(repository, HttpArtifactRepository):
        return _ServerSource(repository)
    # An endpoint that is set for MLflow alone is left to MLflow's own client.
    if address.startswith(("s3://", "file://", "/")) and "MLFLOW_S3_ENDPOINT_URL" not in os.environ:
        return StoreSource(address)
    return _RepositorySource(repository)


def download(source: Source, checksums: Mapping[str, str], dest: Path, progress: Progress | None = None) -> None:
    """Bring files into a folder. What is there already stays, and what is there in part is gone on with.

    Args:
        source: where they are.
        checksums: sha256 of each file wanted, by its path relative to the source.
        dest: folder to write to.
        progress: called after every block.

    Raises:
        RequestError: a file is damaged where it is stored, cannot be fetched, or the credentials are refused.
    """
    sizes: dict[str, int] = {}
    _with_attempts("the list of files", lambda: sizes.update(source.sizes()))
    before, total = 0, sum(sizes.get(name, 0) for name in checksums)
    for name, digest in checksums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RequestError(f"{name!r} lies outside of the folder; do not use this model")
        size = sizes.get(name, 0)
        _download_checked(source, name, size, digest, dest, partial(_report, progress, before, total))
        before += size
        _report(progress, before, total, 0)


def download_unchecked(source: Source, name: str, dest: Path) -> Path:
    """Bring one small file of which nothing is known yet, whole.

    Raises:
        RequestError: it cannot be fetched.
    """
    path = dest / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest, prefix=".fetching-") as scratch:
        begun = Path(scratch) / path.name
        _with_attempts(name, lambda: _append(source, name, begun, lambda here: None))
        begun.replace(path)
    return path


def _report(progress: Progress | None, before: int, total: int, here: int) -> None:
    if progress is not None:
        progress(before + here, total)


def _download_checked(
    source: Source, name: str, size: int, digest: str, dest: Path, report: Callable[[int], None]
) -> None:
    path, begun = dest / name, dest / f"{name}.{digest[:16]}.partial"
    if path.is_file() and sha256_of(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        if not begun.is_file() or begun.stat().st_size < size:
            _with_attempts(name, lambda: _append(source, name, begun, report))
        if sha256_of(begun) == digest:
            begun.replace(path)
            return
        begun.unlink()
    raise RequestError(f"{name} is damaged where it is stored (its sha256 is not {digest[:12]}...); register it again")


def _append(source: Source, name: str, begun: Path, report: Callable[[int], None]) -> None:
    """Read on behind what is here, or from the beginning where the source has no other way."""
    begun.touch()
    start, blocks = source.open(name, begun.stat().st_size)
    with begun.open("r+b") as file:
        file.truncate(start)
        file.seek(start)
        for block in blocks:
            file.write(block)
            report(file.tell())


def _with_attempts(name: str, action: Callable[[], None]) -> None:
    def is_final(error: Exception) -> bool:
        return is_unauthorised(error) or isinstance(error, StoreError)  # a store has tried again itself

    try:
        retried(action, is_final, Backoff(FIRST_WAIT_S, LONGEST_WAIT_S), attempts=ATTEMPTS)
    except Exception as error:
        if is_unauthorised(error):
            raise RequestError(f"{name}: {credentials_advice(error)}") from error
        raise RequestError(
            f"{name} cannot be fetched: {in_one_sentence(error)}; the same command goes on where it broke off"
        ) from error


class StoreSource:
    """A folder or a prefix of a bucket, read by this package's own client, from any byte."""

    def __init__(self, address: str) -> None:
        self._store = open_store(address, DOWNLOAD_RETRY)

    def sizes(self) -> dict[str, int]:
        """See :class:`Source`."""
        return {found.key: found.bytes for found in self._store.list()}

    def open(self, name: str, start: int) -> tuple[int, Iterator[bytes]]:
        """See :class:`Source`."""
        return start, self._blocks(name, start)

    def _blocks(self, name: str, start: int) -> Iterator[bytes]:
        with self._store.open(name, ObjectRange(start=start)) as stream:
            yield from _blocks(stream)


class _RepositorySource:
    """What MLflow can list and fetch, file by file."""

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    def sizes(self) -> dict[str, int]:
        return dict(self._sizes(None))

    def _sizes(self, folder: str | None) -> Iterable[tuple[str, int]]:
        for entry in self._repository.list_artifacts(folder):
            if entry.is_dir:
                yield from self._sizes(entry.path)
            else:
                yield entry.path, int(entry.file_size or 0)

    def open(self, name: str, start: int) -> tuple[int, Iterator[bytes]]:
        return 0, self._whole(name)

    def _whole(self, name: str) -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as scratch, self._fetched(name, scratch).open("rb") as stream:
            yield from _blocks(stream)

    def _fetched(self, name: str, folder: str) -> Path:
        return Path(self._repository.download_artifacts(name, folder))


class _ServerSource(_RepositorySource):
    """Artifacts through an MLflow server, which sends those on its own disk from any byte and others whole."""

    def open(self, name: str, start: int) -> tuple[int, Iterator[bytes]]:
        answer = self._ask(name, {"Range": f"bytes={start}-"} if start else {})
        if answer.status_code == RANGE_NOT_SATISFIABLE:
            answer = self._ask(name, {})
        answer.raise_for_status()
        return (start if answer.status_code == PARTIAL_CONTENT else 0), answer.iter_content(BLOCK_BYTES)

    def _ask(self, name: str, headers: Mapping[str, str]) -> Any:
        return ask_artifact_server(self._repository, name, dict(headers))


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block
