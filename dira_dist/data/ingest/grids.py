"""The places at which a volume is read: its own voxels, or others at a spacing that was asked for.

A grid at another spacing begins at the same face as the volume. Values between voxels are interpolated linearly, labels
are those of the nearest voxel, and both are computed for the part that is read alone: a volume is never held twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.volumes import SpacingMm, Volume

Sides = tuple[int, int, int]
_SAME_STEP = 1e-3  # of a voxel: a spacing that differs by rounding is the volume's own


@dataclass(frozen=True)
class Grid:
    """Evenly spaced places in a volume, along its axes (D, H, W).

    Attributes:
        sides: how many along each axis.
        steps: voxels of the volume from one place to the next.
        spacing_mm: the same in millimetres; none where that is not known.
        affine: from indices of the grid to millimetres, see :class:`Volume`.
        source: sides of the volume.
    """

    sides: Sides
    steps: tuple[float, float, float]
    spacing_mm: SpacingMm
    affine: NDArray[np.float64] | None
    source: Sides

    @property
    def is_own(self) -> bool:
        """Whether its places are the voxels of the volume."""
        return self.steps == (1.0, 1.0, 1.0)

    def affine_from(self, start: Sequence[int]) -> NDArray[np.float64] | None:
        """The affine of a part that begins at an index, which may lie before the first."""
        if self.affine is None:
            return None
        shift = np.eye(4)
        shift[:3, 3] = start
        moved: NDArray[np.float64] = self.affine @ shift
        return moved

    def index_of(self, voxel: NDArray[np.float64]) -> NDArray[np.float64]:
        """The index, between places, of a point given as an index of the volume, between voxels: (3,)."""
        found: NDArray[np.float64] = (voxel + 0.5) / self.steps - 0.5
        return found

    def read(
        self, values: NDArray[Any], start: Sequence[int], sides: Sides, *, fill: float, labels: bool = False
    ) -> NDArray[Any]:
        """A part of the volume, or of what has its shape.

        Args:
            values: (D, H, W), of the whole volume.
            start: index of the part's first place; may be negative.
            sides: of the part.
            fill: what stands beyond the volume.
            labels: whether to take the nearest voxel's, and not to interpolate.

        Returns:
            (D, H, W) of ``sides``, perhaps a view; float32 where it is interpolated, else of the values' own type.
        """
        assert values.shape == self.source
        spans = [
            (max(0, first), min(first + side, most)) for first, side, most in zip(start, sides, self.sides, strict=True)
        ]
        part = self._part(values, spans, labels)
        if part.shape == sides:
            return part  # nothing of it lies beyond, and a whole volume is not copied
        result = np.full(sides, fill, dtype=part.dtype)
        inside = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, start, strict=True))
        result[inside] = part
        return result

    def own_voxels(self, values: NDArray[Any]) -> NDArray[Any]:
        """What is known at the grid's places at the voxels of the volume, interpolated: the way back of :meth:`read`.

        Args:
            values: (D, H, W) of the grid.

        Returns:
            (D, H, W) of the volume; float32, but for a grid that is the volume's own.
        """
        assert values.shape == self.sides
        if self.is_own:
            return values
        for axis, (side, step) in enumerate(zip(self.source, self.steps, strict=True)):
            place = np.clip((np.arange(side) + 0.5) / step - 0.5, 0, self.sides[axis] - 1)
            values = _between(values, place, axis)
        return values

    def _part(self, values: NDArray[Any], spans: Sequence[tuple[int, int]], labels: bool) -> NDArray[Any]:
        """What lies within ``spans`` of the grid, axis by axis."""
        if self.is_own:
            return values[tuple(slice(low, high) for low, high in spans)]
        part = values
        for axis, ((low, high), step) in enumerate(zip(spans, self.steps, strict=True)):
            place = np.clip((np.arange(low, high) + 0.5) * step - 0.5, 0, values.shape[axis] - 1)
            part = _nearest(part, place, axis) if labels else _between(part, place, axis)
        return part


def grid_of(volume: Volume, spacing_mm: Sequence[float] | None) -> Grid:
    """The grid of a volume.

    Args:
        volume: it.
        spacing_mm: along (D, H, W); none for the volume's own voxels.

    Raises:
        UnreadableError: a spacing was asked for, and the volume's own is not known.
    """
    own: Sides = volume.voxels.shape
    steps = _steps(volume, spacing_mm)
    if steps == (1.0, 1.0, 1.0):
        return Grid(own, steps, volume.spacing_mm, volume.affine, own)
    known = [length for length in volume.spacing_mm if length is not None]
    assert len(known) == 3
    first, second, third = (max(1, round(side / step)) for side, step in zip(own, steps, strict=True))
    lengths = (round(length * step, 6) for length, step in zip(known, steps, strict=True))
    return Grid((first, second, third), steps, tuple(lengths), _affine_of(volume, steps), own)  # type: ignore[arg-type]


def grid_of_sides(volume: Volume, sides: Sides) -> Grid:
    """As many evenly spaced places as are wanted along each axis (D, H, W), over the whole of a volume."""
    own: Sides = volume.voxels.shape
    first, second, third = (side / wanted for side, wanted in zip(own, sides, strict=True))
    steps = (first, second, third)
    lengths = (
        None if length is None else round(length * step, 6)
        for length, step in zip(volume.spacing_mm, steps, strict=True)
    )
    return Grid(sides, steps, tuple(lengths), _affine_of(volume, steps), own)  # type: ignore[arg-type]


def _steps(volume: Volume, spacing_mm: Sequence[float] | None) -> tuple[float, float, float]:
    if spacing_mm is None:
        return (1.0, 1.0, 1.0)
    known = [length for length in volume.spacing_mm if length is not None]
    if len(known) < 3:
        raise UnreadableError("its header does not say how large a voxel is, and a spacing was asked for")
    steps = (wanted / length for wanted, length in zip(spacing_mm, known, strict=True))
    first, second, third = (1.0 if abs(step - 1) <= _SAME_STEP else step for step in steps)
    return first, second, third


def _affine_of(volume: Volume, steps: Sequence[float]) -> NDArray[np.float64] | None:
    """Of indices of the grid: its first place lies half a step of its own behind the face where the volume begins."""
    if volume.affine is None:
        return None
    stretch = np.diag([*steps, 1.0])
    stretch[:3, 3] = (np.array(steps) - 1) / 2
    affine: NDArray[np.float64] = volume.affine @ stretch
    return affine


def _nearest(values: NDArray[Any], place: NDArray[np.float64], axis: int) -> NDArray[Any]:
    return np.take(values, np.floor(place + 0.5).astype(np.int64), axis)


def _between(values: NDArray[Any], place: NDArray[np.float64], axis: int) -> NDArray[Any]:
    """Linear interpolation along one axis: float32."""
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, values.shape[axis] - 1)
    share = (place - below).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(3)])
    low, high = (np.take(values, index, axis).astype(np.float32) for index in (below, above))
    high -= low
    high *= share
    high += low
    return high
