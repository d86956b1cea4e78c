"""A folder as a store: the same keys and promises as a bucket, without the trouble."""

import fcntl
import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dira_dist.data.ranges import WHOLE, ObjectRange
from dira_dist.data.retry import ChangedObjectError, DeniedObjectError, MissingObjectError, StoreError

_PIECE_BYTES = 1 << 20
_FOLDER_TRIES = 100
_Walked = tuple[Path, list[str], list[str]]


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a store.

    Attributes:
        key: relative to the store's address.
        bytes: its size.
        etag: its version mark; empty in a folder, where nothing marks a version that a copy would keep.
        modified_ns: when it was written, in a folder; 0 in a bucket, where the ETag says more.
    """

    key: str
    bytes: int
    etag: str = ""
    modified_ns: int = field(default=0, compare=False)


class LocalStore:
    """A folder."""

    def __init__(self, folder: str, address: str | None = None) -> None:
        self._folder = Path(folder).expanduser()
        self._address = address or folder

    @property
    def address(self) -> str:
        return self._address

    def join(self, key: str) -> str:
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise StoreError(f"the key {key!r} leads out of {self._address}")
        return self._folder / key

    def read_bytes(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def write_bytes(self, key: str, data: bytes) -> str:
        return self._publish(key, io.BytesIO(data))

    def read_version(self, key: str) -> tuple[bytes, str]:
        data = self.read_bytes(key)
        return data, hashlib.sha256(data).hexdigest()

    def write_version(self, key: str, data: bytes, replaces: str | None) -> str:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            there = self.read_version(key)[1] if target.exists() else None
            if there != replaces:
                raise ChangedObjectError(f"{target} could not be written: it is not, or no longer, what it replaces")
            self.write_bytes(key, data)
        return hashlib.sha256(data).hexdigest()

    def upload(self, key: str, path: str | os.PathLike[str]) -> str:
        with Path(path).open("rb") as source:
            return self._publish(key, source)

    def _publish(self, key: str, source: BinaryIO) -> str:
        """Temporary file in the same folder, fsync, rename, fsync of the folder: a crash leaves old or new."""
        target = self._path(key)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with self._begun(temporary) as file:
                while piece := source.read(_PIECE_BYTES):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._remove_empty_above(target)
            raise StoreError(f"{target} could not be written: {error}") from error
        _sync_folder(target.parent)
        return ""

    def _begun(self, path: Path) -> BinaryIO:
        """A new file in a folder that somebody else may remove in this moment, for it was empty."""
        for _ in range(_FOLDER_TRIES):
            # mkdir says "exists", too, of a folder that is gone when it looks what exists there
            with suppress(FileNotFoundError, FileExistsError):
                return _new_file(path)
        return _new_file(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(path.relative_to(self._folder).as_posix() for path in self._files()):
            if key.startswith(prefix) and (info := self.stat(key)):
                yield info

    def _files(self) -> Iterator[Path]:
        """All files below the folder. A part of it that may not be read is an error, and not a part without files."""

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # a folder that is not there, or gone since, holds none
                raise StoreError(f"{error.filename} could not be listed: {error}") from error

        for folder, _, names in self._walk(refuse):
            yield from (path for name in names if not _is_temporary(path := folder / name))

    def _walk(self, refuse: Callable[[OSError], None] | None) -> Iterator[_Walked]:
        """Each folder, which of the folders in it are links back to one that it lies in, and the names of its files.

        Links to folders are followed, as an archive may lie on several disks.
        """
        root = Path(os.path.realpath(self._folder))
        for folder, folders, names in os.walk(self._folder, onerror=refuse, followlinks=True):
            path = Path(folder)
            behind_link = Path(os.path.realpath(path)) != root / path.relative_to(self._folder)
            links = [path / name for name in folders if behind_link or (path / name).is_symlink()]
            back = [link.name for link in links if _leads_back(link)]
            folders[:] = [name for name in folders if name not in back]
            yield path, back, names

    def dead_links(self) -> Iterator[tuple[str, str]]:
        """``(key, what it is)`` of links below the folder that lead nowhere, or back to a folder that they lie in."""
        for folder, back, names in self._walk(None):
            for name in back:
                yield (folder / name).relative_to(self._folder).as_posix(), "a link back to a folder that it lies in"
            for path in (folder / name for name in names):
                if path.is_symlink() and not path.exists():
                    yield path.relative_to(self._folder).as_posix(), "a link that leads nowhere"

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            if not path.is_file():
                return None
            found = path.stat()
            return ObjectInfo(key, found.st_size, modified_ns=found.st_mtime_ns)
        except PermissionError as error:
            raise DeniedObjectError(f"{path} could not be looked at: {error}") from error

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        self._remove_empty_above(path)

    def _remove_empty_above(self, path: Path) -> None:
        """A folder goes with the last object in it, as a prefix does in a bucket."""
        with suppress(OSError):
            for folder in path.relative_to(self._folder).parents[:-1]:
                (self._folder / folder).rmdir()

    def open(self, key: str, meant: ObjectRange = WHOLE) -> BinaryIO:
        path = self._path(key)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise MissingObjectError(f"there is no file {path}") from None
        except PermissionError as error:
            raise DeniedObjectError(f"{path} could not be opened: {error}") from error
        except OSError as error:
            raise StoreError(f"{path} could not be opened: {error}") from error
        found = os.fstat(file.fileno()).st_size
        if meant.size is not None and found != meant.size:
            file.close()
            raise ChangedObjectError(f"{path} has {found} bytes where {meant.size} were meant")
        file.seek(meant.start)
        return file


def _leads_back(path: Path) -> bool:
    target = os.path.realpath(path)
    return any(os.path.realpath(parent) == target for parent in path.parents)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


def _new_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process or thread at a time; the system lets go of the lock when its holder is killed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"{folder} could not be opened: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder} could not be locked: {error}") from error
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
