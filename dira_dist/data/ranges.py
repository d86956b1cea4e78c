"""One object of a bucket as a stream that outlives its connections.

The object is asked for in ranges. A body that breaks is continued from the byte where it broke, with ``If-Match`` on
the ETag of the first answer, so that what comes out is one version of the object, whole, or an error.
"""

import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dira_dist.data.retry import ChangedObjectError, Retrier, RetryPolicy, StoreError, status_of

RANGE_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20

GetRange = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class ObjectRange:
    """What is read of an object, and which version of it.

    Attributes:
        etag: the version that is meant, where known; another one raises :class:`ChangedObjectError`.
        size: the length that is meant, where known; another one raises :class:`ChangedObjectError`.
        start: first byte that is read.
        cancelled: when set (from another thread), ends any waiting with :class:`StoreError`.
        first_bytes: how much to ask a bucket for at first; a header costs no more of its object than that.
    """

    etag: str = ""
    size: int | None = None
    start: int = 0
    cancelled: threading.Event | None = None
    first_bytes: int | None = None


WHOLE = ObjectRange()


class RangeReader(io.RawIOBase):
    """Reads an object forward, one range after the other; holds one range of :data:`RANGE_BYTES` at most.

    Args:
        get: asks for a range; takes ``Range`` and ``IfMatch`` as S3's GetObject does, and answers as boto3 does.
        name: of the object, for messages.
        retry: how long failures are retried.
        meant: what is read of it.
    """

    def __init__(
        self,
        get: GetRange,
        name: str,
        retry: RetryPolicy,
        meant: ObjectRange = WHOLE,
    ) -> None:
        self._get, self._name, self._policy = get, name, retry
        self._etag, self._size = meant.etag or None, meant.size
        self._cancelled = meant.cancelled
        self._position, self._next_bytes = meant.start, meant.first_bytes or RANGE_BYTES
        self._range = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._range:
            self._range = memoryview(self._next_range())
        count = min(len(buffer), len(self._range))
        buffer[:count] = self._range[:count]
        self._range = self._range[count:]
        return count

    def _next_range(self) -> bytes:
        """The next range of the object, fewer bytes at its end, none behind it."""
        data, range_bytes = bytearray(), self._next_bytes
        self._next_bytes = RANGE_BYTES
        retrier = Retrier(f"read {self._name}", self._policy, self._cancelled)
        while len(data) < range_bytes and not (self._size is not None and self._position >= self._size):
            before = len(data)
            try:
                self._read_on(data, range_bytes - before)
            except Exception as error:
                if len(data) > before:
                    retrier.progress()
                retrier.wait(error)
        return bytes(data)

    def _read_on(self, data: bytearray, count: int) -> None:
        """Appends up to ``count`` bytes from the present position; what came before a break is kept."""
        stop = self._position + count - 1 if self._size is None else min(self._position + count, self._size) - 1
        answer = self._request(stop)
        if answer is None:
            return
        wanted = min(count, _total_bytes(answer, self._name) - self._position)
        body = answer["Body"]
        try:
            while wanted > 0:
                piece = body.read(min(wanted, _PIECE_BYTES))
                if not piece:
                    raise ConnectionError(f"the body ended {wanted} bytes short")
                data += piece
                self._position += len(piece)
                wanted -= len(piece)
        finally:
            body.close()

    def _request(self, stop: int) -> Mapping[str, Any] | None:
        request: dict[str, Any] = {"Range": f"bytes={self._position}-{stop}"}
        if self._etag:
            request["IfMatch"] = f'"{self._etag}"'
        try:
            answer = self._get(request)
        except Exception as error:
            if status_of(error) != 416 or self._size is not None:
                raise
            self._size = self._position  # nothing stands behind the start: an empty object, or a start at its end
            return None
        self._check_version(answer)
        return answer

    def _check_version(self, answer: Mapping[str, Any]) -> None:
        etag, total = answer["ETag"].strip('"'), _total_bytes(answer, self._name)
        if self._etag is not None and etag != self._etag:
            raise ChangedObjectError(f"{self._name} has changed: its ETag is {etag} where {self._etag} was meant")
        if self._size is not None and total != self._size:
            raise ChangedObjectError(f"{self._name} has {total} bytes where {self._size} were meant")
        self._etag, self._size = etag, total


def _total_bytes(answer: Mapping[str, Any], name: str) -> int:
    """Length of the whole object, from ``Content-Range: bytes 0-7/123``."""
    total = answer.get("ContentRange", "").rpartition("/")[2]
    if not total.isdigit():
        raise StoreError(f"{name}: the endpoint does not serve byte ranges")
    return int(total)
