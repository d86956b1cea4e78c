"""Image files to pixels, by what their first bytes say they are; and what all readers share.

Text that is burned into the pixels stays there: nothing here looks for it.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from dira_dist.data.ingest.failures import UnreadableError as UnreadableError
from dira_dist.data.ingest.picture import Picture as Picture
from dira_dist.data.ingest.picture import RasterRules as RasterRules
from dira_dist.data.ingest.rasters import raster_format, read_raster
from dira_dist.data.ingest.tiffs import SIGNATURES as TIFF_SIGNATURES
from dira_dist.data.ingest.tiffs import read_tiff

FileKind = Literal["raster", "tiff", "dicom", "nifti", "itk"]
SUFFIXES: dict[str, FileKind] = {
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".jpe": "raster",
    ".jfif": "raster",
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


def flat_kind(head: bytes) -> Literal["raster", "tiff"] | None:
    """Whether the first bytes of a file, 16 or more, are those of a flat image."""
    if raster_format(head):
        return "raster"
    return "tiff" if head.startswith(TIFF_SIGNATURES) else None


def read_pictures(data: bytes, rules: RasterRules) -> Iterator[Picture]:
    """The images of a PNG, JPEG, TIFF, GIF, BMP, WebP or JPEG 2000: one, or one for each frame or page.

    Args:
        data: the whole file.
        rules: how it is read, and how large it may be.

    Raises:
        UnreadableError: it is none of these, or too large; the decoders below raise errors of many kinds of their own.
    """
    form = raster_format(data)
    if form is not None:
        return read_raster(data, form, rules)
    if data.startswith(TIFF_SIGNATURES):
        return read_tiff(data, rules)
    raise UnreadableError("it is empty" if not data else "its first bytes are those of no image that is read")


# ------------------------------------------------------------------ for all readers


@contextmanager
def quiet_decoders() -> Iterator[None]:
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
