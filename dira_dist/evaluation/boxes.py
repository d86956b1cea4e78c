"""From a map of heat to boxes, and how boxes lie to each other; along one axis as along three.

Pixel ``i`` of an axis covers [i, i + 1), so that its centre lies at i + 1/2 and a box over all n pixels is [0, n).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Heat = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Point = tuple[float, ...]

_OTSU_BINS = 256
_AS_GOOD = 1 - 1e-5  # of the largest value; interpolation rounds


@dataclass(frozen=True)
class BoundingBox:
    """From ``low`` to ``high`` in pixels along each axis of an image, its first axis (rows) first."""

    low: Point
    high: Point

    @property
    def center(self) -> Point:
        return tuple((low + high) / 2 for low, high in zip(self.low, self.high, strict=True))

    def holds(self, point: Point, tolerance_px: float = 0.0) -> bool:
        """Whether a point lies in it or on its edge, or within a distance of it."""
        away = [max(low - at, at - high, 0.0) for low, at, high in zip(self.low, point, self.high, strict=True)]
        return sum(each**2 for each in away) <= tolerance_px**2


@dataclass(frozen=True)
class ScoredBox:
    """A box that was found, and how much speaks for it, 0 to 1."""

    box: BoundingBox
    score: float


def peak_of(heat: Heat) -> Point | None:
    """The centre of the hottest pixel; none where there is no heat.

    Up-sampled maps have plateaus at their edges: of several that are hottest it is the one nearest to their mean.
    """
    if heat.max() <= 0:
        return None
    places = np.argwhere(heat >= heat.max() * _AS_GOOD)
    nearest = np.square(places - places.mean(axis=0)).sum(axis=1).argmin()
    return tuple(float(place) + 0.5 for place in places[nearest])


def otsu(heat: Heat) -> float:
    """The level that parts the values into two classes of the largest variance between them, by a histogram of 256.

    Otsu, *A Threshold Selection Method from Gray-Level Histograms* (IEEE TSMC 9, 1979), equation 18. Of several equal
    levels, which lie in a gap of the histogram, it is the middle one.
    """
    counts, edges = np.histogram(heat, bins=_OTSU_BINS, range=(0.0, float(heat.max())))
    centers = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums = np.cumsum(counts * centers)
    share = below / total
    between = np.zeros(len(below))
    parted = (below > 0) & (below < total)
    mean = sums[-1] / total
    between[parted] = (mean * share - sums[:-1] / total)[parted] ** 2 / (share * (1 - share))[parted]
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def level_of(heat: Heat, threshold: float | Literal["otsu"]) -> float:
    """The least heat of what is taken for the lesion: a share of the largest, or Otsu's."""
    return otsu(heat) if threshold == "otsu" else threshold * float(heat.max())


def boxes_of(
    heat: Heat,
    threshold: float | Literal["otsu"],
    components: Literal["largest", "all"] = "largest",
    least_peak: float = 0.5,
) -> list[ScoredBox]:
    """Boxes around the connected parts (pixels that touch, corners too) of what is hot; the hottest first.

    Args:
        heat: (*S), at least 0.
        threshold: share of the largest value, or ``otsu``.
        components: the part with most pixels (of several the first), or all of them.
        least_peak: of ``all`` those whose own largest value is at least this share of the map's.

    Returns:
        Each with its largest value as a share of the map's; none where there is no heat.
    """
    from scipy import ndimage

    if heat.max() <= 0:
        return []
    hot = heat >= level_of(heat, threshold)
    labels, count = ndimage.label(hot, structure=np.ones((3,) * heat.ndim))
    numbers = range(1, count + 1)
    peaks = np.asarray(ndimage.maximum(heat, labels, numbers)) / heat.max()
    if components == "largest":
        kept = [int(np.argmax(np.bincount(labels[hot])[1:]))]
    else:
        kept = np.flatnonzero(peaks >= least_peak).tolist()
    around = ndimage.find_objects(labels)
    found = [ScoredBox(_box_of(around[place]), min(1.0, float(peaks[place]))) for place in kept]
    return sorted(found, key=lambda each: -each.score)


def boxes_around(mask: Bools) -> list[BoundingBox]:
    """Boxes around the connected parts (corners too) of a mask."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return [_box_of(each) for each in ndimage.find_objects(labels)]


def _box_of(slices: Sequence[slice]) -> BoundingBox:
    return BoundingBox(tuple(float(each.start) for each in slices), tuple(float(each.stop) for each in slices))


def covered(boxes: Sequence[BoundingBox], shape: Sequence[int]) -> Bools:
    """(*shape) whether a pixel's centre lies in any of the boxes."""
    mask = np.zeros(tuple(shape), dtype=bool)
    for box in boxes:
        mask[_slices(box, shape)] = True
    return mask


def _slices(box: BoundingBox, shape: Sequence[int]) -> tuple[slice, ...]:
    """The pixels whose centres lie in [low, high)."""
    ends = zip(box.low, box.high, shape, strict=True)
    return tuple(
        slice(max(0, int(np.ceil(low - 0.5))), max(0, min(side, int(np.ceil(high - 0.5))))) for low, high, side in ends
    )


def iou(one: Sequence[BoundingBox], other: Sequence[BoundingBox]) -> float:
    """What two sets of boxes cover together, as a share of what either covers (in 2D areas, in 3D volumes).

    Of one box each it is their IoU. A box too many lowers it and so does one that is missing; two that overlap count
    once. Exact, for boxes need not end at pixels: the edges of all boxes cut the image into cells, each of which lies
    wholly in a box or wholly outside.
    """
    both = either = 0.0
    for size, center in _cells([*one, *other]):
        here, there = (any(box.holds(center) for box in boxes) for boxes in (one, other))
        both += size * (here and there)
        either += size * (here or there)
    return both / either if either else 0.0


def _cells(boxes: Sequence[BoundingBox]) -> Iterator[tuple[float, Point]]:
    """Sizes and centres of the cells between the edges of all boxes."""
    if not boxes:
        return
    edges = [
        np.unique([end for box in boxes for end in (box.low[axis], box.high[axis])])
        for axis in range(len(boxes[0].low))
    ]
    sizes = np.stack(np.meshgrid(*(np.diff(each) for each in edges), indexing="ij"), axis=-1)
    centers = np.stack(np.meshgrid(*((each[:-1] + each[1:]) / 2 for each in edges), indexing="ij"), axis=-1)
    axes = len(edges)
    for size, center in zip(sizes.reshape(-1, axes), centers.reshape(-1, axes), strict=True):
        yield float(size.prod()), tuple(center.tolist())
