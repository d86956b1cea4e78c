"""Batches: decoded samples stacked into tensors, and what every iterator over them does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dira_dist.data.decode import Pixels
from dira_dist.data.order import fingerprint

NO_SAMPLE = -1
_NAMED_BAD_SAMPLES = 10


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be decoded, and why."""

    id: int
    key: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One decoded sample of a share, with the corrupt ones in whose place it stands."""

    pixels: Pixels
    id: int
    epoch: int
    key: str
    labels: Mapping[str, Any]
    bad: tuple[BadSample, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Share:
    """Rows stacked by one process, before they are joined to a batch; pickles cheaply."""

    images: Tensor
    sizes_px: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    replaced: int
    bad: tuple[BadSample, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A worker's share of a global batch.

    Attributes:
        images: ``(B, C, H, W)`` uint8, or uint16 for sets of 16 bit, zero-padded at the bottom and on the right to the
            largest height and width in it.
        sizes_px: ``(B, 2)`` int64, true height and width.
        sample_ids: ``(B,)`` int64, place in the shard set; :data:`NO_SAMPLE` for padding of a validation batch.
        epochs: ``(B,)`` int64.
        keys: of the samples in their shards.
        labels: of the samples, by name.
        bad_samples: rows that stand in the place of a corrupt sample.
        groups: whom the samples are of, such as their patients; a sample of nobody known is a group of its own.
    """

    images: Tensor
    sizes_px: Tensor
    sample_ids: Tensor
    epochs: Tensor
    keys: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    bad_samples: int
    groups: tuple[str, ...]

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


def stack(rows: Sequence[Row]) -> Share:
    """Stacks rows, padding their images to the largest of them."""
    sizes_px = np.array([row.pixels.shape[1:] for row in rows], dtype=np.int64)
    height, width = sizes_px.max(axis=0)
    first = rows[0].pixels
    even = bool((sizes_px == sizes_px[0]).all())
    images = (np.empty if even else np.zeros)((len(rows), first.shape[0], height, width), dtype=first.dtype)
    for image, row in zip(images, rows, strict=True):
        image[:, : row.pixels.shape[1], : row.pixels.shape[2]] = row.pixels
    return Share(
        images=torch.from_numpy(images),
        sizes_px=sizes_px,
        ids=np.array([row.id for row in rows], dtype=np.int64),
        epochs=np.array([row.epoch for row in rows], dtype=np.int64),
        keys=tuple(row.key for row in rows),
        labels=tuple(row.labels for row in rows),
        replaced=sum(1 for row in rows if row.bad),
        bad=tuple(bad for row in rows for bad in row.bad),
        groups=tuple(row.group or row.key for row in rows),
    )


def join(shares: Sequence[Share]) -> Batch:
    """The shares of a worker's processes, one after the other."""
    return Batch(
        images=_join_images([share.images for share in shares]),
        sizes_px=torch.from_numpy(np.concatenate([share.sizes_px for share in shares])),
        sample_ids=torch.from_numpy(np.concatenate([share.ids for share in shares])),
        epochs=torch.from_numpy(np.concatenate([share.epochs for share in shares])),
        keys=tuple(key for share in shares for key in share.keys),
        labels=tuple(labels for share in shares for labels in share.labels),
        bad_samples=sum(share.replaced for share in shares),
        groups=tuple(group for share in shares for group in share.groups),
    )


def _join_images(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
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
    """An iterator over the batches of a source of shares, which is opened by the first ``next`` and closed once."""

    _source: AbstractContextManager[Iterator[Share]] | None = None
    _shares: Iterator[Share] | None = None
    _closed = False

    def __init__(self, address: str, bad_sample_budget: int, *, shares_per_batch: int) -> None:
        self._address, self._budget = address, bad_sample_budget
        self._shares_per_batch = shares_per_batch
        self._bad: dict[int, BadSample] = {}

    def _open(self) -> AbstractContextManager[Iterator[Share]]:
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            shares = self._next_shares()
            self._count_bad(shares)
        except BaseException:
            self.close()
            raise
        return join(shares)

    def _next_shares(self) -> list[Share]:
        if self._shares is None:
            self._source = self._open()
            self._shares = self._source.__enter__()
        return [next(self._shares) for _ in range(self._shares_per_batch)]

    def _count_bad(self, shares: Sequence[Share]) -> None:
        self._bad.update((bad.id, bad) for share in shares for bad in share.bad)
        if len(self._bad) > self._budget:
            named = "; ".join(f"{bad.key} ({bad.reason})" for bad in list(self._bad.values())[:_NAMED_BAD_SAMPLES])
            raise TooManyBadSamplesError(
                f"{self._address}: {len(self._bad)} samples cannot be decoded, and data.bad_sample_budget "
                f"is {self._budget}: {named}{'; ...' if len(self._bad) > _NAMED_BAD_SAMPLES else ''}"
            )

    def close(self) -> None:
        """Ends all threads and processes of the stream; it gives no more batches."""
        self._closed = True
        source, self._source, self._shares = self._source, None, None
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
