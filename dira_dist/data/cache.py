"""A bounded cache of shards on a node's disk, shared by its processes and safe against a crash of any of them.

A shard stands in the folder under a digest of its address and ETag::

    {digest}.tar     whole and checked; held with a shared lock by those who read it, so that it is not evicted then
    {digest}.part    being downloaded by the process that holds its exclusive lock; already as long as it will be,
                     so that it counts in full towards the bound
    bound.lock       held while room is made

Locks are ``flock``: the kernel drops them with their process, and a part that nobody holds is litter.
"""

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import Field

from dira_dist.config import Section
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.shards import ShardInfo
from dira_dist.data.store import Store, StoreError

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20
_POLL_S = 0.05


class CacheConfig(Section):
    """Shards kept on the disk of each node."""

    dir: str = Field(description="folder on a local disk; shared by the processes of a node")
    max_bytes: int = Field(ge=1, description="never holds more; the least recently used shards go first")


class ShardCache:
    """Opens shards from the disk, downloading those that are not there yet."""

    def __init__(self, config: CacheConfig) -> None:
        self._folder = Path(config.dir).expanduser()
        self._max_bytes = config.max_bytes
        self._has_warned = False

    def open(self, store: Store, shard: ShardInfo, cancelled: threading.Event) -> BinaryIO | None:
        """A reader of the whole shard; none where the cache has no room for it, or the disk fails.

        A shard that another thread or process is downloading is waited for.

        Raises:
            StoreError: the shard could not be downloaded, is another one than the index says, or was cancelled.
        """
        name = hashlib.sha256(f"{store.join(shard.name)}\n{shard.etag or shard.sha256}".encode()).hexdigest()
        entry, part = self._folder / f"{name}.tar", self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._open_or_fill(part, entry, store, shard, cancelled)
        except StoreError:
            raise
        except OSError as error:  # this node's disk is full, failing or not ours: the shard can be read without it
            self._warn(error)
            return None

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning("data.cache.dir: %s cannot be used (%s); shards are read without it", self._folder, error)
        self._has_warned = True

    def _open_or_fill(
        self, part: Path, entry: Path, store: Store, shard: ShardInfo, cancelled: threading.Event
    ) -> BinaryIO | None:
        while not cancelled.is_set():
            found = _open_entry(entry)
            if found is not None:
                return found
            claimed = _claim(part)
            if claimed is None:
                cancelled.wait(_POLL_S)
            elif entry.exists():  # finished by another between the two looks
                _discard(claimed, part)
            else:
                return self._fill(claimed, part, entry, store, shard, cancelled)
        raise StoreError(f"reading {store.join(shard.name)} was cancelled")

    def _fill(
        self, file: BinaryIO, part: Path, entry: Path, store: Store, shard: ShardInfo, cancelled: threading.Event
    ) -> BinaryIO | None:
        try:
            if not self._make_room(file, shard.bytes):
                _discard(file, part)
                return None
            _download(file, store, shard, cancelled)
            _mark_used(file)
            part.replace(entry)
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(0)
        except OSError:
            _discard(file, part)
            raise
        return file

    def _make_room(self, file: BinaryIO, size: int) -> bool:
        """Reserves ``size`` bytes for the part ``file``, evicting what is not in use; or says that there is no room."""
        with self._bound():
            os.ftruncate(file.fileno(), 0)
            used = self._sweep_parts()
            entries = sorted((_stamp_and_size(path), path) for path in self._folder.glob("*.tar"))
            used += sum(bytes_ for (_, bytes_), _ in entries)
            for (_, bytes_), path in entries:
                if used + size <= self._max_bytes:
                    break
                used -= bytes_ if _remove_unused(path) else 0
            if used + size > self._max_bytes:
                return False
            os.ftruncate(file.fileno(), size)
            return True

    def _sweep_parts(self) -> int:
        """Removes what crashed downloads left; returns the bytes of those under way."""
        # a part that is finished meanwhile is counted here or among the entries, or in both, but never in neither
        sizes = [(path, _stamp_and_size(path)[1]) for path in self._folder.glob("*.part")]
        return sum(size for path, size in sizes if not _remove_unused(path))

    @contextmanager
    def _bound(self) -> Iterator[None]:
        with (self._folder / "bound.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _download(file: BinaryIO, store: Store, shard: ShardInfo, cancelled: threading.Event) -> None:
    sha256 = hashlib.sha256()
    with store.open(shard.name, ObjectRange(shard.etag, shard.bytes, cancelled=cancelled)) as source:
        while piece := source.read(_PIECE_BYTES):
            sha256.update(piece)
            file.write(piece)
    if sha256.hexdigest() != shard.sha256:
        raise StoreError(f"{store.join(shard.name)} has the sha256 {sha256.hexdigest()}, the index says {shard.sha256}")
    file.flush()
    os.fsync(file.fileno())


def _open_entry(path: Path) -> BinaryIO | None:
    """Opens an entry under a shared lock, which keeps it from eviction; none where there is none (any more)."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    _mark_used(file)
    return file


def _stamp_and_size(path: Path) -> tuple[int, int]:
    """When a file was last used, and its bytes; zeros where it has just gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _mark_used(file: BinaryIO) -> None:
    now_ns = time.time_ns()  # the kernel's own stamps are too coarse to order two uses
    os.utime(file.fileno(), ns=(now_ns, now_ns))


def _claim(path: Path) -> BinaryIO | None:
    """Opens, or creates, a part under its exclusive lock; none where another holds it or has just removed it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    if _lock_now(file) and os.fstat(file.fileno()).st_nlink and path.exists():
        return cast(BinaryIO, file)
    file.close()
    return None


def _lock_now(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _discard(file: BinaryIO, path: Path) -> None:
    with file:
        path.unlink(missing_ok=True)


def _remove_unused(path: Path) -> bool:
    """Removes a file that nobody holds a lock on."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    with file:
        if not _lock_now(file):
            return False
        path.unlink(missing_ok=True)
    return True
