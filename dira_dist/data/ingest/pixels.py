"""What happens to the pixels between archive and shard: one mode per set, one resize, one coding. Pure functions.

An image is ``(H, W)`` uint8 or uint16 (grey), or ``(H, W, 3)`` uint8 (colour).
"""

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest import png

Pixels = NDArray[Any]
PictureMode = Literal["L", "I;16", "RGB"]
Side = Literal["shortest", "longest"]

_COLOURED_SHARE = 0.001  # fewer pixels are a mark or noise of the sensor
_CHROMA_TOLERANCE = 12  # JPEG's chroma quantisation tints grey pictures by a few levels


def mode_of(pixels: Pixels) -> PictureMode:
    """The mode that keeps all an image has; colour whose channels agree is grey."""
    if pixels.ndim == 2:
        return "I;16" if pixels.dtype == np.uint16 else "L"
    red, green, blue = np.moveaxis(pixels[::3, ::3], 2, 0).astype(np.int16)  # a ninth of them tells as much
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    coloured = int(np.count_nonzero(spread > _CHROMA_TOLERANCE))
    return "RGB" if coloured > spread.size * _COLOURED_SHARE else "L"


def to_mode(pixels: Pixels, mode: PictureMode) -> Pixels:
    """The image in ``mode``: colour to grey by ITU-R 601 luma, 16 bits to 8 by division by 257, and the ways back."""
    if mode == "RGB":
        return pixels if pixels.ndim == 3 else np.repeat(to_mode(pixels, "L")[:, :, None], 3, axis=2)
    if pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    if mode == "I;16":
        return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def fitted_size(height_px: int, width_px: int, image_size: int | None, side: Side) -> tuple[int, int]:
    """``(height, width)`` after the resize: the chosen side at ``image_size``, the shape kept, nothing enlarged."""
    reference = min(height_px, width_px) if side == "shortest" else max(height_px, width_px)
    if image_size is None or reference <= image_size:
        return height_px, width_px
    factor = image_size / reference
    return max(1, round(height_px * factor)), max(1, round(width_px * factor))


def resize(pixels: Pixels, height_px: int, width_px: int) -> Pixels:
    """Antialiased (bicubic over the source's footprint); 16 bits keep their depth."""
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    image = Image.fromarray(pixels)
    gap = 3.0 if pixels.dtype == np.uint8 else None  # Pillow reduces no 16 bits by boxes
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.BICUBIC, reducing_gap=gap))


def resize_labels(labels: Pixels, height_px: int, width_px: int) -> Pixels:
    """A label map (H, W) uint8 at another size: values are picked, never mixed."""
    if labels.shape == (height_px, width_px):
        return labels
    return np.asarray(Image.fromarray(labels).resize((width_px, height_px), Image.Resampling.NEAREST))


def encode(pixels: Pixels, coding: Literal["png", "jpeg"], jpeg_quality: int = 95) -> bytes:
    """The coded image; PNG loses nothing, JPEG (8 bits only) is smaller and faster to read."""
    if coding == "png":
        return png.encode(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def encode_array(array: NDArray[Any]) -> bytes:
    """NPY, for what no image format holds."""
    array = np.ascontiguousarray(array)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((buffer.getvalue(), array.reshape(-1).view(np.uint8).data))  # the voxels are copied once


def stretch(values: NDArray[Any], low: float, high: float, *, bits: Literal[8, 16]) -> Pixels:
    """``low`` to ``high`` onto the whole range of 8 or 16 bits; what lies beyond is clipped."""
    top = 255 if bits == 8 else 65535
    scale = top / (high - low) if high > low else 0.0
    scaled: Pixels = np.rint(np.clip((values.astype(np.float64) - low) * scale, 0, top))
    return scaled.astype(np.uint8 if bits == 8 else np.uint16)
