"""A worker's part of a global batch: rows stacked into tensors, and what every iterator over batches does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dira_dist.data.decode import NO_LABEL, NO_SAMPLE, BadSample, Box, Pixels, Row
from dira_dist.data.order import fingerprint

_NAMED_BAD_SAMPLES = 10
_SMALL_TENSORS = ("sizes_px", "sample_ids", "epochs")


@dataclass(frozen=True)
class LocalBatch:
    """A worker's part of a global batch, or what one of its loader processes adds to that.

    Attributes:
        images: ``(B, C, *S)``, spatial axes ``(H, W)`` or ``(x, y, z)``, of the type that the set's index says: uint8
            or uint16, or int16, float32 or float64 for arrays; zero-padded at the end of each axis to the largest
            sample in it.
        sizes_px: ``(B, n)`` int64, true sizes along the spatial axes, in their order.
        sample_ids: ``(B,)`` int64, place in the shard set; :data:`NO_SAMPLE` for padding of a validation batch.
        epochs: ``(B,)`` int64.
        keys: of the samples in their shards.
        labels: of the samples, by name.
        groups: whom the samples are of, such as their patients; a sample of nobody known is a group of its own.
        bad_samples: rows that stand in the place of a corrupt sample.
        withdrawn_samples: rows that stand in the place of a sample that was withdrawn from the set.
        bad: the corrupt samples that were met.
        masks: ``(B, *S)`` int16, label of each pixel, :data:`~dira_dist.data.decode.NO_LABEL` in the padding and where
            a sample has none; none where the stream does not decode annotations.
        boxes: of each sample, in pixels of its image; empty tuples where the stream does not decode annotations.
    """

    images: Tensor
    sizes_px: Tensor
    sample_ids: Tensor
    epochs: Tensor
    keys: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    groups: tuple[str, ...]
    bad_samples: int
    bad: tuple[BadSample, ...] = ()
    masks: Tensor | None = None
    boxes: tuple[tuple[Box, ...], ...] = ()
    withdrawn_samples: int = 0

    @property
    def valid(self) -> Tensor:
        """``(B,)`` bool: false for rows that only pad a validation batch."""
        return self.sample_ids != NO_SAMPLE

    @property
    def fingerprint(self) -> int:
        """Which samples of which epochs these are, as one number that adds up over workers and steps."""
        return fingerprint(self.sample_ids.cpu().numpy(), self.epochs.cpu().numpy())

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        """The small tensors go to another process by value: each shared one would cost it a file descriptor."""
        return {**vars(self), **{name: vars(self)[name].numpy() for name in _SMALL_TENSORS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {name: torch.from_numpy(state[name]) for name in _SMALL_TENSORS})

    def pin_memory(self) -> Self:
        """The same with page-locked tensors, for copies beside the computation."""
        return self._with(Tensor.pin_memory)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same with all tensors on ``device``."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            images=change(self.images),
            sizes_px=change(self.sizes_px),
            sample_ids=change(self.sample_ids),
            epochs=change(self.epochs),
            masks=None if self.masks is None else change(self.masks),
        )


def stack(rows: Sequence[Row]) -> LocalBatch:
    """Stacks rows, padding their images to the largest of them."""
    masks = [row.mask for row in rows if row.mask is not None]
    return LocalBatch(
        images=torch.from_numpy(_stacked([row.pixels for row in rows])),
        sizes_px=torch.tensor([row.pixels.shape[1:] for row in rows]),
        sample_ids=torch.tensor([row.id for row in rows]),
        epochs=torch.tensor([row.epoch for row in rows]),
        keys=tuple(row.key for row in rows),
        labels=tuple(row.labels for row in rows),
        groups=tuple(row.group or row.key for row in rows),
        bad_samples=sum(1 for row in rows if row.bad),
        bad=tuple(bad for row in rows for bad in row.bad),
        masks=torch.from_numpy(_stacked(masks, NO_LABEL)) if masks else None,
        boxes=tuple(row.boxes for row in rows),
        withdrawn_samples=sum(1 for row in rows if row.replaces_withdrawn),
    )


def _stacked(arrays: Sequence[Pixels], fill: int = 0) -> Pixels:
    """Arrays of equally many axes as one, padded with ``fill`` at the end of each axis to the largest."""
    shapes = {array.shape for array in arrays}
    shape = (len(arrays), *np.max(list(shapes), axis=0))
    make = np.empty if len(shapes) == 1 else np.zeros if fill == 0 else partial(np.full, fill_value=fill)
    stacked = make(shape, dtype=arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return stacked


def join(parts: Sequence[LocalBatch]) -> LocalBatch:
    """The parts of a worker's loader processes as one batch, one after the other."""
    if len(parts) == 1:
        return parts[0]
    masks = [part.masks for part in parts if part.masks is not None]
    return LocalBatch(
        images=_joined([part.images for part in parts]),
        sizes_px=torch.cat([part.sizes_px for part in parts]),
        sample_ids=torch.cat([part.sample_ids for part in parts]),
        epochs=torch.cat([part.epochs for part in parts]),
        keys=tuple(chain.from_iterable(part.keys for part in parts)),
        labels=tuple(chain.from_iterable(part.labels for part in parts)),
        groups=tuple(chain.from_iterable(part.groups for part in parts)),
        bad_samples=sum(part.bad_samples for part in parts),
        bad=tuple(chain.from_iterable(part.bad for part in parts)),
        masks=_joined(masks, NO_LABEL) if masks else None,
        boxes=tuple(chain.from_iterable(part.boxes for part in parts)),
        withdrawn_samples=sum(part.withdrawn_samples for part in parts),
    )


def _joined(parts: Sequence[Tensor], fill: int = 0) -> Tensor:
    """Tensors one after the other along the first axis, padded with ``fill`` at the end of all other axes."""
    shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts), strict=True)]
    joined = torch.full((sum(map(len, parts)), *shape), fill, dtype=parts[0].dtype)
    start = 0
    for part in parts:
        joined[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return joined


class TooManyBadSamplesError(RuntimeError):
    """More samples are corrupt than the budget allows; the message names them."""


class BatchIterator:
    """An iterator over a worker's batches, each joined of as many parts as it has loader processes.

    Their source is opened by the first ``next`` and closed once.
    """

    _source: AbstractContextManager[Iterator[LocalBatch]] | None = None
    _parts: Iterator[LocalBatch] | None = None
    _closed = False

    def __init__(self, address: str, bad_sample_budget: int, *, parts_per_batch: int) -> None:
        self._address, self._budget = address, bad_sample_budget
        self._parts_per_batch = parts_per_batch
        self._bad: dict[int, BadSample] = {}

    def _open(self) -> AbstractContextManager[Iterator[LocalBatch]]:
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LocalBatch:
        if self._closed:
            raise StopIteration
        try:
            batch = join(self._next_parts())
            self._count_bad(batch.bad)
        except BaseException:
            self.close()
            raise
        return batch

    def _next_parts(self) -> list[LocalBatch]:
        if self._parts is None:
            self._source = self._open()
            self._parts = self._source.__enter__()
        return [next(self._parts) for _ in range(self._parts_per_batch)]

    def _count_bad(self, met: Sequence[BadSample]) -> None:
        self._bad.update((bad.id, bad) for bad in met)
        if len(self._bad) > self._budget:
            named = "; ".join(f"{bad.key} ({bad.reason})" for bad in list(self._bad.values())[:_NAMED_BAD_SAMPLES])
            raise TooManyBadSamplesError(
                f"{self._address}: {len(self._bad)} samples cannot be decoded, and data.bad_sample_budget "
                f"is {self._budget}: {named}{'; ...' if len(self._bad) > _NAMED_BAD_SAMPLES else ''}"
            )

    def close(self) -> None:
        """Ends all threads and processes of the stream; it gives no more batches."""
        self._closed = True
        source, self._source, self._parts = self._source, None, None
        if source is not None:
            source.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
