"""Image files to pixels: PNG, JPEG and TIFF, page by page; and what all readers share.

Text that is burned into the pixels stays there: nothing here looks for it.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest.pixels import Pixels, stretch

FileKind = Literal["raster", "tiff", "dicom", "nifti", "itk"]
SUFFIXES: dict[str, FileKind] = {
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".dcm.gz": "dicom",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",
    ".img": "nifti",
    ".nrrd": "itk",
    ".mha": "itk",
}


class UnreadableError(ValueError):
    """A file that is no image, or not one that can be read; the message says why.

    Args:
        reason: in words, without names.
        file: which of several files it is, where one of a series is damaged.
    """

    def __init__(self, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.file = file


@dataclass(frozen=True)
class Picture:
    """One image as it was read.

    Attributes:
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8.
        original_px: (H, W) in the file, where a reader has shrunk the image on the way.
        tags: what is kept of the header, JSON-ready; ``pixel_spacing_mm`` is [row, column] of the original.
        notes: what a user should know of it.
    """

    pixels: Pixels
    original_px: tuple[int, int]
    tags: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_pictures(data: bytes, kind: FileKind, enough_px: int | None) -> Iterator[Picture]:
    """The images of a file: one, or one for each frame or page.

    Args:
        data: the whole file.
        kind: what it should be.
        enough_px: a shortest side with which the caller would be content; JPEG is decoded faster when it is small.

    Raises:
        UnreadableError: the file is not what it should be; the decoders below raise errors of many kinds of their own.
    """
    if kind == "tiff":
        return _read_tiff(data)
    return _read_raster(data, enough_px)


def _read_raster(data: bytes, enough_px: int | None) -> Iterator[Picture]:
    with Image.open(io.BytesIO(data)) as image:
        width_px, height_px = image.size
        if enough_px is not None and image.format == "JPEG":
            # libjpeg can leave out the highest frequencies; twice the final size keeps the resize antialiased
            factor = 2 * enough_px / min(image.size)
            image.draft(None, (round(width_px * factor), round(height_px * factor)))
        yield Picture(_pixels_of(image), (height_px, width_px))


def _pixels_of(image: Image.Image) -> Pixels:
    """Transparency is dropped, palettes are resolved, 16 bits of grey are kept."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return _from_any_number(np.asarray(image))
    grey = image.mode in ("1", "L", "LA", "La")
    return np.asarray(image.convert("L" if grey else "RGB"))


def _from_any_number(values: NDArray[Any]) -> Pixels:
    """uint8 and uint16 as they are; other numbers stretched from smallest to largest over 16 bits."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(values.dtype.newbyteorder("="))
    if not np.isfinite(values).all():
        raise UnreadableError("it holds values that are no numbers")
    return stretch(values, float(values.min()), float(values.max()), bits=16)


def _read_tiff(data: bytes) -> Iterator[Picture]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for page in file.pages:
            assert isinstance(page, tifffile.TiffPage)
            try:
                values = page.asarray()
            except (
                ValueError
            ):  # a compression that needs the imagecodecs package; libtiff behind Pillow knows the usual
                yield from _read_tiff_by_pillow(data)
                return
            pixels = _channels(_from_any_number(values), planar=values.ndim == 3 and page.axes.startswith("S"))
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                pixels = np.iinfo(pixels.dtype).max - pixels
            yield Picture(pixels, (pixels.shape[0], pixels.shape[1]))


def _read_tiff_by_pillow(data: bytes) -> Iterator[Picture]:
    with Image.open(io.BytesIO(data)) as image:
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            yield Picture(_pixels_of(image), (image.size[1], image.size[0]))


def _channels(pixels: Pixels, *, planar: bool) -> Pixels:
    """(H, W), or (H, W, 3) in 8 bits, from any order and number of channels; alpha is dropped."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3:
        raise UnreadableError(f"its shape is {pixels.shape}, where an image has two or three dimensions")
    if planar:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[2] < 3:
        return pixels[:, :, 0]
    colour = pixels[:, :, :3]
    return np.ascontiguousarray(colour if colour.dtype == np.uint8 else (colour >> 8).astype(np.uint8))


# ------------------------------------------------------------------ for all readers


@contextmanager
def discreetly() -> Iterator[None]:
    """Silences warnings and logs of the decoders, which may quote a header: a log must hold no identity."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "tifffile", "PIL")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
