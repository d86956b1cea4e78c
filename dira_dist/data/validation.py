"""One pass over a shard set, the same number of batches on every worker."""

import math
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace

import numpy as np

from dira_dist.data.batch import NO_SAMPLE, BadSample, BatchIterator, Row, Share, stack
from dira_dist.data.cache import CacheConfig
from dira_dist.data.decode import CHANNELS, CorruptSampleError, decode_sample
from dira_dist.data.lanes import EncodedSample, ShardSet, SpanReader, check_set
from dira_dist.data.order import part_of
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.shares import decode_threads, mapper, shares_here


class ValidationStream(BatchIterator):
    """One pass over a shard set in the order of its index; the same number of batches on every worker.

    Worker ``r`` reads a contiguous part of the samples. Its batches are of equal length; where its part ends early,
    rows are padded with black images of ``sample_id`` :data:`NO_SAMPLE` (``Batch.valid`` is false), and so are the
    places of corrupt samples. So each sample counts once, and figures over all workers are those of the whole set.

    Args:
        address: of the shard set.
        batch_size: rows per batch on this worker.
        rank: of this worker.
        world_size: number of workers.
        bad_sample_budget, storage_patience_s, cache, index: as for :class:`ShardStream`.

    Raises:
        As :class:`ShardStream`.
    """

    def __init__(
        self,
        address: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        bad_sample_budget: int = 100,
        storage_patience_s: float = 300.0,
        cache: CacheConfig | None = None,
        index: ShardSetIndex | None = None,
    ) -> None:
        index = index or read_index(address)
        check_set(address, index)
        assert 0 <= rank < world_size and batch_size >= 1, (rank, world_size, batch_size)
        self.index = index
        self._set = ShardSet(address, index, cache=cache, patience_s=storage_patience_s)
        self._batch_size = batch_size
        self._part = part_of(world_size, rank, range(index.samples))
        longest_part = math.ceil(index.samples / world_size)
        self._steps = math.ceil(longest_part / batch_size)
        super().__init__(address, bad_sample_budget, shares_per_batch=1)

    def __len__(self) -> int:
        return self._steps

    def _open(self) -> AbstractContextManager[Iterator[Share]]:
        return shares_here(self._read)

    def _read(self, cancelled: threading.Event) -> Generator[Share, None, None]:
        """Decodes one batch while the next one is read."""
        spans = SpanReader(self._set, cancelled)
        with ThreadPoolExecutor(1, "read-shards") as pool, closing(spans), mapper(decode_threads()) as over:
            coming = pool.submit(self._encoded, spans, 0)
            for step in range(self._steps):
                encoded, coming = coming.result(), pool.submit(self._encoded, spans, step + 1)
                rows = over(self._decode, encoded)
                yield stack(rows + [self._padding()] * (self._batch_size - len(rows)))

    def _encoded(self, spans: SpanReader, step: int) -> list[EncodedSample]:
        ids = self._part[step * self._batch_size : (step + 1) * self._batch_size]
        return [sample for span in self._set.spans_of(ids) for sample in spans.read(span)]

    def _decode(self, sample: EncodedSample) -> Row:
        try:
            decoded = decode_sample(sample.members, self._set.mode)
        except CorruptSampleError as error:
            return replace(self._padding(), bad=(BadSample(sample.id, sample.key, str(error)),))
        return Row(decoded.pixels, sample.id, 0, sample.key, decoded.labels)

    def _padding(self) -> Row:
        """A black image of the set's median size."""
        image, mode = self.index.image, self._set.mode
        shape = (CHANNELS[mode], image.height_px.median, image.width_px.median)
        pixels = np.zeros(shape, dtype=np.uint16 if mode == "I;16" else np.uint8)
        return Row(pixels, NO_SAMPLE, 0, "", {})


validation_batches = ValidationStream
