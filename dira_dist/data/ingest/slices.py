"""Slices of volumes as pictures: the way of CT and MR volumes into training on flat images."""

from collections.abc import Iterator, Sequence
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


def slices_of_channels(
    volumes: Sequence[Volume], axis: Axis, every: int, rule: IntensityRule
) -> Iterator[tuple[int, tuple[Picture, ...]]]:
    """Slices of volumes on the same voxels, each on a scale of its own; left out where each holds one value only.

    Args:
        volumes: the channels.
        axis: as of :func:`slices_of`.
        every: likewise.
        rule: likewise.
    """
    each = [_Slices(volume, axis, rule) for volume in volumes]
    for number in slice_numbers(volumes[0], axis, every):
        if not all(slices.is_plain(number) for slices in each):
            yield number, tuple(slices.picture(number) for slices in each)


def slices_of(volume: Volume, axis: Axis, every: int, rule: IntensityRule) -> Iterator[tuple[int, Picture]]:
    """Slices of a volume with their numbers, all on one scale; those that hold one value only are left out.

    Args:
        volume: it; rows of its slices run towards the back (axial) or the feet, columns towards the left or the back.
        axis: along which slices follow each other: axial towards the head, coronal to the back, sagittal to the left.
        every: 1 takes all, 2 every other one.
        rule: a range, or percentiles of the volume; a volume has no window, and shows its whole range in its place.
    """
    for number, (picture,) in slices_of_channels([volume], axis, every, rule):
        yield number, picture


class _Slices:
    """The slices of one volume on its scale."""

    def __init__(self, volume: Volume, axis: Axis, rule: IntensityRule) -> None:
        self._volume, self._axis = volume, axis
        self._scale = scale_of_volume(volume.voxels, rule)
        spacing = [length for number, length in enumerate(volume.spacing_mm) if number != _AXIS[axis]]
        known = None if None in spacing else spacing
        tags = {name: value for name, value in volume.tags.items() if name in ("modality", "sop_class", "image_type")}
        self._tags = tags | {"axis": axis, "pixel_spacing_mm": known, "intensity": self._scale.metadata()}

    def is_plain(self, number: int) -> bool:
        values = upright(self._volume.voxels, self._axis, number)
        return bool(values.min() == values.max())

    def picture(self, number: int) -> Picture:
        bits: Literal[8, 16] = 8 if self._volume.voxels.dtype == np.uint8 else 16
        pixels = to_depth(self._scale.shares(upright(self._volume.voxels, self._axis, number)), bits)
        return Picture(pixels, (pixels.shape[0], pixels.shape[1]), {**self._tags, "slice": number})


def upright(voxels: NDArray[Any], axis: Axis, number: int) -> NDArray[Any]:
    """A view of one slice as it is looked at: axial with the face up, coronal and sagittal with the head up."""
    values: NDArray[Any] = np.moveaxis(voxels, _AXIS[axis], 0)[number]
    return values if axis == "axial" else values[::-1]
