"""One pass over a shard set, the same number of batches on every worker."""

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace

import numpy as np

from dira_dist.data.batch import NO_SAMPLE, BadSample, BatchIterator, Row, Share, stack
from dira_dist.data.cache import CacheConfig
from dira_dist.data.decode import CHANNELS, CorruptSampleError, decode_sample
from dira_dist.data.lanes import EncodedSample, ShardSet, SpanReader, check_set
from dira_dist.data.order import part_of, runs
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.shares import decode_threads, mapper, shares_here


@dataclass(frozen=True)
class _Pass:
    """What one worker reads: ``steps`` batches over the samples ``ids``."""

    shards: ShardSet
    ids: Sequence[int]
    batch_size: int
    steps: int

    def shares(self, cancelled: threading.Event) -> Generator[Share, None, None]:
        """Decodes one batch while the next one is read."""
        spans = SpanReader(self.shards, cancelled)
        with ThreadPoolExecutor(1, "read-shards") as pool, closing(spans), mapper(decode_threads()) as over:
            coming = pool.submit(self._encoded, spans, 0)
            for step in range(self.steps):
                encoded, coming = coming.result(), pool.submit(self._encoded, spans, step + 1)
                rows = over(self._decode, encoded)
                yield stack(rows + [self._padding()] * (self.batch_size - len(rows)))

    def _encoded(self, spans: SpanReader, step: int) -> list[EncodedSample]:
        ids = self.ids[step * self.batch_size : (step + 1) * self.batch_size]
        return [sample for run in runs(ids) for span in self.shards.spans_of(run) for sample in spans.read(span)]

    def _decode(self, sample: EncodedSample) -> Row:
        try:
            decoded = decode_sample(sample.members, self.shards.mode)
        except CorruptSampleError as error:
            return replace(self._padding(), bad=(BadSample(sample.id, sample.key, str(error)),))
        return Row(decoded.pixels, sample.id, 0, sample.key, decoded.labels, group=decoded.group)

    def _padding(self) -> Row:
        """A black image of the set's median size."""
        image, mode = self.shards.index.image, self.shards.mode
        shape = (CHANNELS[mode], image.height_px.median, image.width_px.median)
        pixels = np.zeros(shape, dtype=np.uint16 if mode == "I;16" else np.uint8)
        return Row(pixels, NO_SAMPLE, 0, "", {})


class ValidationStream(BatchIterator):
    """One pass over a shard set, or some of it, in the order of its index; as many batches on every worker.

    Worker ``r`` reads a contiguous part of the samples. Its batches are of equal length; where its part ends early,
    rows are padded with black images of ``sample_id`` :data:`NO_SAMPLE` (``Batch.valid`` is false), and so are the
    places of corrupt samples. So each sample counts once, and figures over all workers are those of the whole set.

    Args:
        address: of the shard set.
        batch_size: rows per batch on this worker.
        rank: of this worker.
        world_size: number of workers.
        ids: which samples to read, rising, such as those of :func:`dira_dist.data.order.draw_spread`; all if none.
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
        ids: Sequence[int] | None = None,
        bad_sample_budget: int = 100,
        storage_patience_s: float = 300.0,
        cache: CacheConfig | None = None,
        index: ShardSetIndex | None = None,
    ) -> None:
        index = index or read_index(address)
        check_set(address, index)
        assert 0 <= rank < world_size and batch_size >= 1, (rank, world_size, batch_size)
        self.index = index
        chosen = range(index.samples) if ids is None else ids
        part, longest_part = part_of(world_size, rank, range(len(chosen))), math.ceil(len(chosen) / world_size)
        self._pass = _Pass(
            shards=ShardSet(address, index, cache=cache, patience_s=storage_patience_s),
            ids=chosen[part.start : part.stop],
            batch_size=batch_size,
            steps=math.ceil(longest_part / batch_size),
        )
        super().__init__(address, bad_sample_budget, shares_per_batch=1)

    def __len__(self) -> int:
        return self._pass.steps

    def _open(self) -> AbstractContextManager[Iterator[Share]]:
        return shares_here(self._pass.shares)
