"""The order of the samples, as arithmetic: who reads does not change what is read.

Epoch ``e`` leaves ``l = N mod L`` samples out, those from ``e l mod N`` on, so that all are left out equally often. It
draws one permutation of the shards; the samples left, in that order, are a circle, which is entered at a drawn place
and cut into ``L`` equal contiguous parts, the *lanes*, of ``R = N // L`` rows each. A lane is shuffled in equal blocks
of about ``window`` neighbouring rows, and begins with a drawn one of them, to come round to it. The stream goes on from
epoch to epoch without an end: its position ``g`` is row ``(g // L) mod R`` of lane ``g mod L`` in epoch ``g // (L R)``.

The entry and the beginnings matter where shards are few, or all of one size: else the same samples would be each
other's neighbours in every epoch. Each costs a lane the opening of one more shard at the most.

A global batch is a multiple of ``L``, so each batch has equally many rows of every lane, and *samples consumed*, a
multiple of ``L`` too, says everything about where the stream stands: for any number of workers, of loader processes,
and for batches of any size. Workers and loader processes own contiguous runs of lanes; a share lists its samples lane
by lane, so that the shares of all workers one after the other are the same batch for any number of workers.

Memory grows with the shards, never with the samples; any row is found without going through those before it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.splitmix import GOLDEN_GAMMA, Drawn, Int64s, drawn, mix, permutation, shift_right

MOST_LANES = 64


def choose_lanes(batches: Iterable[int], most: int = MOST_LANES) -> int:
    """The largest number of lanes, ``most`` at the most, that divides every batch size of a job."""
    common = math.gcd(*batches)
    return next(lanes for lanes in range(min(most, common), 0, -1) if common % lanes == 0)


def part_of(parts: int, part: int, whole: range) -> range:
    """The ``part``-th of ``parts`` contiguous runs of ``whole``, equal to within one."""
    return whole[part * len(whole) // parts : (part + 1) * len(whole) // parts]


def check_set_size(samples: int, *, global_batch: int, lanes: int, workers: int = 1) -> None:
    """Refuses what cannot give every worker equally many steps of different samples.

    Args:
        samples: samples in the shard set.
        global_batch: samples per optimiser step over all workers.
        lanes: equal parts of an epoch.
        workers: most workers that the job may have.

    Raises:
        RequestError: with the numbers and the remedy.
    """
    check_lanes(global_batch=global_batch, lanes=lanes, workers=workers)
    if samples < global_batch:
        raise RequestError(
            f"the shard set has {samples} samples, fewer than one global batch of {global_batch}; "
            f"add images or lower data.global_batch to {samples} at most."
        )


def check_lanes(*, global_batch: int, lanes: int, workers: int = 1) -> None:
    """Refuses what cannot give every worker equally many steps.

    Raises:
        RequestError: with the numbers and the remedy.
    """
    if global_batch % lanes:
        raise RequestError(
            f"the global batch of {global_batch} cannot be cut into {lanes} lanes; "
            f"choose a batch that is a multiple of {lanes}, or leave data.lanes out."
        )
    if workers > lanes:
        raise RequestError(
            f"{workers} workers cannot share {lanes} lanes, for each needs one; use {lanes} workers at most, "
            f"or a global batch with a larger divisor up to {MOST_LANES}."
        )


@dataclass(frozen=True)
class Span:
    """Samples ``[start, stop)`` of one shard."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of a lane that are shuffled among each other.

    Attributes:
        epoch: which one.
        first_row: of the block, counted over all epochs.
        spans: where its samples lie, to be read in this order.
        shuffle: ``(rows + spares,)``: row ``first_row + i`` is the ``shuffle[i]``-th sample of the spans.
        spares: samples behind its rows, which only stand in for corrupt ones.
    """

    epoch: int
    first_row: int
    spans: tuple[Span, ...]
    shuffle: Int64s
    spares: int = 0

    @property
    def stop_row(self) -> int:
        """One behind its last row."""
        return self.first_row + len(self.shuffle) - self.spares


class SampleOrder(Protocol):
    """What reading needs of an order of samples: position ``g`` of it is row ``g // lanes`` of lane ``g % lanes``."""

    @property
    def lanes(self) -> int:
        """Equal parts of the stream, each read by one process."""

    @property
    def samples_per_epoch(self) -> int:
        """Positions of an epoch."""

    def block(self, lane: int, row: int) -> Block:
        """The block that holds ``row`` (counted over all epochs) of ``lane``."""

    def shard_after(self, lane: int, row: int) -> int:
        """A shard that ``lane`` opens soon after ``row``, to be fetched ahead."""


@dataclass(frozen=True)
class _Epoch:
    """The circle of an epoch's samples, in runs of neighbours.

    Attributes:
        shards: ``(K,)`` that the runs lie in, one after the other.
        firsts: ``(K,)`` first sample of each run, in its shard.
        ends: ``(K,)`` samples up to and with each run.
        entry: place on the circle of the first lane's first row.
    """

    shards: Int64s
    firsts: Int64s
    ends: Int64s
    entry: int

    def run_at(self, place: int) -> tuple[Span, int]:
        """What is left of the run that holds a place, and the place behind it."""
        run = int(np.searchsorted(self.ends, place, side="right"))
        begin, end = int(self.ends[run - 1]) if run else 0, int(self.ends[run])
        start = int(self.firsts[run]) + place - begin
        return Span(int(self.shards[run]), start, start + end - place), end


class Order:
    """Which sample stands where in the endless stream over a shard set.

    Args:
        shard_samples: samples of each shard, in the order of the index.
        lanes: equal parts of an epoch; at most the number of samples.
        window: rows of a lane that are shuffled among each other; 1 leaves them as they stand in their shards.
        seed: of all permutations.

    Raises:
        RequestError: there are fewer samples than lanes.
    """

    def __init__(self, shard_samples: Sequence[int] | Int64s, *, lanes: int, window: int, seed: int) -> None:
        assert lanes >= 1 and window >= 1, (lanes, window)
        self._counts: Int64s = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(self._counts.sum())
        if self.samples < lanes:
            raise RequestError(f"the shard set has {self.samples} samples, too few for {lanes} lanes; add images.")
        self.lanes, self.window, self.seed = lanes, window, seed
        self.rows_per_epoch = self.samples // lanes
        self.samples_per_epoch = lanes * self.rows_per_epoch
        self._starts: Int64s = np.cumsum(self._counts) - self._counts
        self._blocks_per_epoch = max(1, self.rows_per_epoch // window)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._beginning = lru_cache(maxsize=2 * lanes)(self._draw_beginning)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._counts, self.lanes, self.window, self.seed)

    def _draw_epoch(self, epoch: int) -> _Epoch:
        shards = permutation(len(self._counts), self.seed, Drawn.SHARDS, epoch)
        firsts, stops = np.zeros_like(shards), self._counts[shards]
        for low, high in self._left_out(epoch):
            # of each run what lies before the samples that are left out, and what lies behind
            low_here, high_here = (np.clip(each - self._starts[shards], firsts, stops) for each in (low, high))
            firsts, stops = np.stack([firsts, high_here], 1).ravel(), np.stack([low_here, stops], 1).ravel()
            shards = shards.repeat(2)
        full = stops > firsts
        shards, firsts, stops = shards[full], firsts[full], stops[full]
        entry = drawn(self.samples_per_epoch, self.seed, Drawn.ENTRY, epoch)
        return _Epoch(shards, firsts, np.cumsum(stops - firsts), entry)

    def _left_out(self, epoch: int) -> list[tuple[int, int]]:
        """Sample ids ``[low, high)`` that have no place in the epoch: in turn, round and round, over all epochs."""
        count = self.samples - self.samples_per_epoch
        low = epoch * count % self.samples
        if count == 0:
            return []
        if low + count <= self.samples:
            return [(low, low + count)]
        return [(low, self.samples), (0, low + count - self.samples)]

    def block(self, lane: int, row: int) -> Block:
        """The block that holds ``row`` (counted over all epochs) of ``lane``.

        The blocks of an epoch are equal to within one row, and none is shorter than the window.
        """
        epoch, row_in_epoch = divmod(row, self.rows_per_epoch)
        beginning = self._beginning(epoch, lane)
        row_of_lane = (row_in_epoch + beginning) % self.rows_per_epoch
        number = ((row_of_lane + 1) * self._blocks_per_epoch - 1) // self.rows_per_epoch
        rows = self._rows_of(number)
        return Block(
            epoch=epoch,
            first_row=epoch * self.rows_per_epoch + (rows.start - beginning) % self.rows_per_epoch,
            spans=self._spans(epoch, lane * self.rows_per_epoch + rows.start, len(rows)),
            shuffle=self._shuffle(epoch, lane, number, len(rows)),
        )

    def _draw_beginning(self, epoch: int, lane: int) -> int:
        """The row of the lane, as it lies on the circle, that an epoch begins with: the first of a block."""
        return self._rows_of(drawn(self._blocks_per_epoch, self.seed, Drawn.BEGINNING, epoch, lane)).start

    def _rows_of(self, block: int) -> range:
        return part_of(self._blocks_per_epoch, block, range(self.rows_per_epoch))

    def _shuffle(self, epoch: int, lane: int, number: int, rows: int) -> Int64s:
        if self.window == 1:
            return np.arange(rows, dtype=np.int64)
        return permutation(rows, self.seed, Drawn.ROWS, epoch, lane, number)

    def _spans(self, epoch: int, place: int, samples: int) -> tuple[Span, ...]:
        """Neighbours on the circle, from a place counted from the epoch's entry on."""
        circle = self._epoch(epoch)
        place = (circle.entry + place) % self.samples_per_epoch
        spans = []
        while samples:
            run, behind = circle.run_at(place)
            taken = min(samples, len(run))
            spans.append(Span(run.shard, run.start, run.start + taken))
            samples, place = samples - taken, behind % self.samples_per_epoch
        return tuple(spans)

    def shard_after(self, lane: int, row: int) -> int:
        """The shard that ``lane`` opens next after the one of (unshuffled) ``row``, in this epoch or the next."""
        rows_left = min(self.rows_per_epoch - row % self.rows_per_epoch, self._rows_to_lane_end(lane, row))
        next_row = row + min(rows_left, len(self._run_of(lane, row)))
        return self._run_of(lane, next_row).shard

    def _rows_to_lane_end(self, lane: int, row: int) -> int:
        """Rows until the lane, as it lies on the circle, has come to its end and goes on at its start."""
        epoch, row_in_epoch = divmod(row, self.rows_per_epoch)
        return self.rows_per_epoch - (row_in_epoch + self._beginning(epoch, lane)) % self.rows_per_epoch

    def _run_of(self, lane: int, row: int) -> Span:
        """What is left of the run of neighbours that holds an (unshuffled) row."""
        circle = self._epoch(row // self.rows_per_epoch)
        place = circle.entry + (lane + 1) * self.rows_per_epoch - self._rows_to_lane_end(lane, row)
        return circle.run_at(place % self.samples_per_epoch)[0]

    def lane_ids(self, lane: int, first_row: int, stop_row: int) -> Int64s:
        """``(stop_row - first_row,)`` sample ids of a lane's rows, counted over all epochs."""
        pieces = []
        row = first_row
        while row < stop_row:
            block = self.block(lane, row)
            ids = np.concatenate([self._starts[span.shard] + np.arange(span.start, span.stop) for span in block.spans])
            pieces.append(ids[block.shuffle][row - block.first_row : stop_row - block.first_row])
            row = block.stop_row
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def local_ids(self, lanes: range, start_sample: int, global_batch: int) -> Int64s:
        """Sample ids of the share that the owner of ``lanes`` has in the batch that starts at ``start_sample``."""
        assert start_sample % self.lanes == 0 and global_batch % self.lanes == 0, (start_sample, global_batch)
        row = start_sample // self.lanes
        rows = global_batch // self.lanes
        return np.concatenate([self.lane_ids(lane, row, row + rows) for lane in lanes])


def _restore(counts: Int64s, lanes: int, window: int, seed: int) -> Order:
    return Order(counts, lanes=lanes, window=window, seed=seed)


def fingerprint(sample_ids: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> int:
    """A number below 2**53 that tells which samples, of which epochs, were consumed, in whatever order and by whomever.

    Fingerprints of parts add up to that of the whole, modulo 2**53 for what one batch can hold: each sample counts with
    31 bits of a mixture of its id and epoch.

    Args:
        sample_ids: ``(B,)``.
        epochs: ``(B,)``.
    """
    return int(shift_right(mix(sample_ids + epochs * GOLDEN_GAMMA), 33).sum())


_DRAWN_SHARDS = 256
_READ_PER_DRAWN = 16


def draw_spread(shard_samples: Sequence[int], most: int, seed: int) -> Sequence[int]:
    """Some samples of a set, drawn over all of it, at a bounded cost of reading.

    A shard can only be read from its beginning, so that a sample costs those before it. Therefore a draw from a set of
    more than 16 times as many samples as are wanted takes those of a shard out of its first part, at random, of 16
    times as many as it has to give; and it opens no more than 256 shards, at even distances, where they hold enough.
    From a smaller set it is a random draw from each shard, in proportion to its samples.

    Args:
        shard_samples: samples of each shard, in the order of the index.
        most: how many are wanted.
        seed: of the draw.

    Returns:
        Ids in the set, rising; all of them where there are not more than ``most``.
    """
    counts: Int64s = np.asarray(shard_samples, dtype=np.int64)
    if counts.sum() <= most:
        return range(int(counts.sum()))
    starts = np.cumsum(counts) - counts
    opened = _opened_shards(counts, most)
    shares = np.diff(np.cumsum(counts[opened]) * most // counts[opened].sum(), prepend=0)
    taken: list[int] = []
    for shard, share in zip(opened.tolist(), shares.tolist(), strict=True):
        readable = min(int(counts[shard]), _READ_PER_DRAWN * share)
        places = np.sort(permutation(readable, seed, Drawn.SPREAD, shard)[:share])
        taken.extend((starts[shard] + places).tolist())
    return taken


def _opened_shards(counts: Int64s, most: int) -> Int64s:
    """Shards at even distances, as few as may be, that hold ``most`` samples; rising."""
    wanted = _DRAWN_SHARDS
    while wanted < len(counts):
        opened: Int64s = (np.arange(wanted) * len(counts) + len(counts) // 2) // wanted
        if counts[opened].sum() >= most:
            return opened
        wanted *= 2
    return np.arange(len(counts))


def runs(ids: Sequence[int]) -> Iterator[range]:
    """Rising ids as runs of neighbours."""
    if isinstance(ids, range):
        yield ids
        return
    first = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[place - 1] + 1:
            yield range(ids[first], ids[place - 1] + 1)
            first = place
