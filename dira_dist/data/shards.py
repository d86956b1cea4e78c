"""Shard sets: tars of samples in the WebDataset layout, and the ``index.json`` that says what they hold.

A shard set is a folder or bucket prefix::

    000000.tar  000001.tar  ...   whole or absent, never half
    index.json                    written last: where it stands, the set is complete
    generations/000001.json  ...  the index as it was before the set grew, see :mod:`dira_dist.data.generations`

A sample is a run of neighbouring members with one key: ``{key}.png`` (or ``.jpg``, ``.npy``), then ``{key}.json``,
then, where there is one, ``{key}.mask.png`` (``.mask.npy`` for volumes). Equal samples give equal bytes: the tars hold
no times, no owners and no host's habits.
"""

import bisect
import hashlib
import io
import itertools
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from dira_dist.config import RequestError, Section
from dira_dist.data.arrays import array_header
from dira_dist.data.generations import among, generation_name, generation_of, plain_address, without
from dira_dist.data.splitmix import Int64s
from dira_dist.data.store import MissingObjectError, Store, open_store

INDEX_NAME = "index.json"
ImageMode = Literal["L", "I;16", "RGB", "volume", "planes"]
PixelType = Literal["uint8", "uint16", "int16", "float32", "float64"]
_PIXEL_TYPES: tuple[PixelType, ...] = ("uint8", "uint16", "int16", "float32", "float64")
T = TypeVar("T")
Encoding = Literal["png", "jpeg", "npy"]
EXTENSIONS: dict[Encoding, str] = {"png": "png", "jpeg": "jpg", "npy": "npy"}


class ShardInfo(Section):
    """One tar of a set, as it was published."""

    name: str = Field(description="file name beside the index")
    samples: int = Field(ge=1, description="samples in the tar, without those that were withdrawn")
    bytes: int = Field(ge=1, description="size of the tar")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the tar, hexadecimal")
    etag: str = Field("", description="the store's own version mark when it was published")
    withdrawn: tuple[int, ...] | None = Field(
        None, min_length=1, description="places in the tar, rising, of samples that were withdrawn and are passed over"
    )
    origin: str | None = Field(None, description="the tar that this one was rewritten from")
    left_out: tuple[int, ...] | None = Field(
        None, min_length=1, description="places in the origin, rising, of samples that this tar does not hold"
    )
    _gone: tuple[int, ...] = PrivateAttr(())

    @property
    def gone(self) -> tuple[int, ...]:
        """Places, counted as this generation counts them, of samples that were withdrawn from the set since."""
        return self._gone

    @property
    def samples_in_tar(self) -> int:
        """Samples in the tar as it is now."""
        return self.samples - len(self.gone) + len(self.withdrawn or ())

    @property
    def first_name(self) -> str:
        """The tar as which its samples were first published."""
        return self.origin or self.name

    @property
    def removed(self) -> Int64s:
        """``(n,)`` places in its origin, rising, of all samples that are not in the set."""
        left_out = self.left_out or ()
        return np.sort(np.concatenate([np.array(left_out, dtype=np.int64), among(self.withdrawn or (), left_out)]))

    def read_from(self, newest: "ShardInfo | None") -> "ShardInfo":
        """The same samples where they are now, those told of as gone that were withdrawn in between.

        Args:
            newest: what stands for this tar in the newest generation; none where nothing of it is left.
        """
        if newest is None:
            return self._with_gone(self, range(self.samples))
        here, there = self.removed, newest.removed
        gone = without(np.setdiff1d(there, here), here).tolist()
        return self if newest == self else self._with_gone(newest, gone)

    def _with_gone(self, now: "ShardInfo", gone: Iterable[int]) -> "ShardInfo":
        found = now.model_copy(update={"samples": self.samples})
        found._gone = tuple(gone)
        return found


class PixelRange(Section):
    """Smallest, median (the lower of two) and largest side over the samples of a set, in pixels."""

    min: int
    median: int
    max: int


class SpacingRange(Section):
    """Smallest, median (the lower of two) and largest distance between pixels along an axis, in millimetres."""

    min: float
    median: float
    max: float


class ImageInfo(Section):
    """What the pixels of a set are: one mode and one encoding for all samples, sizes of their own."""

    mode: ImageMode = Field(
        description="8-bit grey, 16-bit grey, 8-bit colour, volumes and cubes ([C,] D, H, W), or planes ([C,] H, W)"
    )
    encoding: Encoding = Field(description="how the image members are coded; jpeg alone loses")
    height_px: PixelRange
    width_px: PixelRange
    depth_px: PixelRange | None = Field(None, description="of volumes")
    array_channels: int | None = Field(None, ge=1, description="of volumes and planes: sequences of MR, for one")
    array_type: PixelType | None = Field(None, description="of volumes and planes")
    spacing_mm: tuple[SpacingRange, ...] | None = Field(
        None, description="along each axis as the files have it (volumes: D, H, W), where it is known"
    )

    @property
    def axes(self) -> int:
        """Spatial axes: 2 or 3."""
        return 3 if self.mode == "volume" else 2

    def decoded(self, values: Sequence[T]) -> tuple[T, ...]:
        """Something of each spatial axis, in the order that a decoded sample has: images ``(H, W)``, volumes
        ``(x, y, z)``, which are the ``(W, H, D)`` of their files."""
        return tuple(reversed(values)) if self.axes == 3 else tuple(values)

    @property
    def sides_px(self) -> tuple[PixelRange, ...]:
        """Along each axis of a decoded sample; along the two of a plane for volumes of an index that tells no depth."""
        stored = [side for side in (self.depth_px, self.height_px, self.width_px) if side is not None]
        return self.decoded(stored)

    @property
    def channels(self) -> int:
        """Of every sample."""
        return self.array_channels or (3 if self.mode == "RGB" else 1)

    @property
    def dtype(self) -> PixelType | None:
        """Of every sample; none for volumes of an index that does not tell."""
        return self.array_type or _TYPES_OF_MODES.get(self.mode)


_TYPES_OF_MODES: dict[ImageMode, PixelType] = {"L": "uint8", "RGB": "uint8", "I;16": "uint16"}


class Withdrawal(Section):
    """Samples that were taken out of a set by one request. It names nobody: groups and keys are salted and digested."""

    generation: int = Field(ge=2, description="the first without them")
    samples: int = Field(ge=1, description="how many")
    groups: tuple[str, ...] = Field(description="digests of whom they are of, sorted")
    barred: tuple[str, ...] = Field(
        description="digests, sorted, of what is not to be added again: groups that were named, files that were"
    )


class ShardSetIndex(Section):
    """``index.json``: the whole truth about a shard set; what it does not list does not belong to the set."""

    version: Literal[1, 2] = 1
    shards: tuple[ShardInfo, ...]
    image: ImageInfo
    labels: tuple[str, ...] = Field((), description="names of the labels the samples may carry")
    classes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="per categorical label its values over all parts of the split"
    )
    made_by: dict[str, Any] = Field(default_factory=dict, description="the tool, its options, and digests of its input")
    generation: int | None = Field(
        None, ge=2, description="of a set that has changed since it was made; a set made once is generation 1"
    )
    withdrawals: tuple[Withdrawal, ...] | None = Field(None, min_length=1, description="what was taken out, and when")
    index_sha256: str = Field("", description="digest of all of the above; empty in sets of old versions")
    _recorded_digest: str = PrivateAttr("")

    @model_validator(mode="after")
    def _known_to_older_versions(self) -> "ShardSetIndex":
        """An index with what dira-dist 0.3.0 did not know is of version 2, which that one refuses."""
        if (self.version == 2) != (self.generation is not None):
            raise ValueError(f"found version {self.version} of generation {self.number}; version 2 begins with it")
        return self

    @property
    def number(self) -> int:
        """Its generation, from 1."""
        return self.generation or 1

    @property
    def withdrawn_since(self) -> int:
        """Samples of this generation that were withdrawn from the set since."""
        return sum(len(shard.gone) for shard in self.shards)

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
        """SHA-256 over the shards' digests in order: equal if and only if the set holds the same samples' bytes.

        Of a generation some of whose samples were withdrawn since it stays what it was.
        """
        if self._recorded_digest:
            return self._recorded_digest
        marks = (shard.sha256 + (f" without {shard.withdrawn}" if shard.withdrawn else "") for shard in self.shards)
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()

    def to_json(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=1, exclude_none=True)

    def sealed(self) -> "ShardSetIndex":
        """The same with its own digest."""
        return self.model_copy(update={"index_sha256": self._own_sha256()})

    @property
    def is_intact(self) -> bool:
        """Whether it still says what it said when it was written, as far as it has a digest of its own."""
        return self.index_sha256 in ("", self._own_sha256())

    def _own_sha256(self) -> str:
        values = self.model_dump(mode="json", exclude={"index_sha256"}, exclude_none=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_index(address: str) -> ShardSetIndex:
    """The index of the shard set at ``address`` (a path or ``s3://bucket/prefix``).

    Of an older generation (``ADDRESS#generation=N``) the shards are told of where they are now; what was withdrawn
    since then keeps its place there and is :attr:`ShardInfo.gone`.

    Raises:
        RequestError: there is no index, or no such generation, or it is not one that this version reads.
    """
    newest, wanted = _newest(address), generation_of(address)
    if wanted in (None, newest.number):
        return newest
    index = read_recorded(address)
    there = {shard.first_name: shard for shard in newest.shards}
    found = index.model_copy(
        update={"shards": tuple(shard.read_from(there.get(shard.first_name)) for shard in index.shards)}
    )
    found._recorded_digest = index.digest
    return found


def read_recorded(address: str) -> ShardSetIndex:
    """The index as it was written, whatever has become of its shards since.

    Raises:
        RequestError: as :func:`read_index`.
    """
    newest, wanted, plain = _newest(address), generation_of(address), plain_address(address)
    if wanted in (None, newest.number):
        return newest
    assert wanted is not None
    try:
        return _parsed(plain, generation_name(wanted))
    except MissingObjectError:
        raise RequestError(
            f"{plain}: there is no generation {wanted}: the newest is {newest.number}, and "
            f"{generation_name(wanted)} is not there; it was deleted, or never made. Name one that is there, or start "
            "a run under another name on the newest."
        ) from None


def _newest(address: str) -> ShardSetIndex:
    plain = plain_address(address)
    if open_store(plain).stat(INDEX_NAME) is None:
        raise RequestError(
            f"no shard set at {plain}: there is no {INDEX_NAME}. "
            f"Make one with `dira-dist shard SOURCE {plain}`; an interrupted one goes on with the same command."
        )
    return _parsed(plain, INDEX_NAME)


def _parsed(address: str, name: str) -> ShardSetIndex:
    return parse_index(open_store(address).read_bytes(name), address, name)


def parse_index(content: bytes, address: str, name: str = INDEX_NAME) -> ShardSetIndex:
    """An index from its file.

    Raises:
        RequestError: it is not one that this version reads.
    """
    try:
        return ShardSetIndex.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RequestError(f"{address}: {name} is not a shard set's index: {place}: {first['msg']}") from error


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


class PublishedShard(Section):
    """What publishing one shard found out: its line of the index, and what it adds to the statistics.

    Attributes:
        heights_px, widths_px: samples by size.
        arrays: samples of NPY by type and by the axes before height and width: ``int16``, ``uint16 4 12``.
        spacings_mm: samples by spacing, for each axis, of those whose spacing is known.
    """

    info: ShardInfo
    heights_px: dict[int, int]
    widths_px: dict[int, int]
    arrays: dict[str, int] = Field(default_factory=dict)
    spacings_mm: tuple[dict[float, int], ...] = ()


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
        self._arrays: Counter[str] = Counter()
        self._spacings_mm: Counter[tuple[float, ...]] = Counter()

    def add(self, sample: Sample) -> None:
        for extension, data in sample.members():
            member = tarfile.TarInfo(f"{sample.key}.{extension}")  # mtime, uid, gid and owners are zero by default
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))
        self.samples += 1
        self._heights_px[sample.height_px] += 1
        self._widths_px[sample.width_px] += 1
        self._spacings_mm[spacing_of(sample.record)] += 1
        if sample.encoding == "npy":
            shape, dtype = array_header(sample.image)
            self._arrays[" ".join([dtype.name, *map(str, shape[:-2])])] += 1

    def publish(self, store: Store, name: str) -> PublishedShard:
        self._tar.close()
        self._file.flush()
        size = self._file.tell()
        etag = store.upload(name, self._path)
        self.discard()
        sha256 = self._hashing.sha256.hexdigest()
        info = ShardInfo(name=name, samples=self.samples, bytes=size, sha256=sha256, etag=etag)
        return PublishedShard(
            info=info,
            heights_px=dict(self._heights_px),
            widths_px=dict(self._widths_px),
            arrays=dict(self._arrays),
            spacings_mm=_by_axis(self._spacings_mm),
        )

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def spacing_of(metadata: Mapping[str, Any]) -> tuple[float, ...]:
    """Millimetres along each axis; empty where it is not known along all of them."""
    spacing = metadata.get("spacing_mm") or metadata.get("pixel_spacing_mm") or ()
    return () if None in spacing else tuple(map(float, spacing))


def _by_axis(spacings_mm: Mapping[tuple[float, ...], int]) -> tuple[dict[float, int], ...]:
    """A histogram for each axis, over the samples that have as many axes as any."""
    axes = max(map(len, spacings_mm), default=0)
    found: tuple[Counter[float], ...] = tuple(Counter() for _ in range(axes))
    for spacing, samples in spacings_mm.items():
        for axis, length in enumerate(spacing if len(spacing) == axes else ()):
            found[axis][length] += samples
    return tuple(dict(lengths) for lengths in found)


def shard_name(number: int) -> str:
    """``000042.tar``."""
    return f"{number:06d}.tar"


def shard_number(name: str) -> int:
    """42 of ``000042.tar``, and of ``000042-1f3a09c2.tar``, which was added, or written anew."""
    return int(name.removesuffix(".tar").partition("-")[0])


def publish_shard(store: Store, name: str, samples: Iterable[Sample]) -> PublishedShard | None:
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
    records: Iterable[PublishedShard],
    *,
    mode: ImageMode,
    encoding: Encoding,
    labels: tuple[str, ...] = (),
    classes: Mapping[str, tuple[str, ...]] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> ShardSetIndex:
    """Writes ``index.json`` over published shards, the last act of making a set.

    Raises:
        RequestError: its arrays differ in their channels, or hold values of another type.
    """
    records = list(records)
    index = ShardSetIndex(
        shards=tuple(record.info for record in records),
        image=image_info(records, mode, encoding),
        labels=labels,
        classes=dict(classes or {}),
        made_by=dict(made_by or {}),
    ).sealed()
    store.write_bytes(INDEX_NAME, index.to_json().encode())
    return index


def image_info(records: Sequence[PublishedShard], mode: ImageMode, encoding: Encoding) -> ImageInfo:
    """What the pixels of all these shards are.

    Raises:
        RequestError: its arrays differ in their channels, or hold values of another type.
    """
    return ImageInfo(
        mode=mode,
        encoding=encoding,
        height_px=_pixel_range(record.heights_px for record in records),
        width_px=_pixel_range(record.widths_px for record in records),
        spacing_mm=_spacing_ranges(records),
        **_array_info(records, mode),
    )


def statistics_of(index: ShardSetIndex) -> PublishedShard:
    """The samples of a whole set as one entry of its statistics, as far as an index tells.

    Smallest and largest are exact; all samples between them count as being of the median size and spacing.
    """
    image, count = index.image, index.samples
    depths = ["", "", ""] if image.depth_px is None else map(str, _three(image.depth_px))
    leading = str(image.array_channels) if (image.array_channels or 1) > 1 else ""
    arrays = [" ".join(filter(None, [image.array_type, leading, depth])) for depth in depths]
    return PublishedShard(
        info=index.shards[0],
        heights_px=_weighted(_three(image.height_px), count),
        widths_px=_weighted(_three(image.width_px), count),
        arrays=_weighted(arrays, count) if image.array_type else {},
        spacings_mm=tuple(_weighted(_three(axis), count) for axis in image.spacing_mm or ()),
    )


def _three(found: Any) -> tuple[Any, Any, Any]:
    return found.min, found.median, found.max


def _weighted(values: Sequence[T], count: int) -> dict[T, int]:
    """Smallest, median and largest as a histogram of ``count`` samples."""
    weights: Counter[T] = Counter()
    for value, weight in zip(values, (1, max(1, count - 2), 1), strict=True):
        weights[value] += weight
    return dict(weights)


def _pixel_range(histograms: Iterable[Mapping[int, int]]) -> PixelRange:
    least, median, most = _range_of(histograms)
    return PixelRange(min=least, median=median, max=most)


def _spacing_ranges(records: Sequence[PublishedShard]) -> tuple[SpacingRange, ...] | None:
    axes = max(len(record.spacings_mm) for record in records)
    known = [record.spacings_mm for record in records if len(record.spacings_mm) == axes > 0]
    ranges = [_range_of(histograms[axis] for histograms in known) for axis in range(axes)]
    return tuple(SpacingRange(min=low, median=median, max=high) for low, median, high in ranges) or None


def _range_of(histograms: Iterable[Mapping[T, int]]) -> tuple[T, T, T]:
    """Smallest, median (the lower of two) and largest value."""
    counts: Counter[T] = Counter()
    for histogram in histograms:
        counts.update(histogram)
    assert counts, "a set without samples has no index"
    places = sorted(counts)  # type: ignore[type-var]
    ends = list(itertools.accumulate(counts[place] for place in places))
    return places[0], places[bisect.bisect_left(ends, (counts.total() + 1) // 2)], places[-1]


def _array_info(records: Sequence[PublishedShard], mode: ImageMode) -> dict[str, Any]:
    """Type, channels and depths of a set of NPY; nothing where a shard does not tell, or there are no arrays."""
    if mode not in ("volume", "planes") or not all(record.arrays for record in records):
        return {}
    types, channels, depths = set(), set(), Counter[int]()
    for record in records:
        for array, samples in record.arrays.items():
            dtype, *leading = array.split(" ")
            types.add(np.dtype(dtype))
            if mode == "volume":
                depths[int(leading.pop() if leading else 0)] += samples
            channels.add(" x ".join(leading) or "1")
    own = next((each for each in _PIXEL_TYPES if all(np.can_cast(found, each) for found in types)), None)
    if len(channels) > 1 or not all(each.isdecimal() for each in channels) or own is None or 0 in depths:
        kinds = sorted({array for record in records for array in record.arrays})
        raise RequestError(
            f"a set of {mode} has one number of channels and values of {', '.join(_PIXEL_TYPES)}; found {kinds} "
            "(type, then the axes before height and width)."
        )
    depth = {"depth_px": _pixel_range([depths])} if depths else {}
    return {"array_channels": int(channels.pop()), "array_type": own, **depth}
