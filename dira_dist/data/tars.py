"""One shard read: WebDataset's pipeline over a plain tar, with stages of our own that hold it against the index.

A tar that ends at the boundary of two members ends without an error in Python's tarfile, and a compressed or sparse one
may grow without bound as it is read. So every member's header is looked at before its content is read, and the last
sample is handed on only when bytes and samples are those of the index.
"""

import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from dira_dist.data.retry import StoreError
from dira_dist.data.shards import ShardInfo

_PIECE_BYTES = 1 << 20
# Lanes begin to read in several threads at once, and modules that import one another in two threads may find themselves
# in a deadlock, which Python ends with an error in one of them.
_IMPORTING = threading.Lock()
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"


def checked_samples(source: "PlainTar", shard: ShardInfo) -> Iterator[dict[str, Any]]:
    """WebDataset's samples of a shard, in order.

    Raises:
        ValueError, tarfile.TarError, ...: it is damaged, no plain tar, or has other bytes or samples than indexed.
        StoreError: it could not be read.
    """
    return _pipeline(source, shard, partial(_held_against_index, source, shard))


def unchecked_samples(source: "PlainTar", shard: ShardInfo) -> Iterator[dict[str, Any]]:
    """The same, however many there are."""
    return _pipeline(source, shard)


def _pipeline(source: "PlainTar", shard: ShardInfo, *stages: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    with _IMPORTING:
        from webdataset.pipeline import DataPipeline
        from webdataset.tariterators import group_by_keys, tar_file_expander

    opened = [{"url": shard.name, "stream": source}]
    try:
        yield from DataPipeline(lambda: iter(opened), tar_file_expander, group_by_keys, *stages)
    except StoreError as error:
        raise type(error)(first_argument(error)) from error.__cause__


def first_argument(error: Exception) -> str:
    """An error's message. WebDataset appends its streams to the arguments, which could not go to another process."""
    return str(error.args[0]).partition(" @ <")[0] if error.args else ""


def _held_against_index(
    source: "PlainTar", shard: ShardInfo, samples: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A stage: passes samples on, the last one only when bytes and samples are those of the index."""
    count = 0
    for sample in samples:
        count += 1
        if count == shard.samples_in_tar:
            count += sum(1 for _ in samples)
            source.drain()
            _check_ended(shard, count, source.bytes)
        yield sample
    _check_ended(shard, count, source.bytes)


def _check_ended(shard: ShardInfo, samples: int, size: int) -> None:
    if samples != shard.samples_in_tar or size != shard.bytes:
        raise ValueError(
            f"it ended with {samples} samples in {size} bytes, the index says {shard.samples_in_tar} in {shard.bytes}"
        )


class PlainTar:
    """The bytes of a tar on their way to its parser: counted, and each member's header looked at in passing.

    Args:
        source: read forward.
        most_bytes: of a member.
        observe: is shown all bytes.

    Attributes:
        bytes: read so far.
    """

    def __init__(
        self, source: BinaryIO, most_bytes: int, observe: Callable[[bytes], object] = lambda data: None
    ) -> None:
        self._source, self._most_bytes, self._observe = source, most_bytes, observe
        self.bytes = 0
        self._header = bytearray()
        self._content_bytes = 0  # left of the present member, with its padding
        self._is_looking = True

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes.

        Raises:
            ValueError: the tar is compressed, or has a member that is no plain file or larger than it can be.
        """
        data = self._source.read(size)
        self._observe(data)
        if self.bytes == 0 and data.startswith((_GZIP, _BZIP2, _XZ)):
            self._is_looking = False
            self.bytes += len(data)
            raise ValueError("it is compressed, and a shard is a plain tar; shard the images again")
        self.bytes += len(data)
        place = 0
        while self._is_looking and place < len(data):
            place += self._pass_content(len(data) - place) or self._pass_header(data, place)
        return data

    def drain(self) -> None:
        """Reads what is left, such as what stands behind the end mark."""
        self._is_looking = False
        while self.read(_PIECE_BYTES):
            pass

    def _pass_content(self, most: int) -> int:
        passed = min(self._content_bytes, most)
        self._content_bytes -= passed
        return passed

    def _pass_header(self, data: bytes, place: int) -> int:
        piece = data[place : place + tarfile.BLOCKSIZE - len(self._header)]
        self._header += piece
        if len(self._header) == tarfile.BLOCKSIZE:
            self._look_at(bytes(self._header))
            self._header.clear()
        return len(piece)

    def _look_at(self, header: bytes) -> None:
        size = content_bytes(header, self._most_bytes)
        if size is None:
            self._is_looking = False
        else:
            self._content_bytes = padded(size)


def padded(size: int) -> int:
    """What a content of ``size`` bytes takes in a tar: whole blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def content_bytes(header: bytes, most_bytes: int) -> int | None:
    """Size of the member that a header announces; none for the mark of the tar's end.

    Raises:
        ValueError: it is no plain file, or larger than it can be.
    """
    if not any(header):
        return None
    name = header[:100].rstrip(b"\0").decode(errors="replace")
    if header[156:157] not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ValueError(f"its member {name} is no plain file")
    try:
        size = int(header[124:136].rstrip(b"\0 "), 8)  # what is beyond octal digits is beyond 8 GiB
    except ValueError:
        size = -1
    if not 0 <= size <= most_bytes:
        raise ValueError(f"its member {name} has no size, or a larger one than the {most_bytes} bytes of all")
    return size
