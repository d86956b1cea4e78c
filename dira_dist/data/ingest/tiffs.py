"""TIFF: each page that is a picture of its own, whatever its numbers, inks, palette or compression."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.greyscale import colour_of, grey_of
from dira_dist.data.ingest.picture import Picture, Range, RasterRules, turned
from dira_dist.data.ingest.pixels import Pixels

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_WHITE_IS_ZERO, _RGB, _PALETTE, _MASK_OF_TRANSPARENCY, _INKS, _YCBCR = 0, 2, 3, 4, 5, 6
_UNREAD = {
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's pattern",
    32844: "LogL",
    32845: "LogLuv",
}
_JPEGS = (6, 7, 34933)
_ORIENTATION = 274
_THUMBNAIL_PX, _LEAST_STEP, _LEVEL_TOLERANCE = 16, 1.5, 6.0


def read_tiff(data: bytes, rules: RasterRules) -> Iterator[Picture]:
    """The pictures of a TIFF: its pages without masks, thumbnails and the smaller levels of a pyramid.

    Raises:
        UnreadableError: it holds what is not read, or more than the rules allow to decode.
        Exception: of other kinds, from the decoders, for a damaged file.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if _is_hidden_stack(file):
            yield from _read_stack(file, rules)
            return
        first: tuple[tuple[int, int], Pixels] | None = None
        for page in picture_pages(file):
            _check(page, rules)
            _check_whole(page, len(data))
            picture = _picture(page.asarray(), page, rules)
            size, thumbnail = picture.original_px, _thumbnail_of(picture.pixels)
            if first is not None and _is_level(size, thumbnail, *first):
                continue  # a level of a pyramid whose writer has not marked it
            first = first or (size, thumbnail)
            yield picture


def picture_pages(file: "TiffFile") -> "Iterator[TiffPage]":
    """Pages that are pictures of their own; the first one, where the file calls all of them something else."""
    import tifffile

    pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
    own = [page for page in pages if not int(page.subfiletype) & (_REDUCED | _MASK)]
    yield from [page for page in own if page.photometric != _MASK_OF_TRANSPARENCY] or pages[:1]


def _thumbnail_of(pixels: Pixels) -> Pixels:
    """(16, 16) uint8: enough to tell a smaller copy from another picture."""
    few = pixels[tuple(slice(None, None, max(1, side // 256)) for side in pixels.shape[:2])]
    eight = (few >> 8).astype(np.uint8) if few.dtype == np.uint16 else few
    image = Image.fromarray(np.ascontiguousarray(eight)).convert("L")
    return np.asarray(image.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX))


def _is_level(size_px: tuple[int, int], thumbnail: Pixels, larger_px: tuple[int, int], larger: Pixels) -> bool:
    """Whether a page is a smaller copy of a larger one: of its shape, and of its greys."""
    down, right = larger_px[0] / size_px[0], larger_px[1] / size_px[1]
    if down < _LEAST_STEP or abs(down - right) > 0.02 * down + down / min(size_px):
        return False
    return float(np.abs(thumbnail.astype(int) - larger).mean()) < _LEVEL_TOLERANCE


def _check_whole(page: "TiffPage", file_bytes: int) -> None:
    """The decoders take what is missing at the end of a file for black."""
    ends = (start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > file_bytes:
        raise UnreadableError("it is cut short: pixels stand behind its end")


def _is_hidden_stack(file: "TiffFile") -> bool:
    """ImageJ writes large stacks behind one page that describes only the first of them."""
    one = bool(file.is_imagej) and len(file.pages) == 1 and bool(file.series)
    return one and file.series[0].ndim > file.pages.first.ndim


def _read_stack(file: "TiffFile", rules: RasterRules) -> Iterator[Picture]:
    page = file.pages.first
    _check(page, rules)
    planes = file.series[0].asarray()
    for plane in planes.reshape(-1, *page.shape):
        yield _picture(plane, page, rules)


def _check(page: "TiffPage", rules: RasterRules) -> None:
    rules.check_size(page.imagelength * max(1, page.imagedepth), page.imagewidth, page.samplesperpixel)
    if page.photometric in _UNREAD:
        raise UnreadableError(f"its colours are {_UNREAD[int(page.photometric)]}, which is not read")


def _picture(values: NDArray[Any], page: "TiffPage", rules: RasterRules) -> Picture:
    if values.ndim == 3 and page.axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and page.imagedepth > 1):
        raise UnreadableError(f"its shape is {values.shape}, where an image has two dimensions and channels")
    pixels, used, lost = _pixels(values, page, rules)
    orientation = int(page.tags.valueof(_ORIENTATION, 1))
    pixels = turned(pixels, orientation)
    tags = {} if used is None else {"intensity": {"by": "depth", "low": used[0], "high": used[1]}}
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]), tags, (), orientation, lost)


def _pixels(values: NDArray[Any], page: "TiffPage", rules: RasterRules) -> tuple[Pixels, Range | None, bool]:
    channels = values.shape[2] if values.ndim == 3 else 1
    if page.photometric == _PALETTE and page.colormap is not None:
        return *_through_palette(values, page.colormap), False
    if page.photometric == _INKS and channels >= 4:
        return _from_inks(values[:, :, :4]), None, False
    if page.photometric == _YCBCR and channels == 3 and page.compression not in _JPEGS and values.dtype == np.uint8:
        return np.asarray(Image.fromarray(values, "YCbCr").convert("RGB")), None, False
    if channels >= 3 and page.photometric in (_RGB, _YCBCR):
        return colour_of(values, rules)
    first = values if values.ndim == 2 else np.ascontiguousarray(values[:, :, 0])
    bits = page.bitspersample if isinstance(page.bitspersample, int) and values.dtype.kind == "u" else None
    pixels, used = grey_of(first, rules, bits)
    if page.photometric == _WHITE_IS_ZERO:
        pixels = np.invert(pixels)  # of unsigned numbers: their largest less each of them
    return pixels, used, False


def _through_palette(indices: NDArray[Any], colours: NDArray[Any]) -> tuple[Pixels, None]:
    """Colour maps hold 16 bits by the standard, and 8 by the habit of some writers."""
    table = colours if colours.max() < 256 else colours >> 8
    return np.ascontiguousarray(table.astype(np.uint8).T)[indices], None


def _from_inks(inks: NDArray[Any]) -> Pixels:
    if inks.dtype == np.uint16:
        inks = (inks >> 8).astype(np.uint8)
    if inks.dtype != np.uint8:
        raise UnreadableError(f"its inks are numbers of the kind {inks.dtype}, which is not read")
    return np.asarray(Image.fromarray(np.ascontiguousarray(inks), "CMYK").convert("RGB"))


def signed_range(data: bytes) -> Range | None:
    """Smallest and largest value of the pages of signed integers; none where there are none.

    Raises:
        Exception: of any kind, for a damaged file.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page for page in picture_pages(file) if page.dtype is not None and page.dtype.kind == "i"]
        found = [(float(values.min()), float(values.max())) for values in (page.asarray() for page in pages)]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def plain_page(data: bytes, rules: RasterRules) -> tuple[NDArray[Any], int]:
    """The values of the only page, as they are coded, and its orientation: for a label map.

    Raises:
        UnreadableError: it has several pages, or is too large.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = list(picture_pages(file))
        if len(pages) != 1:
            raise UnreadableError(f"its mask has {len(pages)} pages, where one is wanted")
        _check(pages[0], rules)
        return pages[0].asarray(), int(pages[0].tags.valueof(_ORIENTATION, 1))
