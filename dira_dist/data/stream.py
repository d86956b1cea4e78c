"""The stream: this worker's part of each global batch, decoded and stacked, ready for the device.

Every worker has equally many steps, and the local batches of all workers, one after the other, are the same global
batches for any number of workers and loader processes (see :mod:`dira_dist.data.order`). A sample that cannot be
decoded is counted and stands back for the next good one of its block, which depends on the set, the seed and the epoch
alone.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from typing import Self

from pydantic import Field

from dira_dist.config import MAY_CHANGE, ImageSize, Section
from dira_dist.data.batch import BatchIterator, LocalBatch
from dira_dist.data.cache import CacheConfig
from dira_dist.data.decode import SAMPLE_BUDGET_PX
from dira_dist.data.lanes import ReadOptions, ShardSet, check_set
from dira_dist.data.listed import MOST_WINDOW, ListedOrder
from dira_dist.data.loading import Reading, batches_here, batches_of_processes, decode_threads, read_batches
from dira_dist.data.order import MOST_LANES, Order, SampleOrder, check_lanes, choose_lanes, part_of
from dira_dist.data.selection import Selection
from dira_dist.data.shards import ShardSetIndex, read_index


class DataConfig(Section):
    """Where the images come from and how they are read.

    The addresses of sets may change between two starts of a run: the digests of what lies there are compared instead.
    """

    train: str = Field(description="shard set to train on: s3://bucket/prefix or a path", json_schema_extra=MAY_CHANGE)
    val: str | None = Field(None, description="shard set to measure restoration on", json_schema_extra=MAY_CHANGE)
    image_size: ImageSize = Field(224, description="side of the views in pixels, or one for each axis")
    global_batch: int = Field(256, ge=1, description="samples per optimiser step, over all workers")
    loader_workers: int = Field(
        4,
        ge=0,
        description="processes per worker that read and decode; 0: threads of the worker itself",
        json_schema_extra=MAY_CHANGE,
    )
    lanes: int | None = Field(
        None, ge=1, description=f"equal parts of an epoch; left out: the most, up to {MOST_LANES}, for all batches"
    )
    shuffle_window: int = Field(
        128,
        ge=2,
        description="neighbouring samples of a lane that are shuffled; up to twice as many per lane are in memory",
    )
    bad_sample_budget: int = Field(
        100,
        ge=0,
        description="different corrupt samples that a worker may meet before the job fails",
        json_schema_extra=MAY_CHANGE,
    )
    storage_timeout_s: float = Field(
        300.0,
        ge=1,
        description="seconds of trouble with the storage, without progress, before the job fails",
        json_schema_extra=MAY_CHANGE,
    )
    cache: CacheConfig | None = Field(None, description="disk cache for sets in a bucket", json_schema_extra=MAY_CHANGE)
    sample_budget_px: int = Field(
        SAMPLE_BUDGET_PX,
        ge=32 * 32,
        description="most pixels of the square (3D: cube) around a sample; one with a longer side is a bad sample",
        json_schema_extra=MAY_CHANGE,
    )

    @property
    def read_options(self) -> ReadOptions:
        """How the sets are read."""
        names = {option.name for option in fields(ReadOptions)} & set(type(self).model_fields)
        return ReadOptions(**{name: getattr(self, name) for name in names})


class ShardStream(BatchIterator):
    """This worker's parts of the global batches, without end. One pass; use it in a ``with`` or close it.

    Args:
        address: of the shard set.
        options: how it is read.
        global_batch: samples per step over all workers; a multiple of ``lanes``.
        lanes: equal parts of an epoch; left out: chosen for ``global_batch``. The order depends on it.
        seed: of the order.
        rank: of this worker.
        world_size: number of workers; ``lanes`` at most. Local batches are of one size where it divides ``lanes``.
        start_sample: samples consumed so far, over all workers; a multiple of ``lanes``.
        shuffle_window: neighbouring samples of a lane that are shuffled. The order depends on it.
        index: of the set, where it has been read already.
        selection: the samples to stream; all if none.

    Raises:
        RequestError: there is no set, or it is too small for one global batch; nothing is too small for a selection.
        StoreError, ShardError: from ``next``: the set could not be read, or is not what its index says.
        TooManyBadSamplesError: from ``next``.

    Example:
        >>> with ShardStream("s3://images/cxr14/train", global_batch=256, rank=0, world_size=2) as batches:
        ...     for batch in batches:
        ...         step(batch.to("cuda", non_blocking=True))
    """

    def __init__(
        self,
        address: str,
        options: ReadOptions | None = None,
        *,
        global_batch: int,
        lanes: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_sample: int = 0,
        shuffle_window: int = 128,
        index: ShardSetIndex | None = None,
        selection: Selection | None = None,
    ) -> None:
        options, index = options or ReadOptions(), index or read_index(address)
        lanes = lanes or choose_lanes([global_batch])
        if selection is None:
            check_set(address, index, global_batch=global_batch, lanes=lanes, workers=world_size)
        else:
            check_set(address, index)
            check_lanes(global_batch=global_batch, lanes=lanes, workers=world_size)
        assert 0 <= rank < world_size and start_sample % lanes == 0, (rank, world_size, start_sample, lanes)
        self.order = _order(index, selection, lanes, shuffle_window, seed)
        self.index = index
        shards = ShardSet(address, index, options, selection.places if selection else None)
        self._reading = Reading(shards, self.order, start_sample, global_batch)
        self._lanes = part_of(world_size, rank, range(lanes))
        self._processes = min(options.loader_workers, len(self._lanes))
        super().__init__(address, options.bad_sample_budget, parts_per_batch=max(1, self._processes))

    @classmethod
    def from_config(
        cls,
        config: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_sample: int = 0,
        global_batch: int | None = None,
        lanes: int | None = None,
        index: ShardSetIndex | None = None,
        selection: Selection | None = None,
        annotations: bool = False,
    ) -> Self:
        """The stream of a job's training set; ``global_batch`` and ``lanes`` of the stage go before the section's.

        Masks and boxes are decoded too where the task asks for ``annotations``.
        """
        return cls(
            config.train,
            replace(config.read_options, annotations=annotations),
            global_batch=global_batch or config.global_batch,
            lanes=lanes or config.lanes,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start_sample=start_sample,
            shuffle_window=config.shuffle_window,
            index=index,
            selection=selection,
        )

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch over all workers: those of the set, less fewer than ``lanes``; all of a selection."""
        return self.order.samples_per_epoch

    @property
    def steps_per_epoch(self) -> float:
        """Global batches of an epoch; the last one may reach into the next epoch."""
        return self.order.samples_per_epoch / self._reading.global_batch

    def _open(self) -> AbstractContextManager[Iterator[LocalBatch]]:
        if self._processes:
            return batches_of_processes(self._reading, self._lanes, self._processes)
        # without a reference to this stream, which would keep its thread and itself alive when it is dropped
        return batches_here(partial(read_batches, self._reading, self._lanes, decode_threads()))


def _order(index: ShardSetIndex, selection: Selection | None, lanes: int, window: int, seed: int) -> SampleOrder:
    counts = [shard.samples for shard in index.shards]
    if selection is None:
        return Order(counts, lanes=lanes, window=window, seed=seed)
    window = min(window, MOST_WINDOW)
    return ListedOrder(selection.ids, counts, lanes=lanes, window=window, seed=seed, weights=selection.weights)
