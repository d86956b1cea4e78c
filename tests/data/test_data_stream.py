"""The stream over shard sets in a folder: every sample once, the same batches for everybody, from any place on."""

import gc
import io
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_sets import ShardWriter

from dira_dist.config import RequestError
from dira_dist.data.batch import LocalBatch, TooManyBadSamplesError
from dira_dist.data.cache import CacheConfig
from dira_dist.data.lanes import ReadOptions, ShardError, check_set
from dira_dist.data.shards import ImageInfo, PixelRange, Sample, ShardSetIndex, read_index
from dira_dist.data.stream import DataConfig, ShardStream
from dira_dist.data.validation import ValidationStream

_READ_OPTIONS = {option.name for option in fields(ReadOptions)}


def take(address: str, batches: int, *, index: ShardSetIndex | None = None, **settings_: Any) -> list[LocalBatch]:
    options = ReadOptions(**{name: settings_.pop(name) for name in _READ_OPTIONS & set(settings_)})
    settings_ = {"global_batch": 12, "lanes": 6, "shuffle_window": 4} | settings_
    with ShardStream(address, options, index=index, **settings_) as stream:
        return [next(stream) for _ in range(batches)]


def ids(batches: list[LocalBatch]) -> list[list[int]]:
    return [batch.sample_ids.tolist() for batch in batches]


def flat(batches: list[LocalBatch]) -> list[int]:
    return list(chain.from_iterable(ids(batches)))


def joined(address: str, batches: int, world_size: int, **settings_: object) -> list[list[int]]:
    """Global batches: the local batches of all workers, one after the other."""
    parts = [ids(take(address, batches, rank=rank, world_size=world_size, **settings_)) for rank in range(world_size)]
    return [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)]


def test_an_epoch_gives_each_sample_once_with_what_belongs_to_it(shard_set: str) -> None:
    batches = take(shard_set, 10)
    assert sorted(flat(batches[:5])) == sorted(flat(batches[5:])) == list(range(60))
    assert ids(batches[:5]) != ids(batches[5:])
    assert [set(batch.epochs.tolist()) for batch in batches] == [{0}] * 5 + [{1}] * 5
    for batch in batches:
        assert batch.keys == tuple(f"k{number:04d}" for number in batch.sample_ids.tolist())
        assert [labels["number"] for labels in batch.labels] == batch.sample_ids.tolist()
        assert batch.images.dtype == torch.uint8 and batch.images.shape[:2] == (12, 1) and len(batch) == 12
        for image, (height, width), number in zip(batch.images, batch.sizes_px, batch.sample_ids, strict=True):
            assert (height, width) == (8 + number % 3, 8)
            assert (image[:, :height, :width] == number).all() and (image[:, height:] == 0).all()


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_batches_do_not_depend_on_the_workers(shard_set: str, world_size: int) -> None:
    assert joined(shard_set, 7, world_size) == ids(take(shard_set, 7))


def test_loader_processes_change_nothing_and_end(shard_set: str) -> None:
    expected = take(shard_set, 12)
    options = ReadOptions(loader_workers=2)
    with ShardStream(shard_set, options, global_batch=12, lanes=6, shuffle_window=4) as stream:
        found = [next(stream) for _ in range(12)]
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    for one, other in zip(expected, found, strict=True):
        assert one.keys == other.keys and one.labels == other.labels
        assert torch.equal(one.images, other.images) and torch.equal(one.epochs, other.epochs)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_legs_with_other_workers_lose_and_repeat_nothing(stream_set: str, data: st.DataObject) -> None:
    """One epoch in legs, say by 4 workers, then 3, then 1, each with a batch size of its own."""
    start, seen = 0, []
    while start < 60:
        world_size, batch = data.draw(st.sampled_from([1, 2, 3, 4])), 6 * data.draw(st.integers(1, 4))
        leg = joined(stream_set, data.draw(st.integers(1, 3)), world_size, start_sample=start, global_batch=batch)
        start += sum(map(len, leg))
        seen += chain.from_iterable(leg)
    counts = np.bincount(seen, minlength=60)
    assert counts.min() >= start // 60 and counts.max() <= start // 60 + 1 and counts.sum() == start


@settings(max_examples=20, deadline=None)
@given(stop=st.integers(0, 12), batches=st.integers(1, 4))
def test_resumed_anywhere_equals_unbroken(stream_set: str, stop: int, batches: int) -> None:
    whole = take(stream_set, stop + batches)
    resumed = take(stream_set, batches, start_sample=12 * stop)
    assert ids(resumed) == ids(whole[stop:])
    assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[stop:], strict=True))


@pytest.fixture(scope="module")
def stream_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    address = str(tmp_path_factory.mktemp("stream") / "set")
    pixel = _png(np.zeros((4, 4), dtype=np.uint8))
    with ShardWriter(address, mode="L", encoding="png", samples_per_shard=11) as writer:
        for number in range(60):
            writer.add(Sample(f"k{number}", pixel, "png", 4, 4, {}))
    yield address


def _png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_settings_that_change_the_order(shard_set: str) -> None:
    one = ids(take(shard_set, 5))
    assert ids(take(shard_set, 5)) == one
    for other in ({"seed": 1}, {"shuffle_window": 2}, {"lanes": 3}):
        assert ids(take(shard_set, 5, **other)) != one


def test_corrupt_samples_are_replaced_the_same_way_for_everybody(tmp_path: Path, make_set) -> None:
    address = str(tmp_path / "set")
    make_set(address, bad=(5, 6, 30))
    batches = take(address, 10)
    replaced = sum(batch.bad_samples for batch in batches)
    assert replaced == 6  # three in each of two epochs
    seen = flat(batches)
    assert len(seen) == 120 and not {5, 6, 30} & set(seen) and set(seen) == set(range(60)) - {5, 6, 30}
    assert joined(address, 10, 3) == ids(batches)
    for stop in range(10):
        assert ids(take(address, 1, start_sample=12 * stop)) == ids(batches[stop : stop + 1])


def test_the_budget_counts_different_samples_and_names_them(tmp_path: Path, make_set) -> None:
    address = str(tmp_path / "set")
    make_set(address, bad=(5, 6, 30))
    take(address, 20, bad_sample_budget=3)
    with pytest.raises(TooManyBadSamplesError, match=r"3 samples cannot be decoded.*budget is 2: .*k0006"):
        take(address, 20, bad_sample_budget=2)
    with pytest.raises(TooManyBadSamplesError, match=r"k00(05|06|30)"):
        take(address, 20, bad_sample_budget=0, loader_workers=1)


def test_a_block_without_a_good_sample_is_an_error(tmp_path: Path, make_set) -> None:
    address = str(tmp_path / "set")
    make_set(address, bad=tuple(range(60)))
    with pytest.raises(ShardError, match=r"\d samples in a row are corrupt.*: k00\d\d"):
        take(address, 1)


def test_sets_that_cannot_be_streamed_are_refused(shard_set: str) -> None:
    with pytest.raises(RequestError, match="60 samples, fewer than one global batch of 64"):
        ShardStream(shard_set, global_batch=64)
    with pytest.raises(RequestError, match="7 workers cannot share 6 lanes"):
        ShardStream(shard_set, global_batch=12, lanes=6, world_size=7)
    with pytest.raises(RequestError, match=r"no shard set at .*nowhere"):
        ShardStream(shard_set + "-nowhere", global_batch=12)
    index = read_index(shard_set)
    some = PixelRange(min=1, median=1, max=1)
    volumes = index.model_copy(
        update={"image": ImageInfo(mode="volume", encoding="npy", height_px=some, width_px=some)}
    )
    with pytest.raises(RequestError, match="volumes"):
        check_set(shard_set, volumes)


def test_a_stream_ends_its_threads_whichever_way_it_ends(shard_set: str) -> None:
    before = set(threading.enumerate())
    with ShardStream(shard_set, global_batch=12) as stream:
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    for batch in ShardStream(shard_set, global_batch=12):
        assert len(batch) == 12
        break
    unread = ShardStream(shard_set, global_batch=12)
    del unread, batch
    no_budget = ReadOptions(bad_sample_budget=-1)
    with pytest.raises(TooManyBadSamplesError), ShardStream(shard_set, no_budget, global_batch=12) as stream:
        next(stream)
    gc.collect()
    assert set(threading.enumerate()) == before


def test_a_truncated_shard_is_an_error_and_never_short(tmp_path: Path, make_set) -> None:
    """Cut between two members a tar ends without an error; only the index knows better."""
    address = tmp_path / "set"
    index = make_set(str(address), samples=60, per_shard=60)
    shard = address / "000000.tar"
    shard.write_bytes(shard.read_bytes()[: 2 * 2 * 1024 * 10])  # each member has a header and a block of data
    with pytest.raises(OSError, match=f"40960 bytes where {index.shards[0].bytes} were meant"):
        take(str(address), 5)
    lying = index.model_copy(update={"shards": (index.shards[0].model_copy(update={"bytes": 40960}),)})
    with pytest.raises(ShardError, match=r"ended with 20 samples in 40960 bytes, the index says 60 in 40960"):
        take(str(address), 5, index=lying)


def test_a_shard_with_more_samples_than_indexed_is_an_error(tmp_path: Path, make_set) -> None:
    """Shown by the lane that reads the shard to its end."""
    index = make_set(str(tmp_path / "set"), samples=30, per_shard=30)
    fewer = index.model_copy(update={"shards": (index.shards[0].model_copy(update={"samples": 29}),)})
    with pytest.raises(ShardError, match="ended with 30 samples"):
        take(str(tmp_path / "set"), 5, index=fewer, lanes=1)


def test_garbage_in_place_of_a_shard_is_an_error(tmp_path: Path, make_set) -> None:
    index = make_set(str(tmp_path / "set"), samples=30, per_shard=30)
    (tmp_path / "set" / "000000.tar").write_bytes(b"\x07" * index.shards[0].bytes)
    with pytest.raises(ShardError, match="damaged"):
        take(str(tmp_path / "set"), 5, loader_workers=1)


def test_shapes_that_need_a_huge_canvas_together_are_bad_samples(tmp_path: Path) -> None:
    """60,000 x 1 beside 1 x 60,000: a canvas of 3.6 billion pixels for each row."""
    address, shapes = str(tmp_path / "set"), [(60_000, 1), (1, 60_000), *[(9, 9)] * 10]
    with ShardWriter(address, mode="L", encoding="png") as writer:
        for number, shape in enumerate(shapes):
            image = _png(np.full(shape, number, dtype=np.uint8))
            writer.add(Sample(f"k{number}", image, "png", *shape, {}))
    (batch,) = take(address, 1, shuffle_window=12, lanes=1)
    assert batch.images.shape[2:] == (9, 9) and batch.bad_samples == 2
    assert all("a side may have" in bad.reason for bad in batch.bad)
    options = ReadOptions(sample_budget_px=60_000**2)
    with ValidationStream(address, options, batch_size=1) as stream:
        assert next(stream).images.shape == (1, 1, 60_000, 1)


def test_batches_move_to_a_device(shard_set: str) -> None:
    (batch,) = take(shard_set, 1)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.images, moved.sizes_px, moved.sample_ids, moved.epochs)} == {"meta"}
    assert moved.keys == batch.keys


def test_from_config_takes_every_setting(shard_set: str, tmp_path: Path) -> None:
    config = DataConfig(train=shard_set, global_batch=12, lanes=6, shuffle_window=4, loader_workers=0)
    with ShardStream.from_config(config, seed=3) as stream:
        assert next(stream).sample_ids.tolist() == ids(take(shard_set, 1, seed=3))[0]
        assert (stream.samples_per_epoch, stream.steps_per_epoch) == (60, 5.0)
    settings_ = {"seed": 3, "rank": 1, "world_size": 2, "start_sample": 24}
    with ShardStream.from_config(config, **settings_, global_batch=20, lanes=4) as stream:
        assert next(stream).sample_ids.tolist() == ids(take(shard_set, 1, **settings_, global_batch=20, lanes=4))[0]


def test_every_setting_of_reading_reaches_the_stream() -> None:
    settings_ = {"loader_workers": 3, "bad_sample_budget": 7, "storage_timeout_s": 9.0}
    cache = CacheConfig(dir="somewhere", max_bytes=5)
    assert DataConfig(train="x", **settings_, cache=cache).read_options == ReadOptions(**settings_, cache=cache)


@pytest.mark.parametrize(("samples", "world_size", "batch_size"), [(60, 1, 16), (60, 3, 7), (10, 4, 2), (2, 4, 3)])
def test_validation_counts_each_sample_once_in_equally_many_batches(
    tmp_path: Path, make_set, samples: int, world_size: int, batch_size: int
) -> None:
    address = str(tmp_path / "set")
    make_set(address, samples=samples)
    passes = [
        list(ValidationStream(address, batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in passes}) == 1
    assert all(len(batch) == batch_size for batches in passes for batch in batches)
    seen = [int(i) for batches in passes for batch in batches for i in batch.sample_ids[batch.valid]]
    assert seen == list(range(samples))


def test_validation_passes_over_corrupt_samples(tmp_path: Path, make_set) -> None:
    address = str(tmp_path / "set")
    make_set(address, samples=20, bad=(0, 13))
    with ValidationStream(address, batch_size=8) as stream:
        batches = list(stream)
        assert len(stream) == len(batches) == 3
    assert [int(i) for batch in batches for i in batch.sample_ids[batch.valid]] == sorted(set(range(20)) - {0, 13})
    assert [batch.bad_samples for batch in batches] == [1, 1, 0]
    with (
        pytest.raises(TooManyBadSamplesError, match="k0013"),
        ValidationStream(address, ReadOptions(bad_sample_budget=1), batch_size=8) as stream,
    ):
        list(stream)


def test_validation_of_some_samples_gives_them_and_whom_they_are_of(tmp_path: Path) -> None:
    address, patients = str(tmp_path / "set"), ["p0", "p0", "p1", None, "p1", None, "p0"]
    with ShardWriter(address, mode="L", encoding="png", samples_per_shard=3) as writer:
        for number, patient in enumerate(patients):
            metadata = {"labels": {"number": number}} | ({"split_group": patient} if patient else {})
            writer.add(Sample(f"k{number}", _black_png(), "png", 8, 8, metadata))
    with ValidationStream(address, batch_size=2, ids=[0, 3, 4, 6]) as stream:
        batches = list(stream)
    assert ids(batches) == [[0, 3], [4, 6]]
    assert [label["number"] for batch in batches for label in batch.labels] == [0, 3, 4, 6]
    assert [batch.groups for batch in batches] == [("p0", "k3"), ("p1", "p0")], "of nobody known: a group of its own"
    streamed = take(address, 1, global_batch=7, lanes=1)[0]
    expected = {patients[number] or f"k{number}" for number in streamed.sample_ids.tolist()}
    assert set(streamed.groups) == expected


def _black_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()
