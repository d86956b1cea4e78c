"""The order of some samples of a set, as arithmetic, like that of all of them in :mod:`dira_dist.data.order`.

Of a list of ``n`` samples the stream has them once each in each epoch, in an order that is drawn from (seed, epoch):
position ``p`` is place ``p mod n`` of epoch ``p // n``, and row ``p // L`` of lane ``p mod L``. Nothing is left out,
and ``n`` may be smaller than the lanes or than a batch, which then goes on into the next epoch.

With weights, epoch ``e`` is ``n`` draws from the list with replacement: ``n`` marks at equal distances are laid on a
line on which each sample has a length in proportion to its weight, at a drawn start, the samples in a drawn order
(systematic sampling; Madow, *Annals of Mathematical Statistics* 20, 1949). So a sample whose share of the weights is
``w`` stands in each epoch ``n w`` times, rounded down or up, and *each sample once* no longer holds. All of it is
arithmetic of integers.

Samples consumed say where the stream stands, for any number of workers and loader processes. A lane is read in blocks
of at most ``window`` rows, which end with the epoch. They do not change the order: a corrupt sample is replaced by
another one of its block, and a block of very few rows has a few spare samples for that.

Memory grows with the list, and any row is found without going through those before it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dira_dist.config import RequestError
from dira_dist.data.order import Block, Span, part_of
from dira_dist.data.selection import Weights
from dira_dist.data.splitmix import Drawn, Int64s, drawn, permutation

MOST_WINDOW = 16  # each of its samples is read by itself, so that a longer one would only delay the first batch
_LEAST_SAMPLES = 3  # of a block, those of spares included
_EPOCHS_KEPT = 4


class ListedOrder:
    """Which sample stands where in the endless stream over a list of them.

    Args:
        ids: ``(n,)`` places in the set.
        shard_samples: samples of each shard of the set, in the order of the index.
        lanes: equal parts of the stream.
        window: most rows of a block.
        seed: of all draws.
        weights: ``(n,)`` not below 0; none: each sample once in an epoch.

    Raises:
        RequestError: the list is empty, or no weight is above 0.
    """

    def __init__(
        self,
        ids: Sequence[int] | Int64s,
        shard_samples: Sequence[int] | Int64s,
        *,
        lanes: int,
        window: int,
        seed: int,
        weights: Sequence[float] | Weights | None = None,
    ) -> None:
        assert lanes >= 1 and window >= 1, (lanes, window)
        self._ids: Int64s = np.asarray(ids, dtype=np.int64)
        self._counts: Int64s = np.asarray(shard_samples, dtype=np.int64)
        if not len(self._ids):
            raise RequestError("the list of samples to train on is empty; choose a larger fraction or other labels.")
        assert self._ids.min() >= 0 and self._ids.max() < self._counts.sum(), "places in the set"
        self._ends: Int64s = np.cumsum(self._counts)
        self.lanes, self.window, self.seed = lanes, window, seed
        self.samples_per_epoch = len(self._ids)
        self._weights = (
            None if weights is None else _whole_weights(np.asarray(weights, dtype=np.float64), len(self._ids))
        )
        self._sequence = lru_cache(maxsize=_EPOCHS_KEPT)(self._draw_epoch)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._ids, self._counts, self.lanes, self.window, self.seed, self._weights)

    def _draw_epoch(self, epoch: int) -> Int64s:
        """``(n,)`` sample ids of an epoch in order."""
        places = permutation(self.samples_per_epoch, self.seed, Drawn.LIST, epoch)
        if self._weights is not None:
            places = self._draw_weighted(epoch, places)
        ids: Int64s = self._ids[places]
        return ids

    def _draw_weighted(self, epoch: int, places: Int64s) -> Int64s:
        """``(n,)`` places in the list, drawn in proportion to the weights; ``places`` is how they lie on the line."""
        assert self._weights is not None
        count, ends = self.samples_per_epoch, np.cumsum(self._weights[places])
        start = drawn(int(ends[-1]), self.seed, Drawn.LIST_START, epoch)
        marks = (np.arange(count) * ends[-1] + start) // count
        taken = places[np.searchsorted(ends, marks, side="right")]
        shuffled: Int64s = taken[permutation(count, self.seed, Drawn.LIST_DRAWS, epoch)]
        return shuffled

    def block(self, lane: int, row: int) -> Block:
        """The block that holds ``row`` (counted over all epochs) of ``lane``.

        The blocks of a lane within an epoch are equal to within one row, and none is longer than the window.
        """
        epoch = (row * self.lanes + lane) // self.samples_per_epoch
        rows = self._rows_of(epoch, lane)
        blocks = -(-len(rows) // self.window)
        rows = part_of(blocks, ((row - rows.start + 1) * blocks - 1) // len(rows), rows)
        places = np.arange(rows.start, rows.stop) * self.lanes + lane - epoch * self.samples_per_epoch
        spares = max(0, _LEAST_SAMPLES - len(rows))
        behind = (places[-1] + 1 + np.arange(spares)) % self.samples_per_epoch
        ids, shuffle = np.unique(self._sequence(epoch)[np.append(places, behind)], return_inverse=True)
        return Block(epoch, rows.start, self._spans(ids), shuffle, spares)

    def _rows_of(self, epoch: int, lane: int) -> range:
        """Rows of a lane whose positions lie in an epoch."""
        first, stop = (-((lane - each * self.samples_per_epoch) // self.lanes) for each in (epoch, epoch + 1))
        return range(first, stop)

    def _spans(self, ids: Int64s) -> tuple[Span, ...]:
        """Rising ids as runs of neighbours in their shards."""
        shards = np.searchsorted(self._ends, ids, side="right")
        places = ids - (self._ends - self._counts)[shards]
        leaps = np.flatnonzero((np.diff(ids) != 1) | (np.diff(shards) != 0)) + 1
        runs = zip(np.split(shards, leaps), np.split(places, leaps), strict=True)
        return tuple(Span(int(shard[0]), int(place[0]), int(place[-1]) + 1) for shard, place in runs)

    def shard_after(self, lane: int, row: int) -> int:
        """The shard that ``lane`` opens first for the block after the one of ``row``."""
        return self.block(lane, self.block(lane, row).stop_row).spans[0].shard

    def lane_ids(self, lane: int, first_row: int, stop_row: int) -> Int64s:
        """``(stop_row - first_row,)`` sample ids of a lane's rows, counted over all epochs."""
        return np.array([self._at(row * self.lanes + lane) for row in range(first_row, stop_row)], dtype=np.int64)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.samples_per_epoch)
        return int(self._sequence(epoch)[place])


def _whole_weights(weights: Weights, count: int) -> Int64s:
    """Weights as whole numbers whose sum leaves room for a multiple of ``count`` in 64 bits.

    Raises:
        RequestError: none of them is above 0.
    """
    assert weights.shape == (count,) and np.isfinite(weights).all() and (weights >= 0).all(), weights
    if not weights.any():
        raise RequestError("all weights of the samples to train on are 0; give some of them a weight above 0.")
    scaled = (weights / weights.sum() * (2**62 // count)).astype(np.int64)
    whole: Int64s = np.maximum(scaled, weights > 0)
    return whole


def _restore(ids: Int64s, counts: Int64s, lanes: int, window: int, seed: int, weights: Int64s | None) -> ListedOrder:
    order = ListedOrder(ids, counts, lanes=lanes, window=window, seed=seed)
    order._weights = weights
    return order
