"""The samples of a shard set as entries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dira_dist.config import RequestError
from dira_dist.data.batch import LocalBatch
from dira_dist.data.lanes import ReadOptions
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.validation import ValidationStream
from dira_dist.prediction.inputs import Entry, Framing, Opened
from dira_dist.prediction.model import Model
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.views import check_viewable

_READ_AT_ONCE = 16


@dataclass(frozen=True)
class SetReader:
    """Opens samples.

    Attributes:
        address: of the set.
        framing: how their images are brought before the network.
    """

    address: str
    framing: Framing

    @cached_property
    def _index(self) -> ShardSetIndex:
        return read_index(self.address)

    def open(self, entries: Sequence[Entry]) -> Iterator[Opened]:
        """See :class:`~dira_dist.prediction.inputs.Reader`."""
        ids = [entry.sample_id for entry in entries if entry.sample_id is not None]
        budget = ReadOptions(bad_sample_budget=len(ids))  # each is a row with its reason
        at_once = 1 if self.framing.fit == "slide" else _READ_AT_ONCE
        left = {entry.sample_id: entry for entry in entries}
        with ValidationStream(self.address, budget, batch_size=at_once, ids=ids, index=self._index) as stream:
            for batch in stream:
                places = {int(batch.sample_ids[place]): place for place in np.flatnonzero(batch.valid.numpy()).tolist()}
                reasons = {bad.id: bad.reason for bad in batch.bad}
                for number in sorted((*places, *reasons)):
                    if number in places:
                        yield self._opened(batch, places[number], left.pop(number))
                    else:
                        yield Opened(left.pop(number), iter(()), reason=reasons[number])

    def _opened(self, batch: LocalBatch, place: int, entry: Entry) -> Opened:
        size = batch.sizes_px[place].tolist()
        pixels = batch.images[place].numpy()[(slice(None), *map(slice, size))]
        if len(size) == 3:
            return Opened(entry, iter([self.framing.volume_view(pixels)]))
        picture = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)
        return Opened(entry, iter([self.framing.view(picture, (size[0], size[1]))]))


@dataclass(frozen=True)
class SetSource:
    """A shard set as a whole; see :class:`~dira_dist.prediction.files.FileSource`."""

    reader: SetReader
    entries: Sequence[Entry]
    digest: str
    ignored: int = 0
    notes: tuple[str, ...] = ()


def find_samples(address: str, model: Model, options: EmbedOptions) -> SetSource:
    """The samples of a set.

    Raises:
        RequestError: the model takes other images, or the set does not say what is pooled by.
    """
    index = read_index(address)
    try:
        check_viewable(index.image, model.dims, model.in_channels, rgb=model.rgb)
    except RequestError as error:
        raise RequestError(f"{address}: the set has {error}") from None
    table, pool = read_samples(address, index), options.pool if isinstance(options, PredictOptions) else None
    if pool == "study" or pool == "folder" or (pool == "patient" and not table.has_groups):
        raise RequestError(
            f"pool {pool}: the samples of {address} do not tell theirs; a set that was made with --group-by patient "
            "can be pooled by patient"
        )
    entries = [_entry(table, number, pool) for number in range(len(table))]
    reader = SetReader(address, Framing(model.image_size, model.in_channels, model.fit))
    return SetSource(reader, entries, index.digest)


def _entry(table: SampleTable, number: int, pool: str | None) -> Entry:
    key = table.keys[number]
    group = {"patient": table.groups[number], "file": key}.get(pool or "", "")
    return Entry(key, key, group, sample_id=number)
