"""Volumes: a function of seed and number, of one patient in two frames, written as they are known to be."""

import csv
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dira_dist.quickstart.phantom_volume import FINDINGS, STRUCTURES, PhantomVolume, make_volume, write_volumes


@pytest.fixture(scope="module")
def volumes() -> list[PhantomVolume]:
    return [make_volume(3, number, 24) for number in range(12)]


def test_equal_arguments_give_equal_volumes_and_unlike_ones_do_not() -> None:
    first, second, other = make_volume(1, 4, 20), make_volume(1, 4, 20), make_volume(2, 4, 20)
    assert np.array_equal(first.voxels(), second.voxels()) and np.array_equal(first.affine, second.affine)
    assert first.liver != other.liver and first.patient != other.patient


def test_findings_are_balanced_and_lesions_lie_in_the_liver(volumes: list[PhantomVolume]) -> None:
    assert Counter(volume.finding for volume in volumes) == dict.fromkeys(FINDINGS, 4)
    for volume in volumes:
        counts = np.bincount(volume.mask().ravel(), minlength=len(STRUCTURES))
        assert counts[1] > 50 and (counts[2] > 0) == (volume.finding != "normal") == (volume.lesion is not None)
        if volume.lesion is not None:
            angles = np.random.default_rng(0).normal(size=(200, 3))
            surface = (
                volume.lesion.centre_mm + angles / np.linalg.norm(angles, axis=1)[:, None] * volume.lesion.radii_mm
            )
            assert (volume.liver.depth_mm(surface) > 0).all()


def test_two_scans_of_a_patient_show_one_anatomy_in_two_frames(volumes: list[PhantomVolume]) -> None:
    for first, second in zip(volumes[::2], volumes[1::2], strict=True):
        assert first.patient == second.patient and (first.liver, first.lungs) == (second.liver, second.lungs)
        assert not np.array_equal(first.affine, second.affine)
    assert len({volume.patient for volume in volumes}) == 6
    assert len({nibabel.aff2axcodes(volume.affine) for volume in volumes}) == 4


def test_it_shows_an_abdomen_in_hounsfield_units(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        values = volume.voxels()
        assert values.min() == -1000 and 300 < values.max() < 600
        if volume.finding == "normal":
            assert volume.hounsfield_at(np.array([volume.liver.centre_mm]))[0] == pytest.approx(65, abs=40)
        assert volume.hounsfield_at(np.array([[0.0, 200.0, 0.0]]))[0] == -1000
        liver = np.array(volume.liver.centre_mm)
        assert liver[0] > 0 > volume.vessel.centre_mm[0] and liver[2] < min(lung.centre_mm[2] for lung in volume.lungs)
        if volume.lesion is not None:
            middle = volume.hounsfield_at(np.array(volume.lesion.centre_mm)[None])[0]
            assert middle == pytest.approx({"cyst": 0, "tumour": 130}[volume.finding], abs=40)


def test_an_archive_holds_what_is_known(tmp_path: Path) -> None:
    write_volumes(tmp_path, 4, seed=3, side_px=24)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [row["image"] for row in rows] == [f"{number:06d}.nii.gz" for number in range(4)]
    for number, row in enumerate(rows):
        volume = make_volume(3, number, 24)
        image, mask = (nibabel.load(tmp_path / folder / row["image"]) for folder in ("images", "masks"))
        assert np.array_equal(image.affine, volume.affine) and np.array_equal(mask.affine, volume.affine)
        assert np.array_equal(np.asarray(image.dataobj), volume.voxels())
        assert np.array_equal(np.asarray(mask.dataobj), volume.mask())
        assert (row["patient"], row["finding"]) == (volume.patient, volume.finding)
    for row in csv.DictReader((tmp_path / "centres.csv").open()):
        volume = make_volume(3, int(row["volume"][:6]), 24)
        place = np.array([[float(row[axis]) for axis in "xyz"]])
        assert STRUCTURES[volume.structures_at(place)[0]] == row["label"] and row["patient"] == volume.patient
    before = (tmp_path / "images" / "000000.nii.gz").read_bytes()
    write_volumes(tmp_path / "again", 1, seed=3, side_px=24)
    assert (tmp_path / "again" / "images" / "000000.nii.gz").read_bytes() == before
