"""Properties of the order for any set, any workers, any loader processes, any place to stop."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.config import RequestError
from dira_dist.data.order import Order, check_set_size, choose_lanes, draw_spread, part_of, runs

sets = st.lists(st.integers(1, 40), min_size=1, max_size=12)
windows = st.integers(1, 50)
seeds = st.integers(0, 2**63)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    counts = draw(sets)
    return Order(counts, lanes=draw(st.integers(1, min(16, sum(counts)))), window=draw(windows), seed=draw(seeds))


def share(order: Order, rank: int, world: int, loaders: int, start: int, batch: int) -> list[int]:
    """What ``loaders`` processes of one worker contribute to a batch, one after the other."""
    lanes = part_of(world, rank, range(order.lanes))
    parts = [part_of(loaders, loader, lanes) for loader in range(loaders)]
    return [int(i) for part in parts if len(part) for i in order.local_ids(part, start, batch)]


def global_batch(order: Order, world: int, loaders: int, start: int, batch: int) -> list[int]:
    return [i for rank in range(world) for i in share(order, rank, world, loaders, start, batch)]


@settings(max_examples=80, deadline=None)
@given(orders(), st.data())
def test_each_epoch_gives_each_sample_once(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.lanes))
    loaders = data.draw(st.integers(1, 4))
    epoch = data.draw(st.integers(0, 5))
    ids = global_batch(order, world, loaders, epoch * order.samples_per_epoch, order.samples_per_epoch)
    assert len(ids) == len(set(ids)) == order.samples_per_epoch > order.samples - order.lanes
    assert set(ids) <= set(range(order.samples))


@settings(max_examples=80, deadline=None)
@given(orders(), st.data())
def test_batches_are_equal_for_any_workers_and_loaders(order: Order, data: st.DataObject) -> None:
    batch = order.lanes * data.draw(st.integers(1, 4))
    start = order.lanes * data.draw(st.integers(0, 3 * order.rows_per_epoch))
    world = data.draw(st.integers(1, order.lanes))
    loaders = data.draw(st.integers(1, 5))
    assert global_batch(order, world, loaders, start, batch) == global_batch(order, 1, 1, start, batch)


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_a_change_of_workers_and_batch_midway_loses_and_repeats_nothing(order: Order, data: st.DataObject) -> None:
    """Two epochs read in legs, each with its own workers, loader processes and batch size: 4 to 3 to 1, say."""
    position, seen, end = 0, [], 2 * order.samples_per_epoch
    while position < end:
        world = data.draw(st.integers(1, order.lanes))
        batch = order.lanes * data.draw(st.integers(1, 5))
        for _ in range(data.draw(st.integers(1, 4))):
            seen.append(sorted(global_batch(order, world, 2, position, batch)))
            position += batch
    unbroken = order.lanes * order.rows_per_epoch
    flat = np.bincount(np.concatenate(seen), minlength=order.samples)
    whole_epochs = position // unbroken
    assert flat.sum() == position
    assert flat.max() <= whole_epochs + 1
    if order.samples == unbroken:
        assert flat.min() >= whole_epochs


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_a_row_is_found_without_those_before_it(order: Order, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, order.lanes - 1))
    stop = 2 * order.rows_per_epoch + 1
    first = data.draw(st.integers(0, stop))
    assert list(order.lane_ids(lane, first, stop)) == list(order.lane_ids(lane, 0, stop)[first:])


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_no_block_is_shorter_than_the_window_and_spans_stay_in_their_shards(order: Order, data: st.DataObject) -> None:
    block = order.block(data.draw(st.integers(0, order.lanes - 1)), data.draw(st.integers(0, 4 * order.rows_per_epoch)))
    assert min(order.window, order.rows_per_epoch) <= len(block.shuffle) < 2 * order.window or order.window == 1
    assert sum(len(span) for span in block.spans) == len(block.shuffle)
    assert all(0 <= span.start < span.stop <= order._counts[span.shard] for span in block.spans)


def test_seed_epoch_and_window_change_the_order() -> None:
    def ids(seed: int = 0, window: int = 16, epoch: int = 0) -> list[int]:
        order = Order([10] * 10, lanes=2, window=window, seed=seed)
        return [int(i) for i in order.local_ids(range(2), 100 * epoch, 100)]

    variants = [ids(), ids(seed=1), ids(window=1), ids(epoch=1), ids(epoch=2)]
    assert len({tuple(variant) for variant in variants}) == len(variants)
    assert ids() == ids()


def test_the_order_is_the_same_for_ever() -> None:
    """A resumed job must find the order it left, also after an update of numpy or of this package."""
    order = Order([3, 5, 2, 6], lanes=4, window=2, seed=7)
    assert list(order.local_ids(range(4), 0, 16)) == [11, 10, 13, 12, 15, 14, 1, 0, 3, 2, 5, 4, 7, 6, 8, 9]
    order = Order([3, 5, 2, 7], lanes=4, window=2, seed=7)  # one is left out of each epoch
    assert list(order.local_ids(range(4), 16, 16)) == [12, 13, 11, 10, 14, 15, 3, 16, 6, 7, 4, 5, 0, 2, 9, 8]


def test_shuffles_evenly() -> None:
    """Over many epochs a sample stands everywhere in its block about equally often."""
    order = Order([8], lanes=1, window=8, seed=3)
    places = np.array([order.lane_ids(0, 8 * epoch, 8 * epoch + 8) for epoch in range(4000)])
    counts = np.array([np.bincount(places[:, place], minlength=8) for place in range(8)])
    assert abs(counts - 500).max() < 120  # 5.7 standard deviations


@settings(max_examples=80, deadline=None)
@given(sets, st.data())
def test_next_shard_of_a_lane(counts: list[int], data: st.DataObject) -> None:
    """Read off row by row: the shard of the first row that is not its predecessor's neighbour in a shard."""
    order = Order(counts, lanes=data.draw(st.integers(1, min(16, sum(counts)))), window=1, seed=data.draw(seeds))
    lane, row = data.draw(st.integers(0, order.lanes - 1)), data.draw(st.integers(0, 2 * order.rows_per_epoch))
    ids = order.lane_ids(lane, row, (row // order.rows_per_epoch + 1) * order.rows_per_epoch + 1)
    shards = np.repeat(np.arange(len(counts)), counts)[ids]
    leaps = np.flatnonzero((np.diff(ids) != 1) | (np.diff(shards) != 0))
    opened = order.shard_after(lane, row)
    assert opened == shards[leaps[0] + 1 if len(leaps) else -1] or opened == shards[0], "which is open already"
    if not len(leaps) or shards[leaps[0] + 1] == shards[0]:
        assert opened == shards[0]


@settings(max_examples=80, deadline=None)
@given(orders(), st.integers(0, 10**6), st.integers(1, 40))
def test_samples_are_left_out_in_turn(order: Order, first: int, epochs: int) -> None:
    """Over any run of epochs no sample is left out more than once more often than any other."""
    seen = np.zeros(order.samples, dtype=np.int64)
    for epoch in range(first, first + epochs):
        seen[order.share_ids(range(order.lanes), epoch * order.samples_per_epoch, order.samples_per_epoch)] += 1
    assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(
    "counts",
    [[1024, 1024], [2048], [1000, 1000, 48], [128] * 16, [32] * 64],
    ids=["two", "one", "two and a bit", "as many as lanes", "four times the lanes"],
)
def test_few_shards_and_equal_ones_give_a_sample_other_neighbours_in_each_epoch(counts: list[int]) -> None:
    """In 24 epochs a sample meets nearly as many others in its batches as in batches drawn at random."""
    order, batch, epochs = Order(counts, lanes=16, window=16, seed=0), 32, 24
    met = np.zeros((order.samples, order.samples), dtype=bool)
    for start in range(0, epochs * order.samples_per_epoch, batch):
        ids = order.share_ids(range(order.lanes), start, batch)
        met[np.ix_(ids, ids)] = True
    share_met = (met.sum() - order.samples) / (order.samples * (order.samples - 1))
    at_random = 1 - (1 - (batch - 1) / (order.samples - 1)) ** epochs
    assert share_met > 0.9 * at_random


def test_survives_pickling() -> None:
    order = Order([3, 5, 2, 6], lanes=4, window=2, seed=7)
    assert list(pickle.loads(pickle.dumps(order)).lane_ids(1, 0, 9)) == list(order.lane_ids(1, 0, 9))


@pytest.mark.parametrize(
    ("batches", "lanes"), [([256], 64), ([96], 48), ([7], 7), ([131], 1), ([256, 96], 32), ([8, 12], 4), ([1], 1)]
)
def test_chooses_the_most_lanes_that_every_batch_allows(batches: list[int], lanes: int) -> None:
    assert choose_lanes(batches) == lanes


def test_too_small_sets_are_refused_with_the_numbers() -> None:
    check_set_size(256, global_batch=256, lanes=64, workers=64)
    with pytest.raises(RequestError, match="has 255 samples, fewer than one global batch of 256"):
        check_set_size(255, global_batch=256, lanes=64)
    with pytest.raises(RequestError, match="65 workers cannot share 64 lanes"):
        check_set_size(1000, global_batch=256, lanes=64, workers=65)
    with pytest.raises(RequestError, match="batch of 100 cannot be cut into 64 lanes"):
        check_set_size(1000, global_batch=100, lanes=64)
    with pytest.raises(RequestError, match="3 samples, too few for 4 lanes"):
        Order([3], lanes=4, window=2, seed=0)


@given(sets, st.integers(1, 200), seeds)
def test_a_draw_over_a_set_takes_from_each_shard_its_share(counts: list[int], most: int, seed: int) -> None:
    drawn = list(draw_spread(counts, most, seed))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(most, sum(counts))
    ends = np.cumsum(counts)
    assert drawn[-1] < ends[-1]
    for end, count in zip(ends, counts, strict=True):
        taken = sum(end - count <= sample < end for sample in drawn)
        assert abs(taken - count * min(1, most / sum(counts))) < 1
    assert drawn == list(draw_spread(counts, most, seed)), "the same for everybody"


def test_a_draw_is_another_one_with_another_seed_and_no_beginning() -> None:
    draws = [list(draw_spread([300, 100], 40, seed)) for seed in range(200)]
    assert draws[0] != draws[1]
    often = np.bincount(np.concatenate(draws), minlength=400)
    assert often.min() > 0, "every sample is drawn by some seed"
    assert often.max() < 45  # of 200 draws that each take a tenth


def test_a_draw_from_a_large_set_reads_little_of_it_and_is_still_spread() -> None:
    """2,000 shards of 1,000 samples: what has to be read for 4,096 is at most 16 times as much, of 256 shards."""
    drawn = np.array(draw_spread([1000] * 2000, 4096, 0))
    shards, places = drawn // 1000, drawn % 1000
    assert len(set(shards)) == 256
    assert np.diff(sorted(set(shards))).max() <= 8
    assert places.max() < 16 * 16
    assert places.mean() == pytest.approx(127.5, abs=5)
    tiny = np.array(draw_spread([2] * 20_000, 4096, 0))
    assert len(tiny) == 4096, "as many shards as it takes"
    assert np.diff(tiny).max() <= 20


def test_rising_ids_are_runs_of_neighbours() -> None:
    assert list(runs([3, 4, 5, 9, 11, 12])) == [range(3, 6), range(9, 10), range(11, 13)]
    assert list(runs(range(4, 9))) == [range(4, 9)]
    assert list(runs([])) == []
