"""The disk cache of shards: bounded, shared by processes, none the worse for a crash."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dira_dist.data.cache import CacheConfig, ShardCache
from dira_dist.data.lanes import ReadOptions, ShardError
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import StoreError, open_store
from dira_dist.data.stream import DataConfig, ShardStream
from dira_dist.data.validation import ValidationStream

pytestmark = pytest.mark.timeout(60)
NEVER = threading.Event()


@pytest.fixture
def address(s3, make_set) -> str:
    address = s3.address("set")
    make_set(address)
    return address


@pytest.fixture
def index(address: str) -> ShardSetIndex:
    return read_index(address)


def cache_of(folder: Path, max_bytes: int = 1 << 30) -> ShardCache:
    return ShardCache(CacheConfig(dir=str(folder), max_bytes=max_bytes))


def held(folder: Path) -> int:
    """Bytes in the folder, as `du` counts them while files come and go."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_cached_shard_is_downloaded_once(address: str, index: ShardSetIndex, proxy, tmp_path: Path) -> None:
    cache, store = cache_of(tmp_path), open_store(address)
    for _ in range(3):
        file = cache.open(store, index.shards[0], NEVER)
        assert file is not None
        assert file.read() == open_store(address).read_bytes("000000.tar")
        file.close()
    assert len(proxy.object_gets) == 4  # one by the cache, three by the test


def test_streams_share_it_and_give_the_same(address: str, proxy, tmp_path: Path) -> None:
    def epoch(cache: CacheConfig | None, loader_workers: int = 0) -> list[tuple[str, ...]]:
        config = DataConfig(
            train=address, global_batch=12, lanes=6, shuffle_window=4, loader_workers=loader_workers, cache=cache
        )
        with ShardStream.from_config(config, seed=0) as stream:
            return [next(stream).keys for _ in range(5)]

    expected = epoch(None)
    start = len(proxy.object_gets)
    cache = CacheConfig(dir=str(tmp_path / "cache"), max_bytes=1 << 30)
    assert epoch(cache, loader_workers=2) == epoch(cache) == expected
    assert len(proxy.object_gets) - start == 9
    with ValidationStream(address, ReadOptions(cache=cache), batch_size=7) as stream:
        assert len(list(stream)) == 9
    assert len(proxy.object_gets) - start == 9


def test_it_never_holds_more_than_its_bound(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    bound = 2 * max(shard.bytes for shard in index.shards) + 1000
    cache, store = cache_of(tmp_path, bound), open_store(address)

    def use(shard) -> None:
        file = cache.open(store, shard, NEVER)
        assert held(tmp_path) <= bound
        if file is not None:
            assert len(file.read()) == shard.bytes
            file.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, index.shards * 3))
    assert 0 < held(tmp_path) <= bound


def test_the_least_recently_used_shard_goes_first(address: str, index: ShardSetIndex, proxy, tmp_path: Path) -> None:
    size = max(shard.bytes for shard in index.shards)
    cache, store = cache_of(tmp_path, 2 * size), open_store(address)
    for number in (0, 1, 0, 2, 0):  # 2 takes the place of 1
        cache.open(store, index.shards[number], NEVER).close()
    assert len(proxy.object_gets) == 3


def test_a_shard_being_read_stays(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    size = max(shard.bytes for shard in index.shards)
    cache, store = cache_of(tmp_path, size), open_store(address)
    with cache.open(store, index.shards[0], NEVER) as reading:
        assert cache.open(store, index.shards[1], NEVER) is None  # no room: to be read without the cache
        assert len(reading.read()) == index.shards[0].bytes
    cache.open(store, index.shards[1], NEVER).close()
    assert [path.stat().st_size for path in tmp_path.glob("*.tar")] == [index.shards[1].bytes]


def test_a_set_too_large_for_it_streams_all_the_same(address: str, tmp_path: Path) -> None:
    cache = CacheConfig(dir=str(tmp_path), max_bytes=1)
    with ValidationStream(address, ReadOptions(cache=cache), batch_size=60) as stream:
        assert next(stream).sample_ids.tolist() == list(range(60))
    assert held(tmp_path) == 0


def test_a_folder_that_cannot_be_made_is_done_without(
    address: str, index: ShardSetIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = cache_of(tmp_path / "file" / "cache")
    assert [cache.open(open_store(address), shard, NEVER) for shard in index.shards[:2]] == [None, None]
    assert caplog.text.count("data.cache.dir") == 1
    config = CacheConfig(dir=str(tmp_path / "file" / "cache"), max_bytes=1 << 30)
    with ValidationStream(address, ReadOptions(cache=config), batch_size=60) as stream:
        assert next(stream).sample_ids.tolist() == list(range(60))


def test_a_shard_that_cannot_be_begun_is_read_without_it(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    cache, store = cache_of(tmp_path), open_store(address)
    cache.open(store, index.shards[0], NEVER).close()
    (entry,) = tmp_path.glob("*.tar")
    entry.unlink()
    entry.with_suffix(".part").mkdir()  # where the download would be written
    assert cache.open(store, index.shards[0], NEVER) is None


def test_a_disk_that_fails_is_done_without(address: str, index: ShardSetIndex, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", _no_space)
    assert cache_of(tmp_path).open(open_store(address), index.shards[0], NEVER) is None
    assert held(tmp_path) == 0


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_another_object_of_the_same_name_is_another_entry(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    cache, store = cache_of(tmp_path), open_store(address)
    cache.open(store, index.shards[0], NEVER).close()
    other = open_store(address.replace("/set", "/other"))
    etag = other.write_bytes("000000.tar", b"other")
    shard = index.shards[0].model_copy(update={"bytes": 5, "etag": etag, "sha256": _sha256(b"other")})
    with cache.open(other, shard, NEVER) as file:
        assert file.read() == b"other"


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_bytes_that_are_not_those_of_the_index_are_not_kept(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    wrong = index.shards[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StoreError, match=r"000000\.tar has the sha256 .*index says 0000"):
        cache_of(tmp_path).open(open_store(address), wrong, NEVER)
    assert held(tmp_path) == 0


def _open_one(folder: Path, address: str, index: ShardSetIndex) -> None:
    cache_of(folder).open(open_store(address), index.shards[0], NEVER).close()


@pytest.fixture
def start() -> Callable[..., multiprocessing.Process]:
    context = multiprocessing.get_context("spawn")

    def start(*arguments: object) -> multiprocessing.Process:
        process = context.Process(target=_open_one, args=arguments)
        process.start()
        return process

    return start


def test_a_crash_midway_leaves_nothing_that_harms(
    address: str, index: ShardSetIndex, proxy, fault, tmp_path: Path, start
) -> None:
    """A process is killed while it downloads; meanwhile another waits for it, and then takes over."""
    reached = threading.Event()

    def plan(request):
        if request.number < 0 or reached.is_set():
            return None
        reached.set()
        return fault("stall", 5000)

    proxy.plan = plan
    process = start(tmp_path, address, index)
    reached.wait()
    (part,) = tmp_path.glob("*.part")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache_of(tmp_path).open, open_store(address), index.shards[0], NEVER)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with waiting.result() as file:
            assert len(file.read()) == index.shards[0].bytes
    assert not part.exists()


def test_litter_of_a_crash_does_not_fill_the_bound(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    litter = tmp_path / "dead.part"
    litter.write_bytes(b"x" * 100_000)
    cache_of(tmp_path, 100_000).open(open_store(address), index.shards[0], NEVER).close()
    assert not litter.exists()


def test_a_cut_set_is_an_error_through_the_cache_too(address: str, index: ShardSetIndex, tmp_path: Path) -> None:
    more = index.shards[0].model_copy(update={"samples": index.shards[0].samples + 1})
    lying = index.model_copy(update={"shards": (more, *index.shards[1:])})
    cache = CacheConfig(dir=str(tmp_path), max_bytes=1 << 30)
    with (
        pytest.raises(ShardError, match="ended with 7 samples"),
        ValidationStream(address, ReadOptions(cache=cache), batch_size=8, index=lying) as stream,
    ):
        list(stream)
