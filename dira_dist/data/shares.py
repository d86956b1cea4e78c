"""Where shares come from: threads that read and decode, in this process or in loader processes beside it."""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch.multiprocessing
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dira_dist.data.batch import BadSample, Row, Share, stack
from dira_dist.data.cores import usable_cores
from dira_dist.data.decode import CorruptSampleError, PixelMode, decode_sample
from dira_dist.data.lanes import EncodedBlock, LaneCursor, LaneReader, ShardError, ShardSet
from dira_dist.data.order import Order, part_of

_MOST_READ_THREADS = 8
_AHEAD_THREADS = 2
_MOST_DECODE_THREADS = 4
_PREFETCHED_SHARES = 2

Source = Callable[[threading.Event], Generator[Share, None, None]]


@dataclass(frozen=True)
class Reading:
    """What a run of lanes is read with; goes to loader processes as it is.

    Attributes:
        shards: the set.
        order: of its samples.
        start_sample: samples consumed so far, over all workers.
        global_batch: samples per step over all workers.
    """

    shards: ShardSet
    order: Order
    start_sample: int
    global_batch: int


def read_shares(
    reading: Reading, lanes: range, threads: int, cancelled: threading.Event
) -> Generator[Share, None, None]:
    """Endless shares of the global batches, restricted to ``lanes`` and listed lane by lane.

    Args:
        reading: what to read.
        lanes: to read.
        threads: that decode; 1 decodes in the caller's.
        cancelled: when set (from another thread), ends all reading with an error.
    """
    order, mode = reading.order, reading.shards.mode
    first_row, rows = reading.start_sample // order.lanes, reading.global_batch // order.lanes
    with _lane_cursors(reading, lanes, first_row, cancelled) as cursors, mapper(threads) as over:
        while True:
            slots = [cursor.take() for cursor in cursors for _ in range(rows)]
            yield stack(over(partial(_decode, mode), slots))


@contextmanager
def _lane_cursors(reading: Reading, lanes: range, row: int, cancelled: threading.Event) -> Iterator[list[LaneCursor]]:
    """A cursor per lane; on leaving, all reading has ended and all shards are closed."""
    pool = ThreadPoolExecutor(min(len(lanes), _MOST_READ_THREADS), "read-shards")
    ahead = ThreadPoolExecutor(_AHEAD_THREADS, "fetch-shards")
    readers = [LaneReader(reading.shards, reading.order, lane, ahead, cancelled) for lane in lanes]
    try:
        yield [LaneCursor(reader, row, pool) for reader in readers]
    finally:
        cancelled.set()
        for threads in (ahead, pool):
            threads.shutdown(cancel_futures=True)
        for reader in readers:
            reader.close()


@contextmanager
def mapper(threads: int) -> Iterator[Callable[[Callable[[Any], Row], list[Any]], list[Row]]]:
    """``map`` over a pool of threads, in order."""
    if threads == 1:
        yield lambda function, items: [function(item) for item in items]
        return
    with ThreadPoolExecutor(threads, "decode") as pool:
        yield lambda function, items: list(pool.map(function, items))


def decode_threads() -> int:
    """Threads that decode in a worker without loader processes."""
    return min(_MOST_DECODE_THREADS, usable_cores())


def _decode(mode: PixelMode, slot: tuple[EncodedBlock, int]) -> Row:
    """The row at a place of a block, or the next good one of its block in its stead.

    Raises:
        ShardError: no sample of the block can be decoded.
    """
    block, place = slot
    bad: list[BadSample] = []
    for step in range(len(block.samples)):
        sample = block.samples[(place + step) % len(block.samples)]
        try:
            decoded = decode_sample(sample.members, mode)
        except CorruptSampleError as error:
            bad.append(BadSample(sample.id, sample.key, str(error)))
        else:
            return Row(decoded.pixels, sample.id, block.epoch, sample.key, decoded.labels, tuple(bad), decoded.group)
    raise ShardError(
        f"{len(bad)} samples in a row are corrupt, and none is left in their place: {bad[0].key} ({bad[0].reason})"
    )


@contextmanager
def shares_here(make: Source) -> Iterator[Iterator[Share]]:
    """Runs a source in a thread, a few shares ahead. Leaving cancels it and ends the thread."""
    shares: queue.Queue[Share | BaseException] = queue.Queue(_PREFETCHED_SHARES)
    stopping = threading.Event()
    thread = threading.Thread(target=_produce, args=(make, shares, stopping), name="shares", daemon=True)
    thread.start()
    try:
        yield _consume(shares)
    finally:
        stopping.set()
        with suppress(queue.Empty):
            while True:  # the producer may be waiting for room
                shares.get_nowait()
        thread.join()
        shares.put(StopIteration())  # for a consumer in another thread, which may be waiting still


def _produce(make: Source, shares: "queue.Queue[Share | BaseException]", stopping: threading.Event) -> None:
    source = make(stopping)
    try:
        while not stopping.is_set():
            shares.put(next(source))
    except BaseException as error:  # whatever ended the thread is raised where its shares are taken
        shares.put(error)
    finally:
        source.close()


def _consume(shares: "queue.Queue[Share | BaseException]") -> Iterator[Share]:
    while True:
        found = shares.get()
        if isinstance(found, StopIteration):
            return
        if isinstance(found, BaseException):
            raise found
        yield found


class _LoaderDataset(IterableDataset[Share]):
    """The part of a worker's lanes that one loader process reads."""

    def __init__(self, reading: Reading, lanes: range) -> None:
        self._reading, self._lanes = reading, lanes
        # loader processes come from a server that may be older than the variables, credentials above all
        self._environment = dict(os.environ)

    def __iter__(self) -> Iterator[Share]:
        os.environ.update(self._environment)
        info = get_worker_info()
        assert info is not None, "made for loader processes"
        return read_shares(self._reading, part_of(info.num_workers, info.id, self._lanes), 1, threading.Event())


def _as_it_is(share: Any) -> Any:
    return share


@contextmanager
def shares_of_processes(reading: Reading, lanes: range, processes: int) -> Iterator[Iterator[Share]]:
    """Shares of ``processes`` loader processes in turn. Leaving ends the processes.

    They come from a fork server, which knows no threads and no CUDA context: a fork of a Ray worker, with the threads
    it has, may inherit a lock that nobody will release.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    loader = DataLoader(
        _LoaderDataset(reading, lanes),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        prefetch_factor=_PREFETCHED_SHARES,
        multiprocessing_context=context,
    )
    shares = iter(loader)
    try:
        yield shares
    finally:
        cast(Any, shares)._shutdown_workers()  # what its __del__ does, at a known time
