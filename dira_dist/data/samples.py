"""What the samples of a set say of themselves, without their pixels: read in one pass, remembered by the set's digest.

The pass goes over the headers of a shard's members and their JSON. In a folder the images are not read at all; of an
object in a bucket an image is passed over unread where it is larger than what is worth a request of its own.
"""

import gzip
import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from dira_dist.config import RequestError
from dira_dist.data.decode import Box, CorruptSampleError, boxes_in, read_metadata
from dira_dist.data.lanes import ReadOptions, ShardError, ShardSet
from dira_dist.data.pieces import FoundSample, Places, SeekingSource, Source, StreamSource, walk
from dira_dist.data.ranges import RANGE_BYTES
from dira_dist.data.shards import ImageInfo, ShardInfo, ShardSetIndex, spacing_of
from dira_dist.data.splitmix import Int64s
from dira_dist.data.store import LocalStore, StoreError

log = logging.getLogger(__name__)

Scalar = str | int | float | bool
Progress = Callable[[int, int], object]

_FOLDER_THREADS, _BUCKET_THREADS = 2, 8  # a disk answers at once, and more would only wait for each other
_FIRST_BYTES = 1 << 16
_MASKS = ("mask.png", "mask.npy")


@dataclass(frozen=True)
class SampleTable:
    """The samples of a set, in the order of its index.

    Attributes:
        keys: of the N samples in their shards.
        labels: by name, as far as known.
        split_groups: whom each is of, as its shard says it; empty where it does not.
        columns: what ``shard --keep-columns`` carried, by the column's name.
        has_mask: ``(N,)`` bool.
        boxes: of each, as its shard says them, in pixels of its image; empty where that cannot be read.
        spacing_mm: along each axis of a decoded sample, images (H, W), volumes (x, y, z); none where it is not known.
        first_byte, end_byte: ``(N,)`` where each lies in its shard, see :class:`~dira_dist.data.pieces.Places`.
    """

    keys: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    split_groups: tuple[str, ...]
    columns: tuple[Mapping[str, Scalar], ...]
    has_mask: npt.NDArray[np.bool_]
    boxes: tuple[tuple[Box, ...], ...]
    spacing_mm: tuple[tuple[float, ...] | None, ...]
    first_byte: Int64s
    end_byte: Int64s

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Whom each sample is of, such as its patient; a sample of nobody known is a group of its own."""
        return tuple(group or key for group, key in zip(self.split_groups, self.keys, strict=True))

    @property
    def has_groups(self) -> bool:
        """Whether any sample names its group."""
        return any(self.split_groups)

    @property
    def places(self) -> Places:
        """Where the samples lie, for streams that read some of them."""
        return Places(self.keys, self.first_byte, self.end_byte)


def read_samples(
    address: str, index: ShardSetIndex, options: ReadOptions | None = None, progress: Progress | None = None
) -> SampleTable:
    """What the samples of a set say of themselves; read once on a machine, then from a file in the user's cache folder.

    Args:
        address: of the set.
        index: of the set.
        options: how it is read.
        progress: called with the samples done and all samples, after each shard.

    Raises:
        RequestError: samples were withdrawn since this generation, so that nothing can be said of them.
        ShardError: a shard is damaged, has other samples than the index says, or a key stands twice in the set.
        StoreError: a shard could not be read; ChangedObjectError where it has changed since it was indexed.
    """
    if index.withdrawn_since:
        raise RequestError(
            f"{address}: {index.withdrawn_since} samples were withdrawn since generation {index.number}, and their "
            "labels are not read: what was drawn with them cannot be drawn again. Start a run under another name, on "
            "the newest generation."
        )
    file = _cache_file(index)
    rows = _remembered(file, index)
    if rows is None:
        rows = _read(ShardSet(address, index, options), progress)
        _remember(file, rows)
    return rows.table()


# ------------------------------------------------------------------------ one pass over the set


@dataclass(frozen=True)
class _Rows:
    """A table as it lies in the cache; a list for each column."""

    version: Literal[3]
    digest: str
    keys: list[str]
    labels: list[dict[str, Any]]
    split_groups: list[str]
    columns: list[dict[str, Scalar]]
    has_mask: list[bool]
    boxes: list[list[dict[str, Any]]]
    spacing_mm: list[tuple[float, ...] | None]
    first_byte: list[int]
    end_byte: list[int]

    def table(self) -> SampleTable:
        return SampleTable(
            keys=tuple(self.keys),
            labels=tuple(self.labels),
            split_groups=tuple(self.split_groups),
            columns=tuple(self.columns),
            has_mask=np.array(self.has_mask, dtype=bool),
            boxes=tuple(map(tuple, self.boxes)),
            spacing_mm=tuple(self.spacing_mm),
            first_byte=np.array(self.first_byte, dtype=np.int64),
            end_byte=np.array(self.end_byte, dtype=np.int64),
        )

    def add(self, sample: FoundSample, image: ImageInfo) -> None:
        """A sample at the end; one whose metadata is damaged says nothing, and is named when it is decoded."""
        try:
            metadata = read_metadata(sample.members.get("json", b"{}"))
        except CorruptSampleError:
            metadata = {}
        columns = metadata.get("columns")
        self.keys.append(sample.key)
        self.labels.append(metadata.get("labels", {}))
        self.split_groups.append(metadata.get("split_group", ""))
        self.columns.append(_scalars(columns) if isinstance(columns, dict) else {})
        self.has_mask.append(any(name in sample.members for name in _MASKS))
        self.boxes.append(_boxes(metadata))
        self.spacing_mm.append(_spacing(metadata, image))
        self.first_byte.append(sample.first_byte)
        self.end_byte.append(sample.end_byte)

    def __len__(self) -> int:
        return len(self.keys)

    def extend(self, other: "_Rows") -> None:
        """Other rows at the end."""
        for name, column in vars(self).items():
            if isinstance(column, list):
                column.extend(vars(other)[name])


def _no_rows(digest: str) -> _Rows:
    return _Rows(3, digest, [], [], [], [], [], [], [], [], [])


def _scalars(columns: Mapping[str, Any]) -> dict[str, Scalar]:
    return {name: value for name, value in columns.items() if isinstance(value, str | int | float | bool)}


def _boxes(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        return [dict(box) for box in boxes_in(metadata)]
    except CorruptSampleError:
        return []


def _spacing(metadata: Mapping[str, Any], image: ImageInfo) -> tuple[float, ...] | None:
    try:
        return image.decoded(spacing_of(metadata)) or None
    except (TypeError, ValueError):
        return None


def _read(shards: ShardSet, progress: Progress | None) -> _Rows:
    """All shards, several at once; their rows in the order of the index."""
    infos, cancelled = shards.index.shards, threading.Event()
    threads = _FOLDER_THREADS if isinstance(shards.store, LocalStore) else _BUCKET_THREADS
    with ThreadPoolExecutor(min(threads, len(infos)), "read-samples") as pool:
        try:
            parts = [pool.submit(_rows_of, shards, number, cancelled) for number in range(len(infos))]
            done = 0
            for part in as_completed(parts):
                done += len(part.result())
                if progress is not None:
                    progress(done, shards.index.samples)
        except BaseException:
            cancelled.set()
            pool.shutdown(cancel_futures=True)
            raise
    rows = _no_rows(shards.index.digest)
    for part in parts:
        rows.extend(part.result())
    _check_keys(shards.address, rows)
    return rows


def _check_keys(address: str, rows: _Rows) -> None:
    key, count = Counter(rows.keys).most_common(1)[0]
    if count > 1:
        raise ShardError(f"{address}: the key {key} stands in it {count} times; make the set again.")


def _rows_of(shards: ShardSet, number: int, cancelled: threading.Event) -> _Rows:
    shard = shards.index.shards[number]
    rows = _no_rows(shards.index.digest)
    try:
        passed_over = set(shard.withdrawn or ())
        for place, sample in enumerate(_walk(shards, shard, cancelled)):
            if place not in passed_over:
                rows.add(sample, shards.index.image)
            if cancelled.is_set():
                raise StoreError(f"reading {shards.address} was cancelled")
        if len(rows) != shard.samples:
            raise ValueError(f"it holds {len(rows)} samples, the index says {shard.samples}")
    except ValueError as error:
        raise ShardError(f"{shards.store.join(shard.name)} is damaged: {error}") from error
    return rows


def _walk(shards: ShardSet, shard: ShardInfo, cancelled: threading.Event) -> Iterator[FoundSample]:
    """The samples of a shard, of whose members JSON alone is read."""

    def is_json(extension: str) -> bool:
        return extension == "json"

    file = shards.open(shard, cancelled)
    if file.seekable():
        with file:
            source: Source = SeekingSource(file)
            yield from walk(source, shard.bytes, is_json)
        return
    file.close()
    stream = StreamSource(partial(shards.open, shard, cancelled, first_bytes=_FIRST_BYTES), RANGE_BYTES)
    with closing(stream):
        yield from walk(stream, shard.bytes, is_json)


# ------------------------------------------------------------------------------- the cache


_SCHEMA = TypeAdapter(_Rows)


def _cache_file(index: ShardSetIndex) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "dira_dist" / "samples" / f"{index.digest}.json.gz"


def forget_samples(index: ShardSetIndex) -> None:
    """Deletes what this machine remembers of the samples of a set."""
    _cache_file(index).unlink(missing_ok=True)


def _remembered(file: Path, index: ShardSetIndex) -> _Rows | None:
    """What an earlier call has read; none where there was none, or what it left is damaged or of another version."""
    try:
        rows = _SCHEMA.validate_json(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, zlib.error, ValidationError):
        return None
    lengths = {len(column) for column in vars(rows).values() if isinstance(column, list)}
    return rows if rows.digest == index.digest and lengths == {index.samples} else None


def _remember(file: Path, rows: _Rows) -> None:
    """Writes the file whole or not at all; a disk that is full or not ours costs the next call its time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        LocalStore(str(file.parent)).write_bytes(file.name, gzip.compress(_SCHEMA.dump_json(rows), 1, mtime=0))
    except OSError as error:
        log.warning("%s could not be written (%s); the samples of this set are read anew next time", file, error)
