"""From shards to encoded samples, lane by lane, block by block.

The index holds no offsets of samples, only counts: a lane that starts inside a shard reads from the shard's beginning
and lets go what it does not need, undecoded. That costs at most one shard per lane, at a start and at a resume alike.
Where the places of the samples are known, such as for a list of samples, each run of neighbours is read by its range.
"""

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Protocol

import numpy as np

from dira_dist.config import RequestError
from dira_dist.data.cache import CacheConfig, ShardCache
from dira_dist.data.decode import SAMPLE_BUDGET_PX, Decoder, EncodedSample
from dira_dist.data.generations import plain_address
from dira_dist.data.order import SampleOrder, Span, check_set_size, choose_lanes
from dira_dist.data.pieces import FoundSample, Places, take_apart
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.shards import ShardInfo, ShardSetIndex
from dira_dist.data.store import RetryPolicy, S3Store, StoreError, open_store
from dira_dist.data.tars import PlainTar, checked_samples, first_argument


class ShardError(RuntimeError):
    """A shard is not what the index says."""


def check_set(
    address: str, index: ShardSetIndex, *, global_batch: int = 1, lanes: int | None = None, workers: int = 1
) -> None:
    """Refuses a shard set that cannot be streamed. Needs the index alone.

    Raises:
        RequestError: with the numbers and the remedy.
    """
    if index.image.dtype is None:
        raise RequestError(
            f"{address} holds volumes or planes, and its index does not say of what type their values are; "
            "shard them again with this version."
        )
    try:
        check_set_size(
            index.samples, global_batch=global_batch, lanes=lanes or choose_lanes([global_batch]), workers=workers
        )
    except RequestError as error:
        raise RequestError(f"{address}: {error}") from None


@dataclass(frozen=True)
class ReadOptions:
    """How a set is read; none of it changes which samples come, or when.

    Attributes:
        loader_workers: processes that read and decode; 0: threads of this one.
        bad_sample_budget: different corrupt samples that may be met.
        storage_timeout_s: seconds of trouble with the storage, without a byte of progress, before a read fails.
        cache: disk cache for sets in a bucket; a set in a folder needs none.
        sample_budget_px: see :class:`~dira_dist.data.decode.Decoder`.
        annotations: whether masks and boxes are decoded too.
    """

    loader_workers: int = 0
    bad_sample_budget: int = 100
    storage_timeout_s: float = 300.0
    cache: CacheConfig | None = None
    sample_budget_px: int = SAMPLE_BUDGET_PX
    annotations: bool = False


class ShardSet:
    """The shards of an index, wherever they lie; without open connections, so it may go to another process.

    Args:
        address: of the set.
        index: of the set.
        options: how it is read.
        places: of its samples, where they are known.
    """

    def __init__(
        self, address: str, index: ShardSetIndex, options: ReadOptions | None = None, places: Places | None = None
    ) -> None:
        options = options or ReadOptions()
        cache, timeout_s = options.cache, options.storage_timeout_s
        self.address, self.index, self._places = address, index, places
        self.decoder = Decoder(index.image, options.sample_budget_px, options.annotations)
        counts = np.array([shard.samples for shard in index.shards], dtype=np.int64)
        self._starts = np.cumsum(counts) - counts
        # a silent connection is given up well before the time is over, so that there is another try
        timeouts_s = {"connect_timeout_s": min(10.0, timeout_s / 4), "read_timeout_s": min(30.0, timeout_s / 4)}
        self.store = open_store(plain_address(address), RetryPolicy(timeout_s=timeout_s, **timeouts_s))
        self._cache = ShardCache(cache) if cache and isinstance(self.store, S3Store) else None

    def spans_of(self, ids: range) -> Iterator[Span]:
        """Where samples with neighbouring ids lie, in order."""
        start = ids.start
        while start < ids.stop:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = self.first_id(number)
            stop = min(ids.stop, first + self.index.shards[number].samples)
            yield Span(number, start - first, stop - first)
            start = stop

    def first_id(self, number: int) -> int:
        """Id of the first sample of a shard: the samples of the shards before it in the index."""
        return int(self._starts[number])

    def open(
        self, shard: ShardInfo, cancelled: threading.Event, start: int = 0, first_bytes: int | None = None
    ) -> BinaryIO:
        """A reader of one shard, from the cache where there is one with room for it.

        Args:
            shard: which one.
            cancelled: when set, ends any waiting.
            start: first byte that is read.
            first_bytes: how much to ask a bucket for at first.
        """
        file = self._cache.open(self.store, shard, cancelled) if self._cache else None
        if file is None:
            return self.store.open(shard.name, ObjectRange(shard.etag, shard.bytes, start, cancelled, first_bytes))
        file.seek(start)
        return file

    @property
    def has_cache(self) -> bool:
        """Whether shards are kept on this node's disk."""
        return self._cache is not None

    def fetch_ahead(self, number: int, pool: ThreadPoolExecutor, cancelled: threading.Event) -> None:
        """Brings a shard to the disk cache before it is opened."""
        shard = self.index.shards[number]
        if len(shard.gone) < shard.samples:
            pool.submit(lambda: self.open(shard, cancelled).close())

    def members_of(self, number: int, cancelled: threading.Event) -> Iterator[dict[str, Any] | None]:
        """WebDataset's samples of a shard, in order; None in the place of one withdrawn since its generation.

        Raises:
            ShardError: it is damaged, or has other bytes or samples than the index says.
            StoreError: it could not be read; ChangedObjectError where it has changed since it was indexed.
        """
        shard = self.index.shards[number]
        if not shard.withdrawn and not shard.gone:
            yield from self._members_in(shard, cancelled)
            return
        gone, passed_over = set(shard.gone), set(shard.withdrawn or ())
        in_tar = enumerate(self._members_in(shard, cancelled))
        left = (members for place, members in in_tar if place not in passed_over)
        for place in range(shard.samples):
            yield None if place in gone else next(left)

    def _members_in(self, shard: ShardInfo, cancelled: threading.Event) -> Iterator[dict[str, Any]]:
        with self.open(shard, cancelled) as file:
            try:
                yield from checked_samples(PlainTar(file, shard.bytes), shard)
            except StoreError:
                raise
            except Exception as error:  # a damaged tar shows in many ways, in tarfile and in WebDataset
                reason = f"{type(error).__name__}: {first_argument(error)}"
                raise ShardError(f"{self.store.join(shard.name)} is damaged: {reason}") from error

    def reader(self, cancelled: threading.Event) -> "SpanReader":
        """What reads runs of samples: by their places where those are known, else through the shard."""
        return PieceReader(self, self._places, cancelled) if self._places else StreamReader(self, cancelled)


class SpanReader(Protocol):
    """Reads runs of samples in turn. Used by one thread at a time."""

    def read(self, span: Span) -> list[EncodedSample]:
        """The samples of one span, encoded.

        Raises:
            ShardError: the shard is not what the index says.
            StoreError: it could not be read; ChangedObjectError where it has changed since it was indexed.
        """

    def close(self) -> None:
        """Closes the open shard."""


class StreamReader:
    """Reads shards from their beginnings; a run behind the last one in its shard goes on in the open stream."""

    def __init__(self, shards: ShardSet, cancelled: threading.Event) -> None:
        self._shards, self._cancelled = shards, cancelled
        self._samples: Iterator[dict[str, Any] | None] | None = None
        self._shard, self._next = -1, 0

    def read(self, span: Span) -> list[EncodedSample]:
        """The samples of one span, encoded."""
        if self._samples is None or self._shard != span.shard or self._next > span.start:
            self._open(span.shard)
        while self._next < span.start:
            self._take()
        return [self._take() for _ in range(len(span))]

    def _open(self, shard: int) -> None:
        self.close()
        self._samples = iter(self._shards.members_of(shard, self._cancelled))
        self._shard, self._next = shard, 0

    def _take(self) -> EncodedSample:
        assert self._samples is not None
        if self._cancelled.is_set():
            raise StoreError(f"reading {self._shards.address} was cancelled")
        found = next(self._samples)
        sample_id = self._shards.first_id(self._shard) + self._next
        self._next += 1
        if found is None:
            return EncodedSample(sample_id, "", {}, is_withdrawn=True)
        key = found.pop("__key__")
        return EncodedSample(sample_id, key, {name: data for name, data in found.items() if name[:2] != "__"})

    def close(self) -> None:
        """Closes the open shard."""
        if isinstance(self._samples, Generator):
            self._samples.close()
        self._samples = None


class PieceReader:
    """Reads each run by the range of its shard in which it lies."""

    def __init__(self, shards: ShardSet, places: Places, cancelled: threading.Event) -> None:
        self._shards, self._places, self._cancelled = shards, places, cancelled
        self._shard = -1
        self._file: BinaryIO | None = None

    def read(self, span: Span) -> list[EncodedSample]:
        """The samples of one span, encoded."""
        first = self._shards.first_id(span.shard) + span.start
        ids = range(first, first + len(span))
        shard = self._shards.index.shards[span.shard]
        try:
            found = [sample for run in self._runs(ids) for sample in take_apart(self._bytes(span.shard, run))]
            self._check_keys(found, ids)
        except ValueError as error:
            raise ShardError(
                f"{self._shards.store.join(shard.name)} is damaged, or not what it was when its samples were listed: "
                f"{error}"
            ) from error
        return [EncodedSample(number, sample.key, sample.members) for number, sample in zip(ids, found, strict=True)]

    def _runs(self, ids: range) -> Iterator[range]:
        """Samples that lie next to each other in the tar, too: what was withdrawn from between them is not read."""
        apart = self._places.first_byte[ids.start + 1 : ids.stop] != self._places.end_byte[ids.start : ids.stop - 1]
        starts = [ids.start, *(np.flatnonzero(apart) + ids.start + 1).tolist(), ids.stop]
        yield from (range(start, stop) for start, stop in pairwise(starts))

    def _bytes(self, number: int, ids: range) -> bytes:
        if self._cancelled.is_set():
            raise StoreError(f"reading {self._shards.address} was cancelled")
        start, end = int(self._places.first_byte[ids[0]]), int(self._places.end_byte[ids[-1]])
        file = self._at(number, start, end - start)
        data = file.read(end - start)
        if not file.seekable():
            self.close()
        return data

    def _at(self, number: int, start: int, size: int) -> BinaryIO:
        """The shard, open at a byte; a file on a disk stays open from run to run."""
        if self._file is None or self._shard != number:
            self.close()
            self._file = self._shards.open(self._shards.index.shards[number], self._cancelled, start, size)
            self._shard = number
        else:
            self._file.seek(start)
        return self._file

    def _check_keys(self, found: list[FoundSample], ids: range) -> None:
        keys = [sample.key for sample in found]
        meant = list(self._places.keys[ids.start : ids.stop])
        if keys != meant:
            raise ValueError(f"samples {', '.join(keys) or 'none'} stand where {', '.join(meant)} were")

    def close(self) -> None:
        """Closes the open shard."""
        if self._file is not None:
            self._file.close()
        self._file = None


@dataclass(frozen=True)
class EncodedBlock:
    """Shuffled rows of a lane.

    Attributes:
        epoch: which one.
        first_row: of the block, counted over all epochs.
        samples: one per row, then the spares.
        spares: how many of them only stand in for corrupt ones.
    """

    epoch: int
    first_row: int
    samples: tuple[EncodedSample, ...]
    spares: int = 0

    @property
    def stop_row(self) -> int:
        return self.first_row + len(self.samples) - self.spares


class LaneReader:
    """Reads the blocks of one lane. Used by one thread at a time.

    Args:
        shards: to read from.
        order: of the samples.
        lane: which one.
        pool: threads that bring the lane's next shard to the disk cache.
        cancelled: when set, ends all reading.
    """

    def __init__(
        self, shards: ShardSet, order: SampleOrder, lane: int, pool: ThreadPoolExecutor, cancelled: threading.Event
    ) -> None:
        self._shards, self._order, self._lane = shards, order, lane
        self._pool, self._cancelled = pool, cancelled
        self._spans = shards.reader(cancelled)
        self._ahead = -1

    def load(self, row: int) -> EncodedBlock:
        """The whole block of ``row``, also where the rows before it are not needed: replacements for a corrupt sample
        come from its block, and must not depend on where a run was resumed."""
        block = self._order.block(self._lane, row)
        if self._shards.has_cache:
            self._fetch_ahead(block.stop_row - 1)
        samples = [sample for span in block.spans for sample in self._spans.read(span)]
        rows = tuple(samples[place] for place in block.shuffle)
        return EncodedBlock(block.epoch, block.first_row, rows, block.spares)

    def _fetch_ahead(self, row: int) -> None:
        ahead = self._order.shard_after(self._lane, row)
        if ahead != self._ahead:
            self._ahead = ahead
            self._shards.fetch_ahead(ahead, self._pool, self._cancelled)

    def close(self) -> None:
        """Closes the open shard."""
        self._spans.close()


class LaneCursor:
    """Goes through the rows of a lane while the block after the present one is being read.

    Args:
        reader: of the lane.
        row: to begin with.
        pool: threads that read.
    """

    def __init__(self, reader: LaneReader, row: int, pool: ThreadPoolExecutor) -> None:
        self._reader, self._pool, self._row = reader, pool, row
        self._coming: Future[EncodedBlock] = pool.submit(reader.load, row)
        self._block: EncodedBlock | None = None

    def take(self) -> tuple[EncodedBlock, int]:
        """The next row: its block and its place there."""
        if self._block is None or self._row == self._block.stop_row:
            self._block = None  # released before the next one but one is read
            self._block = self._coming.result()
            self._coming = self._pool.submit(self._reader.load, self._block.stop_row)
        place = self._row - self._block.first_row
        self._row += 1
        return self._block, place
