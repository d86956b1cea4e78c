"""Slices of volumes as pictures: the way of CT and MR volumes into training on flat images."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.intensity import IntensityRule, scale_of_volume, to_depth
from dira_dist.data.ingest.picture import Picture
from dira_dist.data.ingest.volumes import Volume

Axis = Literal["axial", "coronal", "sagittal"]

_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}


def slice_numbers(volume: Volume, axis: Axis, every: int) -> range:
    """Which slices are taken: every so many, as many left out before the first as behind the last."""
    count = volume.voxels.shape[_AXIS[axis]]
    return range((count - 1) % every // 2, count, every)


def slices_of(volume: Volume, axis: Axis, every: int, rule: IntensityRule) -> Iterator[tuple[int, Picture]]:
    """Slices of a volume with their numbers, all on one scale; those that hold one value only are left out.

    Args:
        volume: it; rows of its slices run towards the back (axial) or the feet, columns towards the left or the back.
        axis: along which slices follow each other: axial towards the head, coronal to the back, sagittal to the left.
        every: 1 takes all, 2 every other one.
        rule: a range, or percentiles of the volume; a volume has no window, and shows its whole range in its place.
    """
    scale = scale_of_volume(volume.voxels, rule)
    across = _AXIS[axis]
    spacing = [length for number, length in enumerate(volume.spacing_mm) if number != across]
    known = None if None in spacing else spacing
    bits: Literal[8, 16] = 8 if volume.voxels.dtype == np.uint8 else 16
    tags = {name: value for name, value in volume.tags.items() if name in ("modality", "sop_class", "image_type")}
    tags |= {"axis": axis, "pixel_spacing_mm": known, "intensity": scale.metadata()}
    for number in slice_numbers(volume, axis, every):
        values = upright(volume.voxels, axis, number)
        if values.min() == values.max():
            continue
        pixels = to_depth(scale.shares(values), bits)
        yield number, Picture(pixels, (pixels.shape[0], pixels.shape[1]), {**tags, "slice": number})


def upright(voxels: NDArray[Any], axis: Axis, number: int) -> NDArray[Any]:
    """A view of one slice as it is looked at: axial with the face up, coronal and sagittal with the head up."""
    values: NDArray[Any] = np.moveaxis(voxels, _AXIS[axis], 0)[number]
    return values if axis == "axial" else values[::-1]
