"""The order over a list of samples: properties of its arithmetic, and streams that read such lists by their places."""

import pickle
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import ShardWriter

from dira_dist.config import RequestError
from dira_dist.data.batch import LocalBatch
from dira_dist.data.cache import CacheConfig
from dira_dist.data.ingest.pixels import encode_array
from dira_dist.data.lanes import ReadOptions, ShardError
from dira_dist.data.listed import ListedOrder
from dira_dist.data.order import part_of
from dira_dist.data.samples import read_samples
from dira_dist.data.selection import Selection
from dira_dist.data.shards import Sample, read_index
from dira_dist.data.store import ChangedObjectError, open_store
from dira_dist.data.stream import DataConfig, ShardStream
from dira_dist.data.validation import ValidationStream


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


# ------------------------------------------------------------------------------- arithmetic


@st.composite
def orders(draw: st.DrawFn, weighted: bool | None = None) -> ListedOrder:
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    ids = draw(st.lists(st.integers(0, sum(counts) - 1), min_size=1, max_size=60, unique=True))
    weights = None
    if weighted or (weighted is None and draw(st.booleans())):
        weights = draw(st.lists(st.floats(0.01, 100), min_size=len(ids), max_size=len(ids)))
    return ListedOrder(
        ids,
        counts,
        lanes=draw(st.integers(1, 16)),
        window=draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 2**31)),
        weights=weights,
    )


def shares(order: ListedOrder, world: int, loaders: int, start: int, batch: int) -> list[int]:
    """What all loader processes of all workers contribute to a batch, one after the other."""
    found: list[int] = []
    row, rows = start // order.lanes, batch // order.lanes
    for rank in range(world):
        lanes = part_of(world, rank, range(order.lanes))
        for lane in chain.from_iterable(part_of(loaders, loader, lanes) for loader in range(loaders)):
            found += order.lane_ids(lane, row, row + rows).tolist()
    return found


def positions(order: ListedOrder, first: int, stop: int) -> list[int]:
    """Sample ids of the stream in order."""
    return [
        int(order.lane_ids(at % order.lanes, at // order.lanes, at // order.lanes + 1)[0]) for at in range(first, stop)
    ]


@settings(max_examples=100, deadline=None)
@given(orders(weighted=False), st.integers(0, 5))
def test_each_epoch_gives_each_sample_of_the_list_once(order: ListedOrder, epoch: int) -> None:
    count = order.samples_per_epoch
    ids = positions(order, epoch * count, (epoch + 1) * count)
    assert sorted(ids) == sorted(order._ids.tolist())


@settings(max_examples=100, deadline=None)
@given(orders(), st.data())
def test_batches_are_equal_for_any_workers_and_loaders(order: ListedOrder, data: st.DataObject) -> None:
    batch, start = order.lanes * data.draw(st.integers(1, 4)), order.lanes * data.draw(st.integers(0, 50))
    world, loaders = data.draw(st.integers(1, order.lanes)), data.draw(st.integers(1, 5))
    found = shares(order, world, loaders, start, batch)
    assert found == shares(order, 1, 1, start, batch)
    assert Counter(found) == Counter(positions(order, start, start + batch)), "the batch is a run of the stream"


@settings(max_examples=150, deadline=None)
@given(orders(), st.data())
def test_blocks_follow_each_other_within_epochs_and_hold_what_the_stream_says(
    order: ListedOrder, data: st.DataObject
) -> None:
    lane, row = data.draw(st.integers(0, order.lanes - 1)), data.draw(st.integers(0, 60))
    block = order.block(lane, row)
    assert block.first_row <= row < block.stop_row <= block.first_row + order.window
    assert [order.block(lane, each).first_row for each in range(block.first_row, block.stop_row)] == [
        block.first_row
    ] * (block.stop_row - block.first_row)
    assert order.block(lane, block.stop_row).first_row == block.stop_row
    epochs = {(each * order.lanes + lane) // order.samples_per_epoch for each in range(block.first_row, block.stop_row)}
    assert epochs == {block.epoch}
    starts = np.cumsum(order._counts) - order._counts
    assert all(0 <= span.start < span.stop <= order._counts[span.shard] for span in block.spans)
    ids = np.concatenate([starts[span.shard] + np.arange(span.start, span.stop) for span in block.spans])
    assert (np.diff(ids) > 0).all()
    in_block = ids[block.shuffle].tolist()
    assert in_block[: len(in_block) - block.spares] == order.lane_ids(lane, block.first_row, block.stop_row).tolist()
    assert len(in_block) >= 3 and set(in_block) <= set(order._ids.tolist())
    assert order.shard_after(lane, row) == order.block(lane, block.stop_row).spans[0].shard


@settings(max_examples=60, deadline=None)
@given(orders(weighted=True), st.integers(0, 3))
def test_draws_are_in_proportion_to_the_weights(order: ListedOrder, epoch: int) -> None:
    count, weights = order.samples_per_epoch, order._weights
    assert weights is not None
    found = Counter(positions(order, epoch * count, (epoch + 1) * count))
    for sample, weight in zip(order._ids.tolist(), weights / weights.sum(), strict=True):
        assert abs(found[sample] - count * weight) < 1 + 1e-9


def test_over_many_epochs_draws_are_as_often_as_their_weights_say() -> None:
    weights = np.array([0.0, 0.2, 0.5, 1.0, 1.0, 2.3, 5.0])
    order = ListedOrder(range(7), [3, 4], lanes=2, window=4, seed=5, weights=weights)
    drawn = np.array([order._sequence(epoch) for epoch in range(4000)])
    often = np.bincount(drawn.ravel(), minlength=7) / drawn.size
    assert often == pytest.approx(weights / weights.sum(), abs=0.004) and often[0] == 0
    firsts = np.bincount(drawn[:, 0], minlength=7) / 4000
    assert firsts == pytest.approx(weights / weights.sum(), abs=0.03), "at every place of an epoch"


def test_orders_differ_by_seed_and_epoch_and_are_the_same_for_ever() -> None:
    def ids(seed: int = 7, epoch: int = 0, weights: Any = None) -> list[int]:
        order = ListedOrder([1, 3, 4, 8, 9, 12], [5, 10], lanes=4, window=2, seed=seed, weights=weights)
        return positions(order, 6 * epoch, 6 * epoch + 6)

    assert ids() == [8, 3, 1, 9, 12, 4]
    assert ids(weights=[1, 1, 1, 1, 1, 5]) == [9, 3, 12, 12, 4, 12]
    assert len({tuple(ids(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


@settings(max_examples=30, deadline=None)
@given(orders())
def test_survives_pickling(order: ListedOrder) -> None:
    copy = pickle.loads(pickle.dumps(order))
    assert positions(copy, 0, 40) == positions(order, 0, 40)


def test_empty_lists_and_weights_of_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="list of samples to train on is empty"):
        ListedOrder([], [3], lanes=1, window=1, seed=0)
    with pytest.raises(RequestError, match=r"all weights .* are 0"):
        ListedOrder([1], [3], lanes=1, window=1, seed=0, weights=[0.0])


# ---------------------------------------------------------------------------------- streams

IDS = np.array([0, 3, 4, 5, 17, 20, 21, 33, 34, 47, 58, 59, 40, 13, 14, 15, 7])


def take(
    address: str, batches: int, selection: Selection, options: ReadOptions | None = None, **settings_: Any
) -> list[LocalBatch]:
    settings_ = {"global_batch": 6, "lanes": 3} | settings_
    with ShardStream(address, options, selection=selection, **settings_) as stream:
        return [next(stream) for _ in range(batches)]


def ids(batches: list[LocalBatch]) -> list[list[int]]:
    return [batch.sample_ids.tolist() for batch in batches]


def by_places(address: str, chosen: Any = IDS, weights: Any = None) -> Selection:
    return Selection(np.asarray(chosen), weights, read_samples(address, read_index(address)).places)


def test_a_selection_streams_its_samples_once_an_epoch_with_their_pixels(shard_set: str) -> None:
    batches = take(shard_set, 17, by_places(shard_set))
    flat = list(chain.from_iterable(ids(batches)))
    order = ListedOrder(IDS, [7] * 8 + [4], lanes=3, window=128, seed=0)
    assert flat == [i for start in range(0, 102, 6) for i in shares(order, 1, 1, start, 6)]
    assert sorted(flat) == sorted(IDS.tolist() * 6)
    assert sorted(chain.from_iterable(batch.epochs.tolist() for batch in batches)) == sorted([*range(6)] * 17)
    for batch in batches:
        assert batch.keys == tuple(f"k{number:04d}" for number in batch.sample_ids.tolist())
        for image, (height, width), number in zip(batch.images, batch.sizes_px, batch.sample_ids, strict=True):
            assert (image[:, :height, :width] == number).all() and height == 8 + number % 3


@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 2, len(IDS))])
def test_places_workers_processes_and_resume_change_nothing(shard_set: str, weights: Any) -> None:
    selection = by_places(shard_set, weights=weights)
    expected = take(shard_set, 9, selection)
    through = take(shard_set, 9, Selection(IDS, weights))
    processes = take(shard_set, 9, selection, ReadOptions(loader_workers=2))
    for other in (through, processes):
        assert ids(other) == ids(expected)
        assert all(
            torch.equal(a.images, b.images) and a.labels == b.labels for a, b in zip(other, expected, strict=True)
        )
    parts = [ids(take(shard_set, 9, selection, rank=rank, world_size=3)) for rank in range(3)]
    assert [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)] == ids(expected)
    for start in range(0, 54, 3):
        (resumed,) = take(shard_set, 1, selection, start_sample=start, global_batch=3)
        of_each_lane = expected[start // 6].sample_ids.reshape(3, 2)
        assert resumed.sample_ids.tolist() == of_each_lane[:, start % 6 // 3].tolist()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_list_shorter_than_the_batch_goes_round(shard_set: str, count: int) -> None:
    batches = take(shard_set, 5, by_places(shard_set, IDS[:count]), global_batch=12, lanes=12)
    seen = Counter(chain.from_iterable(ids(batches)))
    assert set(seen) == set(IDS[:count].tolist()) and max(seen.values()) - min(seen.values()) <= 1


def test_steps_and_epochs_are_those_of_the_list(shard_set: str) -> None:
    with ShardStream(shard_set, global_batch=6, lanes=3, selection=by_places(shard_set)) as stream:
        assert (stream.samples_per_epoch, stream.steps_per_epoch) == (17, 17 / 6)
    with pytest.raises(RequestError, match="4 workers cannot share 3 lanes"):
        ShardStream(shard_set, global_batch=6, lanes=3, world_size=4, selection=by_places(shard_set))


def test_from_config_takes_a_selection_and_annotations(shard_set: str) -> None:
    config = DataConfig(train=shard_set, global_batch=6, lanes=3, loader_workers=0)
    selection = by_places(shard_set)
    with ShardStream.from_config(config, seed=3, selection=selection, annotations=True) as stream:
        batch = next(stream)
    assert batch.sample_ids.tolist() == ids(take(shard_set, 1, selection, seed=3))[0]
    assert batch.masks is not None and (batch.masks == -1).all()
    with ShardStream.from_config(config, seed=3, selection=selection) as stream:
        assert next(stream).masks is None


@pytest.mark.parametrize("lanes", [1, 6])
def test_a_corrupt_sample_is_replaced_from_its_list_wherever_a_run_resumed(
    tmp_path: Path, make_set, lanes: int
) -> None:
    """With 6 lanes a list of 7 has blocks of one or two rows; their spares stand in."""
    address = str(tmp_path / "set")
    make_set(address, bad=(4,))
    selection = by_places(address, IDS[:7])
    batches = take(address, 14, selection, lanes=lanes)
    seen = Counter(chain.from_iterable(ids(batches)))
    assert set(seen) == set(IDS[:7].tolist()) - {4} and seen.total() == 84
    assert sum(batch.bad_samples for batch in batches) == 12
    for step in range(14):
        assert ids(take(address, 1, selection, lanes=lanes, start_sample=6 * step)) == ids(batches[step : step + 1])
    spread = [ids(take(address, 14, selection, lanes=lanes, rank=rank, world_size=lanes)) for rank in range(lanes)]
    assert [list(chain.from_iterable(step)) for step in zip(*spread, strict=True)] == ids(batches)


def test_a_bucket_is_asked_for_the_selected_samples_alone(s3, proxy, make_set, tmp_path: Path) -> None:
    address = s3.address("set")
    make_set(address, per_shard=30)
    index, selection = read_index(address), by_places(address, [2, 3, 4, 40])
    places = selection.places
    assert places is not None
    before, gets = proxy.object_bytes, len(proxy.object_gets)
    batches = take(address, 2, selection, global_batch=4, lanes=1)
    assert sorted(chain.from_iterable(ids(batches))) == [2, 2, 3, 3, 4, 4, 40, 40]
    bytes_at = {
        ("000000.tar", int(places.first_byte[2])): places.end_byte[4] - places.first_byte[2],
        ("000001.tar", int(places.first_byte[40])): places.end_byte[40] - places.first_byte[40],
    }
    asked = [(request.path[-10:], request.start) for request in proxy.object_gets[gets:]]
    assert set(asked) == set(bytes_at)
    assert proxy.object_bytes - before <= sum(bytes_at[each] for each in asked), "and nothing behind or between"
    cached = ReadOptions(cache=CacheConfig(dir=str(tmp_path / "cache"), max_bytes=1 << 30))
    gets = len(proxy.object_gets)
    assert ids(take(address, 2, selection, cached, global_batch=4, lanes=1)) == ids(batches)
    assert len(proxy.object_gets) - gets == len(index.shards)


@pytest.mark.parametrize("kind", ["reset", "short"])
def test_broken_ranges_are_continued(s3, proxy, fault, make_set, kind: str) -> None:
    address = s3.address("set")
    make_set(address)
    selection = by_places(address)
    expected = take(address, 4, selection)
    proxy.first(len(proxy.object_gets) + 5, fault(kind, after_bytes=700))
    assert ids(take(address, 4, selection)) == ids(expected)


def test_a_set_whose_tar_has_changed_is_named(tmp_path: Path, make_set, s3) -> None:
    address = str(tmp_path / "set")
    make_set(address, per_shard=30)
    selection = by_places(address, [2, 31])
    tar = tmp_path / "set" / "000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"k0002.", b"j0002."))
    with pytest.raises(ShardError, match=r"000000.tar is damaged, or not what it was.*wrong checksum"):
        take(address, 1, selection)
    tar.write_bytes(whole[2048:] + whole[:2048])
    with pytest.raises(ShardError, match=r"samples k000\d stand where k0002 were"):
        take(address, 1, selection)
    tar.write_bytes(whole[:-512])
    with pytest.raises(ChangedObjectError, match="were meant"):
        take(address, 1, selection)
    in_bucket = s3.address("set")
    make_set(in_bucket, per_shard=30)
    selection = by_places(in_bucket, [2, 31])
    open_store(in_bucket).write_bytes("000000.tar", whole[2048:] + whole[:2048])
    with pytest.raises(ChangedObjectError, match="has changed"):
        take(in_bucket, 1, selection, ReadOptions(storage_timeout_s=5.0))


@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_of_some_samples_by_their_places(shard_set: str, world_size: int) -> None:
    chosen, places = sorted(IDS.tolist()), read_samples(shard_set, read_index(shard_set)).places

    def seen(**more: Any) -> list[LocalBatch]:
        return [
            batch
            for rank in range(world_size)
            for batch in ValidationStream(shard_set, batch_size=4, rank=rank, world_size=world_size, ids=chosen, **more)
        ]

    found, expected = seen(places=places), seen()
    assert ids(found) == ids(expected)
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, expected, strict=True))


def test_samples_of_volumes_with_masks_are_read_whole(tmp_path: Path) -> None:
    address = str(tmp_path / "set")
    with ShardWriter(address, mode="volume", encoding="npy", samples_per_shard=3) as writer:
        for number in range(7):
            cube = np.full((4, 5, 6), number, dtype=np.uint8)
            writer.add(Sample(f"v{number}", encode_array(cube), "npy", 5, 6, {}, encode_array(cube % 2)))
    selection = by_places(address, [1, 2, 5])
    (batch,) = take(address, 1, selection, ReadOptions(annotations=True), global_batch=3, lanes=1)
    assert batch.masks is not None
    for number, image, mask in zip(batch.sample_ids.tolist(), batch.images, batch.masks, strict=True):
        assert (image == number).all() and (mask == number % 2).all()
