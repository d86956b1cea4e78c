"""What the readers of flat images hand on, and the limits that they keep."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.intensity import IntensityRule
from dira_dist.data.ingest.pixels import Pixels

Range = tuple[float, float]
BY_DEPTH = IntensityRule("window")


@dataclass(frozen=True)
class Picture:
    """One image as it was read.

    Attributes:
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8, turned as viewers show it.
        original_px: (H, W) as viewers show the file, where a reader has shrunk the image on the way.
        tags: what is kept of the header, JSON-ready; ``pixel_spacing_mm`` is [row, column] of the original.
        notes: what a user should know of it.
        orientation: how the file's pixels were turned, by TIFF's and EXIF's numbers (1: not at all).
        lost_depth: whether 16 bits of colour became 8.
    """

    pixels: Pixels
    original_px: tuple[int, int]
    tags: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    orientation: int = 1
    lost_depth: bool = False


@dataclass(frozen=True)
class RasterRules:
    """How flat images are read.

    Attributes:
        max_px: pixels of one image; what has more is refused before it is decoded.
        enough_px: a shortest side with which the caller would be content; JPEG is decoded faster when it is small.
        intensity: how files of more than 8 bits become grey; ``window`` means by their depth.
        signed_range: values that become black and white in files of signed numbers (HU), whose depth says nothing.
    """

    max_px: int = 512_000_000
    enough_px: int | None = None
    intensity: IntensityRule = BY_DEPTH
    signed_range: Range | None = None

    def check_size(self, height_px: int, width_px: int, channels: int = 1) -> None:
        """Raises UnreadableError for an image of more pixels, or of many more channels, than may be decoded."""
        if height_px * width_px > self.max_px or height_px * width_px * channels > 4 * self.max_px:
            raise UnreadableError(
                f"it has {height_px} x {width_px} px and {channels} channels, more than max_raster_mpx "
                f"({self.max_px / 1e6:g}) allows to decode"
            )


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as viewers show them, by the number of TIFF 6.0 (page 36) and EXIF; others than 2 to 8 do nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def turned_px(size_px: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) of an image after :func:`turned`."""
    return (size_px[1], size_px[0]) if orientation in (5, 6, 7, 8) else size_px
