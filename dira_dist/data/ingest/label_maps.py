"""Label maps of flat images: whole numbers, one for each pixel, never mixed and never guessed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest import png
from dira_dist.data.ingest.dicom import DicomFile, looks_like_dicom
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.picture import Picture, RasterRules, turned
from dira_dist.data.ingest.rasters import RasterFormat, open_by_pillow, orientation_of, raster_format
from dira_dist.data.ingest.tiffs import SIGNATURES as TIFF_SIGNATURES
from dira_dist.data.ingest.tiffs import plain_page


class LossyMaskError(ValueError):
    """A mask whose values cannot be trusted; the message is the end of a sentence about it."""


def coded_mask(data: bytes, picture: Picture, size_px: tuple[int, int], rules: RasterRules) -> bytes:
    """The label map of a picture at another size as PNG, its values untouched.

    It is turned as its own orientation says; one that fits only the picture as it lies in its file is turned with it.

    Raises:
        UnreadableError: it is in colour, of another size, or holds values that are no labels of 8 bits.
        LossyMaskError: its values are smeared by its compression.
        Exception: of other kinds, from the decoders, for a damaged file.
    """
    labels, orientation = _labels_in(data, rules)
    labels = turned(labels, orientation)
    if labels.ndim != 2:
        raise UnreadableError("its mask is in colour, where a label map has one value per pixel")
    if labels.shape != picture.original_px and orientation == 1:
        with_it = turned(labels, picture.orientation)
        labels = with_it if with_it.shape == picture.original_px else labels
    if labels.shape != picture.original_px:
        height, width = picture.original_px
        raise UnreadableError(f"its mask is {labels.shape[0]} x {labels.shape[1]} px, it {height} x {width}")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise UnreadableError("its mask holds values that are no whole numbers")
    if labels.min() < 0 or labels.max() > 255:
        raise UnreadableError("its mask holds values beyond 0 to 255")
    flat = np.ascontiguousarray(labels.astype(np.uint8))
    return px.encode(px.resize_labels(flat, *size_px), "png")


def _labels_in(data: bytes, rules: RasterRules) -> tuple[NDArray[Any], int]:
    """Values as they are coded, indices of a palette too, and the file's orientation."""
    form = raster_format(data)
    if form is not None:
        return _labels_in_raster(data, form, rules)
    if data.startswith(TIFF_SIGNATURES):
        return plain_page(data, rules)
    if looks_like_dicom(data[:132]):
        return next(DicomFile(data).frames()), 1
    raise UnreadableError("its mask is no label map that is read (PNG, TIFF, GIF, BMP or DICOM)")


def _labels_in_raster(data: bytes, form: RasterFormat, rules: RasterRules) -> tuple[NDArray[Any], int]:
    if form == "PNG":
        list(png.chunks(data))  # compares the checksums
    with open_by_pillow(data, form) as image:
        rules.check_size(image.size[1], image.size[0], len(image.getbands()))
        labels, orientation = _label_values(image), orientation_of(image.getexif())
    if form in ("JPEG", "WEBP", "JPEG2000") and len(np.unique(labels)) > 2:
        raise LossyMaskError(f"is a {form}, whose compression smears its values")
    return labels, orientation


def _label_values(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image.getchannel(0) if image.mode in ("LA", "PA") else image)
