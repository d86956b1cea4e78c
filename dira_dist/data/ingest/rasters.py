"""PNG, JPEG, GIF, BMP, WebP and JPEG 2000 to pixels.

A file's first bytes say which of these it is, whatever its name says; its decoder is started and no other.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest import png
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.greyscale import colour_of, grey_of
from dira_dist.data.ingest.picture import Picture, RasterRules, turned, turned_px
from dira_dist.data.ingest.pixels import Pixels

RasterFormat = Literal["PNG", "JPEG", "GIF", "BMP", "WEBP", "JPEG2000"]
SIGNATURE_BYTES = 16  # that many tell a format

_SIGNATURES: tuple[tuple[bytes, RasterFormat], ...] = (
    (png.SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"BM", "BMP"),
)
_PLUGINS: dict[RasterFormat, tuple[str, str]] = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "WEBP": ("WebPImagePlugin", "WebPImageFile"),
    "JPEG2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
}
_ORIENTATION = 0x0112
_STRIP_BYTES = 1 << 24


def raster_format(head: bytes) -> RasterFormat | None:
    """The format that the first :data:`SIGNATURE_BYTES` of a file tell, if any of these."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((form for signature, form in _SIGNATURES if head.startswith(signature)), None)


def read_raster(data: bytes, form: RasterFormat, rules: RasterRules) -> Iterator[Picture]:
    """The image of a file, or each frame of an animated one.

    Raises:
        UnreadableError: it is damaged, or larger than the rules allow.
        Exception: of other kinds, from the decoders, for a damaged file.
    """
    if form == "PNG":
        yield from _read_png(data, rules)
    else:
        yield from _read_by_pillow(data, form, rules)


def open_by_pillow(data: bytes, form: RasterFormat) -> Image.Image:
    """The header of an image, its pixels still to be loaded; of one format, and without Pillow's own limit of size.

    Raises:
        Exception: of any kind, where the header is damaged.
    """
    module, name = _PLUGINS[form]
    image: Image.Image = getattr(import_module(f"PIL.{module}"), name)(io.BytesIO(data))
    return image


# --------------------------------------------------------------------------- PNG


def _read_png(data: bytes, rules: RasterRules) -> Iterator[Picture]:
    header = png.read_header(data)
    rules.check_size(header.height_px, header.width_px, header.channels)
    found = list(png.chunks(data, pixels_too=False))
    if header.is_interlaced or any(kind == b"acTL" for kind, _, _ in found):
        list(png.chunks(data))  # Pillow compares no checksums of pixels
        yield from _read_by_pillow(data, "PNG", rules)
        return
    values = png.decode(data, found)
    yield _picture(values, rules, _orientation_in(data, found))


def _orientation_in(data: bytes, found: list[tuple[bytes, int, int]]) -> int:
    place = next(((start, stop) for kind, start, stop in found if kind == b"eXIf"), None)
    if place is None:
        return 1
    exif = Image.Exif()
    exif.load(data[slice(*place)])
    return orientation_of(exif)


def orientation_of(exif: Image.Exif) -> int:
    """TIFF's and EXIF's number for how an image is to be turned; 1 where nothing is said."""
    found = exif.get(_ORIENTATION, 1)
    return found if isinstance(found, int) else 1


def _picture(values: NDArray[Any], rules: RasterRules, orientation: int) -> Picture:
    """Decoded values, (H, W) or (H, W, channels with alpha), as a picture."""
    if values.ndim == 3 and values.shape[2] >= 3:
        pixels, used, lost = colour_of(values, rules)
    else:
        grey = values if values.ndim == 2 else np.ascontiguousarray(values[:, :, 0])
        (pixels, used), lost = grey_of(grey, rules), False
    pixels = turned(pixels, orientation)
    tags = {} if used is None else {"intensity": {"by": "depth", "low": used[0], "high": used[1]}}
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]), tags, (), orientation, lost)


# ------------------------------------------------------------------------ Pillow


def _read_by_pillow(data: bytes, form: RasterFormat, rules: RasterRules) -> Iterator[Picture]:
    image = open_by_pillow(data, form)
    rules.check_size(image.size[1], image.size[0], len(image.getbands()))
    orientation = orientation_of(image.getexif())
    original_px = turned_px((image.size[1], image.size[0]), orientation)
    if rules.enough_px is not None and form == "JPEG":
        # libjpeg can leave out the highest frequencies; twice the final size keeps the resize antialiased
        factor = 2 * rules.enough_px / min(image.size)
        image.draft(None, (round(image.size[0] * factor), round(image.size[1] * factor)))
    frames = getattr(image, "n_frames", 1)
    for number in range(1, frames):
        image.seek(number - 1)
        yield replace(_picture(_values_of(image), rules, orientation), original_px=original_px)
    if frames > 1:
        image.seek(frames - 1)
    values = _values_of(image)
    del image  # Pillow's own copy of the pixels, four bytes for each of a colour image
    yield replace(_picture(values, rules, orientation), original_px=original_px)


def _values_of(image: Image.Image) -> NDArray[Any]:
    """(H, W) or (H, W, 3); transparency is dropped, palettes and inks are resolved."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16, copy=False)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        return (
            values.astype(np.uint16) if image.mode == "I" and values.min() >= 0 and values.max() < 1 << 16 else values
        )
    if image.mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        raise UnreadableError(f"its pixels are of the kind {image.mode}, which is not read")
    return _array_of(image, "L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _array_of(image: Image.Image, mode: Literal["L", "RGB"]) -> Pixels:
    """A large image strip by strip: at once, Pillow holds it three times over."""
    image.load()
    width, height = image.size
    rows = max(1, _STRIP_BYTES // (4 * width))
    if rows >= height:
        return np.asarray(image if image.mode == mode else image.convert(mode))
    out = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        out[top : top + rows] = np.asarray(strip.convert(mode))
    return out
