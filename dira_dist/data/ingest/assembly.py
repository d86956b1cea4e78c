"""A stack of DICOM planes to a volume: frames decoded one by one, rescaled, and put where they belong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.dicom import DicomFile
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.functional_groups import FrameGroups
from dira_dist.data.ingest.greys import padding_of, rescale_of
from dira_dist.data.ingest.stacks import Stack, normal_of
from dira_dist.data.ingest.terms import header_terms
from dira_dist.data.ingest.volumes import Index, Parts, SpacingMm, Volume, assemble, check_budget, lengths_of, way_from

if TYPE_CHECKING:
    from pydicom import Dataset

_VOXEL_BYTES = 2
_ROUNDING = 1e-3  # of a pixel: positions are written in decimals


@dataclass(frozen=True)
class _Slice:
    """A decoded plane: stored values, and what makes values in their unit and padding of them."""

    stored: NDArray[Any]
    rescale: Callable[[NDArray[Any]], NDArray[Any]]
    padding: tuple[int, int] | None

    def values(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        if self.padding is None:
            return self.rescale(self.stored), None
        return self.rescale(self.stored), (self.stored < self.padding[0]) | (self.stored > self.padding[1])


def read_stack(stack: Stack, read: Callable[[str], bytes], budget_bytes: int = 2 << 30) -> Volume:
    """The volume of a stack.

    Args:
        stack: its planes, and where they lie.
        read: gives a file's bytes.
        budget_bytes: a volume that would take more is not decoded.

    Raises:
        UnreadableError: a file of it is damaged, which is named, or it exceeds the budget.
    """
    first = stack.planes[0]
    check_budget((len(stack.planes), first.rows, first.columns), _VOXEL_BYTES, budget_bytes)
    slices, header = _slices(stack, read)
    shear = _Shear(stack) if stack.tilted else None
    shape = (len(slices), first.rows, first.columns) if shear is None else shear.shape
    own = affine_of(stack, shear.margin if shear else (0, 0))
    voxels, affine, missing = assemble(Parts(shape, lambda: _pieces(slices, shear)), own)
    notes = [f"{missing} voxels that are no numbers are stored as 0"] if missing else []
    volume = replace(_with_geometry(voxels, affine, stack, header, notes), turned_from=own)
    return volume if shear else replace(volume, from_file=way_from(own[:, [2, 1, 0, 3]], affine))


def _with_geometry(
    voxels: NDArray[Any], affine: NDArray[np.float64], stack: Stack, header: "Dataset", notes: list[str]
) -> Volume:
    first = stack.planes[0]
    tags = header_terms(header) | {
        "spacing_from": " and ".join(filter(None, ("ImagePositionPatient", first.spacing_from))),
        "orientation_from": "ImageOrientationPatient",
    }
    if stack.tilted:
        tags["tilt_corrected_deg"] = round(tilt_deg(stack), 3)
    if first.spacing is not None:
        return Volume(voxels, lengths_of(affine), affine, tags, tuple(notes))
    notes.append("its header gives no pixel spacing: it is stored as unknown")
    along_slices = int(np.abs(affine[:3, :3].T @ _normal_ras(stack)).argmax())
    spacing: SpacingMm = tuple(  # type: ignore[assignment]
        round(stack.step_mm, 6) if axis == along_slices else None for axis in range(3)
    )
    return Volume(voxels, spacing, None, tags, tuple(notes))


def tilt_deg(stack: Stack) -> float:
    """The angle between the normal of the planes and the line on which they stand, in degrees."""
    return float(np.degrees(np.arctan2(np.hypot(*stack.shift_mm), stack.step_mm)))


def _slices(stack: Stack, read: Callable[[str], bytes]) -> tuple[list[_Slice], "Dataset"]:
    """The planes in the stack's order, and the header of the first file."""
    wanted: dict[str, dict[int, int]] = {}
    for number, plane in enumerate(stack.planes):
        wanted.setdefault(plane.file, {})[plane.frame] = number
    found: dict[int, _Slice] = {}
    header: Dataset | None = None
    for name, frames in wanted.items():
        try:
            file = DicomFile(read(name))
            found |= {frames[frame]: part for frame, part in _slices_of(file, frames)}
        except UnreadableError as error:
            raise UnreadableError(f"a slice of its series is damaged: {error}", file=name) from error
        header = file.header if header is None else header
    assert header is not None and len(found) == len(stack.planes)
    return [found[number] for number in range(len(found))], header


def _slices_of(file: DicomFile, frames: dict[int, int]) -> Iterator[tuple[int, _Slice]]:
    groups, padding = FrameGroups(file.header), padding_of(file.header, file.format)
    for number, stored in enumerate(file.frames()):
        if number in frames:
            yield number, _Slice(stored, rescale_of(file.header, groups, number), padding)


def _pieces(
    slices: list[_Slice], shear: "_Shear | None"
) -> Iterator[tuple[Index, NDArray[Any], NDArray[np.bool_] | None]]:
    for number, plane in enumerate(slices):
        values, real = plane.values()
        if shear is not None:
            values, real = shear.upright(number, values, real)
        yield (number,), values, real


def _normal_ras(stack: Stack) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = normal_of(stack.planes[0]) * np.array([-1.0, -1.0, 1.0])
    return normal


def affine_of(stack: Stack, margin: tuple[int, int] = (0, 0)) -> NDArray[np.float64]:
    """Indices (slice, row, column) to millimetres, in NIfTI's right-anterior-superior frame.

    DICOM's frame is left-posterior-superior, hence the signs (PS3.3, C.7.6.2.1.1). Where no pixel spacing is known,
    steps of 1 stand in for it, which give the directions alone.

    Args:
        stack: a regular one.
        margin: rows and columns that were added before the first.
    """
    first = stack.planes[0]
    assert first.cosines is not None and first.position is not None
    down, along = np.array(first.cosines[3:]), np.array(first.cosines[:3])
    spacing = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = normal_of(first) * stack.step_mm
    affine[:3, 1], affine[:3, 2] = down * spacing[0], along * spacing[1]
    affine[:3, 3] = np.array(first.position) - affine[:3, 1] * margin[0] - affine[:3, 2] * margin[1]
    affine[:2] *= -1
    return affine


class _Shear:
    """Undoes the tilt of a gantry: each slice is moved within its plane to stand behind the one before.

    Slices grow by the margin that the farthest of them needs, so that nothing is cut off.

    Attributes:
        shape: of the upright volume.
        margin: rows and columns added before the first.
    """

    def __init__(self, stack: Stack) -> None:
        first, count = stack.planes[0], len(stack.planes)
        spacing = first.spacing or (1.0, 1.0)
        self._per_slice = [shift / length for shift, length in zip(stack.shift_mm, spacing, strict=True)]
        farthest = [shift * (count - 1) for shift in self._per_slice]
        self.margin = (-floor(min(0.0, farthest[0]) + _ROUNDING), -floor(min(0.0, farthest[1]) + _ROUNDING))
        after = [ceil(max(0.0, shift) - _ROUNDING) for shift in farthest]
        self.shape = (count, first.rows + self.margin[0] + after[0], first.columns + self.margin[1] + after[1])

    def upright(
        self, number: int, values: NDArray[Any], real: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A slice at its place in the upright volume, linearly interpolated; what lies beside it is not real."""
        ndimage: Any = import_module("scipy.ndimage")
        shift = [margin + number * per_slice for margin, per_slice in zip(self.margin, self._per_slice, strict=True)]
        there = np.ones(values.shape, dtype=bool) if real is None else real
        padded = [np.zeros(self.shape[1:]) for _ in range(2)]
        for whole, part in zip(padded, (np.where(there, values, 0), there), strict=True):
            whole[: values.shape[0], : values.shape[1]] = part
        moved, weight = (ndimage.shift(part, shift, order=1, mode="constant", cval=0.0) for part in padded)
        covered = weight > 0.5
        upright = np.divide(moved, weight, out=np.zeros_like(moved), where=covered)
        return (np.rint(upright) if values.dtype.kind in "iu" else upright), covered
