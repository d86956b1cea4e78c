"""DICOM frames to pictures: stored values through rescale or modality LUT, then window, VOI LUT or scale; or colours.

The order is that of the standard (PS3.3, C.11, and PS3.4, N.2). Values of up to 16 bits are looked up: what a rule
makes of each stored value is computed once, and a frame of any size costs no more memory than its grey copy.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.dicom import DicomFile, PixelFormat, number_of, numbers_of, pixel_format, whole_of
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.functional_groups import FrameGroups
from dira_dist.data.ingest.intensity import Histogram, IntensityRule, Lut, Mapping, Scale, Window, to_depth
from dira_dist.data.ingest.picture import Picture, RasterRules
from dira_dist.data.ingest.pixels import PictureMode, Pixels, mode_of
from dira_dist.data.ingest.terms import header_terms, text_of

if TYPE_CHECKING:
    from pydicom import Dataset

DEFAULT_RULES = RasterRules()
_CHUNK_VALUES = 1 << 20
_ALL_FRAMES = 0  # whose groups stand for a file that has none

# ------------------------------------------------------------------- what a header says of values


def lut_of(item: "Dataset", values_may_be_negative: bool) -> Lut | None:
    """A modality or VOI LUT item (PS3.3, C.11.1.1, C.11.2.1.1); none where it holds no table.

    The number and size of its entries are taken from the table itself: descriptors are often wrong about both.
    """
    descriptor = numbers_of(item, "LUTDescriptor")
    data: Any = item.get("LUTData")
    if len(descriptor) != 3 or data is None or (hasattr(data, "__len__") and not len(data)):
        return None
    entries = _entries(data, int(descriptor[0]) or 65536)
    first = int(descriptor[1])
    if first > 32767 and values_may_be_negative:  # SS written as US
        first -= 65536
    return Lut(first, entries, (1 << _bits_used(entries, int(descriptor[2]))) - 1)


def _entries(data: Any, expected: int) -> NDArray[np.uint16]:
    """Entries of a table that comes as numbers, as words, or as bytes of one entry each."""
    if not isinstance(data, bytes | bytearray):
        return np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    if len(data) < 2 * expected and len(data) >= expected:
        return np.frombuffer(data, np.uint8)[:expected].astype(np.uint16)
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.uint16)[: max(expected, 1)]


def _bits_used(entries: NDArray[np.uint16], said: int) -> int:
    """Bits of the brightest entry: those that the descriptor says, unless the table plainly uses fewer or more."""
    used = max(8, int(entries.max()).bit_length())
    if used <= said <= used + 1:
        return said
    return min(16, used + used % 2)


def rescale_of(header: "Dataset", groups: FrameGroups, frame: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Stored values to values in their unit: by the modality LUT, else by slope (1) and intercept (0)."""
    items = header.get("ModalityLUTSequence") or []
    table = lut_of(items[0], values_may_be_negative=whole_of(header, "PixelRepresentation") == 1) if items else None
    if table is not None:
        return table.values
    slope, intercept = _slope_and_intercept(header, groups, frame)
    if (slope, intercept) == (1.0, 0.0):
        return lambda stored: stored
    if slope.is_integer() and intercept.is_integer() and abs(slope) < 2**15 and abs(intercept) < 2**30:
        return lambda stored: _whole(stored) * int(slope) + int(intercept)
    return lambda stored: stored.astype(np.float64) * slope + intercept


def _whole(stored: NDArray[Any]) -> NDArray[Any]:
    return stored.astype(np.int32 if stored.dtype.itemsize <= 2 else np.int64) if stored.dtype.kind in "iu" else stored


def _slope_and_intercept(header: "Dataset", groups: FrameGroups, frame: int) -> tuple[float, float]:
    macro = groups.macro(frame, "PixelValueTransformationSequence")
    slope, intercept = (
        number_of(macro, keyword) if number_of(macro, keyword) is not None else number_of(header, keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if text_of(header, "Modality").upper() == "RTDOSE" and slope is None:
        slope = number_of(header, "DoseGridScaling")
    return slope or 1.0, intercept or 0.0


def window_of(header: "Dataset", groups: FrameGroups, frame: int) -> Window | None:
    """The frame's first window with a width, or none."""
    macro = groups.macro(frame, "FrameVOILUTSequence")
    centres, widths = numbers_of(macro, "WindowCenter"), numbers_of(macro, "WindowWidth")
    if not centres and macro is not header:
        centres, widths = numbers_of(header, "WindowCenter"), numbers_of(header, "WindowWidth")
    if not centres or not widths or widths[0] <= 0:
        return None
    function = text_of(macro, "VOILUTFunction").upper() or "LINEAR"
    return Window(centres[0], widths[0], function)


def voi_lut_of(header: "Dataset") -> Lut | None:
    """The header's first VOI LUT with a table in it, or none."""
    items = header.get("VOILUTSequence") or []
    return lut_of(items[0], values_may_be_negative=_may_be_negative(header)) if items else None


def _may_be_negative(header: "Dataset") -> bool:
    slope, intercept = number_of(header, "RescaleSlope") or 1.0, number_of(header, "RescaleIntercept") or 0.0
    return whole_of(header, "PixelRepresentation") == 1 or intercept < 0 or slope < 0


def padding_of(header: "Dataset", layout: PixelFormat) -> tuple[int, int] | None:
    """First and last stored value that is padding (PS3.3, C.7.5.1.1.2), or none.

    Readers hand the elements out unsigned where their VR is in doubt; they mean what the pixels are.
    """
    value, limit = number_of(header, "PixelPaddingValue"), number_of(header, "PixelPaddingRangeLimit")
    if value is None:
        return None
    ends = [int(end) for end in (value, value if limit is None else limit)]
    if layout.signed:
        ends = [end - (1 << layout.allocated) if end >= 1 << (layout.allocated - 1) else end for end in ends]
    elif min(ends) < 0:
        ends = [end % (1 << layout.allocated) for end in ends]
    return min(ends), max(ends)


def inverted(header: "Dataset") -> bool:
    """Whether bright values mean dark: MONOCHROME1, or a presentation LUT of the shape INVERSE."""
    photometric = text_of(header, "PhotometricInterpretation").upper()
    return photometric == "MONOCHROME1" or text_of(header, "PresentationLUTShape").upper() == "INVERSE"


# ---------------------------------------------------------------------------- the greys of a file


class Greys:
    """The way of a file's frames to grey.

    Args:
        file: it.
        rule: what was asked for.
        scale: of the whole series, where one is settled for it.

    Attributes:
        notes: what a user should know of it.
    """

    def __init__(self, file: DicomFile, rule: IntensityRule, scale: Mapping | None) -> None:
        self._file, self._rule, self._header = file, rule, file.header
        self._groups = FrameGroups(file.header)
        self._padding = padding_of(file.header, file.format)
        self._bits: Literal[8, 16] = 8 if file.format.stored <= 8 else 16
        self._inverted = inverted(file.header)
        self._voi_lut = voi_lut_of(file.header) if rule.name == "window" else None
        self._settled = scale or (Scale(rule.low, rule.high, "range") if rule.name == "range" else None)
        self._measured: Scale | None = None
        self.notes: list[str] = []
        self._table = lru_cache(maxsize=2)(self._made_table)

    def pictures(self) -> Iterator[tuple[Pixels, dict[str, Any]]]:
        """Each frame in grey, with the rule that made it, for the metadata."""
        frames = self._frames()
        for number, frame in enumerate(frames()):
            mapping, is_its_own = self._mapping(number, frames)
            grey = self._grey(frame, number, mapping)
            if is_its_own and grey.min() == grey.max() and self._is_beyond(mapping, frames):
                mapping = self._scale_of_all(frames)
                grey = self._grey(frame, number, mapping)
            yield grey, {"intensity": mapping.metadata()}

    def _frames(self) -> Callable[[], Iterator[NDArray[Any]]]:
        """The frames, as often as they are needed: one is kept, many are decoded anew."""
        if self._file.format.frames > 1:
            return self._file.frames
        kept = list(self._file.frames())
        return lambda: iter(kept)

    def _mapping(self, number: int, frames: Callable[[], Iterator[NDArray[Any]]]) -> tuple[Mapping, bool]:
        """What makes grey of a frame, and whether that is a window of its own, which may be meant for other values."""
        if self._settled is not None:
            return self._settled, False
        own = None
        if self._rule.name == "window":
            own = self._voi_lut or window_of(self._header, self._groups, number)
        return (self._scale_of_all(frames), False) if own is None else (own, True)

    def _is_beyond(self, own: Mapping, frames: Callable[[], Iterator[NDArray[Any]]]) -> bool:
        """Whether a window shows nothing of any frame: then it was meant for other values."""
        whole = self._scale_of_all(frames)
        ends = own.shares(np.array([whole.low, whole.high]))
        beyond = bool(whole.high > whole.low and ends[0] == ends[1])
        if beyond and not self.notes:
            window = f" ({own.centre:g}/{own.width:g})" if isinstance(own, Window) else ""
            self.notes.append(
                f"its window{window} lies beyond its values ({whole.low:g} to {whole.high:g}); "
                "their whole range is taken instead"
            )
        return beyond

    def _scale_of_all(self, frames: Callable[[], Iterator[NDArray[Any]]]) -> Scale:
        if self._measured is None:
            histogram = Histogram()
            for number, frame in enumerate(frames()):
                self.count(frame, number, histogram)
            self._measured = histogram.scale(self._rule)
        return self._measured

    def count(self, frame: NDArray[Any], number: int, histogram: Histogram) -> None:
        """Adds the frame's values, in their unit and without padding, to a histogram."""
        rescale = rescale_of(self._header, self._groups, number)
        if not _is_narrow(frame):
            real = frame[self._is_real(frame)] if self._padding else frame.ravel()
            real = real[:: max(1, real.size >> 20)] if self._rule.name == "percentiles" else _ends(real)
            histogram.add(rescale(real), np.ones(real.size, dtype=np.int64))
            return
        levels = _levels(frame.dtype)
        counts = np.zeros(levels.size, dtype=np.int64)
        for part in _chunks(frame):
            counts += np.bincount(part.ravel().view(_unsigned(frame.dtype)), minlength=levels.size)
        real_counts = np.where(self._is_real(levels), counts, 0)
        histogram.add(rescale(levels), real_counts if real_counts.any() else counts)

    def _is_real(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        if self._padding is None:
            return np.ones(stored.shape, dtype=bool)
        return (stored < self._padding[0]) | (stored > self._padding[1])

    def _grey(self, frame: NDArray[Any], number: int, mapping: Mapping) -> Pixels:
        if not _is_narrow(frame):
            parts = [self._grey_of(part, number, mapping) for part in _chunks(frame)]
            return np.concatenate(parts) if len(parts) > 1 else parts[0]
        table = self._table(number if self._groups.enhanced else _ALL_FRAMES, mapping, frame.dtype)
        grey = np.empty(frame.shape, dtype=table.dtype)
        for part, into in zip(_chunks(frame), _chunks(grey), strict=True):
            into[:] = table[part.view(_unsigned(frame.dtype))]
        return grey

    def _made_table(self, number: int, mapping: Mapping, kind: "np.dtype[Any]") -> Pixels:
        """The grey of every stored value that there can be, by its bits."""
        return self._grey_of(_levels(kind), number, mapping)

    def _grey_of(self, stored: NDArray[Any], number: int, mapping: Mapping) -> Pixels:
        shares = mapping.shares(rescale_of(self._header, self._groups, number)(stored))
        grey = to_depth(1 - shares if self._inverted else shares, self._bits)
        if self._padding is not None:
            grey[~self._is_real(stored)] = 0  # outside of the image is background, whichever way round grey runs
        return grey


def _is_narrow(frame: NDArray[Any]) -> bool:
    return frame.dtype.kind in "iu" and frame.dtype.itemsize <= 2


def _unsigned(kind: "np.dtype[Any]") -> "np.dtype[Any]":
    return np.dtype(np.uint8 if kind.itemsize == 1 else np.uint16)


def _levels(kind: "np.dtype[Any]") -> NDArray[Any]:
    """Every value of a kind of up to 16 bits, in the order of their bits."""
    return np.arange(1 << 8 * kind.itemsize, dtype=np.int64).astype(_unsigned(kind)).view(kind.newbyteorder("="))


def _chunks(frame: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Some rows at a time, so that what is computed on the way stays small."""
    rows = max(1, _CHUNK_VALUES // max(1, frame.shape[1]))
    for start in range(0, frame.shape[0], rows):
        yield frame[start : start + rows]


def _ends(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([values.min(), values.max()]) if values.size else values


# --------------------------------------------------------------------------------------- colour


def _colours(file: DicomFile) -> Iterator[Pixels]:
    layout = file.format
    for frame in file.frames():
        if frame.ndim == 2:
            frame = _through_palette(frame, file.header)
        elif layout.stored > 8:
            frame = (frame >> (layout.stored - 8)).astype(np.uint8)
        if frame.shape[2] < 3:
            raise UnreadableError(f"it has {frame.shape[2]} samples per pixel, where a picture has one or three")
        yield np.ascontiguousarray(frame[:, :, :3].astype(np.uint8, copy=False))


def _through_palette(frame: NDArray[Any], header: "Dataset") -> Pixels:
    """Indices to colours (PS3.3, C.7.6.3.1.5); tables that say 16 bits may hold 8."""
    if "SegmentedRedPaletteColorLookupTableData" in header:
        from pydicom.pixels.processing import apply_color_lut

        tables = apply_color_lut(np.arange(65536, dtype=np.uint16).reshape(256, 256), header).reshape(-1, 3)
        first = 0
    else:
        descriptor = numbers_of(header, "RedPaletteColorLookupTableDescriptor")
        if len(descriptor) != 3:
            raise UnreadableError("it has no palette, though its colours stand in one")
        first = int(descriptor[1])
        names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
        columns = [_entries(header.get(name) or b"", int(descriptor[0]) or 65536) for name in names]
        if not all(column.size for column in columns):
            raise UnreadableError("its palette is empty")
        tables = np.stack([column[: min(map(len, columns))] for column in columns], axis=1)
    index = np.clip(frame.astype(np.int32) - first, 0, len(tables) - 1)
    bits = 8 if int(tables.max()) <= 255 else min(16, max(12, int(tables.max()).bit_length() + 1 & ~1))
    eight: Pixels = (tables >> (bits - 8)).astype(np.uint8)
    colours: Pixels = eight[index]
    return colours


# ---------------------------------------------------------------------------------- whole files


def is_grey(header: "Dataset") -> bool:
    """Whether the pixels are grey values, not colours."""
    layout = pixel_format(header)
    return layout.samples == 1 and layout.photometric.replace(" ", "") != "PALETTECOLOR"


def mode_of_dicom(data: bytes) -> PictureMode:
    """The mode that keeps all that a DICOM file has; of colour its first frame tells whether it is any.

    Raises:
        UnreadableError: it is no DICOM, has no pixels, or they are damaged.
    """
    file = DicomFile(data)
    if is_grey(file.header):
        return "L" if file.format.stored <= 8 else "I;16"
    return mode_of(next(_colours(file)))


def read_dicom(
    data: bytes,
    rule: IntensityRule,
    scale: Mapping | None = None,
    most_bytes: int = 2 << 30,
    limits: RasterRules = DEFAULT_RULES,
) -> Iterator[Picture]:
    """The frames of a DICOM file as pictures, decoded one by one.

    Args:
        data: the whole file.
        rule: how values become grey.
        scale: of the whole series, where one is settled for it.
        most_bytes: a gzipped file that unpacks to more is refused.
        limits: how large a frame may be.

    Raises:
        UnreadableError: it is no DICOM, has no pixels, or they are damaged.
    """
    file = DicomFile(data, most_bytes)
    limits.check_size(file.format.rows, file.format.columns, file.format.samples)
    tags = header_terms(file.header)
    groups = FrameGroups(file.header)
    if not is_grey(file.header):
        for number, pixels in enumerate(_colours(file)):
            yield Picture(pixels, (pixels.shape[0], pixels.shape[1]), tags | spacing_tags(file.header, groups, number))
        return
    greys = Greys(file, rule, scale)
    for number, (pixels, intensity) in enumerate(greys.pictures()):
        known = tags | intensity | spacing_tags(file.header, groups, number)
        yield Picture(pixels, (pixels.shape[0], pixels.shape[1]), known, tuple(greys.notes))


def spacing_tags(header: "Dataset", groups: FrameGroups, frame: int) -> dict[str, Any]:
    """``pixel_spacing_mm`` [row, column] and where it is from, or null where nothing says it; and pixels not square."""
    spacing, source = pixel_spacing(header, groups, frame)
    if spacing is not None:
        return {"pixel_spacing_mm": list(spacing), "pixel_spacing_from": source}
    aspect = numbers_of(header, "PixelAspectRatio")
    known = {"pixel_aspect_ratio": aspect} if len(aspect) == 2 and aspect[0] != aspect[1] and min(aspect) > 0 else {}
    return {"pixel_spacing_mm": None, **known}


def pixel_spacing(header: "Dataset", groups: FrameGroups, frame: int) -> tuple[tuple[float, float] | None, str]:
    """Millimetres between rows and between columns, and the element that says so.

    In the patient where the header knows it; else at the detector, where a projection shows the patient enlarged.
    """
    macro = groups.macro(frame, "PixelMeasuresSequence")
    found = [(macro, "PixelSpacing"), (header, "PixelSpacing"), (header, "ImagerPixelSpacing")]
    for dataset, keyword in [*found, (header, "NominalScannedPixelSpacing")]:
        lengths = numbers_of(dataset, keyword)
        if len(lengths) == 2 and all(length > 0 for length in lengths):
            return (lengths[0], lengths[1]), keyword
    return _ultrasound_spacing(header)


def _ultrasound_spacing(header: "Dataset") -> tuple[tuple[float, float] | None, str]:
    """Of an ultrasound region in centimetres (PS3.3, C.8.5.5), where there is just one."""
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if len(regions) != 1 or whole_of(regions[0], "PhysicalUnitsXDirection") != 3:
        return None, ""
    down, right = (number_of(regions[0], f"PhysicalDelta{axis}") for axis in ("Y", "X"))
    if not down or not right or whole_of(regions[0], "PhysicalUnitsYDirection") != 3:
        return None, ""
    return (abs(down) * 10, abs(right) * 10), "SequenceOfUltrasoundRegions"
