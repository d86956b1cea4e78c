"""Where local batches come from: threads that read and decode, in this process or in loader processes beside it."""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.multiprocessing
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dira_dist.data.batch import LocalBatch, stack
from dira_dist.data.cores import usable_cores
from dira_dist.data.decode import BadSample, CorruptSampleError, Decoder, Row
from dira_dist.data.lanes import EncodedBlock, LaneCursor, LaneReader, ShardError, ShardSet
from dira_dist.data.order import SampleOrder, part_of
from dira_dist.data.torch_internals import shut_down_workers

_MOST_READ_THREADS = 8
_AHEAD_THREADS = 2
_MOST_DECODE_THREADS = 4
_PREFETCHED_BATCHES = 2

Source = Callable[[threading.Event], Generator[LocalBatch, None, None]]


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
    order: SampleOrder
    start_sample: int
    global_batch: int


def read_batches(
    reading: Reading, lanes: range, threads: int, cancelled: threading.Event
) -> Generator[LocalBatch, None, None]:
    """The global batches without end, restricted to ``lanes`` and listed lane by lane.

    Args:
        reading: what to read.
        lanes: to read.
        threads: that decode; 1 decodes in the caller's.
        cancelled: when set (from another thread), ends all reading with an error.
    """
    order, decoder = reading.order, reading.shards.decoder
    first_row, rows = reading.start_sample // order.lanes, reading.global_batch // order.lanes
    with _lane_cursors(reading, lanes, first_row, cancelled) as cursors, mapper(threads) as over:
        while True:
            slots = [cursor.take() for cursor in cursors for _ in range(rows)]
            yield stack(over(partial(_decode, decoder), slots))


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


def _decode(decoder: Decoder, slot: tuple[EncodedBlock, int]) -> Row:
    """The row at a place of a block, or the next good one of its block in its stead.

    Raises:
        ShardError: no sample of the block can be decoded, or all were withdrawn.
    """
    block, place = slot
    bad: list[BadSample] = []
    for step in range(len(block.samples)):
        sample = block.samples[(place + step) % len(block.samples)]
        if sample.is_withdrawn:
            continue
        try:
            row = decoder.decode(sample, block.epoch)
        except CorruptSampleError as error:
            bad.append(BadSample(sample.id, sample.key, str(error)))
        else:
            withdrawn = block.samples[place].is_withdrawn
            return replace(row, bad=tuple(bad), replaces_withdrawn=withdrawn) if bad or withdrawn else row
    if not bad:
        raise ShardError(
            f"all {len(block.samples)} samples of a block were withdrawn since the run began, and none is left in "
            "their place: start a run under another name, on the newest generation of the set"
        )
    raise ShardError(
        f"{len(bad)} samples in a row are corrupt, and none is left in their place: {bad[0].key} ({bad[0].reason})"
    )


@contextmanager
def batches_here(make: Source) -> Iterator[Iterator[LocalBatch]]:
    """Runs a source in a thread, a few batches ahead. Leaving cancels it and ends the thread."""
    batches: queue.Queue[LocalBatch | BaseException] = queue.Queue(_PREFETCHED_BATCHES)
    stopping = threading.Event()
    thread = threading.Thread(target=_produce, args=(make, batches, stopping), name="load-batches", daemon=True)
    thread.start()
    try:
        yield _consume(batches)
    finally:
        stopping.set()
        with suppress(queue.Empty):
            while True:  # the producer may be waiting for room
                batches.get_nowait()
        thread.join()
        batches.put(StopIteration())  # for a consumer in another thread, which may be waiting still


def _produce(make: Source, batches: "queue.Queue[LocalBatch | BaseException]", stopping: threading.Event) -> None:
    source = make(stopping)
    try:
        while not stopping.is_set():
            batches.put(next(source))
    except BaseException as error:  # whatever ended the thread is raised where its batches are taken
        batches.put(error)
    finally:
        source.close()


def _consume(batches: "queue.Queue[LocalBatch | BaseException]") -> Iterator[LocalBatch]:
    while True:
        found = batches.get()
        if isinstance(found, StopIteration):
            return
        if isinstance(found, BaseException):
            raise found
        yield found


class _LoaderDataset(IterableDataset[LocalBatch]):
    """The part of a worker's lanes that one loader process reads."""

    def __init__(self, reading: Reading, lanes: range) -> None:
        self._reading, self._lanes = reading, lanes
        # loader processes come from a server that may be older than the variables, credentials above all
        self._environment = dict(os.environ)

    def __iter__(self) -> Iterator[LocalBatch]:
        os.environ.update(self._environment)
        info = get_worker_info()
        assert info is not None, "made for loader processes"
        return read_batches(self._reading, part_of(info.num_workers, info.id, self._lanes), 1, threading.Event())


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def batches_of_processes(reading: Reading, lanes: range, processes: int) -> Iterator[Iterator[LocalBatch]]:
    """The batches of ``processes`` loader processes in turn. Leaving ends the processes.

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
        prefetch_factor=_PREFETCHED_BATCHES,
        multiprocessing_context=context,
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        shut_down_workers(batches)
