"""Whole volumes: NIfTI files and DICOM series, as arrays whose axes run to the patient's head, back and left.

The axes ``(D, H, W)`` are those of an axial DICOM series of a patient on his back: slices towards the head, rows
towards the back, columns towards the left. Values keep their unit (Hounsfield for CT); nothing is resampled.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.readers import UnreadableError, allowed_tags, open_dicom, rescaled

if TYPE_CHECKING:
    from pydicom import Dataset

_AXES = ("S", "P", "L")


@dataclass(frozen=True)
class Volume:
    """A volume as it was read.

    Attributes:
        voxels: (D, H, W); uint8, int16, uint16 where its values are whole and fit, else float32.
        spacing_mm: between voxels along (D, H, W).
        tags: what is kept of the header, JSON-ready.
    """

    voxels: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    tags: dict[str, Any] = field(default_factory=dict)


def read_nifti(data: bytes) -> Volume:
    """A NIfTI-1 or NIfTI-2 file, gzipped or not.

    Raises:
        UnreadableError: it has not three dimensions.
    """
    import nibabel

    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    header_bytes = int.from_bytes(data[:4], "little")
    kind = nibabel.Nifti2Image if header_bytes in (540, 0x1C020000) else nibabel.Nifti1Image
    image = kind.from_bytes(data)
    values = np.asanyarray(image.dataobj)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise UnreadableError(f"its shape is {values.shape}, where a volume has three dimensions")
    assert image.affine is not None
    return _oriented(values, image.affine)


def read_series(files: Sequence[bytes]) -> Volume:
    """The slices of one DICOM series, in any order; or one multi-frame file.

    Raises:
        UnreadableError: slices of unlike sizes, or colour.
    """
    datasets = sorted((open_dicom(data) for data in files), key=_place_of)
    slices = [_slices_of(dataset) for dataset in datasets]
    if len({plane.shape[1:] for plane in slices}) != 1:
        raise UnreadableError("its slices have unlike sizes")
    volume = _oriented(np.concatenate(slices), _affine_of(datasets))
    tags = {name: value for name, value in allowed_tags(datasets[0]).items() if name == "modality"}
    return Volume(volume.voxels, volume.spacing_mm, tags)


def _slices_of(dataset: "Dataset") -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    frames = pixel_array(dataset)
    if int(dataset.SamplesPerPixel) != 1:
        raise UnreadableError("it is in colour")
    return rescaled(frames if frames.ndim == 3 else frames[None], dataset)


def _place_of(dataset: "Dataset") -> tuple[float, float]:
    """Where a slice lies along the normal of the slices; by its number where the header does not say."""
    number = float(dataset.get("InstanceNumber") or 0)
    if "ImagePositionPatient" not in dataset or "ImageOrientationPatient" not in dataset:
        return 0.0, number
    position = np.array(dataset.ImagePositionPatient, dtype=float)
    return round(float(position @ _normal_of(dataset)), 4), number


def _normal_of(dataset: "Dataset") -> NDArray[np.float64]:
    cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def _affine_of(datasets: Sequence["Dataset"]) -> NDArray[np.float64]:
    """Voxel indices (slice, row, column) to millimetres, in NIfTI's right-anterior-superior frame.

    DICOM's frame is left-posterior-superior, hence the signs (PS3.3, C.7.6.2.1.1).
    """
    first = datasets[0]
    spacing = [float(length) for length in first.get("PixelSpacing", (1, 1))]
    cosines = np.array(first.get("ImageOrientationPatient", (1, 0, 0, 0, 1, 0)), dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])
    steps = np.diff([_place_of(dataset)[0] for dataset in datasets])
    step = float(np.median(steps)) if steps.size else 0.0
    step = step or float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = normal * step, cosines[3:] * spacing[0], cosines[:3] * spacing[1]
    affine[:2] *= -1
    return affine


def _oriented(values: NDArray[Any], affine: NDArray[Any]) -> Volume:
    """Turns and flips the axes to :data:`_AXES`, never resampling."""
    orientations: Any = import_module("nibabel.orientations")  # it has no types of its own
    orientation = orientations.io_orientation(affine)
    if np.isnan(orientation).any():
        raise UnreadableError("its header gives no three axes")
    turn = orientations.ornt_transform(orientation, orientations.axcodes2ornt(_AXES))
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    spacing = [0.0, 0.0, 0.0]
    for source, (target, _) in enumerate(turn):
        spacing[int(target)] = round(float(lengths[source]), 6)
    voxels = np.ascontiguousarray(orientations.apply_orientation(values, turn))
    return Volume(_compact(voxels), (spacing[0], spacing[1], spacing[2]))


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """The smallest of uint8, int16, uint16 and float32 that holds the values."""
    if not np.isfinite(values).all():
        raise UnreadableError("it holds values that are no numbers")
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "iub" or bool((values == np.rint(values)).all())
    for kind in (np.uint8, np.int16, np.uint16):
        if whole and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)
