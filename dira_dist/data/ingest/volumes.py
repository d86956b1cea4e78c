"""Whole volumes, as arrays whose axes run to the patient's head, back and left.

The axes ``(D, H, W)`` are those of an axial DICOM series of a patient on his back: slices towards the head, rows
towards the back, columns towards the left. Values keep their unit (Hounsfield for CT); nothing is resampled but the
slices of a tilted gantry. Readers hand a volume over part by part, so that no more than the file and the array lie in
memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError

AXES = ("S", "P", "L")
Index = tuple[int | slice, ...]
SpacingMm = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Volume:
    """A volume as it was read.

    Attributes:
        voxels: (D, H, W); uint8, int16, uint16 where its values are whole and fit, float32 where that holds them, else
            float64.
        spacing_mm: between voxels along (D, H, W); none along an axis of which nothing is known.
        affine: (4, 4), from indices (d, h, w) to millimetres in NIfTI's frame (right, anterior, superior), by which a
            prediction goes back to the patient; none where the spacing or orientation is not known.
        tags: what is kept of the header, JSON-ready.
        notes: what a user should know of it.
        file_affine: the same of the file's own indices, before axes were turned; none for a DICOM series.
        from_file: (4, 4), from the file's indices (i, j, k) to (d, h, w): NIfTI's own, of others column, row and slice;
            none where slices were moved.
        turned_from: the same of the indices that the axes were turned from, whatever the volume was read from.
    """

    voxels: NDArray[Any]
    spacing_mm: SpacingMm
    affine: NDArray[np.float64] | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file_affine: NDArray[np.float64] | None = None
    from_file: NDArray[np.float64] | None = None
    turned_from: NDArray[np.float64] | None = None

    def geometry(self) -> dict[str, Any]:
        """For a sample's metadata."""
        affine = None if self.affine is None else [[round(float(value), 6) for value in row] for row in self.affine]
        return {"shape": list(self.voxels.shape), "spacing_mm": list(self.spacing_mm), "affine_ras_mm": affine}


@dataclass(frozen=True)
class Parts:
    """A volume in pieces, in its file's own axes.

    Attributes:
        shape: of the whole.
        pieces: makes them anew for each pass: where each belongs, its values, and which of them are real (none: all).
    """

    shape: tuple[int, int, int]
    pieces: Callable[[], Iterator[tuple[Index, NDArray[Any], NDArray[np.bool_] | None]]]


@dataclass
class _Range:
    """What the values of a volume are like, seen piece by piece."""

    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    not_numbers: int = 0

    def see(self, values: NDArray[Any]) -> None:
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole = self.whole and (values.dtype.kind in "iub" or bool((values == np.rint(values)).all()))

    def kind(self) -> type[np.generic]:
        """The smallest of uint8, int16, uint16, float32 and float64 that holds the values."""
        for kind in (np.uint8, np.int16, np.uint16):
            if self.whole and np.iinfo(kind).min <= self.low and self.high <= np.iinfo(kind).max:
                return kind
        most = max(abs(self.low), abs(self.high))
        if most > float(np.finfo(np.float32).max) or (self.whole and most > 2**24):
            return np.float64
        return np.float32


def assemble(parts: Parts, affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """Puts a volume together, its axes turned and flipped to :data:`AXES`, never resampled.

    Values that are no numbers become 0, and those that are not real (padding) the smallest of the real ones.

    Args:
        parts: of the volume.
        affine: from its own indices to millimetres in NIfTI's frame.

    Returns:
        The voxels (D, H, W), the affine of their indices, and how many of them were no numbers.

    Raises:
        UnreadableError: the affine gives no three axes.
    """
    orientations: Any = import_module("nibabel.orientations")  # it has no types of its own
    own = orientations.io_orientation(affine)
    if np.isnan(own).any():
        raise UnreadableError("its header gives no three axes")
    turn = orientations.ornt_transform(own, orientations.axcodes2ornt(AXES))
    seen = _Range()
    for _, values, real in parts.pieces():
        clean, missing = _numbers(values)
        seen.not_numbers += missing
        seen.see(clean if real is None else clean[real])
    if not np.isfinite(seen.low):
        seen.low = seen.high = 0.0  # nothing is real
    shape = [0, 0, 0]
    for source, (target, _) in enumerate(turn):
        shape[int(target)] = parts.shape[source]
    voxels = np.empty(shape, dtype=seen.kind())
    in_file = in_source_axes(voxels, affine)
    assert np.shares_memory(in_file, voxels)
    for index, values, real in parts.pieces():
        clean, _ = _numbers(values)
        in_file[index] = clean if real is None else np.where(real, clean, seen.low)
    return voxels, affine @ orientations.inv_ornt_aff(turn, parts.shape), seen.not_numbers


def in_source_axes(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A view of (D, H, W) voxels in the axes that they were turned from.

    Args:
        voxels: along :data:`AXES`.
        affine: from the indices of those other axes to millimetres, see ``Volume.turned_from``.
    """
    orientations: Any = import_module("nibabel.orientations")
    own = orientations.io_orientation(affine)
    turned: NDArray[Any] = orientations.apply_orientation(
        voxels, orientations.ornt_transform(orientations.axcodes2ornt(AXES), own)
    )
    return turned


def _numbers(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    if values.dtype.kind in "iub":
        return values, 0
    finite = np.isfinite(values)
    missing = int(values.size - np.count_nonzero(finite))
    return (np.where(finite, values, 0), missing) if missing else (values, 0)


def way_from(own: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the indices of a file to those of the volume made of it, by the affines of both: (4, 4)."""
    way: NDArray[np.float64] = np.rint(np.linalg.inv(affine) @ own)  # axes are turned, and nothing else
    return way


def lengths_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Millimetres between voxels along the axes of an affine."""
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    first, second, third = (round(float(length), 6) for length in lengths)
    return first, second, third


def check_budget(shape: Sequence[int], bytes_per_voxel: int, budget_bytes: int) -> None:
    """Raises UnreadableError where a volume would take more memory than one may."""
    needed = int(np.prod([int(length) for length in shape], dtype=object)) * bytes_per_voxel
    if needed > budget_bytes:
        size = " x ".join(str(int(length)) for length in shape)
        raise UnreadableError(
            f"it has {size} voxels, {needed / 2**30:.3g} GiB, more than the budget of {budget_bytes / 2**30:.3g} GiB; "
            "raise --volume-budget-gib to read it"
        )


# ------------------------------------------------------------------------------- masks of volumes

_SAME_PLACE = 0.1  # of a voxel, at any corner: room for the rounding of a header, not for a shift


def says_nothing(mask: Volume) -> bool:
    """Whether a mask's header is the bare identity: whoever wrote it gave the voxels and no geometry."""
    return mask.file_affine is not None and bool((mask.file_affine == np.eye(4)).all())


def mask_problem(mask: Volume, volume: Volume) -> str:
    """Why a label map does not lie on its volume voxel by voxel; empty where it does."""
    return place_problem(mask, volume, "its mask")


def place_problem(mask: Volume, volume: Volume, called: str) -> str:
    """The same of anything that has to lie on a volume, such as another channel, which is ``called`` so."""
    if mask.voxels.shape != volume.voxels.shape:
        return f"{called} is of shape {mask.voxels.shape}, it of {volume.voxels.shape}"
    if mask.affine is None or volume.affine is None:
        return ""  # nothing says where one of the two lies: the shape is all there is
    smallest = min(lengths_of(volume.affine))
    away = _farthest_mm(mask.affine, volume.affine, volume.voxels.shape)
    if away <= _SAME_PLACE * smallest:
        return ""
    return f"{called} lies elsewhere by up to {away:.4g} mm, by the headers of both (a voxel is {smallest:.4g} mm)"


def differs_in_an_unset_origin(mask: Volume, volume: Volume) -> bool:
    """Whether the one thing that moves a mask away is an origin of exactly 0, 0, 0, which was never set."""
    if mask.file_affine is None or mask.affine is None or volume.affine is None or mask.file_affine[:3, 3].any():
        return False
    there = mask.affine.copy()
    there[:3, 3] = volume.affine[:3, 3]
    return mask.voxels.shape == volume.voxels.shape and _farthest_mm(
        there, volume.affine, volume.voxels.shape
    ) <= _SAME_PLACE * min(lengths_of(volume.affine))


def _farthest_mm(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """How far two affines put the corners of a volume apart, at most."""
    corners = np.array([[d, h, w, 1] for d in (0, 1) for h in (0, 1) for w in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def resampled_mask(mask: Volume, volume: Volume) -> NDArray[Any]:
    """The label of the mask's nearest voxel at each voxel of the volume; 0 outside of the mask."""
    if mask.affine is None or volume.affine is None:
        raise UnreadableError("its mask cannot be resampled: nothing says where one of the two lies")
    ndimage: Any = import_module("scipy.ndimage")
    way = np.linalg.inv(mask.affine) @ volume.affine
    return np.asarray(
        ndimage.affine_transform(
            mask.voxels, way[:3, :3], way[:3, 3], output_shape=volume.voxels.shape, order=0, mode="constant", cval=0
        )
    )
