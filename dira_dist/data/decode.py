"""From the members of a sample to pixels and labels."""

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
PixelMode = Literal["L", "I;16", "RGB"]
CHANNELS: Mapping[PixelMode, int] = {"L": 1, "I;16": 1, "RGB": 3}

_IMAGE_MEMBERS = ("png", "jpg", "jpeg")
_FORMATS = ("PNG", "JPEG")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")

Image.preinit()  # the plug-ins load here once, not in the first few threads at the same time


class CorruptSampleError(ValueError):
    """A sample cannot be decoded; the message says why."""


@dataclass(frozen=True)
class DecodedSample:
    """Attributes:
    pixels: ``(C, H, W)`` uint8, or uint16 for a set of mode ``I;16``.
    labels: by name, as far as known.
    group: whom the sample is of, such as its patient; empty where that is not known.
    """

    pixels: Pixels
    labels: Mapping[str, Any]
    group: str = ""


def decode_sample(members: Mapping[str, bytes], mode: PixelMode) -> DecodedSample:
    """Decodes the image and the labels of one sample.

    Args:
        members: by extension, as they stand in the shard.
        mode: of the set; images of another one are converted.

    Raises:
        CorruptSampleError: there is no image among them, or it or the record cannot be decoded.
    """
    data = next((members[name] for name in _IMAGE_MEMBERS if name in members), None)
    if data is None:
        raise CorruptSampleError(f"no image among its members {sorted(members)}")
    metadata = _metadata(members.get("json", b"{}"))
    group = str(metadata.get("split_group") or "")
    return DecodedSample(decode_image(data, mode), metadata.get("labels", {}), group)


def decode_image(data: bytes, mode: PixelMode) -> Pixels:
    """PNG or JPEG to ``(C, H, W)`` pixels; alpha is dropped, and the decoder works without the GIL.

    Pillow and not torchvision, whose PNG decoder is a tenth faster but has ended the process on corrupt files.

    Raises:
        CorruptSampleError: it cannot be decoded.
    """
    try:
        if data.startswith(_PNG_SIGNATURE):
            _check_png(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
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


def _metadata(record: bytes) -> Mapping[str, Any]:
    try:
        metadata = dict(json.loads(record).items())
    except (ValueError, AttributeError) as error:
        raise CorruptSampleError(f"its record is no JSON object: {error}") from error
    if not isinstance(metadata.get("labels", {}), dict):
        raise CorruptSampleError("its labels are no mapping")
    return metadata
