"""From the members of a sample, as they stand in a shard, to a row of a batch."""

import io
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dira_dist.data.arrays import decode_array
from dira_dist.data.shards import ImageInfo

Pixels = npt.NDArray[Any]
Labels = npt.NDArray[np.int16]
Box = Mapping[str, Any]
PixelMode = Literal["L", "I;16", "RGB"]

NO_SAMPLE = -1
NO_LABEL = -1  # of pixels that nobody has labelled, and of the padding around a mask
SAMPLE_BUDGET_PX = 2**27

_IMAGE_MEMBERS = ("png", "jpg", "jpeg")
_FORMATS = ("PNG", "JPEG")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")

Image.preinit()  # the plug-ins load here once, not in the first few threads at the same time


class CorruptSampleError(ValueError):
    """A sample cannot be decoded; the message says why."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as it stands in its shard.

    Attributes:
        id: place in the set.
        key: its name in the shard.
        members: bytes by extension.
        is_withdrawn: whether this is but the place of a sample that was withdrawn from the set since its generation.
    """

    id: int
    key: str
    members: Mapping[str, bytes]
    is_withdrawn: bool = False


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be decoded, and why."""

    id: int
    key: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One decoded sample, a row of a batch.

    Attributes:
        pixels: ``(C, *S)``, spatial axes ``(H, W)`` or ``(x, y, z)``, see :meth:`Decoder.decode`; rows of a set differ
            in their sizes alone.
        id: place in the set.
        epoch: in which it is read.
        key: its name in the shard.
        labels: by name, as far as known.
        group: whom the sample is of, such as its patient; empty where that is not known.
        mask: ``(*S)`` label of each pixel, :data:`NO_LABEL` where the sample has no mask; none where not asked for.
        boxes: in pixels of the image; empty where not asked for.
        bad: corrupt samples in whose place it stands.
        replaces_withdrawn: whether it stands in the place of a sample that was withdrawn from the set.
    """

    pixels: Pixels
    id: int
    epoch: int
    key: str
    labels: Mapping[str, Any]
    group: str = ""
    mask: Labels | None = None
    boxes: tuple[Box, ...] = ()
    bad: tuple[BadSample, ...] = ()
    replaces_withdrawn: bool = False


@dataclass(frozen=True)
class Decoder:
    """Decodes the samples of one set.

    Attributes:
        image: what the set's index says of its pixels.
        budget_px: most pixels (3D: voxels) of the square (3D: cube) that encloses a sample. Its row of a batch is no
            larger than that, whatever the shapes of its neighbours.
        annotations: whether masks and boxes are decoded too.
    """

    image: ImageInfo
    budget_px: int = SAMPLE_BUDGET_PX
    annotations: bool = False

    def decode(self, sample: EncodedSample, epoch: int = 0) -> Row:
        """The image and what else is known of one sample.

        Images have the axes ``(H, W)``. Volumes and cubes lie in their files as ``(D, H, W)``, towards head, back and
        left; *here they become* ``(x, y, z)``, towards left, back and head, with their masks: the order in which
        papers, NIfTI and a job's ``image_size: [64, 64, 32]`` name sides. Whatever is behind this (batches and their
        ``sizes_px``, views, networks) has the axes in this order, and :class:`~dira_dist.data.samples.SampleTable`
        gives spacings in it.

        Raises:
            CorruptSampleError: there is no image among its members, or one of them cannot be decoded.
        """
        metadata = read_metadata(sample.members.get("json", b"{}"))
        pixels = self._pixels(sample.members)
        mask = _mask(sample.members, pixels.shape[1:]) if self.annotations else None
        return Row(
            pixels=self._turned(pixels),
            id=sample.id,
            epoch=epoch,
            key=sample.key,
            labels=metadata.get("labels", {}),
            group=metadata.get("split_group", ""),
            mask=None if mask is None else self._turned(mask),
            boxes=boxes_in(metadata) if self.annotations else (),
        )

    def blank(self) -> Row:
        """A black row of the set's median size, which stands for no sample."""
        image = self.image
        sides = [side.median for side in image.sides_px]
        mask = np.full(sides, NO_LABEL, dtype=np.int16) if self.annotations else None
        return Row(np.zeros((image.channels, *sides), dtype=image.dtype), NO_SAMPLE, 0, "", {}, mask=mask)

    def _turned(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of an array as it lies in its file, ``([C,] *S)``, with the spatial axes in the decoder's order."""
        first = array.ndim - self.image.axes
        return array.transpose(*range(first), *self.image.decoded(range(first, array.ndim)))

    def _pixels(self, members: Mapping[str, bytes]) -> Pixels:
        mode = self.image.mode
        if "npy" in members:
            try:
                return self._fitting(decode_array(members["npy"], self._check_size))
            except ValueError as error:
                raise CorruptSampleError(str(error)) from error
        data = next((members[name] for name in _IMAGE_MEMBERS if name in members), None)
        if data is None or mode == "volume" or mode == "planes":
            raise CorruptSampleError(f"no image among its members {sorted(members)}")
        return decode_image(data, mode, self.budget_px)

    def _fitting(self, array: npt.NDArray[Any]) -> Pixels:
        """An array as ``(C, *S)`` of the set's type.

        Raises:
            ValueError: it has other axes, channels or a type with other values.
        """
        image, dtype = self.image, np.dtype(self.image.dtype)
        if array.ndim == image.axes and image.channels == 1:
            array = array[None]
        if array.ndim != image.axes + 1 or array.shape[0] != image.channels:
            raise ValueError(
                f"its array has the shape {array.shape}, where the set has {image.channels} channel(s) "
                f"and {image.axes} spatial axes"
            )
        if not np.can_cast(array.dtype, dtype):
            raise ValueError(f"its array holds {array.dtype}, where the set holds {dtype}")
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("its array holds values that are no numbers")
        return array.astype(dtype, copy=False)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        check_size(shape[-self.image.axes :], self.budget_px)


def check_size(sides_px: tuple[int, ...], budget_px: int) -> None:
    """Refuses a sample that would make a row of a batch too large, beside whatever neighbour.

    Raises:
        ValueError: with the sizes and the remedy.
    """
    if max(sides_px, default=0) ** len(sides_px) > budget_px:
        size, side = " x ".join(map(str, sides_px)), math.floor(budget_px ** (1 / len(sides_px)) + 1e-9)
        raise ValueError(
            f"it is {size} px, and a side may have {side} px (data.sample_budget_px is {budget_px}); "
            "raise that, or shard it with a smaller image size"
        )


def decode_image(data: bytes, mode: PixelMode, budget_px: int = SAMPLE_BUDGET_PX) -> Pixels:
    """PNG or JPEG to ``(C, H, W)`` pixels; alpha is dropped, and the decoder works without the GIL.

    Pillow and not torchvision, whose PNG decoder is a tenth faster but has ended the process on corrupt files.

    Raises:
        CorruptSampleError: it cannot be decoded, or has a side too long for the budget.
    """
    try:
        if data.startswith(_PNG_SIGNATURE):
            _check_png(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_size((image.height, image.width), budget_px)
            pixels = _pixels_of(image, mode)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more for bad bytes
        raise CorruptSampleError(f"{type(error).__name__}: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check_png(data: bytes) -> None:
    """Compares the checksum of every chunk, which Pillow does not do for those with the pixels.

    Raises:
        ValueError: one differs, or the last chunk is missing.
    """
    place, kind = len(_PNG_SIGNATURE), b""
    view = memoryview(data)
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError("the PNG is cut short")
        size = int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        checksum = int.from_bytes(view[place + 8 + size : place + 12 + size], "big")
        if zlib.crc32(view[place + 4 : place + 8 + size]) != checksum:
            raise ValueError(f"the PNG's chunk {kind.decode('latin1')} has a wrong checksum")
        place += 12 + size


def _pixels_of(image: Image.Image, mode: PixelMode) -> Pixels:
    """``(H, W)`` or ``(H, W, 3)``; between 8 and 16 bits the full ranges are mapped onto each other."""
    if mode == "I;16":
        if image.mode in _SIXTEEN_BITS:
            return np.asarray(image).astype(np.uint16, copy=False)
        return np.asarray(_converted(image, "L")).astype(np.uint16) * np.uint16(257)
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint16, copy=False) >> 8).astype(np.uint8))
    return np.asarray(_converted(image, mode))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def read_metadata(member: bytes) -> Mapping[str, Any]:
    """What the JSON member of a sample says.

    Raises:
        CorruptSampleError: it is no mapping, or says what it has to in another form.
    """
    try:
        metadata = dict(json.loads(member).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptSampleError(f"its metadata is no JSON object: {error}") from error
    labels = metadata.get("labels", {})
    if not isinstance(metadata.get("split_group", ""), str):
        raise CorruptSampleError("its split_group is no text")
    if not isinstance(labels, dict):
        raise CorruptSampleError("its labels are no mapping")
    # what is deeper could not be sent from a loader process
    if any(isinstance(each, dict | list) for label in labels.values() for each in _members_of(label)):
        raise CorruptSampleError("one of its labels is more than a value or a list of values")
    return metadata


def _members_of(label: Any) -> list[Any]:
    if isinstance(label, dict):
        return list(label.values())
    return label if isinstance(label, list) else []


def boxes_in(metadata: Mapping[str, Any]) -> tuple[Box, ...]:
    """The boxes that a sample's metadata names, in pixels of its image.

    Raises:
        CorruptSampleError: they are no list of mappings to plain values.
    """
    boxes = metadata.get("boxes", [])
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise CorruptSampleError("its boxes are no list of mappings")
    if any(isinstance(side, dict | list) for box in boxes for side in box.values()):
        raise CorruptSampleError("one of its boxes is more than numbers and a label")
    return tuple(boxes)


def _mask(members: Mapping[str, bytes], sides_px: tuple[int, ...]) -> Labels:
    """The label of each pixel.

    Raises:
        CorruptSampleError: the mask cannot be decoded, or is not one label for each pixel of the image.
    """
    try:
        if "mask.png" in members:
            labels = _decode_label_map(members["mask.png"], sides_px)
        elif "mask.npy" in members:
            labels = decode_array(members["mask.npy"], lambda shape: _check_aligned(shape, sides_px))
        else:
            return np.full(sides_px, NO_LABEL, dtype=np.int16)
    except Exception as error:  # see decode_image
        raise CorruptSampleError(f"its mask: {type(error).__name__}: {error}") from error
    if labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > np.iinfo(np.int16).max:
        raise CorruptSampleError(f"its mask holds other values than labels from 0 to {np.iinfo(np.int16).max}")
    return labels.astype(np.int16)


def _decode_label_map(data: bytes, sides_px: tuple[int, ...]) -> npt.NDArray[Any]:
    _check_png(data)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _check_aligned((image.height, image.width), sides_px)
        labels = np.asarray(image)
    _check_aligned(labels.shape, sides_px)  # one value for each pixel, no colours
    return labels


def _check_aligned(shape: tuple[int, ...], sides_px: tuple[int, ...]) -> None:
    if shape != sides_px:
        raise ValueError(f"it has the shape {shape}, the image {sides_px}")
