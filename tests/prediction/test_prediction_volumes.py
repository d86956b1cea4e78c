"""Masks of volumes in the geometry of their files: NIfTI, turned and anisotropic, and DICOM."""

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import dicom, dicom_bytes, slices, write
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.prediction import dicom_seg
from dira_dist.quickstart.phantom import make_phantom
from tests.prediction.conftest import MakeModel
from tests.prediction.test_prediction_files import files_of, run, table

SHAPE = (5, 40, 40)  # towards the head, the back and the left


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """Five slices, the fourth of one value only, from 0 to 255."""
    found = np.stack([make_phantom(3, number, 40).image for number in range(SHAPE[0])])
    found[3] = 7
    found[0, 0, :2] = 0, 255
    return found.astype(np.int16)


def canonical(image: Any) -> np.ndarray:
    """Voxels towards the head, the back and the left, by nibabel alone."""
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(("S", "P", "L"))
        )
    )
    return np.asarray(turned.dataobj)


def turned_nifti(voxels: np.ndarray) -> Any:
    """The same voxels along (anterior, left, inferior) and oblique, 0.7 x 0.9 x 2.5 mm."""
    in_file = np.ascontiguousarray(np.transpose(voxels[::-1, ::-1, :], (1, 2, 0)))
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    axes = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (11.5, -42.25, 7)
    image = nibabel.Nifti1Image(in_file, affine)
    image.header["descrip"] = b"a name of somebody"
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_turned_anisotropic_volume_comes_back_voxel_for_voxel(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path, axis: str
) -> None:
    volumes, pictures, dest = tmp_path / "volumes", tmp_path / "pictures", tmp_path / "out"
    volumes.mkdir()
    pictures.mkdir()
    image = turned_nifti(voxels)
    nibabel.save(image, volumes / "scan.nii.gz")
    (volumes / "broken.nii").write_bytes(b"no volume")
    assert (canonical(image) == voxels).all(), "the test's own turn"
    place = ("axial", "coronal", "sagittal").index(axis)
    looked_at = np.moveaxis(voxels, place, 0) if axis == "axial" else np.moveaxis(voxels, place, 0)[:, ::-1]
    for number, flat in enumerate(looked_at):
        Image.fromarray(flat.astype(np.uint8)).save(pictures / f"{number:02d}.png")
    done = run(make_model("segment"), volumes, dest, axis=axis, overlays=True)
    run(make_model("segment"), pictures, tmp_path / "flat", intensity="full")
    assert done.rows == 2 and sum(done.unread.values()) == 1
    (row,) = [row for row in table(dest) if not row["reason"]]
    mask = nibabel.load(dest / row["mask"])
    assert row["mask"] == "masks/scan.nii.gz"
    assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
    assert (mask.affine == image.affine).all() and mask.header.get_zooms() == image.header.get_zooms()
    for form in ("sform", "qform"):
        assert mask.header[f"{form}_code"] == 1
        assert (getattr(mask, f"get_{form}")() == getattr(image, f"get_{form}")()).all()
    assert b"somebody" not in (dest / row["mask"]).read_bytes() and bytes(mask.header["descrip"]).strip(b"\0") == b""
    found = np.moveaxis(canonical(mask), place, 0)
    found = found if axis == "axial" else found[:, ::-1]
    for number, flat in enumerate(found):
        wanted = np.asarray(Image.open(tmp_path / "flat" / "masks" / f"{number:02d}.png"))
        if looked_at[number].min() == looked_at[number].max():
            assert not flat.any(), "nothing is asked about a slice of one value"
        else:
            assert (flat == wanted).mean() > 0.995, number
    counts = np.bincount(canonical(mask).reshape(-1), minlength=4)
    assert [int(row[f"pixels {name}"]) for name in ("right", "left", "heart")] == counts[1:].tolist()
    assert float(row["ml heart"]) == pytest.approx(counts[3] * 0.7 * 0.9 * 2.5 / 1000, rel=1e-4)
    assert len(np.unique(canonical(mask))) > 2, "the test would see nothing otherwise"
    assert Image.open(dest / "overlays" / "scan.png").mode == "RGB"


def test_slices_of_a_volume_have_rows_of_their_own_for_a_classifier(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "volumes").mkdir()
    nibabel.save(turned_nifti(voxels), tmp_path / "volumes" / "scan.nii.gz")
    run(make_model("findings"), tmp_path / "volumes", tmp_path / "out", pool="file")
    assert [row["number"] for row in table(tmp_path / "out")] == ["0", "1", "2", "4"]
    (pooled,) = table(tmp_path / "out", "pooled")
    assert (pooled["group"], pooled["images"]) == ("scan.nii.gz", "4")


WHOLE = {
    "PatientName": "Some^Body",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyInstanceUID": "1.2.9",
    "StudyDate": "20200101",
    "StudyTime": "120000",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "FrameOfReferenceUID": "1.2.10",
    "SliceThickness": 2.5,
    "PositionReferenceIndicator": "",
}


def segments_of(file: Path) -> tuple[pydicom.Dataset, dict[str, dict[str, np.ndarray]]]:
    """Frames of a DICOM-SEG by segment and by the instance that each refers to."""
    made = pydicom.dcmread(file)
    frames = made.pixel_array if made.pixel_array.ndim == 3 else made.pixel_array[None]
    labels = {segment.SegmentNumber: segment.SegmentLabel for segment in made.SegmentSequence}
    found: dict[str, dict[str, np.ndarray]] = {label: {} for label in labels.values()}
    for frame, groups in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        label = labels[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[label][source] = frame
    return made, found


@pytest.mark.parametrize("task", ["segment", "regions"])
def test_a_series_gets_a_segmentation_of_its_planes(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path, task: str
) -> None:
    model, source = make_model(task), tmp_path / "series"
    planes = slices(voxels, **WHOLE)
    write(source, [planes[number] for number in (2, 0, 4, 1, 3)])
    run(model, source, tmp_path / "out", content="slices", intensity="full")
    run(model, source, tmp_path / "plain", content="slices", intensity="full", masks="plain")
    (row,), (plain,) = table(tmp_path / "out"), table(tmp_path / "plain")
    assert row["file"] == "im000.dcm" and row["mask"] == "masks/im000.seg.dcm" and not row["note"]
    made, found = segments_of(tmp_path / "out" / row["mask"])
    assert (made.StudyInstanceUID, made.PatientID, made.Modality) == ("1.2.9", "P1", "SEG")
    images = [nibabel.load(tmp_path / "plain" / name) for name in plain["mask"].split("|")]
    assert np.allclose(np.sort(images[0].header.get_zooms()), [0.6, 0.7, 2.5])
    names = ("right", "left", "heart") if task == "segment" else ("lungs", "right")
    assert set(found) == set(names)
    for place, name in enumerate(names):
        maps = canonical(images[0]) == place + 1 if task == "segment" else canonical(images[place]) > 0
        for plane, wanted in zip(planes, maps, strict=True):
            frame = found[name].get(plane.SOPInstanceUID)
            assert wanted.sum() == 0 if frame is None else (frame == wanted).all()
    assert any(found.values())
    run(model, source, tmp_path / "again", content="slices", intensity="full")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def test_single_dicom_images_get_one_each_and_bare_ones_a_png(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path
) -> None:
    source, dest = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    tags = {**WHOLE, "PatientID": "P7", "Modality": "CR", "SeriesInstanceUID": "1.2.11", "InstanceNumber": 1}
    (source / "whole.dcm").write_bytes(dicom_bytes(dicom(voxels[0].astype(np.uint16), **tags)))
    (source / "bare.dcm").write_bytes(dicom_bytes(dicom(voxels[0].astype(np.uint16))))
    (source / "cine.dcm").write_bytes(dicom_bytes(dicom(voxels[:3].astype(np.uint16))))
    run(make_model("segment"), source, dest)
    rows = {(row["file"], row["number"]): row for row in table(dest)}
    assert rows["whole.dcm", ""]["mask"] == "masks/whole.seg.dcm"
    assert rows["bare.dcm", ""]["mask"] == "masks/bare.png" and "lacks" in rows["bare.dcm", ""]["note"]
    assert [rows["cine.dcm", str(n)]["mask"] for n in range(3)] == [f"masks/cine-000{n}.png" for n in range(3)]
    _, found = segments_of(dest / "masks" / "whole.seg.dcm")
    same = np.asarray(Image.open(dest / "masks" / "bare.png"))
    for place, name in enumerate(("right", "left", "heart")):
        frames = list(found[name].values())
        assert (frames[0] == (same == place + 1)).all() if frames else not (same == place + 1).any()
    with pytest.raises(RequestError, match="a DICOM-SEG repeats whose its images are: give --masks plain"):
        run(make_model("segment"), source, tmp_path / "keys", names="keys")


def test_without_highdicom_it_is_said_what_to_install(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "series", slices(voxels))
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'dira-dist\[seg\]', or give --masks plain"):
        run(make_model("segment"), tmp_path / "series", tmp_path / "out")
    run(make_model("segment"), tmp_path / "series", tmp_path / "plain", masks="plain")
    assert len(list((tmp_path / "plain" / "masks").glob("*.png"))) == 5


def test_patients_and_studies_of_dicom_are_pooled_by_salted_keys(
    make_model: MakeModel, voxels: np.ndarray, tmp_path: Path
) -> None:
    for number in range(4):
        tags = {"PatientID": f"P{number // 2}", "StudyInstanceUID": f"1.2.{number}"}
        write(tmp_path / "images", [dicom(voxels[0].astype(np.uint16) + number, **tags)], name=f"a{number}-")
    for pool, count in (("patient", 2), ("study", 4)):
        run(make_model("findings"), tmp_path / "images", tmp_path / pool, pool=pool)
        pooled = table(tmp_path / pool, "pooled")
        assert len(pooled) == count and all(len(row["group"]) == 20 for row in pooled)


def test_a_tilted_series_gets_a_volume_moved_upright(make_model: MakeModel, voxels: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path / "series", slices(voxels, shift_mm=0.8, **WHOLE))
    run(make_model("segment"), tmp_path / "series", tmp_path / "out", content="slices")
    (row,) = table(tmp_path / "out")
    assert row["mask"] == "masks/im000.nii.gz" and "tilted" in row["note"]
    assert nibabel.load(tmp_path / "out" / row["mask"]).shape[1] > 40
    assert io.BytesIO((tmp_path / "out" / row["mask"]).read_bytes()).read(2) == b"\x1f\x8b"
