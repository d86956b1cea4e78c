"""Shard sets written and read sample by sample, the plain way."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from dira_dist.data.shards import (
    Encoding,
    ImageMode,
    PublishedShard,
    Sample,
    ShardSetIndex,
    publish_index,
    publish_shard,
    read_index,
    shard_name,
)
from dira_dist.data.store import Store, open_store
from dira_dist.data.tars import PlainTar, checked_samples


class ShardWriter:
    """A context manager that publishes full shards at once, and the last one and the index on a clean exit."""

    def __init__(
        self, address: str, *, mode: ImageMode, encoding: Encoding, samples_per_shard: int = 1000, **index: Any
    ) -> None:
        self._store = open_store(address)
        self._image: dict[str, Any] = {"mode": mode, "encoding": encoding}
        self._samples_per_shard, self._index_fields = samples_per_shard, index
        self._samples: list[Sample] = []
        self._published: list[PublishedShard] = []
        self._index: ShardSetIndex | None = None

    @property
    def index(self) -> ShardSetIndex:
        """Only after the exit."""
        assert self._index is not None
        return self._index

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        if len(self._samples) == self._samples_per_shard:
            self._publish()

    def _publish(self) -> None:
        published = publish_shard(self._store, shard_name(len(self._published)), self._samples)
        assert published is not None
        self._published.append(published)
        self._samples.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._samples:
                self._publish()
            self._index = publish_index(self._store, self._published, **self._image, **self._index_fields)


def read_shard(store: Store, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """``(key, {extension: bytes})`` of each sample of a shard, in order, checked against the index beside it."""
    (shard,) = (each for each in read_index(store.address).shards if each.name == name)
    with store.open(name) as stream:
        for sample in checked_samples(PlainTar(stream, shard.bytes), shard):
            yield sample["__key__"], {name: data for name, data in sample.items() if name[:2] != "__"}
