"""The samples of one item, held until all of them are made: an item is in the set whole or not at all."""

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from dira_dist.data.shards import Sample

_IN_MEMORY_BYTES = 64 << 20


class Spool:
    """Samples in the order in which they were made: one stays in memory, many go to a file of the temporary folder."""

    def __init__(self, first: Sample | None, rest: IO[bytes] | None, count: int) -> None:
        self._first, self._rest, self._count = first, rest, count

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest is not None:
            self._rest.close()

    def __iter__(self) -> Iterator[Sample]:
        if self._first is not None:
            yield self._first
        if self._rest is not None:
            self._rest.seek(0)
            for _ in range(self._count):
                sample: Any = pickle.load(self._rest)  # written by this process a moment ago
                yield sample


def whole(samples: Iterable[Sample]) -> Spool:
    """All of ``samples``; what making them raises is raised here, before the first is handed on."""
    making = iter(samples)
    first = next(making, None)
    rest: IO[bytes] | None = None
    count = 0
    try:
        for count, sample in enumerate(making, start=1):  # noqa: B007  # counted
            if rest is None:
                rest = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # closed by the spool
            pickle.dump(sample, rest)
    except BaseException:
        if rest is not None:
            rest.close()
        raise
    return Spool(first, rest, count)
