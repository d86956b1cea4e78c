"""Synthetic CT volumes of an upper abdomen: a liver, a lesion in it, and all of it known at every point of the patient.

They stand in for an archive of volumes where there is none: tests and demonstrations. A phantom is a function of
``(seed, number)`` alone, and its values are a function of the place in millimetres: whatever has cut, turned or
resampled it can be compared with what should stand there. Two neighbouring numbers are two scans of one patient: the
same anatomy, another frame, another orientation of the file, a finding of its own.
"""

import csv
import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

STRUCTURES = ("background", "liver", "lesion")
FINDINGS = ("normal", "cyst", "tumour")
VOLUMES_PER_PATIENT = 2
AIR_HU = -1000
_LESION_HU = {"cyst": 0.0, "tumour": 130.0}
_EDGE_MM = 1.5  # over which one tissue becomes the other
_ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR")  # of the files, as scanners and converters write them
_OBLIQUE_DEG = (0.0, 6.0, 0.0, -9.0)


@dataclass(frozen=True)
class Ellipsoid:
    """Where something lies: centre and half axes towards right, front and head (NIfTI's frame), in mm."""

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]

    def depth_mm(self, points: Points) -> Points:
        """How deep points (..., 3) lie inside, roughly in mm; negative outside."""
        radii = np.array(self.radii_mm)
        reach = np.linalg.norm((points - np.array(self.centre_mm)) / radii, axis=-1)
        depth: Points = (1 - reach) * radii.min()
        return depth


@dataclass(frozen=True)
class PhantomVolume:
    """One synthetic scan and all that is known about it.

    Attributes:
        patient: identifier shared by the scans of one patient.
        finding: one of :data:`FINDINGS`.
        body, liver, lungs, spine, vessel: where they lie.
        lesion: in the liver; none where the finding is normal.
        waves: (N, 3) in radians per mm and ``phases`` (N,), of the texture.
        shape: of the file's voxels (i, j, k).
        affine: from them to millimetres in NIfTI's frame, exactly as the file has it.
    """

    patient: str
    finding: str
    body: Ellipsoid
    liver: Ellipsoid
    lungs: tuple[Ellipsoid, Ellipsoid]
    spine: Ellipsoid
    vessel: Ellipsoid
    lesion: Ellipsoid | None
    waves: Points
    phases: Points
    shape: tuple[int, int, int]
    affine: Points

    def hounsfield_at(self, points: Points) -> Points:
        """Hounsfield units at points (..., 3) of the patient, in mm."""
        values = np.full(points.shape[:-1], float(AIR_HU))
        body = self.body.depth_mm(points)
        layers: list[tuple[Points, float]] = [
            (body, -100.0),
            (body - 7, 45.0),
            *((lung.depth_mm(points), -820.0) for lung in self.lungs),
            (self.liver.depth_mm(points), 65.0),
            (self.spine.depth_mm(points), 420.0),
            (self.vessel.depth_mm(points), 160.0),
        ]
        if self.lesion is not None:
            layers.append((self.lesion.depth_mm(points), _LESION_HU[self.finding]))
        for depth, tissue_hu in layers:
            values += _share_inside(depth) * (tissue_hu - values)
        grain = np.sin(points @ self.waves.T + self.phases).sum(axis=-1)
        textured: Points = values + 6 * grain * _share_inside(body)
        return textured

    def structures_at(self, points: Points) -> NDArray[np.uint8]:
        """Indices into :data:`STRUCTURES` at points (..., 3) of the patient, in mm."""
        found = (self.liver.depth_mm(points) > 0).astype(np.uint8)
        if self.lesion is not None:
            found[self.lesion.depth_mm(points) > 0] = STRUCTURES.index("lesion")
        return found

    def points(self) -> Points:
        """Where the voxels of the file lie, in mm: (I, J, K, 3)."""
        index = np.moveaxis(np.indices(self.shape), 0, -1)
        points: Points = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        return points

    def voxels(self) -> NDArray[np.int16]:
        """The values of the file (I, J, K), in HU."""
        return np.rint(self.hounsfield_at(self.points())).astype(np.int16)

    def mask(self) -> NDArray[np.uint8]:
        """The label map of the file (I, J, K)."""
        return self.structures_at(self.points())


def _share_inside(depth_mm: Points) -> Points:
    """Nearly 0 outside, nearly 1 inside, and even between: no value hangs on the last digit of a place."""
    share: Points = 1 / (1 + np.exp(np.clip(-4 * depth_mm / _EDGE_MM, -50, 50)))
    return share


def make_volume(seed: int, number: int, side_px: int = 48) -> PhantomVolume:
    """Volume ``number`` of the archive ``seed``; equal arguments give equal volumes.

    Args:
        seed: which archive, not negative.
        number: which volume of it, not negative.
        side_px: voxels from right to left, at least 16; fewer towards front and head, and voxels that are larger there.
    """
    assert seed >= 0 and number >= 0 and side_px >= 16
    patient = number // VOLUMES_PER_PATIENT
    anatomy = np.random.default_rng([seed, 10, patient])
    random = np.random.default_rng([seed, 11, number])
    order = np.random.default_rng([seed, 12, number // len(FINDINGS)]).permutation(len(FINDINGS))
    finding = FINDINGS[order[number % len(FINDINGS)]]
    organs = _draw_organs(anatomy)
    shape, affine = _frame(random, number, side_px)
    return PhantomVolume(
        patient=f"phantom-{seed}-{patient:06d}",
        finding=finding,
        **organs,
        lesion=None if finding == "normal" else _lesion_in(organs["liver"], random),
        waves=random.normal(0, 0.1, (6, 3)),
        phases=random.uniform(0, 2 * np.pi, 6),
        shape=shape,
        affine=affine,
    )


def _draw_organs(random: np.random.Generator) -> dict[str, Any]:
    """The anatomy of a patient, around 0; x grows towards the patient's right, where the liver is."""
    wide, thick = random.uniform(58, 68), random.uniform(42, 50)

    def about(*numbers: float) -> tuple[float, float, float]:
        first, second, third = (number + random.uniform(-2, 2) for number in numbers)
        return first, second, third

    return {
        "body": Ellipsoid((0, 0, 0), (wide, thick, 400.0)),
        "liver": Ellipsoid(about(20, 4, -12), about(26, 25, 24)),
        "lungs": (Ellipsoid(about(28, 2, 42), about(20, 25, 24)), Ellipsoid(about(-28, 2, 38), about(20, 25, 30))),
        "spine": Ellipsoid((0.0, -0.62 * thick, 0.0), (9.0, 9.0, 300.0)),
        "vessel": Ellipsoid((-4.0, -0.25 * thick, 0.0), (5.0, 5.0, 300.0)),
    }


def _lesion_in(liver: Ellipsoid, random: np.random.Generator) -> Ellipsoid:
    """A ball of 7 to 10 mm that lies within the liver."""
    radius = random.uniform(7, 10)
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    room = (np.array(liver.radii_mm) - radius) * 0.8
    first, second, third = np.array(liver.centre_mm) + direction * room * random.uniform(0, 1)
    return Ellipsoid((float(first), float(second), float(third)), (radius,) * 3)


def _frame(random: np.random.Generator, number: int, side_px: int) -> tuple[tuple[int, int, int], Points]:
    """Shape and affine of a file that shows about 150 x 112 x 120 mm, centred near the middle of the body."""
    codes, oblique = _ORIENTATIONS[number % 4], np.radians(_OBLIQUE_DEG[number % 4])
    step = 150 / side_px
    steps = {"R": step, "A": step, "S": step * 1.5}
    sides = {"R": side_px, "A": side_px * 3 // 4, "S": side_px // 2 + int(random.integers(0, max(2, side_px // 6)))}
    ends = {"R": "RL", "A": "AP", "S": "SI"}
    rows, shape = np.zeros((3, 3)), []
    for column, code in enumerate(codes):
        axis = next(axis for axis, both in ends.items() if code in both)
        rows["RAS".index(axis), column] = steps[axis] * (1 if code == axis else -1)
        shape.append(sides[axis])
    turn = np.array([[1, 0, 0], [0, np.cos(oblique), -np.sin(oblique)], [0, np.sin(oblique), np.cos(oblique)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ rows
    centre = random.uniform(-4, 4, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    first, second, third = shape
    return (first, second, third), affine.astype(np.float32).astype(np.float64)  # the header holds float32


# ------------------------------------------------------------------------------- archives


def write_volumes(folder: Path, count: int, seed: int = 0, side_px: int = 48) -> None:
    """Lays phantoms out as a user's archive, for ``dira-dist shard`` to read::

        images/000000.nii.gz   masks/000000.nii.gz   labels.csv   centres.csv

    ``labels.csv`` has the columns image, patient, finding; ``centres.csv`` volume, patient, x, y, z (mm, NIfTI's frame)
    and label: ``lesion`` in the middle of each lesion, ``liver`` at the opposite place of the same liver, or in the
    middle of a healthy one; ``masks`` hold indices into :data:`STRUCTURES`.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    labels: list[Mapping[str, object]] = []
    centres: list[Mapping[str, object]] = []
    for number in range(count):
        phantom, name = make_volume(seed, number, side_px), f"{number:06d}.nii.gz"
        write_nifti(folder / "images" / name, phantom.voxels(), phantom.affine)
        write_nifti(folder / "masks" / name, phantom.mask(), phantom.affine)
        labels.append({"image": name, "patient": phantom.patient, "finding": phantom.finding})
        centres.extend({"volume": name, "patient": phantom.patient, **row} for row in _centres_of(phantom))
    _write_csv(folder / "labels.csv", ("image", "patient", "finding"), labels)
    _write_csv(folder / "centres.csv", ("volume", "patient", "x", "y", "z", "label"), centres)


def _centres_of(phantom: PhantomVolume) -> Iterable[Mapping[str, object]]:
    middle = np.array(phantom.liver.centre_mm)
    if phantom.lesion is None:
        yield _row(middle, "liver")
        return
    lesion = np.array(phantom.lesion.centre_mm)
    yield _row(lesion, "lesion")
    if np.linalg.norm(lesion - middle) > phantom.lesion.radii_mm[0]:
        yield _row(2 * middle - lesion, "liver")


def _row(place_mm: Points, label: str) -> Mapping[str, object]:
    return {**{axis: round(float(value), 3) for axis, value in zip("xyz", place_mm, strict=True)}, "label": label}


def write_nifti(path: Path, values: NDArray[Any], affine: Points) -> None:
    """A packed NIfTI file, the same bytes every time."""
    nibabel: Any = import_module("nibabel")  # it has no types of its own
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(values, affine).to_bytes(), compresslevel=4, mtime=0))


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
