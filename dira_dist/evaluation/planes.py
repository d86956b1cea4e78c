"""A volume as a picture: three slices at right angles through what there is to see, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation.boxes import BoundingBox

Bools = npt.NDArray[np.bool_]
Picture = npt.NDArray[Any]

_GAP_PX = 2


def fullest_place(masks: Bools) -> tuple[int, int, int]:
    """The index along each axis at which most of (K, x, y, z) masks lies; the middle where they are empty."""
    there = masks.any(axis=0)
    if not there.any():
        first, second, third = (side // 2 for side in there.shape)
    else:
        others = ((1, 2), (0, 2), (0, 1))
        first, second, third = (int(there.sum(axis=axes).argmax()) for axes in others)
    return first, second, third


def three_planes(volume: Picture, place: Sequence[int], spacing_mm: Sequence[float] | None = None) -> Picture:
    """Axial, coronal and sagittal slices, as they are looked at: the face up, the head up.

    Args:
        volume: (x, y, z), towards left, back and head, of any type.
        place: index along each axis at which it is cut.
        spacing_mm: along each axis, by which slices get their true proportions, voxels repeated; none: one pixel each.

    Returns:
        (H, W), with a gap of zeros between the slices and below those that are lower.
    """
    across, down, up = place
    steps = np.array(spacing_mm or (1.0, 1.0, 1.0)) / min(spacing_mm or (1.0,))
    slices = [
        _stretched(volume[:, :, up].T, steps[1], steps[0]),
        _stretched(volume[:, down, ::-1].T, steps[2], steps[0]),
        _stretched(volume[across, :, ::-1].T, steps[2], steps[1]),
    ]
    width = sum(each.shape[1] for each in slices) + _GAP_PX * (len(slices) - 1)
    picture = np.zeros((max(each.shape[0] for each in slices), width), dtype=volume.dtype)
    left = 0
    for each in slices:
        picture[: each.shape[0], left : left + each.shape[1]] = each
        left += each.shape[1] + _GAP_PX
    return picture


def boxes_in_planes(boxes: Sequence[BoundingBox], place: Sequence[int], sides_px: Sequence[int]) -> list[BoundingBox]:
    """Where boxes of a volume (x, y, z) are cut by the slices of :func:`three_planes`, in its pixels (rows, columns).

    Args:
        boxes: in voxels.
        place: index along each axis at which the volume is cut.
        sides_px: of the volume; its voxels are a pixel each.
    """
    x, y, z = sides_px
    left = 0
    found = []
    for cut, down, across in ((2, 1, 0), (1, 2, 0), (0, 2, 1)):
        for box in boxes:
            if box.low[cut] <= place[cut] + 0.5 < box.high[cut]:
                rows = (box.low[down], box.high[down])
                if down == 2:  # the head up
                    rows = (z - rows[1], z - rows[0])
                found.append(BoundingBox((rows[0], left + box.low[across]), (rows[1], left + box.high[across])))
        left += (x, y)[across] + _GAP_PX
    return found


def _stretched(picture: Picture, down: float, across: float) -> Picture:
    rows, columns = (
        np.minimum(((np.arange(max(1, round(side * step))) + 0.5) / step).astype(int), side - 1)
        for side, step in zip(picture.shape, (down, across), strict=True)
    )
    found: Picture = picture[np.ix_(rows, columns)]
    return found
