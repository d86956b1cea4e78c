"""One grey scale for all slices of a series, so that the same tissue keeps the same grey."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dira_dist.data.ingest.dicom import DicomFile
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.greys import Greys, is_grey
from dira_dist.data.ingest.headers import Header
from dira_dist.data.ingest.intensity import Histogram, IntensityRule, Scale, Window
from dira_dist.data.ingest.intensity import Mapping as Greying
from dira_dist.data.ingest.listing import one_file_of
from dira_dist.data.ingest.readers import quiet_decoders
from dira_dist.data.store import open_store


@dataclass(frozen=True)
class Series:
    """Slices that show one patient in one unit.

    Attributes:
        files: of one frame each, or more.
        window: the middle one of their windows; none where they have none.
    """

    files: tuple[str, ...]
    window: Window | None


def series_to_settle(headers: Mapping[str, Header], rule: IntensityRule) -> list[Series]:
    """The series of several cross-sectional files, whose scale is not told by ``rule`` alone.

    Slices with windows of their own would show the same tissue in unlike greys: the middle one, by width and centre,
    holds for all of them. A series with VOI LUTs keeps these.
    """
    if rule.name == "range":
        return []
    members: dict[str, list[str]] = defaultdict(list)
    for file, header in headers.items():
        if header.scale_group and not header.problem:
            members[header.scale_group].append(file)
    found = []
    for files in members.values():
        if len(files) < 2 or (rule.name == "window" and any(headers[file].has_lut for file in files)):
            continue
        windows = sorted(
            (window for file in files if (window := headers[file].window)),
            key=lambda window: (window.width, window.centre, window.function),
        )
        middle = windows[(len(windows) - 1) // 2] if windows and rule.name == "window" else None
        found.append(Series(tuple(files), middle))
    return found


def settle(source: str, series: Series, rule: IntensityRule) -> tuple[Greying, str]:
    """The scale of a series, and what is to be said of it: reads one slice where there is a window, else all.

    Args:
        source: address of the files.
        series: it.
        rule: how values become grey.
    """
    if series.window is not None:
        middle = _measured(source, (series.files[len(series.files) // 2],), rule)
        if not _is_beyond(series.window, middle):
            return series.window, ""
        whole = _measured(source, series.files, rule)
        if not _is_beyond(series.window, whole):
            return series.window, ""
        return whole, (
            f"the window ({series.window.centre:g}/{series.window.width:g}) of its series lies beyond its values "
            f"({whole.low:g} to {whole.high:g}); their whole range is taken instead"
        )
    return _measured(source, series.files, rule), ""


def _is_beyond(window: Window, scale: Scale) -> bool:
    ends = window.shares(np.array([scale.low, scale.high]))
    return bool(scale.high > scale.low and ends[0] == ends[1])


def _measured(source: str, files: Sequence[str], rule: IntensityRule) -> Scale:
    histogram = Histogram()
    for data in _readable(source, files):
        with quiet_decoders():
            try:
                _count(data, rule, histogram)
            except Exception:  # decoders raise whatever a damaged file drives them to; it is named when its turn comes
                continue
    return histogram.scale(rule)


def _readable(source: str, files: Sequence[str]) -> Iterator[bytes]:
    store = open_store(source)
    for file in files:
        try:
            with one_file_of(store):
                yield store.read_bytes(file)
        except UnreadableError:
            continue


def _count(data: bytes, rule: IntensityRule, histogram: Histogram) -> None:
    file = DicomFile(data)
    if is_grey(file.header):
        greys = Greys(file, rule, None)
        for number, frame in enumerate(file.frames()):
            greys.count(frame, number, histogram)
