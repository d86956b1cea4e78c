"""What samples say of themselves, read without their pixels: the same as the stream finds, remembered, and checked."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import ShardWriter, read_shard

from dira_dist.data import samples as samples_module
from dira_dist.data.cache import CacheConfig
from dira_dist.data.ingest.pixels import encode_array
from dira_dist.data.lanes import ReadOptions, ShardError
from dira_dist.data.pieces import SeekingSource, take_apart, walk
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.shards import Sample, ShardInfo, ShardSetIndex, publish_shard, read_index, shard_name
from dira_dist.data.store import ChangedObjectError, open_store
from dira_dist.data.tars import PlainTar, unchecked_samples


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home"


def metadata_of(number: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {"number": number, "findings": ["a", "b"]}, "boxes": []}
    if number % 7 == 0:
        metadata["boxes"] = [{"label": "a", "x": 1.5, "y": number, "width": 2.0, "height": 3.0}]
    if number % 3:
        metadata["split_group"] = f"p{number // 4}"
    if number % 2:
        metadata["columns"] = {"age": "90+", "sex": "F"}
    if number % 5 == 0:
        metadata["spacing_mm"] = [2.5, 1, 0.5] if number else [None, 1, 1]
    return metadata


def fill(address: str, count: int = 23, per_shard: int = 5) -> ShardSetIndex:
    """Cubes of which each fourth has a mask."""
    with ShardWriter(address, mode="volume", encoding="npy", samples_per_shard=per_shard) as writer:
        for number in range(count):
            cube = encode_array(np.full((3, 4, 9), number, dtype=np.uint8))
            mask = cube if number % 4 == 0 else None
            writer.add(Sample(f"v{number:02d}", cube, "npy", 4, 9, metadata_of(number), mask))
    return writer.index


def check(table: SampleTable, address: str) -> None:
    assert len(table) == 23 and table.keys == tuple(f"v{number:02d}" for number in range(23))
    assert table.labels == tuple({"number": number, "findings": ["a", "b"]} for number in range(23))
    assert table.groups == tuple(f"p{number // 4}" if number % 3 else f"v{number:02d}" for number in range(23))
    assert table.has_groups
    assert [len(boxes) for boxes in table.boxes] == [int(number % 7 == 0) for number in range(23)]
    assert table.boxes[14][0] == {"label": "a", "x": 1.5, "y": 14, "width": 2.0, "height": 3.0}
    assert table.columns == tuple({"age": "90+", "sex": "F"} if number % 2 else {} for number in range(23))
    assert table.has_mask.tolist() == [number % 4 == 0 for number in range(23)]
    assert table.spacing_mm[0] is None and table.spacing_mm[5] == (0.5, 1.0, 2.5) and table.spacing_mm[1] is None
    for number, shard in enumerate(read_index(address).shards):
        content = open_store(address).read_bytes(shard.name)
        for place, (key, members) in enumerate(read_shard(open_store(address), shard.name), number * 5):
            (found,) = take_apart(content[table.first_byte[place] : table.end_byte[place]])
            assert (found.key, found.members) == (key, members)


def test_a_table_says_what_is_in_the_shards_and_where(tmp_path: Path) -> None:
    address, seen = str(tmp_path / "set"), []
    index = fill(address)
    table = read_samples(address, index, progress=lambda done, total: seen.append((done, total)))
    check(table, address)
    assert seen[-1] == (23, 23) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_set_in_a_bucket_gives_the_same(s3, proxy, fault) -> None:
    address = s3.address("set")
    index = fill(address)
    proxy.first(4, fault("reset", after_bytes=300))
    table = read_samples(address, index)
    assert len(proxy.object_gets) == len(index.shards) + 4, "one for each shard, and what broke once more"
    check(table, address)


def test_large_members_of_a_bucket_are_not_read(s3, proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    address = s3.address("set")
    with ShardWriter(address, mode="volume", encoding="npy") as writer:
        for number in range(4):
            cube = encode_array(np.zeros((100, 100, 100), dtype=np.uint8))
            writer.add(Sample(f"v{number}", cube, "npy", 100, 100, metadata_of(number)))
    monkeypatch.setattr(samples_module, "RANGE_BYTES", 1 << 18)
    table = read_samples(address, writer.index)
    assert table.keys == ("v0", "v1", "v2", "v3") and table.labels[3]["number"] == 3
    assert proxy.object_bytes < 6 * (1 << 16) < writer.index.bytes / 10


def test_a_disk_cache_of_shards_serves_the_table_too(s3, proxy, tmp_path: Path) -> None:
    address = s3.address("set")
    index = fill(address)
    options = ReadOptions(cache=CacheConfig(dir=str(tmp_path / "shards"), max_bytes=1 << 30))
    check(read_samples(address, index, options), address)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == len(index.shards)


# ------------------------------------------------------------------------------- remembered


def remembered(home: Path, index: ShardSetIndex) -> Path:
    return home / "dira_dist" / "samples" / f"{index.digest}.json.gz"


def test_what_was_read_once_is_remembered_by_the_sets_digest(tmp_path: Path, cache_home: Path) -> None:
    address = str(tmp_path / "set")
    index = fill(address)
    read_samples(address, index)
    file = remembered(cache_home, index)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    again = read_samples(str(tmp_path / "nowhere"), index)
    check(again, address)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _bent(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 0x10]) + content[61:]


def _changed(**values: Any) -> Any:
    def change(content: bytes) -> bytes:
        return gzip.compress(json.dumps(json.loads(gzip.decompress(content)) | values).encode())

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _bent,
        lambda content: b"",
        lambda content: b"nonsense",
        _changed(version=1),
        _changed(digest="another"),
        _changed(keys=["v00"]),
        _changed(labels=None),
    ],
)
def test_a_damaged_file_is_read_anew_and_replaced(tmp_path: Path, cache_home: Path, damage: Any) -> None:
    address = str(tmp_path / "set")
    index = fill(address)
    read_samples(address, index)
    file = remembered(cache_home, index)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    check(read_samples(address, index), address)
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    tmp_path: Path, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_home.write_text("no folder")
    address = str(tmp_path / "set")
    check(read_samples(address, fill(address)), address)
    assert "could not be written" in caplog.text and "read anew next time" in caplog.text


# --------------------------------------------------------------------------------- checked


def test_a_shard_that_is_not_what_the_index_says_is_named(tmp_path: Path) -> None:
    address = str(tmp_path / "set")
    index = fill(address)
    tar = tmp_path / "set" / "000001.tar"
    whole = tar.read_bytes()

    def of_samples(count: int) -> ShardSetIndex:
        shards = [
            shard.model_copy(update={"samples": count}) if shard.name == tar.name else shard for shard in index.shards
        ]
        return index.model_copy(update={"shards": tuple(shards)})

    with pytest.raises(ShardError, match=r"000001.tar is damaged: it holds 5 samples, the index says 6"):
        read_samples(address, of_samples(6))
    for content in (b"\7" * len(whole), whole.replace(b"v05.json", b"v05.npy\0")):
        tar.write_bytes(content)
        with pytest.raises(ShardError, match=r"000001.tar is damaged: .*wrong checksum"):
            read_samples(address, index)
    tar.write_bytes(whole[:-1])
    with pytest.raises(ChangedObjectError, match="were meant"):
        read_samples(address, index)


def test_a_key_that_stands_twice_is_named(tmp_path: Path, make_set) -> None:
    address = str(tmp_path / "set")
    index = make_set(address, samples=14)
    again = tmp_path / "set" / "000001.tar"
    again.write_bytes((tmp_path / "set" / "000000.tar").read_bytes())
    shards = (index.shards[0], index.shards[0].model_copy(update={"name": "000001.tar"}))
    with pytest.raises(ShardError, match=r"the key k0000 stands in it 2 times"):
        read_samples(address, index.model_copy(update={"shards": shards}))


def test_damaged_metadata_says_nothing_and_is_left_to_the_decoder(tmp_path: Path) -> None:
    address = str(tmp_path / "set")
    with ShardWriter(address, mode="volume", encoding="npy") as writer:
        cube = encode_array(np.zeros((2, 3, 4), dtype=np.uint8))
        odd: list[dict[str, Any]] = [
            {"labels": 3},
            {"columns": [1]},
            {"columns": {"a": [1], "b": True, "c": None}},
            {"spacing_mm": ["x", 1, 2]},
            {"spacing_mm": 5},
        ]
        for number, metadata in enumerate(odd):
            writer.add(Sample(f"v{number}", cube, "npy", 3, 4, metadata if "spacing_mm" not in metadata else {}))
    table = read_samples(address, writer.index)
    assert table.labels == ({},) * 5 and table.columns == ({}, {}, {"b": True}, {}, {})
    assert not table.has_groups and table.groups == table.keys
    assert [samples_module._spacing(metadata, writer.index.image) for metadata in odd[3:]] == [None, None]


# --------------------------------------------------------------------- the walk and WebDataset


_names = st.from_regex(r"[ab]{1,2}(/[ab])?(\.(png|JSON|mask\.png|x)){1,2}", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(_names, st.sampled_from(["__m__/a.x", "noext", "ä.png", "a" * 120 + "/b.x"])),
            st.binary(max_size=1500),
        ),
        max_size=8,
    )
)
def test_the_walk_finds_what_webdataset_finds(members: list[tuple[str, bytes]]) -> None:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    shard = _info(data)

    def by_webdataset() -> Iterator[tuple[str, dict[str, bytes]]]:
        for found in unchecked_samples(PlainTar(io.BytesIO(data), len(data)), shard):
            yield found["__key__"], {name: content for name, content in found.items() if name[:2] != "__"}

    try:
        expected = list(by_webdataset())
    except ValueError:  # the same member twice
        with pytest.raises(ValueError, match="twice"):
            take_apart(data)
        return
    found = take_apart(data)
    assert [(sample.key, sample.members) for sample in found] == expected
    for sample in found:
        (alone,) = take_apart(data[sample.first_byte : sample.end_byte])
        assert alone.members == sample.members
    passed = list(walk(SeekingSource(io.BytesIO(data)), len(data), lambda extension: False))
    assert [(each.key, list(each.members), each.end_byte) for each in passed] == [
        (each.key, list(each.members), each.end_byte) for each in found
    ]


def _info(data: bytes) -> ShardInfo:
    return ShardInfo(name="x.tar", samples=1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_piece_that_is_cut_or_moved_is_an_error(piece_of_set: bytes, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, len(piece_of_set) - 1))
    boundaries = {sample.end_byte for sample in take_apart(piece_of_set)}
    if stop % 512 or stop not in _member_ends(piece_of_set):
        with pytest.raises(ValueError, match=r"cut short|ends within|no size"):
            take_apart(piece_of_set[:stop])
    elif stop in boundaries:
        assert take_apart(piece_of_set[:stop])
    with pytest.raises(ValueError, match=r"checksum|cut short|no plain file|no size|ends within"):
        take_apart(piece_of_set[data.draw(st.integers(1, 500)) :])


def _member_ends(data: bytes) -> set[int]:
    ends = set()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            ends.add(member.offset_data + -(-member.size // 512) * 512)
    return ends


@pytest.fixture(scope="module")
def piece_of_set(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("piece")
    cube = encode_array(np.zeros((2, 3, 40), dtype=np.uint8))
    made = [Sample(f"v{number}", cube, "npy", 3, 40, metadata_of(number)) for number in range(4)]
    publish_shard(open_store(str(folder)), shard_name(0), made)
    content = (folder / shard_name(0)).read_bytes()
    return content[: take_apart(content)[-1].end_byte]
