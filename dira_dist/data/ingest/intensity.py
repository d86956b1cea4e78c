"""How values that have a unit become grey: the rules a user may ask for, and the scales that come of them."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from dira_dist.data.ingest.pixels import Pixels

RuleName = Literal["window", "full", "range", "percentiles"]

_HISTOGRAM_PARTS = 16  # of so many frames the counts are held apart, before they are summed
_PAIR = re.compile(r"(range|percentiles):([^,]+),([^,]+)")


@dataclass(frozen=True, slots=True)
class IntensityRule:
    """What was asked for.

    Attributes:
        name: the file's own window, smallest to largest value, a range of values, or percentiles of them.
        low, high: of the range, in the values' unit, or the percentiles.
    """

    name: RuleName
    low: float = 0.0
    high: float = 0.0


def parse_intensity(text: str) -> IntensityRule:
    """``window``, ``full``, ``range:-1000,400`` or ``percentiles:0.5,99.5``.

    Raises:
        ValueError: it is written otherwise, or low is not below high.
    """
    if text in ("window", "full"):
        return IntensityRule(text)  # type: ignore[arg-type]
    form = "write window, full, range:LOW,HIGH (values in their unit, HU for CT) or percentiles:LOW,HIGH (0 to 100)"
    found = _PAIR.fullmatch(text.replace(" ", ""))
    try:
        low, high = (float(number) for number in found.groups()[1:]) if found else (0.0, 0.0)
    except ValueError:
        low = high = 0.0
    if found is None or not np.isfinite([low, high]).all() or low >= high:
        raise ValueError(f"{text!r} is no intensity: {form}, LOW below HIGH")
    if found[1] == "percentiles" and not 0 <= low < high <= 100:
        raise ValueError(f"{text!r}: percentiles lie between 0 and 100")
    return IntensityRule(found[1], low, high)  # type: ignore[arg-type]


def _checked(text: str) -> str:
    parse_intensity(text)
    return text


Intensity = Annotated[str, AfterValidator(_checked)]


@dataclass(frozen=True, slots=True)
class Scale:
    """Which values become black and white; between them grey rises evenly.

    Attributes:
        low, high: in the unit of the values.
        by: the rule that it comes from.
    """

    low: float
    high: float
    by: RuleName

    def shares(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values as a share of the scale, 0 to 1."""
        width = self.high - self.low
        if width <= 0:
            return np.zeros(values.shape)
        return np.clip((values.astype(np.float64) - self.low) / width, 0, 1)

    def metadata(self) -> dict[str, Any]:
        """For a sample's metadata."""
        return {"by": self.by, "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a DICOM header (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    function: str = "LINEAR"

    def shares(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values as a share of the window, 0 to 1."""
        values = values.astype(np.float64)
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.centre) / self.width, -500, 500)))
        if self.function == "LINEAR_EXACT" or self.width <= 1:
            return np.clip((values - self.centre) / self.width + 0.5, 0, 1)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)

    def metadata(self) -> dict[str, Any]:
        """For a sample's metadata."""
        return {"by": "window", "center": self.centre, "width": self.width}


@dataclass(frozen=True, eq=False)
class Lut:
    """A table of a header, VOI or modality: ``entries[value - first]``, the ends going on for ever.

    Attributes:
        first: value of the first entry.
        entries: the table.
        top: what its brightest entry could be.
    """

    first: int
    entries: NDArray[Any]
    top: int

    def values(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the table makes of values."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: NDArray[Any] = self.entries[index]
        return found

    def shares(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The same as a share of the table's range, 0 to 1."""
        return np.clip(self.values(values) / self.top, 0, 1)

    def metadata(self) -> dict[str, Any]:
        """For a sample's metadata."""
        return {"by": "voi_lut"}


Mapping = Scale | Window | Lut


class Histogram:
    """Counts of values, for smallest, largest and percentiles over many frames; exact, and small."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float64]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(self, values: NDArray[Any], counts: NDArray[Any]) -> None:
        """Notes that ``values`` occur ``counts`` times; zeros are left out."""
        present = counts > 0
        self._values.append(values[present].astype(np.float64))
        self._counts.append(counts[present].astype(np.int64))
        if len(self._values) > _HISTOGRAM_PARTS:
            values, where = np.unique(np.concatenate(self._values), return_inverse=True)
            summed = np.bincount(where, weights=np.concatenate(self._counts)).astype(np.int64)
            self._values, self._counts = [values], [summed]

    def scale(self, rule: IntensityRule) -> Scale:
        """Smallest to largest value, or the percentiles asked for; without any value 0 to 1."""
        values, counts = np.concatenate([*self._values, []]), np.concatenate([*self._counts, []])
        if not values.size:
            return Scale(0.0, 1.0, "full")
        if rule.name != "percentiles":
            return Scale(float(values.min()), float(values.max()), "full")
        order = np.argsort(values, kind="stable")
        below = np.cumsum(counts[order]) / counts.sum() * 100
        places = np.minimum(np.searchsorted(below, (rule.low, rule.high)), values.size - 1)
        low, high = (float(values[order[place]]) for place in places)
        return Scale(low, high, "percentiles")


def scale_of_volume(voxels: NDArray[Any], rule: IntensityRule) -> Scale:
    """One scale for all of a volume; it has no window, and ``window`` means its whole range, as ``full`` does."""
    if rule.name == "range":
        return Scale(rule.low, rule.high, "range")
    if rule.name == "percentiles":
        low, high = np.percentile(voxels, (rule.low, rule.high), method="inverted_cdf")
        return Scale(float(low), float(high), "percentiles")
    return Scale(float(voxels.min()), float(voxels.max()), "full")


def to_depth(shares: NDArray[Any], bits: Literal[8, 16]) -> Pixels:
    """Shares of 0 to 1 as grey of 8 or 16 bits."""
    top, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    grey: Pixels = np.rint(shares * top).astype(kind)
    return grey
