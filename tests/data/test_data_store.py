"""Both stores keep the same promises; the bucket is moto's real HTTP server."""

import io
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dira_dist.config import RequestError
from dira_dist.data import ranges
from dira_dist.data import store as store_module
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.retry import Backoff, retried
from dira_dist.data.store import (
    ChangedObjectError,
    LocalStore,
    MissingObjectError,
    ObjectInfo,
    S3Store,
    Store,
    StoreError,
    check_reachable,
    open_store,
)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "set"))
    return open_store(request.getfixturevalue("s3").address("a/set"))


def test_what_is_written_is_read(store: Store) -> None:
    store.write_bytes("x/one.bin", b"1" * 1000)
    store.write_bytes("x/one.bin", b"2" * 10)
    assert store.read_bytes("x/one.bin") == b"2" * 10
    store.write_bytes("empty", b"")
    assert store.read_bytes("empty") == b""


def test_lists_in_order_and_by_prefix(store: Store) -> None:
    for key in ("b", "a/2", "a/1", "ab"):
        store.write_bytes(key, key.encode())
    assert [info.key for info in store.list()] == ["a/1", "a/2", "ab", "b"]
    assert [(info.key, info.bytes) for info in store.list("a/")] == [("a/1", 3), ("a/2", 3)]


def test_stat_and_delete(store: Store) -> None:
    assert store.stat("k") is None
    etag = store.write_bytes("k", b"abc")
    assert store.stat("k") == ObjectInfo("k", 3, etag)
    store.delete("k")
    store.delete("k")
    assert store.stat("k") is None


def test_an_object_is_replaced_only_by_who_has_seen_it(store: Store) -> None:
    first = store.write_version("state.json", b"1", None)
    assert store.read_version("state.json") == (b"1", first)
    with pytest.raises(ChangedObjectError):
        store.write_version("state.json", b"2", None)
    second = store.write_version("state.json", b"2", first)
    assert second != first
    with pytest.raises(ChangedObjectError):
        store.write_version("state.json", b"3", first)
    assert store.read_version("state.json") == (b"2", second)
    store.delete("state.json")
    with pytest.raises(ChangedObjectError):
        store.write_version("state.json", b"3", second)


def test_upload(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 100)
    etag = store.upload("up", source)
    assert store.read_bytes("up") == source.read_bytes()
    assert store.stat("up") == ObjectInfo("up", 25600, etag)


def test_missing_object_says_which(store: Store) -> None:
    with pytest.raises(MissingObjectError, match="nothing-here"):
        store.read_bytes("nothing-here")


def test_delays_double_up_to_a_bound_and_begin_anew() -> None:
    backoff, longest = Backoff(1.0, 8.0), [0.0] * 6
    for _ in range(300):
        backoff.reset()
        longest = [max(bound, backoff.delay_s()) for bound in longest]
    assert all(0.9 * bound < found <= bound for found, bound in zip(longest, (1, 2, 4, 8, 8, 8), strict=True))


def test_retries_end_with_the_errors_own() -> None:
    met: list[Exception] = []

    def failing() -> int:
        met.append(OSError(len(met)))
        raise met[-1]

    with pytest.raises(OSError, match="2"):
        retried(failing, lambda error: False, Backoff(0.001, 0.001), attempts=3)
    with pytest.raises(OSError, match="3"):
        retried(failing, lambda error: True, Backoff(0.001, 0.001))
    with pytest.raises(OSError, match="4"):
        retried(failing, lambda error: False, Backoff(0.001, 0.001), timeout_s=0)
    assert len(met) == 5 and retried(lambda: 7, lambda error: True, Backoff(1, 1)) == 7


def test_reads_from_a_start(store: Store) -> None:
    store.write_bytes("k", b"0123456789")
    with store.open("k", ObjectRange(start=7)) as stream:
        assert stream.read() == b"789"
    with store.open("k", ObjectRange(start=10)) as stream:
        assert stream.read() == b""


def test_another_length_than_meant_is_refused(store: Store) -> None:
    store.write_bytes("k", b"0123456789")
    with (
        pytest.raises(ChangedObjectError, match="10 bytes where 11 were meant"),
        store.open("k", ObjectRange(size=11)) as stream,
    ):
        stream.read()


def test_survives_pickling(store: Store) -> None:
    store.write_bytes("k", b"0123456789")
    assert pickle.loads(pickle.dumps(store)).read_bytes("k") == b"0123456789"


def test_join_names_the_full_address(tmp_path: Path) -> None:
    assert open_store("s3://bucket/a/b").join("c.tar") == "s3://bucket/a/b/c.tar"
    assert open_store("s3://bucket").join("c.tar") == "s3://bucket/c.tar"
    assert open_store(f"file://{tmp_path}").join("c") == str(tmp_path / "c")


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://", "http://x/y"])
def test_unknown_addresses_are_refused(address: str) -> None:
    with pytest.raises(RequestError, match="s3://bucket/prefix"):
        open_store(address)


def test_folder_keys_stay_inside(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="leads out"):
        open_store(str(tmp_path / "set")).write_bytes("../escape", b"x")


def test_a_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write_bytes("k", b"old")
    with pytest.raises(IsADirectoryError):
        store.upload("k", tmp_path)
    (tmp_path / ".k.0.tmp").write_bytes(b"what a crash leaves")
    assert [info.key for info in store.list()] == ["k"]
    assert store.read_bytes("k") == b"old"


def test_a_failed_write_leaves_no_empty_folder(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(28, "No space left on device")

    store = LocalStore(str(tmp_path))
    with pytest.raises(StoreError, match="No space left"):
        store._publish("step-1/state.pt", Full())
    assert list(tmp_path.iterdir()) == []


def test_folders_that_empty_beside_a_write_take_it_all_the_same(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))

    def write_and_delete(worker: int) -> None:
        for number in range(100):
            store.write_bytes(f"outbox/run/{worker}-{number}", b"x")
            store.delete(f"outbox/run/{worker}-{number}")

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(write_and_delete, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_s3_reads_in_ranges(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1000)
    data = os.urandom(3500)
    store = open_store(s3.address("p"))
    etag = store.write_bytes("k", data)
    with store.open("k", ObjectRange(etag, start=1)) as stream:
        assert stream.read() == data[1:]


def test_s3_refuses_another_version(s3) -> None:
    store = open_store(s3.address("p"))
    etag = store.write_bytes("k", b"first")
    store.write_bytes("k", b"other")
    with pytest.raises(ChangedObjectError, match="ETag"), store.open("k", ObjectRange(etag)) as stream:
        stream.read()


def test_s3_object_changed_between_ranges_is_never_mixed(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1000)
    store = open_store(s3.address("p"))
    store.write_bytes("k", b"a" * 100_000)
    with store.open("k") as stream:
        assert stream.read(1) == b"a"
        store.write_bytes("k", b"b" * 100_000)
        with pytest.raises(ChangedObjectError, match="changed"):
            stream.read(99_999)


def test_s3_uploads_large_files_in_parts(s3, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(5 << 20) + b"tail")
    store = S3Store(s3.bucket, "p", part_bytes=5 << 20)
    etag = store.upload("large", source)
    assert etag.endswith("-2")
    assert store.read_bytes("large") == source.read_bytes()


def test_s3_lists_beyond_one_page(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_OBJECTS", 2)
    store = open_store(s3.address("many"))
    for number in range(7):
        store.write_bytes(f"{number:04d}", b"")
    assert [info.key for info in store.list()] == [f"{number:04d}" for number in range(7)]


def test_reachable(s3, tmp_path: Path) -> None:
    check_reachable(str(tmp_path))
    check_reachable(str(tmp_path / "new" / "er"), write=True)
    assert not (tmp_path / "new").exists()
    check_reachable(s3.address("fresh"), write=True)
    open_store(s3.address("full")).write_bytes("k", b"")
    check_reachable(s3.address("full"))


def test_unreachable_says_what_to_do(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"no folder .*check the path"):
        check_reachable(str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="holds nothing there; check the prefix"):
        check_reachable(s3.address("nowhere"))
    with pytest.raises(RequestError, match=r"no bucket 'no-such-bucket'.*create it"):
        check_reachable("s3://no-such-bucket/x")
    with pytest.raises(RequestError, match=r"no bucket 'no-such-bucket'.*create it"):
        check_reachable("s3://no-such-bucket/x", write=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RequestError, match=r"http://127\.0\.0\.1:9 cannot be reached.*check AWS_ENDPOINT_URL"):
        check_reachable(s3.address("x"))


def test_missing_credentials_say_so(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(RequestError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        check_reachable(s3.address("x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RequestError, match="cannot be written"):
        check_reachable(str(tmp_path / "x"), write=True)


def test_a_file_where_a_folder_is_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RequestError, match="cannot be written"):
        check_reachable(str(tmp_path / "file" / "x"), write=True)
