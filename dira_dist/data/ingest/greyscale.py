"""Numbers of any kind to 8 or 16 bits of grey, by rules that a user can name.

- 8 bits stay as they are.
- 16 bits: the file's depth is the smallest of 8, 10, 12, 14 and 16 bits that holds its brightest value, and fills the
  range: a radiograph of 12 bits in a PNG of 16 looks as the same picture does in DICOM.
- Signed integers (HU): one range for the whole set, so that the same tissue keeps the same grey.
- Other numbers: from smallest to largest. What is no number counts as 0, infinity as the largest.
- What ``intensity`` asks for (``full``, ``range:LOW,HIGH``, ``percentiles:LOW,HIGH``) goes before all but the first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.intensity import IntensityRule
from dira_dist.data.ingest.picture import Range, RasterRules
from dira_dist.data.ingest.pixels import Pixels, stretch

_DEPTHS = (8, 10, 12, 14, 16)
_CHROMA_TOLERANCE = 12 << 8  # as pixels.mode_of has it for 8 bits
_STRIP_VALUES = 1 << 22


def grey_of(values: NDArray[Any], rules: RasterRules, bits: int | None = None) -> tuple[Pixels, Range | None]:
    """(H, W) numbers as uint8 or uint16, and which values became black and white, where not those of the type itself.

    Args:
        values: of any real type.
        rules: with the ranges to use.
        bits: of the values, where the file says so and they are unsigned.

    Raises:
        UnreadableError: not one value is a number.
    """
    if values.dtype == np.bool_:
        return values.view(np.uint8) * np.uint8(255), None
    if values.dtype == np.uint8:
        top = (1 << bits) - 1 if bits else 255
        return (values if top >= 255 else stretch(values, 0, top, bits=8)), None
    if rules.intensity.name != "window":
        return _stretched(values, _asked_range(values, rules.intensity))
    if values.dtype == np.uint16:
        return _by_depth(values, bits)
    if values.dtype.kind == "i" and rules.signed_range is not None:
        return _stretched(values, rules.signed_range)
    return _stretched(values, finite_range(values))


def _by_depth(values: NDArray[Any], bits: int | None) -> tuple[Pixels, Range | None]:
    values = values.astype(np.uint16, copy=False)  # in this machine's order of bytes
    depth = bits if bits is not None and 8 < bits < 16 else depth_of(values)
    return (values, None) if depth == 16 else _stretched(values, (0.0, float((1 << depth) - 1)))


def _asked_range(values: NDArray[Any], rule: IntensityRule) -> Range:
    if rule.name == "range":
        return rule.low, rule.high
    low, high = finite_range(values)
    if rule.name == "percentiles":
        numbers = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = (float(found) for found in np.percentile(numbers, (rule.low, rule.high)))
    return low, high


def depth_of(values: NDArray[Any]) -> int:
    """The smallest of the usual depths that holds the brightest of unsigned values."""
    brightest = int(values.max())
    return next(depth for depth in _DEPTHS if brightest < 1 << depth)


def finite_range(values: NDArray[Any]) -> Range:
    """Smallest and largest of the numbers among values; 0 counts where any is none.

    Raises:
        UnreadableError: none of them is a number.
    """
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableError("it holds no numbers")
    low, high = (
        float(find(values, where=finite, initial=start)) for find, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    return (min(low, 0.0), max(high, 0.0)) if np.isnan(values).any() else (low, high)


def _stretched(values: NDArray[Any], wanted: Range) -> tuple[Pixels, Range]:
    """In strips, since a stretch computes in 8 bytes a pixel."""
    out = np.empty(values.shape, np.uint16)
    rows = max(1, _STRIP_VALUES // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        strip = values[top : top + rows]
        known = np.nan_to_num(strip, nan=0.0, posinf=wanted[1], neginf=wanted[0]) if strip.dtype.kind == "f" else strip
        out[top : top + rows] = stretch(known, *wanted, bits=16)
    return out, wanted


def colour_of(values: NDArray[Any], rules: RasterRules) -> tuple[Pixels, Range | None, bool]:
    """(H, W, 3 or more) numbers: 8 bits of colour, or grey where deep channels agree; and whether depth was lost."""
    colour = values[:, :, :3]
    if colour.dtype == np.uint8:
        return np.ascontiguousarray(colour), None, False
    if colour.dtype != np.uint16:
        low, high = finite_range(colour)
        bands = [stretch(np.nan_to_num(colour[:, :, band]), low, high, bits=8) for band in range(3)]
        return np.stack(bands, axis=-1), (low, high), False
    if _channels_agree(colour):
        return *grey_of(np.ascontiguousarray(colour[:, :, 1]), rules), False
    shift = depth_of(colour) - 8
    return (colour >> shift).astype(np.uint8), None, True


def _channels_agree(colour: NDArray[Any]) -> bool:
    red, green, blue = np.moveaxis(colour[::3, ::3], 2, 0).astype(np.int32)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return bool(np.count_nonzero(spread > _CHROMA_TOLERANCE) <= spread.size // 1000)
