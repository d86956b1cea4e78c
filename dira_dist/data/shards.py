"""Shard sets: tars of samples in the WebDataset layout, and the ``index.json`` that says what they hold.

A shard set is a folder or bucket prefix::

    000000.tar  000001.tar  ...   whole or absent, never half
    index.json                    written last: where it stands, the set is complete

A sample is a run of neighbouring members with one key: ``{key}.png`` (or ``.jpg``, ``.npy``), then ``{key}.json``,
then, where there is one, ``{key}.mask.png`` (``.mask.npy`` for volumes). Equal samples give equal bytes: the tars hold
no times, no owners and no host's habits.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from dira_dist.config import RequestError, Section
from dira_dist.data.store import Store, check_reachable, open_store

INDEX_NAME = "index.json"
ImageMode = Literal["L", "I;16", "RGB", "volume"]
Encoding = Literal["png", "jpeg", "npy"]
EXTENSIONS: dict[Encoding, str] = {"png": "png", "jpeg": "jpg", "npy": "npy"}


class ShardInfo(Section):
    """One tar of a set, as it was published."""

    name: Annotated[str, Field(description="file name beside the index")]
    samples: Annotated[int, Field(ge=1, description="samples in the tar")]
    bytes: Annotated[int, Field(ge=1, description="size of the tar")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="digest of the tar, hexadecimal")]
    etag: Annotated[str, Field(description="the store's own version mark when it was published")] = ""


class PixelRange(Section):
    """Smallest, median (the lower of two) and largest side over the samples of a set, in pixels."""

    min: int
    median: int
    max: int


class ImageInfo(Section):
    """What the pixels of a set are: one mode and one encoding for all samples, sizes of their own."""

    mode: Annotated[ImageMode, Field(description="8-bit grey, 16-bit grey, 8-bit colour, or whole volumes (D, H, W)")]
    encoding: Annotated[Encoding, Field(description="how the image members are coded; jpeg alone loses")]
    height_px: PixelRange
    width_px: PixelRange


class ShardSetIndex(Section):
    """``index.json``: the whole truth about a shard set; what it does not list does not belong to the set."""

    version: Literal[1] = 1
    shards: tuple[ShardInfo, ...]
    image: ImageInfo
    labels: Annotated[tuple[str, ...], Field(description="names of the labels the samples may carry")] = ()
    classes: Annotated[
        dict[str, tuple[str, ...]],
        Field(default_factory=dict, description="per categorical label its values over all parts of the split"),
    ]
    made_by: Annotated[
        dict[str, Any], Field(default_factory=dict, description="the tool, its options, and digests of its input")
    ]
    index_sha256: Annotated[str, Field(description="digest of all of the above; empty in sets of old versions")] = ""

    @property
    def samples(self) -> int:
        """Samples in the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all tars."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' digests in order: equal if and only if the set holds the same bytes."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def sealed(self) -> "ShardSetIndex":
        """The same with its own digest."""
        return self.model_copy(update={"index_sha256": self._own_sha256()})

    @property
    def is_intact(self) -> bool:
        """Whether it still says what it said when it was written, as far as it has a digest of its own."""
        return self.index_sha256 in ("", self._own_sha256())

    def _own_sha256(self) -> str:
        told = json.dumps(self.model_dump(mode="json", exclude={"index_sha256"}), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


def read_index(address: str) -> ShardSetIndex:
    """The index of the shard set at ``address`` (a path or ``s3://bucket/prefix``).

    Raises:
        RequestError: there is no index, or it is not one that this version reads.
    """
    store = open_store(address)
    if store.stat(INDEX_NAME) is None:
        raise RequestError(
            f"no shard set at {address}: there is no {INDEX_NAME}. "
            f"Make one with `dira-dist shard SOURCE {address}`; an interrupted one goes on with the same command."
        )
    try:
        return ShardSetIndex.model_validate_json(store.read_bytes(INDEX_NAME), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RequestError(f"{address}: {INDEX_NAME} is not a shard set's index: {place}: {first['msg']}") from error


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard: its members are coded already.

    Attributes:
        key: unique in the set, of letters, digits, ``-`` and ``_``; tells nothing about its origin.
        image: the coded image.
        encoding: how ``image`` is coded; gives the member's extension.
        height_px, width_px: size of the coded image.
        record: JSON-ready; ``labels``, ``boxes``, ``split_group`` and what else is known.
        mask: the coded label map of the image's size, PNG (NPY where ``encoding`` is), or none.
    """

    key: str
    image: bytes
    encoding: Encoding
    height_px: int
    width_px: int
    record: Mapping[str, Any] = field(default_factory=dict)
    mask: bytes | None = None

    def members(self) -> Iterator[tuple[str, bytes]]:
        """``(extension, bytes)`` in the order of the tar."""
        extension = EXTENSIONS[self.encoding]
        yield extension, self.image
        yield "json", json.dumps(self.record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
        if self.mask is not None:
            yield ("mask.npy" if extension == "npy" else "mask.png"), self.mask


class ShardRecord(Section):
    """What publishing one shard found out: its line of the index, and its share of the size statistics."""

    info: ShardInfo
    heights_px: dict[int, int]
    widths_px: dict[int, int]


class _HashingFile(io.RawIOBase):
    """Passes bytes on to ``target`` and digests them, so that a tar is read only once, while it is written."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.sha256 = hashlib.sha256()

    def tell(self) -> int:
        return self._target.tell()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._target.write(data)


class _ShardFile:
    """One tar growing in a temporary file; memory holds one sample at a time."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".tar")
        self._path = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._hashing = _HashingFile(self._file)
        self._tar = tarfile.TarFile(fileobj=self._hashing, mode="w", format=tarfile.USTAR_FORMAT)
        self.samples = 0
        self._heights_px: Counter[int] = Counter()
        self._widths_px: Counter[int] = Counter()

    def add(self, sample: Sample) -> None:
        for extension, data in sample.members():
            member = tarfile.TarInfo(f"{sample.key}.{extension}")  # mtime, uid, gid and owners are zero by default
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))
        self.samples += 1
        self._heights_px[sample.height_px] += 1
        self._widths_px[sample.width_px] += 1

    def publish(self, store: Store, name: str) -> ShardRecord:
        self._tar.close()
        self._file.flush()
        size = self._file.tell()
        etag = store.upload(name, self._path)
        self.discard()
        sha256 = self._hashing.sha256.hexdigest()
        info = ShardInfo(name=name, samples=self.samples, bytes=size, sha256=sha256, etag=etag)
        return ShardRecord(info=info, heights_px=dict(self._heights_px), widths_px=dict(self._widths_px))

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def shard_name(number: int) -> str:
    """``000042.tar``."""
    return f"{number:06d}.tar"


def publish_shard(store: Store, name: str, samples: Iterable[Sample]) -> ShardRecord | None:
    """Writes ``samples`` as one tar and publishes it whole, or not at all when anything raises; none for no samples."""
    shard = _ShardFile()
    try:
        for sample in samples:
            shard.add(sample)
        return shard.publish(store, name) if shard.samples else None
    finally:
        shard.discard()


def publish_index(
    store: Store,
    records: Iterable[ShardRecord],
    *,
    mode: ImageMode,
    encoding: Encoding,
    labels: tuple[str, ...] = (),
    classes: Mapping[str, tuple[str, ...]] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> ShardSetIndex:
    """Writes ``index.json`` over published shards, the last act of making a set."""
    records = list(records)
    image = ImageInfo(
        mode=mode,
        encoding=encoding,
        height_px=_pixel_range(record.heights_px for record in records),
        width_px=_pixel_range(record.widths_px for record in records),
    )
    index = ShardSetIndex(
        shards=tuple(record.info for record in records),
        image=image,
        labels=labels,
        classes=dict(classes or {}),
        made_by=dict(made_by or {}),
    ).sealed()
    store.write_bytes(INDEX_NAME, index.model_dump_json(indent=1).encode())
    return index


def _pixel_range(histograms: Iterable[Mapping[int, int]]) -> PixelRange:
    counts: Counter[int] = Counter()
    for histogram in histograms:
        counts.update(histogram)
    assert counts, "a set without samples has no index"
    left = (counts.total() + 1) // 2
    median = 0
    for size in sorted(counts):
        median, left = size, left - counts[size]
        if left <= 0:
            break
    return PixelRange(min=min(counts), median=median, max=max(counts))


class ShardWriter:
    """Writes a shard set sample by sample; memory holds one sample, the temporary folder one shard.

    As a context manager it publishes the index on a clean exit; when the block raises, the set stays without an index,
    which is to say that it does not exist.

    Example:
        >>> with ShardWriter("shards/train", mode="L", encoding="png") as writer:
        ...     for sample in samples:
        ...         writer.add(sample)
        >>> writer.index.samples
    """

    def __init__(
        self,
        address: str,
        *,
        mode: ImageMode,
        encoding: Encoding,
        samples_per_shard: int = 1000,
        labels: tuple[str, ...] = (),
        classes: Mapping[str, tuple[str, ...]] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        assert samples_per_shard >= 1, "a shard holds at least one sample"
        self._store = open_store(address)
        if self._store.stat(INDEX_NAME) is not None:
            raise RequestError(f"{address} already holds a shard set; choose another place or remove it first.")
        self._mode, self._encoding, self._samples_per_shard = mode, encoding, samples_per_shard
        self._labels, self._classes, self._made_by = labels, classes, made_by
        self._records: list[ShardRecord] = []
        self._shard: _ShardFile | None = None
        self._index: ShardSetIndex | None = None

    @property
    def index(self) -> ShardSetIndex:
        """The published index; only after :meth:`close`."""
        assert self._index is not None, "the set is still being written"
        return self._index

    def add(self, sample: Sample) -> None:
        """Appends a sample, publishing the shard that it fills."""
        assert sample.encoding == self._encoding, "a set has one encoding"
        if self._shard is None:
            self._shard = _ShardFile()
        self._shard.add(sample)
        if self._shard.samples == self._samples_per_shard:
            self._publish()

    def close(self) -> ShardSetIndex:
        """Publishes what is left, then the index.

        Raises:
            RequestError: nothing was added.
        """
        if self._shard is not None:
            self._publish()
        if not self._records:
            raise RequestError(f"{self._store.address}: no sample was written, and a shard set has at least one.")
        self._index = publish_index(
            self._store,
            self._records,
            mode=self._mode,
            encoding=self._encoding,
            labels=self._labels,
            classes=self._classes,
            made_by=self._made_by,
        )
        return self._index

    def _publish(self) -> None:
        assert self._shard is not None
        self._records.append(self._shard.publish(self._store, shard_name(len(self._records))))
        self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.discard()


def read_shard(store: Store, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """``(key, {extension: bytes})`` of each sample of a shard, in order; the plain way, for tools and tests.

    Raises:
        tarfile.ReadError: the tar is damaged or cut short.
    """
    with store.open(name) as stream:
        yield from samples_in(stream)


def samples_in(stream: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Groups the members of a tar into samples; reads strictly forward.

    Raises:
        tarfile.ReadError: the tar is damaged or cut short.
    """
    end = bytearray()

    def remember(data: bytes) -> None:
        end[:] = (end + data)[-2 * tarfile.BLOCKSIZE :]

    key: str | None = None
    members: dict[str, bytes] = {}
    with io.BufferedReader(_ObservedReader(stream, remember)) as observed:
        for name, content in _members_in(observed):
            stem, _, extension = name.partition(".")
            if key is not None and stem != key:
                yield key, members
                members = {}
            key, members[extension] = stem, content
        while observed.read(1 << 16):
            pass
    if any(end) or not end:  # tarfile takes a tar that was cut between two members for a shorter one
        raise tarfile.ReadError("the tar ends without its mark of an end")
    if key is not None:
        yield key, members


def _members_in(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise tarfile.ReadError(f"{member.name} is no plain file")
            yield member.name, content.read()


def verify(address: str) -> list[str]:
    """Reads a whole set and compares it with its index; a line for each problem, none for a sound set.

    Raises:
        RequestError: the address cannot be read, or there is no index to compare with.
        StoreError: reading failed for longer than patience lasts.
    """
    check_reachable(address)
    index = read_index(address)
    store = open_store(address)
    problems = [] if index.is_intact else [f"{INDEX_NAME}: it was changed after it was written: its digest differs"]
    names = [shard.name for shard in index.shards]
    if names != sorted(set(names)):
        problems.append(f"{INDEX_NAME}: its shards are out of order, or stand in it twice")
    problems += [problem for shard in index.shards for problem in _problems_of(store, shard, index.image)]
    listed = set(names)
    strays = sorted(found.key for found in store.list() if found.key.endswith(".tar") and found.key not in listed)
    return problems + [f"{name}: not in the index" for name in strays]


def _problems_of(store: Store, shard: ShardInfo, image: ImageInfo) -> Iterator[str]:
    found = store.stat(shard.name)
    if found is None:
        yield f"{shard.name}: missing"
    elif found.bytes != shard.bytes:
        yield f"{shard.name}: {found.bytes} bytes, the index says {shard.bytes}"
    else:
        sha256 = hashlib.sha256()
        with (
            store.open(shard.name) as source,
            io.BufferedReader(_ObservedReader(source, sha256.update), 1 << 20) as stream,
        ):
            samples, others = _count_samples(stream, image)
            while stream.read(1 << 20):
                pass  # a damaged tar is read to its end all the same, for its digest
        if sha256.hexdigest() != shard.sha256:
            yield f"{shard.name}: sha256 is {sha256.hexdigest()}, the index says {shard.sha256}"
        elif samples != shard.samples:
            yield f"{shard.name}: {samples} samples, the index says {shard.samples}"
        if others:
            yield f"{shard.name}: {others} images are not {image.encoding} of mode {image.mode}, as the index says"


def _count_samples(stream: IO[bytes], image: ImageInfo) -> tuple[int, int]:
    """How many samples there are, and how many of them are of another kind than the index says."""
    found = others = 0
    try:
        for _, members in samples_in(stream):
            found += 1
            others += not _is_of_kind(members.get(EXTENSIONS[image.encoding]), image)
    except tarfile.TarError:
        return -1, 0  # damaged, which the digest will say better
    return found, others


_PNG_KINDS: dict[ImageMode, tuple[int, int]] = {"L": (8, 0), "I;16": (16, 0), "RGB": (8, 2)}  # bits, colour type


def _is_of_kind(data: bytes | None, image: ImageInfo) -> bool:
    """By the extension of the member, and for PNG by what its header says."""
    if data is None or image.encoding != "png":
        return data is not None
    return image.mode in _PNG_KINDS and data[24:26] == bytes(_PNG_KINDS[image.mode])


class _ObservedReader(io.RawIOBase):
    """Reads ``source`` forward and shows ``observe`` what passes."""

    def __init__(self, source: IO[bytes], observe: Callable[[bytes], object]) -> None:
        self._source, self._observe = source, observe

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._observe(data)
        buffer[: len(data)] = data
        return len(data)
