"""PNG, written fast and read strictly.

Written: each row as its difference to the row above, coded by Huffman alone. A radiograph has no repetitions that are
worth a search: beside Pillow's level 4 the coding takes a tenth of the time for 2 per cent more bytes, and is read
a third faster (``benchmarks/data.py --only shard`` has the whole conversion). Where more than half of the differences
are zero, runs are coded too; both ways find the same bytes on every machine, which a search for repetitions does not.

Read: only the chunks that hold pixels reach the decoder, each with its checksum compared.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter: each byte less the one above it
_STRIP_BYTES = 1 << 20
_COLOUR_TYPES = {1: 0, 3: 2}  # by number of channels
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_HEADER = struct.Struct(">IIBBBBB")


def encode(pixels: NDArray[Any]) -> bytes:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8, as PNG; beside the image a strip of it and the result are held."""
    from zlib_ng import zlib_ng

    height, width = pixels.shape[:2]
    depth, channels = pixels.dtype.itemsize * 8, 1 if pixels.ndim == 2 else pixels.shape[2]
    strips = _differences(pixels)
    first = next(strips)
    runs = 2 * np.count_nonzero(first) < first.size
    strategy = zlib_ng.Z_RLE if runs else zlib_ng.Z_HUFFMAN_ONLY
    coder = zlib_ng.compressobj(1, zlib_ng.DEFLATED, 15, 9, strategy)
    parts = [coder.compress(first), *(coder.compress(strip) for strip in strips), coder.flush()]
    header = _HEADER.pack(width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0)
    data = b"".join(parts)
    return b"".join((SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")))


def _differences(pixels: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Rows of bytes, each behind the mark of its filter, in strips."""
    row_bytes = pixels[0].nbytes
    rows = max(1, _STRIP_BYTES // row_bytes)
    above = np.zeros((1, row_bytes), np.uint8)
    for top in range(0, len(pixels), rows):
        strip = pixels[top : top + rows]
        ordered = strip.astype(strip.dtype.newbyteorder(">"))
        lines = np.ascontiguousarray(ordered).view(np.uint8).reshape(len(strip), row_bytes)
        filtered = np.empty((len(strip), row_bytes + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(lines[:1], above, out=filtered[:1, 1:])
        np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
        above = lines[-1:]
        yield filtered


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


@dataclass(frozen=True, slots=True)
class PngHeader:
    """What the first chunk says.

    Attributes:
        bits: of one channel of a pixel.
        channels: with alpha; a palette counts as one.
    """

    height_px: int
    width_px: int
    bits: int
    channels: int
    has_palette: bool
    is_interlaced: bool


def read_header(data: bytes) -> PngHeader:
    """The header of a PNG, of which the first 33 bytes suffice.

    Raises:
        UnreadableError: it is damaged.
    """
    try:
        width, height, bits, colour, _, _, interlaced = _HEADER.unpack_from(data, 16)
    except struct.error:
        raise UnreadableError("the PNG is cut short") from None
    if data[12:16] != b"IHDR" or colour not in _CHANNELS or not height or not width:
        raise UnreadableError("the PNG's header is damaged")
    return PngHeader(height, width, bits, _CHANNELS[colour], colour == 3, bool(interlaced))


def chunks(data: bytes, *, pixels_too: bool = True) -> Iterator[tuple[bytes, int, int]]:
    """``(kind, start, stop)`` of each chunk's content, up to the last one.

    Args:
        data: the file.
        pixels_too: whether to compare the checksums of the pixels' chunks, too, which :func:`decode` does anyway.

    Raises:
        UnreadableError: a checksum differs, or the last chunk is missing.
    """
    place, kind, view = len(SIGNATURE), b"", memoryview(data)
    while kind != b"IEND":
        start = place + 8
        stop = start + int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : start])
        if stop + 4 > len(data):
            raise UnreadableError("the PNG is cut short")
        checked = pixels_too or kind != b"IDAT"
        if checked and zlib.crc32(view[place + 4 : stop]) != int.from_bytes(view[stop : stop + 4], "big"):
            raise UnreadableError("the PNG is damaged: a checksum differs")
        yield kind, start, stop
        place = stop + 4


def decode(data: bytes, found: list[tuple[bytes, int, int]]) -> NDArray[Any]:
    """The pixels of a PNG that is not interlaced: (H, W) or (H, W, C), 8 or 16 bits, a palette resolved.

    Args:
        data: the file.
        found: its :func:`chunks`.

    Raises:
        Exception: from the decoder, for a damaged stream.
    """
    import imagecodecs

    view = memoryview(data)
    kept = [view[start - 8 : stop + 4] for kind, start, stop in found if kind in _PIXEL_CHUNKS]
    pixels: NDArray[Any] = imagecodecs.png_decode(b"".join((SIGNATURE, *kept)))
    return pixels
