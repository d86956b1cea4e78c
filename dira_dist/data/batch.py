"""A worker's part of a global batch: rows stacked into tensors, and what every iterator over batches does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dira_dist.data.decode import BadSample, Row
from dira_dist.data.order import fingerprint

NO_SAMPLE = -1
_NAMED_BAD_SAMPLES = 10
_SMALL_TENSORS = ("sizes_px", "sample_ids", "epochs")


@dataclass(frozen=True)
class LocalBatch:
    """A worker's part of a global batch, or what one of its loader processes adds to that.

    Attributes:
        images: ``(B, C, H, W)`` uint8, or uint16 for sets of 16 bit, zero-padded at the bottom and on the right to the
            largest height and width in it.
        sizes_px: ``(B, 2)`` int64, true height and width.
        sample_ids: ``(B,)`` int64, place in the shard set; :data:`NO_SAMPLE` for padding of a validation batch.
        epochs: ``(B,)`` int64.
        keys: of the samples in their shards.
        labels: of the samples, by name.
        groups: whom the samples are of, such as their patients; a sample of nobody known is a group of its own.
        bad_samples: rows that stand in the place of a corrupt sample.
        bad: the corrupt samples that were met.
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
        )


def stack(rows: Sequence[Row]) -> LocalBatch:
    """Stacks rows, padding their images to the largest of them."""
    sizes_px = np.array([row.pixels.shape[1:] for row in rows], dtype=np.int64)
    height, width = sizes_px.max(axis=0)
    first = rows[0].pixels
    even = bool((sizes_px == sizes_px[0]).all())
    images = (np.empty if even else np.zeros)((len(rows), first.shape[0], height, width), dtype=first.dtype)
    for image, row in zip(images, rows, strict=True):
        image[:, : row.pixels.shape[1], : row.pixels.shape[2]] = row.pixels
    return LocalBatch(
        images=torch.from_numpy(images),
        sizes_px=torch.from_numpy(sizes_px),
        sample_ids=torch.tensor([row.id for row in rows]),
        epochs=torch.tensor([row.epoch for row in rows]),
        keys=tuple(row.key for row in rows),
        labels=tuple(row.labels for row in rows),
        groups=tuple(row.group or row.key for row in rows),
        bad_samples=sum(1 for row in rows if row.bad),
        bad=tuple(bad for row in rows for bad in row.bad),
    )


def join(parts: Sequence[LocalBatch]) -> LocalBatch:
    """The parts of a worker's loader processes as one batch, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return LocalBatch(
        images=_join_images([part.images for part in parts]),
        sizes_px=torch.cat([part.sizes_px for part in parts]),
        sample_ids=torch.cat([part.sample_ids for part in parts]),
        epochs=torch.cat([part.epochs for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        labels=tuple(labels for part in parts for labels in part.labels),
        groups=tuple(group for part in parts for group in part.groups),
        bad_samples=sum(part.bad_samples for part in parts),
        bad=tuple(bad for part in parts for bad in part.bad),
    )


def _join_images(parts: Sequence[Tensor]) -> Tensor:
    count = sum(len(part) for part in parts)
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    images = torch.zeros((count, parts[0].shape[1], height, width), dtype=parts[0].dtype)
    start = 0
    for part in parts:
        images[start : start + len(part), :, : part.shape[2], : part.shape[3]] = part
        start += len(part)
    return images


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
