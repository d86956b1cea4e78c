"""The stream from a real S3 server with trouble in between: every sample exactly once, or an error with the cause."""

import io
import multiprocessing
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
import torch

from dira_dist.config import RequestError
from dira_dist.data import ranges
from dira_dist.data.batch import LocalBatch
from dira_dist.data.lanes import LaneReader, ReadOptions, ShardError, ShardSet
from dira_dist.data.order import Order
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import ChangedObjectError, MissingObjectError, StoreError, check_reachable, open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.validation import ValidationStream

pytestmark = pytest.mark.timeout(60)  # what would hang fails here

RANGE_BYTES = 9000
EPOCH = 5  # batches of 12 samples


@pytest.fixture
def address(s3, make_set) -> str:
    address = s3.address("set")
    make_set(address)
    return address


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of a few samples comes in several ranges, as a large one does."""
    monkeypatch.setattr(ranges, "RANGE_BYTES", RANGE_BYTES)


_READ_OPTIONS = {option.name for option in fields(ReadOptions)}


def take(
    address: str, batches: int = EPOCH, *, index: ShardSetIndex | None = None, **settings_: Any
) -> list[LocalBatch]:
    options = ReadOptions(**{name: settings_.pop(name) for name in _READ_OPTIONS & set(settings_)})
    settings_ = {"global_batch": 12, "lanes": 6, "shuffle_window": 4} | settings_
    with ShardStream(address, options, index=index, **settings_) as stream:
        return [next(stream) for _ in range(batches)]


def assert_same(found: list[LocalBatch], expected: list[LocalBatch]) -> None:
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    assert sorted(key for batch in found for key in batch.keys) == [f"k{number:04d}" for number in range(60)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, expected, strict=True))


def first_of_each_range(fault):
    """Breaks the answer to the first request for each range of a shard; the next one, wherever it goes on, is whole."""
    broken: set[tuple[str, int]] = set()

    def plan(request):
        place = (request.path, request.start)
        if request.number < 0 or request.start % RANGE_BYTES or place in broken:
            return None
        broken.add(place)
        return fault

    return plan


@pytest.mark.parametrize("kind", ["reset", "close", "short"])
@pytest.mark.parametrize("after_bytes", [0, 2500])
def test_broken_bodies_are_continued_where_they_broke(address: str, proxy, fault, kind: str, after_bytes: int) -> None:
    expected = take(address)
    clean_gets = len(proxy.object_gets)
    proxy.plan = first_of_each_range(fault(kind, after_bytes))
    assert_same(take(address), expected)
    assert len(proxy.object_gets) > 2 * clean_gets


def test_a_body_that_never_gets_anywhere_fails_with_the_cause(address: str, proxy, fault) -> None:
    proxy.plan = lambda request: fault("reset", 0) if request.number >= 3 else None
    with pytest.raises(StoreError, match=r"read s3://.*\.tar: gave up after .* the last one failed with"):
        take(address, storage_timeout_s=1)


def test_a_storm_of_503_is_waited_out(address: str, proxy, fault) -> None:
    expected = take(address)
    start = len(proxy.object_gets)
    proxy.plan = lambda request: fault("status") if start <= request.number < start + 15 else None
    assert_same(take(address), expected)


def test_an_endless_storm_fails_with_the_cause(address: str, proxy, fault) -> None:
    proxy.plan = lambda request: fault("status") if request.number >= 0 else None
    with pytest.raises(StoreError, match=r"SlowDown"):
        take(address, storage_timeout_s=1)


def test_a_stall_is_given_up_and_continued(address: str, proxy, fault) -> None:
    expected = take(address)
    start = len(proxy.object_gets)
    proxy.plan = lambda request: fault("stall", 2000) if start <= request.number < start + 4 else None
    assert_same(take(address, storage_timeout_s=4), expected)


def test_endless_silence_fails_with_the_cause(address: str, proxy, fault) -> None:
    proxy.plan = lambda request: fault("stall", 0) if request.number >= 2 else None
    with pytest.raises(StoreError, match=r"gave up after .*[Tt]imeout"):
        take(address, storage_timeout_s=1)


def test_a_changed_shard_is_named(address: str) -> None:
    store = open_store(address)
    store.write_bytes("000003.tar", store.read_bytes("000004.tar"))
    with pytest.raises(ChangedObjectError, match=r"000003\.tar.*has changed"):
        take(address)


def test_a_missing_shard_is_named(address: str) -> None:
    open_store(address).delete("000003.tar")
    with pytest.raises(MissingObjectError, match=r"000003\.tar"):
        take(address)


def without_etags(address: str) -> ShardSetIndex:
    index = read_index(address)
    return index.model_copy(update={"shards": tuple(shard.model_copy(update={"etag": ""}) for shard in index.shards)})


def test_a_shard_truncated_between_members_is_named(address: str) -> None:
    """Without ETags in the index the length tells; and with the length of the cut one in the index, the count."""
    store, index = open_store(address), without_etags(address)
    whole = store.read_bytes("000003.tar")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        cut = whole[: tar.getmembers()[4].offset]
    store.write_bytes("000003.tar", cut)
    with pytest.raises(ChangedObjectError, match=rf"000003\.tar has {len(cut)} bytes where {len(whole)} were meant"):
        take(address, index=index)
    shards = [
        shard.model_copy(update={"bytes": len(cut)}) if shard.name == "000003.tar" else shard for shard in index.shards
    ]
    with pytest.raises(ShardError, match=r"000003\.tar is damaged: .*ended with 2 samples"):
        take(address, index=index.model_copy(update={"shards": tuple(shards)}))


def test_loader_processes_bear_and_report_the_same(address: str, proxy, fault) -> None:
    proxy.plan = first_of_each_range(fault("reset", 3000))
    found = take(address, loader_workers=2)
    proxy.plan = lambda request: None
    assert_same(found, take(address))
    open_store(address).delete("000003.tar")
    with pytest.raises(MissingObjectError, match=r"000003\.tar"):
        take(address, loader_workers=2)


def test_validation_bears_the_same(address: str, proxy, fault) -> None:
    proxy.plan = first_of_each_range(fault("reset", 3000))
    with ValidationStream(address, batch_size=7) as stream:
        assert [int(i) for batch in stream for i in batch.sample_ids[batch.valid]] == list(range(60))


def test_a_stream_in_trouble_can_be_closed(address: str, proxy, fault) -> None:
    """Minutes of patience are no reason to wait for them; whoever waits for a batch then hears that there is none."""
    storm = threading.Event()

    def plan(request):
        if request.number < 6:
            return None
        storm.set()
        return fault("status")

    proxy.plan = plan
    stream = ShardStream(address, global_batch=12, lanes=6, shuffle_window=2)
    with ThreadPoolExecutor(1) as pool:
        consumer = pool.submit(lambda: sum(1 for _ in stream))
        storm.wait()
        stream.close()
        assert isinstance(consumer.exception(), StoreError | None)


def test_loader_processes_in_trouble_can_be_ended(address: str, proxy, fault) -> None:
    storm = threading.Event()

    def plan(request):
        if request.number < 24:
            return None
        storm.set()
        return fault("status")

    proxy.plan = plan
    with ShardStream(address, ReadOptions(loader_workers=1), global_batch=6, lanes=6) as stream:
        next(stream)  # the block of the next epoch is being read from now on
        storm.wait()
    assert multiprocessing.active_children() == []


def test_a_resume_downloads_at_most_a_shard_per_lane_more_than_a_start(address: str, proxy, monkeypatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 4096)
    index = read_index(address)
    order = Order([shard.samples for shard in index.shards], lanes=3, window=4, seed=0)
    cancelled = threading.Event()

    def downloaded(lane: int, row: int) -> int:
        """Bytes until the block of a row is there, as at a start."""
        before = proxy.object_bytes
        with ThreadPoolExecutor(1) as pool:
            reader = LaneReader(ShardSet(address, index), order, lane, pool, cancelled)
            reader.load(row)
            reader.close()
        return proxy.object_bytes - before

    largest = max(shard.bytes for shard in index.shards)
    for lane in range(3):
        start = downloaded(lane, 0)
        assert max(downloaded(lane, row) for row in (3, 11, 35)) <= start + largest + 4096  # a range begun


def test_access_denied_says_what_to_do(s3, proxy, fault) -> None:
    proxy.plan = lambda request: fault("status", status=403, code="AccessDenied")
    with pytest.raises(RequestError, match=r"access denied \(AccessDenied\).*check the credentials"):
        check_reachable(s3.address("x"))


@pytest.mark.parametrize("kind", ["status", "reset", "short"])
@pytest.mark.parametrize("data", [b"", b"x" * 5000])
def test_reads_of_unknown_length_are_tried_again_and_whole(s3, proxy, fault, kind: str, data: bytes) -> None:
    """Also where the trouble comes before anything is known of the object."""
    store = open_store(s3.address("r"))
    store.write_bytes("k.tar", data)
    proxy.first(3, fault(kind))
    assert store.read_bytes("k.tar") == data


def test_writes_are_tried_again_and_whole(s3, proxy, fault, tmp_path) -> None:
    left = iter([fault("status"), fault("status", status=500, code="InternalError"), fault("reset"), None, None, None])
    store = open_store(s3.address("w"))
    proxy.plan = lambda request: next(left) if request.method == "PUT" else None
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    store.upload("k", source)
    assert store.read_bytes("k") == b"x" * 5000
