"""Samples of a shard by where they lie in it: the walk that finds them, and the reading of a piece of a tar.

A shard of plain members can be entered wherever a member begins. The walk reads the headers and what it is asked for,
and passes over the rest; it groups members into samples as WebDataset does.
"""

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, Protocol

from dira_dist.data.splitmix import Int64s
from dira_dist.data.tars import content_bytes, padded

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")
_CHECKSUM = slice(148, 156)
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Places:
    """Where the samples of a set lie in their shards.

    Attributes:
        keys: of all N samples, in the order of the index.
        first_byte: ``(N,)`` of each in its shard: the header of its first member.
        end_byte: ``(N,)`` one behind its last.
    """

    keys: Sequence[str]
    first_byte: Int64s
    end_byte: Int64s


@dataclass
class FoundSample:
    """A sample that a walk came by.

    Attributes:
        key: its name in the shard.
        first_byte, end_byte: where it lies in what was walked.
        members: by extension; those that were passed over are empty.
    """

    key: str
    first_byte: int
    end_byte: int
    members: dict[str, bytes] = field(default_factory=dict)


class Source(Protocol):
    """Bytes that are read forward, or passed over."""

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""

    def skip(self, count: int) -> None:
        """Passes over bytes, the end too."""


class SeekingSource:
    """A file on a disk, or bytes in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._file.seek(count, 1)


class StreamSource:
    """An object in a bucket: what lies between is read and let go, or not asked for where it is worth a new request.

    Args:
        open_at: opens the object at a byte.
        worth_bytes: how much is not read for the price of a request.
    """

    def __init__(self, open_at: Callable[[int], BinaryIO], worth_bytes: int) -> None:
        self._open_at, self._worth_bytes = open_at, worth_bytes
        self._file, self._place = open_at(0), 0

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._place += len(data)
        return data

    def skip(self, count: int) -> None:
        if count > self._worth_bytes:
            self.close()
            self._place += count
            self._file = self._open_at(self._place)
            return
        while count and (data := self.read(min(count, _PIECE_BYTES))):
            count -= len(data)

    def close(self) -> None:
        """Closes what is open."""
        self._file.close()


def walk(source: Source, size: int, wanted: Callable[[str], bool]) -> Iterator[FoundSample]:
    """The samples of a tar, or of a piece of one that begins at a header and ends with a member.

    Args:
        source: at the beginning.
        size: bytes of it.
        wanted: whether the content of members of an extension is read.

    Raises:
        ValueError: it is cut short or damaged, or has a member that is no plain file, or twice the same.
    """
    sample: FoundSample | None = None
    for member in _members(source, size, wanted):
        if sample is None or sample.key != member.key:
            if sample is not None:
                yield sample
            sample = FoundSample(member.key, member.first_byte, member.end_byte)
        if member.extension in sample.members:
            raise ValueError(f"{member.key}.{member.extension} stands in it twice")
        sample.members[member.extension] = member.data
        sample.end_byte = member.end_byte
    if sample is not None:
        yield sample


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    extension: str
    first_byte: int
    end_byte: int
    data: bytes


def _members(source: Source, size: int, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    """Those that belong to samples."""
    place = 0
    while header := _header(source):
        content = content_bytes(header, size)
        assert content is not None, "the mark of the end is no header"
        first, place = place, place + tarfile.BLOCKSIZE + padded(content)
        if place > size:
            raise ValueError(f"it ends within its member {_name_in(header)}")
        key, extension = _sample_of(_name_in(header))
        data = _content(source, content, bool(key) and wanted(extension))
        if key:
            yield _Member(key, extension, first, place, data)


def _header(source: Source) -> bytes:
    """The next header, none at the end.

    Raises:
        ValueError: what stands there is none.
    """
    header = source.read(tarfile.BLOCKSIZE)
    if not header or not any(header):
        return b""
    if len(header) < tarfile.BLOCKSIZE:
        raise ValueError("it is cut short")
    digits = header[_CHECKSUM].strip(b"\0 ")
    if not digits.isdigit() or int(digits, 8) != sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" "):
        raise ValueError("a header of a member has a wrong checksum, or stands elsewhere")
    return header


def _content(source: Source, size: int, is_wanted: bool) -> bytes:
    if not is_wanted:
        source.skip(padded(size))
        return b""
    data = source.read(padded(size))
    if len(data) < padded(size):
        raise ValueError("it is cut short")
    return data[:size]


def _name_in(header: bytes) -> str:
    name, prefix = (
        part.split(b"\0", 1)[0].decode(errors="surrogateescape") for part in (header[:100], header[345:500])
    )
    return f"{prefix}/{name}" if prefix else name


def _sample_of(name: str) -> tuple[str, str]:
    """Key and extension of a member; empty for one that belongs to no sample."""
    found = None if _NO_SAMPLE.match(name) else _NAME.fullmatch(name)
    return (found[1], found[2].lower()) if found else ("", "")


def take_apart(piece: bytes) -> list[FoundSample]:
    """The samples of a piece of a tar, whole.

    Raises:
        ValueError: it is damaged, or begins or ends within a sample's member.
    """
    return list(walk(SeekingSource(BytesIO(piece)), len(piece), lambda extension: True))
