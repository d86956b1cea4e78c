"""One pass over a shard set, the same number of batches on every worker."""

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace

from dira_dist.data.batch import BatchIterator, LocalBatch, stack
from dira_dist.data.decode import BadSample, CorruptSampleError, EncodedSample, Row
from dira_dist.data.lanes import ReadOptions, ShardSet, SpanReader, check_set
from dira_dist.data.loading import batches_here, decode_threads, mapper
from dira_dist.data.order import part_of, runs
from dira_dist.data.pieces import Places
from dira_dist.data.shards import ShardSetIndex, read_index


@dataclass(frozen=True)
class _Pass:
    """What one worker reads: ``steps`` batches over the samples ``ids``."""

    shards: ShardSet
    ids: Sequence[int]
    batch_size: int
    steps: int

    def batches(self, cancelled: threading.Event) -> Generator[LocalBatch, None, None]:
        """Decodes one batch while the next one is read."""
        spans = self.shards.reader(cancelled)
        with ThreadPoolExecutor(1, "read-shards") as pool, closing(spans), mapper(decode_threads()) as over:
            coming = pool.submit(self._encoded, spans, 0)
            for step in range(self.steps):
                encoded, coming = coming.result(), pool.submit(self._encoded, spans, step + 1)
                rows = over(self._decode, encoded)
                yield stack(rows + [self.shards.decoder.blank()] * (self.batch_size - len(rows)))

    def _encoded(self, spans: SpanReader, step: int) -> list[EncodedSample]:
        ids = self.ids[step * self.batch_size : (step + 1) * self.batch_size]
        return [sample for run in runs(ids) for span in self.shards.spans_of(run) for sample in spans.read(span)]

    def _decode(self, sample: EncodedSample) -> Row:
        if sample.is_withdrawn:
            return self.shards.decoder.blank()
        try:
            return self.shards.decoder.decode(sample)
        except CorruptSampleError as error:
            return replace(self.shards.decoder.blank(), bad=(BadSample(sample.id, sample.key, str(error)),))


class ValidationStream(BatchIterator):
    """One pass over a shard set, or some of it, in the order of its index; as many batches on every worker.

    Worker ``r`` reads a contiguous part of the samples. Its batches are of equal length; where its part ends early,
    rows are padded with black images of ``sample_id`` ``NO_SAMPLE`` (``LocalBatch.valid`` is false), and so are the
    places of corrupt samples and of those withdrawn since the generation that is read. So each sample counts once, and
    figures over all workers are those of the whole set.

    Args:
        address: of the shard set.
        options: how it is read; loader processes are not used.
        batch_size: rows per batch on this worker.
        rank: of this worker.
        world_size: number of workers.
        ids: which samples to read, rising, such as those of :func:`dira_dist.data.order.draw_spread`; all if none.
        index: of the set, where it has been read already.
        places: of all its samples, where they are known: samples between the ``ids`` are not read then.

    Raises:
        RequestError: as for :class:`ShardStream`, and so are the errors of the storage and of samples.
    """

    def __init__(
        self,
        address: str,
        options: ReadOptions | None = None,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        ids: Sequence[int] | None = None,
        index: ShardSetIndex | None = None,
        places: Places | None = None,
    ) -> None:
        options, index = options or ReadOptions(), index or read_index(address)
        check_set(address, index)
        assert 0 <= rank < world_size and batch_size >= 1, (rank, world_size, batch_size)
        self.index = index
        chosen = range(index.samples) if ids is None else ids
        part, longest_part = part_of(world_size, rank, range(len(chosen))), math.ceil(len(chosen) / world_size)
        self._pass = _Pass(
            shards=ShardSet(address, index, options, places),
            ids=chosen[part.start : part.stop],
            batch_size=batch_size,
            steps=math.ceil(longest_part / batch_size),
        )
        super().__init__(address, options.bad_sample_budget, parts_per_batch=1)

    def __len__(self) -> int:
        return self._pass.steps

    def _open(self) -> AbstractContextManager[Iterator[LocalBatch]]:
        return batches_here(self._pass.batches)
