"""What losses need from the other workers. Without a process group one worker is the whole batch and nothing is sent.

Workers hold shares of one global batch, in rank order; the shares may differ by some samples.
The convention everywhere above: **a loss on a worker is scaled so that its mean over the workers is the loss over the
global batch**. The mean over workers is what :class:`torch.nn.parallel.DistributedDataParallel` takes of gradients.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class GlobalBatch:
    """How the samples of one step lie on the workers.

    Attributes:
        sizes: samples on each worker, in rank order.
        rank: this worker.
        passing: samples of this worker that a loss is computed of at once; none where it is of all of them.
    """

    sizes: tuple[int, ...]
    rank: int = 0
    passing: int | None = None

    @classmethod
    def of(cls, local_size: int, device: torch.device) -> "GlobalBatch":
        """Asks the workers for their sizes; a collective of one number each."""
        if not is_distributed():
            return cls((local_size,))
        sizes = torch.empty(dist.get_world_size(), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(sizes, torch.tensor([local_size], device=device))
        return cls(tuple(sizes.tolist()), dist.get_rank())

    @property
    def samples(self) -> int:
        """Samples of the global batch."""
        return sum(self.sizes)

    @property
    def local_size(self) -> int:
        """Samples on this worker."""
        return self.sizes[self.rank]

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return len(self.sizes)

    @property
    def local_weight(self) -> float:
        """Makes the mean over workers of per-worker means the mean over samples; 1 where shares are equal.

        Of a part of a worker's samples it is less, so that the parts' terms add up to the worker's.
        """
        passing = self.local_size if self.passing is None else self.passing
        return self.world_size * passing / self.samples

    def parts(self, most: int | None) -> list[tuple[slice, "GlobalBatch"]]:
        """This worker's rows in parts that pass one after the other, as even as can be.

        There are as many parts on every worker, so that collectives of their passes meet, and none is empty: where the
        shares differ, a part of the larger may so be one above ``most``.

        Args:
            most: samples of a part; none: all of them.
        """
        count = 1 if most is None else min(-(-max(self.sizes) // most), *self.sizes)
        even, left_over = divmod(self.local_size, count)
        ends = [0, *accumulate(even + (number < left_over) for number in range(count))]
        return [(slice(start, end), replace(self, passing=end - start)) for start, end in pairwise(ends)]


def gather(value: Any) -> list[Any]:
    """What each worker has, in rank order; a collective of anything that pickles."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


_ALONE = ContextVar("_ALONE", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this worker is the whole batch though there be a process group: for what it computes for itself."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_distributed() -> bool:
    """Whether there are other workers to speak to."""
    return not _ALONE.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def my_place() -> tuple[int, int]:
    """This worker's rank, and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The sum of every worker's ``tensor``, with gradients, for losses that need the global batch at once.

    Every worker must go on to compute the same loss from the sum. Under the convention of this module the gradient of
    a worker's term is then its own, times the number of workers: nothing is sent in the backward pass.
    """
    if not is_distributed():
        return tensor
    total: Tensor = _SumOverWorkers.apply(tensor)
    return total


@torch.no_grad()
def mean_over_workers(tensor: Tensor) -> Tensor:
    """The mean of every worker's ``tensor``, without gradients."""
    if not is_distributed():
        return tensor
    mean = tensor.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


@torch.no_grad()
def gather_rows(rows: Tensor, batch: GlobalBatch) -> Tensor:
    """Rows of the global batch in rank order: ``(local, ...)`` on each worker to ``(samples, ...)`` on all of them."""
    if batch.world_size == 1:
        return rows
    largest = max(batch.sizes)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: batch.local_size] = rows
    gathered = rows.new_empty(batch.world_size * largest, *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    shares = gathered.view(batch.world_size, largest, *rows.shape[1:])
    return torch.cat([share[:size] for share, size in zip(shares, batch.sizes, strict=True)])


@dataclass(frozen=True)
class RowExchange:
    """A random, balanced permutation of the global batch's rows over the workers, and the way back.

    Every worker draws an order of its own rows and deals them out evenly, so that it sends and receives at most its
    own share whatever the number of workers, where gathering would bring it the whole global batch.

    Attributes:
        order: the local rows in the order in which they are dealt out.
        sent: rows sent to each worker.
        received: rows received from each worker.
    """

    order: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]

    @classmethod
    def draw(cls, batch: GlobalBatch, seed: int, device: torch.device) -> "RowExchange":
        """The exchange of one step: the same for the same seed, which must differ from step to step.

        What does not divide evenly goes to other workers, at each step to other ones: all rows do where a share is
        smaller than the number of workers.
        """
        generator = torch.Generator().manual_seed(seed * batch.world_size + batch.rank)
        order = torch.randperm(batch.local_size, generator=generator).to(device, non_blocking=True)
        ranks, left_over = range(batch.world_size), max(size % batch.world_size for size in batch.sizes)
        shift = 1 + random.Random(seed).randrange(batch.world_size - left_over)
        sent = tuple(_dealt(batch, batch.rank, receiver, shift) for receiver in ranks)
        return cls(order, sent, tuple(_dealt(batch, sender, batch.rank, shift) for sender in ranks))

    def shuffle(self, rows: Tensor) -> Tensor:
        """The rows dealt to this worker."""
        return _all_to_all(rows[self.order], self.sent, self.received)

    def unshuffle(self, rows: Tensor) -> Tensor:
        """What became of this worker's own rows, in their own order."""
        returned = _all_to_all(rows, self.received, self.sent)
        own = torch.empty_like(returned)
        own[self.order] = returned
        return own


def _dealt(batch: GlobalBatch, sender: int, receiver: int, shift: int) -> int:
    """Rows from sender to receiver: an even part each, what is left over in turn from ``shift`` places on.

    No worker is left without rows, for each is the first in turn of one sender.
    """
    even, left_over = divmod(batch.sizes[sender], batch.world_size)
    return even + ((receiver - sender - shift) % batch.world_size < left_over)


def _all_to_all(rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
    if len(sent) == 1:
        return rows
    output = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(output, rows.contiguous(), list(received), list(sent))
    return output


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient * dist.get_world_size()
