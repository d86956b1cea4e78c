"""Shard sets: what is written comes back, equal input gives equal bytes, and damage is found."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import ShardWriter, read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest.pixels import encode
from dira_dist.data.lanes import ShardError, ShardSet
from dira_dist.data.shards import (
    PublishedShard,
    Sample,
    ShardInfo,
    ShardSetIndex,
    publish_index,
    publish_shard,
    read_index,
)
from dira_dist.data.store import StoreError, open_store
from dira_dist.data.verify import verify


def _samples(count: int) -> list[Sample]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 8, 6), dtype=np.uint8)
    return [
        Sample(
            f"{number:04x}",
            encode(image, "png"),
            "png",
            8,
            6,
            {"labels": {"n": number}},
            mask=b"mask" if number % 2 else None,
        )
        for number, image in enumerate(images)
    ]


def _write(folder: Path, count: int = 10, per_shard: int = 4) -> ShardSetIndex:
    with ShardWriter(str(folder), mode="L", encoding="png", samples_per_shard=per_shard, labels=("n",)) as writer:
        for sample in _samples(count):
            writer.add(sample)
    return writer.index


def test_samples_come_back_in_order_with_all_members(tmp_path: Path) -> None:
    index = _write(tmp_path)
    assert [shard.samples for shard in index.shards] == [4, 4, 2] and index.samples == 10
    store = open_store(str(tmp_path))
    found = [sample for shard in index.shards for sample in read_shard(store, shard.name)]
    for sample, (key, members) in zip(_samples(10), found, strict=True):
        assert key == sample.key and members["png"] == sample.image
        assert json.loads(members["json"]) == sample.record
        assert members.get("mask.png") == sample.mask


def test_webdataset_itself_reads_a_set(tmp_path: Path) -> None:
    index = _write(tmp_path)
    urls = [str(tmp_path / shard.name) for shard in index.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [sample.key for sample in _samples(10)]
    assert samples[3]["mask.png"] == b"mask" and "png" in samples[3] and "json" in samples[3]


def test_webdatasets_own_decoders_read_a_set(tmp_path: Path) -> None:
    """Nothing of this package in between."""
    index = _write(tmp_path)
    urls = [str(tmp_path / shard.name) for shard in index.shards]
    decoded = wds.WebDataset(urls, shardshuffle=False).decode("l8", only=["png", "json"])
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 6), dtype=np.uint8)
    for number, (sample, image) in enumerate(zip(decoded, images, strict=True)):
        assert sample["json"] == {"labels": {"n": number}} and (sample["png"] == image).all()


def _repacked(folder: Path, kind: str) -> ShardSetIndex:
    """The first shard as a tar of another kind, and the index that goes with its bytes."""
    tar, out = folder / "000000.tar", io.BytesIO()
    if kind in ("gz", "bz2", "xz"):
        out.write({"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](tar.read_bytes()))
    else:
        with tarfile.open(tar) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as target:
            for member in source:
                content = source.extractfile(member)
                target.addfile(member, content)
            extra = tarfile.TarInfo("bomb.png")
            extra.type = {"link": tarfile.SYMTYPE, "sparse": tarfile.GNUTYPE_SPARSE, "long": tarfile.REGTYPE}[kind]
            extra.size = 1 << 32 if kind == "long" else 0
            target.addfile(extra, io.BytesIO() if kind == "sparse" else None)
    tar.write_bytes(out.getvalue())
    index = read_index(str(folder))
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    first = index.shards[0].model_copy(update={"bytes": len(out.getvalue()), "sha256": digest})
    index = index.model_copy(update={"shards": (first, *index.shards[1:])}).sealed()
    (folder / "index.json").write_text(index.model_dump_json())
    return index


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gz", "compressed"),
        ("bz2", "compressed"),
        ("xz", "compressed"),
        ("link", "bomb.png is no plain file"),
        ("sparse", "bomb.png is no plain file"),
        ("long", "bomb.png has no size, or a larger one"),
    ],
)
def test_a_tar_that_may_grow_as_it_is_read_is_no_shard(tmp_path: Path, kind: str, reason: str) -> None:
    _write(tmp_path)
    index = _repacked(tmp_path, kind)
    with pytest.raises(ShardError, match=reason):
        list(ShardSet(str(tmp_path), index).members_of(0, threading.Event()))
    assert [reason in problem for problem in verify(str(tmp_path))] == [True]


def test_equal_samples_give_equal_bytes_and_index(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert first == second and first.digest == second.digest
    for shard in first.shards:
        content = (tmp_path / "a" / shard.name).read_bytes()
        assert content == (tmp_path / "b" / shard.name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (shard.sha256, shard.bytes)
    assert _write(tmp_path / "c", count=9).digest != first.digest


def test_index_survives_its_file_and_tells_sizes(tmp_path: Path) -> None:
    index = _write(tmp_path)
    assert read_index(str(tmp_path)) == index
    assert (index.image.height_px.median, index.image.width_px.max) == (8, 6)
    assert index.labels == ("n",) and index.image.mode == "L"


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.integers(1, 50), st.integers(1, 9), min_size=1), min_size=1, max_size=4))
def test_size_statistics_are_those_of_all_samples(histograms: list[dict[int, int]]) -> None:
    class Memory:
        def write_bytes(self, key: str, data: bytes) -> str:
            return ""

    info = ShardInfo(name="0.tar", samples=1, bytes=1, sha256="0" * 64)
    records = [PublishedShard(info=info, heights_px=sizes, widths_px={7: 1}) for sizes in histograms]
    store: Any = Memory()
    found = publish_index(store, records, mode="L", encoding="png").image.height_px
    flat = sorted(size for sizes in histograms for size, count in sizes.items() for _ in range(count))
    assert (found.min, found.median, found.max) == (flat[0], flat[(len(flat) - 1) // 2], flat[-1])


def test_a_shard_that_failed_midway_is_not_there_and_nor_is_the_set(tmp_path: Path) -> None:
    def failing() -> Iterator[Sample]:
        yield from _samples(3)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        publish_shard(open_store(str(tmp_path)), "000000.tar", failing())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RequestError, match=r"no shard set at .*dira-dist shard"):
        read_index(str(tmp_path))


def test_an_index_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    index = json.loads(_write(tmp_path).model_dump_json())
    (tmp_path / "index.json").write_text(json.dumps(index | {"version": 3}))
    with pytest.raises(RequestError, match=r"index\.json is not a shard set's index: version"):
        read_index(str(tmp_path))


def test_verify_passes_a_sound_set_and_names_each_damage(tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    _write(sound)
    assert verify(str(sound)) == []

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(sound, tmp_path / name))

    flipped = damaged("flipped") / "000001.tar"
    content = bytearray(flipped.read_bytes())
    content[700] ^= 1
    flipped.write_bytes(content)
    assert [problem.split(":")[0] for problem in verify(str(flipped.parent))] == ["000001.tar"]
    assert "sha256" in verify(str(flipped.parent))[0]

    header = damaged("header") / "000001.tar"
    content = bytearray(header.read_bytes())
    content[0:400] = bytes(400)
    header.write_bytes(content)
    assert "sha256" in verify(str(header.parent))[0]

    short = damaged("short") / "000002.tar"
    short.write_bytes(short.read_bytes()[:-512])
    assert "bytes, the index says" in verify(str(short.parent))[0]

    missing = damaged("missing")
    (missing / "000000.tar").unlink()
    (missing / "000009.tar").write_bytes(b"")
    assert verify(str(missing)) == ["000000.tar: missing", "000009.tar: not in the index"]


def test_verify_counts_samples(tmp_path: Path) -> None:
    index = json.loads(_write(tmp_path).model_dump_json())
    index["shards"][0]["samples"] = 3
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert verify(str(tmp_path))[1:] == ["000000.tar: 4 samples, the index says 3"]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "mode": lambda index: index["image"].update(mode="RGB"),
    "encoding": lambda index: index["image"].update(encoding="jpeg"),
    "labels": lambda index: index.update(labels=["x"]),
    "request": lambda index: index["made_by"].update(request={}),
    "order": lambda index: index["shards"].reverse(),
    "twice": lambda index: index["shards"].append(index["shards"][0]),
    "a shard less": lambda index: index["shards"].pop(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_verify_sees_a_changed_index(tmp_path: Path, what: str) -> None:
    index = json.loads(_write(tmp_path).model_dump_json())
    assert verify(str(tmp_path)) == []
    CHANGES[what](index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert verify(str(tmp_path))[0] == "index.json: it was changed after it was written: its digest differs"


def test_verify_compares_the_images_with_the_index_where_it_has_no_digest(tmp_path: Path) -> None:
    index = json.loads(_write(tmp_path).model_dump_json()) | {"index_sha256": ""}
    index["image"]["mode"] = "RGB"
    index["shards"].reverse()
    (tmp_path / "index.json").write_text(json.dumps(index))
    problems = verify(str(tmp_path))
    assert problems[0] == "index.json: its shards are out of order, or stand in it twice"
    assert "images are not png of mode RGB, as the index says" in problems[1]


def test_a_set_in_s3_is_the_same_set(tmp_path: Path, s3) -> None:
    address = s3.address("deep/set")
    with ShardWriter(address, mode="L", encoding="png", samples_per_shard=4) as writer:
        for sample in _samples(10):
            writer.add(sample)
    assert writer.index.digest == _write(tmp_path).digest
    assert all(shard.etag for shard in read_index(address).shards)
    assert verify(address) == []
    open_store(address).delete("000001.tar")
    assert verify(address) == ["000001.tar: missing"]


@pytest.mark.parametrize("length", [1024, 1300, 1536, -1024])
def test_a_tar_cut_anywhere_is_an_error_when_read(tmp_path: Path, length: int) -> None:
    """Between members too, where Python's tarfile sees only a shorter tar."""
    _write(tmp_path)
    tar = tmp_path / "000000.tar"
    content = tar.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    tar.write_bytes(content[:length])
    with pytest.raises((ValueError, tarfile.ReadError, StoreError)):
        list(read_shard(open_store(str(tmp_path)), tar.name))
