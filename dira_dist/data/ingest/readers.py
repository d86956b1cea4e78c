"""Image files to pixels: PNG, JPEG, TIFF and DICOM, frame by frame.

Of a DICOM header nothing leaves this file but the allow-listed tags of :func:`allowed_tags`. Text that is burned into
the pixels stays there: nothing here looks for it.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest.pixels import Pixels, stretch

if TYPE_CHECKING:
    from pydicom import Dataset

FileKind = Literal["raster", "tiff", "dicom", "nifti"]
Intensity = Literal["window", "full"]

SUFFIXES: dict[str, FileKind] = {
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".nii": "nifti",
    ".nii.gz": "nifti",
}


class UnreadableError(ValueError):
    """A file that is no image, or not one that can be read; the message says why."""


@dataclass(frozen=True)
class Picture:
    """One image as it was read.

    Attributes:
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8.
        original_px: (H, W) in the file, where a reader has shrunk the image on the way.
        tags: what is kept of the header, JSON-ready; ``pixel_spacing_mm`` is [row, column] of the original.
    """

    pixels: Pixels
    original_px: tuple[int, int]
    tags: dict[str, Any] = field(default_factory=dict)


def read_pictures(data: bytes, kind: FileKind, intensity: Intensity, enough_px: int | None) -> Iterator[Picture]:
    """The images of a file: one, or one for each frame or page.

    Args:
        data: the whole file.
        kind: what it should be.
        intensity: how DICOM values become grey: by the file's own window where it has one, or from smallest to largest.
        enough_px: a shortest side with which the caller would be content; JPEG is decoded faster when it is small.

    Raises:
        UnreadableError: the file is not what it should be; the decoders below raise errors of many kinds of their own.
    """
    if kind == "dicom":
        return read_dicom(data, intensity)
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


# ------------------------------------------------------------------------ DICOM


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


def open_dicom(data: bytes) -> "Dataset":
    """A DICOM file with pixels in it.

    Raises:
        UnreadableError: there are none.
    """
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise UnreadableError("it is a DICOM file without pixels")
    return dataset


def read_dicom(data: bytes, intensity: Intensity) -> Iterator[Picture]:
    """Each frame through rescale, window and MONOCHROME1's inversion to grey, or through palette or YBR to colour."""
    from pydicom.pixels.utils import iter_pixels

    dataset = open_dicom(data)
    tags = allowed_tags(dataset)
    for frame in iter_pixels(dataset):
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = _through_palette(frame, dataset)
        elif frame.ndim == 3:
            pixels = _channels(_colour_to_8_bits(frame, int(dataset.BitsStored)), planar=False)
        else:
            pixels = _to_grey(frame, dataset, intensity)
        yield Picture(pixels, (pixels.shape[0], pixels.shape[1]), tags)


def _through_palette(frame: NDArray[Any], dataset: "Dataset") -> Pixels:
    from pydicom.pixels.processing import apply_color_lut

    colour = apply_color_lut(frame, dataset)
    return _channels(colour, planar=False)


def _colour_to_8_bits(frame: NDArray[Any], bits: int) -> Pixels:
    return frame.astype(np.uint8) if bits <= 8 else (frame >> (bits - 8)).astype(np.uint8)


def _to_grey(frame: NDArray[Any], dataset: "Dataset", intensity: Intensity) -> Pixels:
    values = rescaled(frame, dataset)
    bits: Literal[8, 16] = 8 if int(dataset.BitsStored) <= 8 else 16
    share = _through_window(values, dataset) if intensity == "window" else None
    if share is not None:
        pixels = stretch(share, 0.0, 1.0, bits=bits)
    else:
        real = values[frame != _padding(dataset)] if "PixelPaddingValue" in dataset else values
        real = real if real.size else values
        pixels = stretch(values, float(real.min()), float(real.max()), bits=bits)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels


def rescaled(frame: NDArray[Any], dataset: "Dataset") -> NDArray[Any]:
    """Stored values through the modality LUT, or rescale slope and intercept: Hounsfield units for CT."""
    from pydicom.pixels.processing import apply_modality_lut

    return apply_modality_lut(frame, dataset)


def _padding(dataset: "Dataset") -> int:
    """PixelPaddingValue in the signedness of the pixels: readers hand it out unsigned where its VR is in doubt."""
    value = int(dataset.PixelPaddingValue)
    if int(dataset.PixelRepresentation) and value >= 1 << (int(dataset.BitsAllocated) - 1):
        return value - (1 << int(dataset.BitsAllocated))
    return value


def _through_window(values: NDArray[Any], dataset: "Dataset") -> NDArray[Any] | None:
    """Values to 0..1 by the file's first window (PS3.3, C.11.2.1.2) or VOI LUT; none where it has neither."""
    centres, widths = _numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth"))
    if not centres or not widths or widths[0] <= 0:
        return _through_voi_lut(values, dataset)
    centre, width = centres[0], widths[0]
    function = str(dataset.get("VOILUTFunction", "LINEAR"))
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT" or width <= 1:
        share = (values - centre) / width + 0.5
    else:
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.clip(share, 0, 1)


def _through_voi_lut(values: NDArray[Any], dataset: "Dataset") -> NDArray[Any] | None:
    if not dataset.get("VOILUTSequence"):
        return None
    from pydicom.pixels.processing import apply_voi

    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2]) or 16
    share: NDArray[Any] = apply_voi(values.astype(np.int64), dataset) / ((1 << bits) - 1)
    return share


def _numbers(value: Any) -> list[float]:
    """One number or many, as DICOM's multi-valued elements come."""
    if value is None or value == "":
        return []
    many = value if not isinstance(value, str | int | float) and hasattr(value, "__iter__") else [value]
    return [float(number) for number in many]


def allowed_tags(dataset: "Dataset") -> dict[str, Any]:
    """All of the header that ever reaches a shard: modality, view position and pixel spacing, each checked for form."""
    tags: dict[str, Any] = {}
    for name, keyword in (("modality", "Modality"), ("view_position", "ViewPosition")):
        value = str(dataset.get(keyword, ""))
        if re.fullmatch(r"[A-Z0-9]{1,6}", value):  # a code; whatever else was typed there stays behind
            tags[name] = value
    spacing = _numbers(dataset.get("PixelSpacing")) or _numbers(dataset.get("ImagerPixelSpacing"))
    if len(spacing) == 2 and all(length > 0 for length in spacing):
        tags["pixel_spacing_mm"] = spacing
    return tags
