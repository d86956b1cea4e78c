"""What the first bytes of a flat image tell of its pixels: enough to choose the mode of a set, without decoding any."""

import io
from typing import BinaryIO, Literal

from dira_dist.data.ingest import png
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.rasters import open_by_pillow, raster_format
from dira_dist.data.ingest.tiffs import SIGNATURES as TIFF_SIGNATURES

HEAD_BYTES = 1 << 14
Depth = Literal["grey", "deep", "colour", "unknown"]  # colour may turn out to be grey, and unknown anything


def depth_in(head: bytes) -> Depth:
    """Of a file that begins so: 8 bits of grey, more than 8 bits, three channels or a palette, or unknown."""
    form = raster_format(head)
    if form is None:
        return depth_of_tiff(io.BytesIO(head)) if head.startswith(TIFF_SIGNATURES) else "unknown"
    if form == "PNG":
        return _depth_of_png(head)
    try:
        mode = open_by_pillow(head, form).mode
    except Exception:  # a header that goes on behind these bytes, or is damaged
        return "colour" if form == "JPEG" else "unknown"
    return "grey" if mode in ("1", "L", "LA") else "deep" if mode.startswith("I") else "colour"


def _depth_of_png(head: bytes) -> Depth:
    try:
        header = png.read_header(head)
    except UnreadableError:
        return "unknown"
    colours = header.channels >= 3 or header.has_palette
    if header.bits == 16:
        return "unknown" if colours else "deep"
    return "colour" if colours else "grey"


def depth_of_tiff(stream: BinaryIO) -> Depth:
    """Known where the first page's description is reached: many writers put it behind the pixels."""
    import tifffile

    try:
        with tifffile.TiffFile(stream) as file:
            page = file.pages.first
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.samplesperpixel >= 3:
                return "colour" if page.bitspersample == 8 else "unknown"
            return "grey" if page.dtype is not None and page.dtype.itemsize == 1 and page.dtype.kind in "ub" else "deep"
    except Exception:  # the description stands behind what the stream holds, or the file is damaged
        return "unknown"
