"""DICOM series to volumes: one regular stack each, or refused by name; and which objects are no samples at all."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from deadly import deadly_settle
from dicom_files import (
    CAPTURE,
    CT,
    DOSE,
    ENHANCED_CT,
    SEGMENTATION,
    ULTRASOUND_CINE,
    dicom,
    dicom_bytes,
    enhanced,
    item,
    slices,
    write,
)
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, shard, work
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store

RANDOM = np.random.default_rng(0)
BODY = RANDOM.integers(-1000, 2000, (8, 12, 10)).astype(np.int16)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

Sample = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Shards ``tmp_path/src`` and returns the report and the samples: arrays and records."""
    (tmp_path / "salt").write_text("0123456789abcdef")

    def go(**options: Any) -> tuple[ShardReport, list[Sample]]:
        usual = {"salt_file": str(tmp_path / "salt"), "processes": 1, "overwrite": True, "image_size": None}
        report = shard(tmp_path / "src", tmp_path / "set", ShardOptions(**(usual | options)))
        return report, [sample for part in report.parts.values() for sample in read(part.address)]

    return go


def read(address: str) -> list[Sample]:
    found = []
    for info in read_index(address).shards:
        for key, members in read_shard(open_store(address), info.name):
            array = np.load(io.BytesIO(members["npy"])) if "npy" in members else _picture(members["png"])
            mask = members.get("mask.npy")
            found.append(
                {"key": key, "image": array, "mask": mask and np.load(io.BytesIO(mask)), **json.loads(members["json"])}
            )
    return found


def _picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def volumes(found: list[Sample]) -> list[np.ndarray]:
    return sorted((sample["image"] for sample in found), key=lambda image: (len(image), float(image.astype(int).sum())))


def told(report: ShardReport) -> str:
    return "\n".join([*report.warnings, *(note.text for note in report.notes)])


def reasons(report: ShardReport) -> str:
    return "\n".join(skipped.reason for skipped in report.skipped)


# --------------------------------------------------------------------------- plain series


def test_a_shuffled_series_is_sorted_by_place_and_keeps_its_unit(tmp_path: Path, run: Any) -> None:
    planes = slices(BODY + 1024, RescaleSlope="1", RescaleIntercept="-1024")
    write(tmp_path / "src", [planes[number] for number in (3, 0, 5, 7, 1, 6, 4, 2)])
    report, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], BODY) and sample["image"].dtype == np.int16
    assert sample["spacing_mm"] == [2.5, 0.7, 0.6] and sample["modality"] == "CT"
    assert sample["spacing_from"] == "ImagePositionPatient and PixelSpacing" and not report.notes


@pytest.mark.parametrize(
    ("cosines", "expected", "spacing"),
    [
        (SAGITTAL, BODY.transpose(1, 2, 0)[::-1, :, ::-1], [0.7, 0.6, 2.5]),
        (CORONAL, BODY.transpose(1, 0, 2)[::-1, :, :], [0.7, 2.5, 0.6]),
    ],
    ids=["sagittal", "coronal"],
)
def test_series_of_other_planes_are_turned(
    tmp_path: Path, run: Any, cosines: Any, expected: np.ndarray, spacing: list[float]
) -> None:
    write(tmp_path / "src", slices(BODY, cosines=cosines))
    _, (sample,) = run(content="volumes")
    if cosines is CORONAL:  # its normal runs towards the back
        expected = BODY.transpose(1, 0, 2)[::-1]
    assert np.array_equal(sample["image"], expected) and sample["spacing_mm"] == spacing


def test_the_affine_leads_back_to_the_patient(tmp_path: Path, run: Any) -> None:
    """A voxel's place by the stored affine is that of its pixel by the DICOM header (PS3.3, C.7.6.2.1.1)."""
    oblique = (*np.array([0.8, 0.6, 0.0]), *np.array([-0.36, 0.48, -0.8]))
    planes = slices(BODY, cosines=oblique, start_mm=17)
    write(tmp_path / "src", planes)
    _, (sample,) = run(content="volumes")
    affine = np.array(sample["affine_ras_mm"])
    for number, row, column in ((0, 0, 0), (3, 5, 7), (7, 11, 9)):
        plane = planes[number]
        along, down = np.array(oblique[:3]) * 0.6, np.array(oblique[3:]) * 0.7
        lps = np.array(plane.ImagePositionPatient, dtype=float) + along * column + down * row
        index = np.argwhere(sample["image"] == BODY[number, row, column])
        places = (np.c_[index, np.ones(len(index))] @ affine.T)[:, :3]
        assert np.abs(places - lps * [-1, -1, 1]).sum(axis=1).min() < 1e-3


def test_slopes_of_each_slice_and_padding(tmp_path: Path, run: Any) -> None:
    values = np.abs(BODY)
    values[:, :, 0] = -2000
    planes = slices(values, PixelPaddingValue=-2000)
    for number, plane in enumerate(planes):
        plane.RescaleSlope, plane.RescaleIntercept = 1 + number * 0.5, 0
    write(tmp_path / "src", planes)
    _, (sample,) = run(content="volumes")
    expected = values * (1 + np.arange(8)[:, None, None] * 0.5)
    expected[:, :, 0] = expected[:, :, 1:].min()
    assert np.allclose(sample["image"], expected)


# ------------------------------------------------------------------------- enhanced objects


def _groups(count: int, cosines: Any = (1.0, 0, 0, 0, 1, 0), step_mm: float = 5.0, **each: Any) -> list[Any]:
    normal = np.cross(cosines[:3], cosines[3:])
    places = [[float(value) for value in normal * step_mm * number] for number in range(count)]
    return [item(PlanePositionSequence=item(ImagePositionPatient=place), **each) for place in places]


def _shared(cosines: Any = (1.0, 0, 0, 0, 1, 0), **more: Any) -> Any:
    return item(
        PixelMeasuresSequence=item(PixelSpacing=[0.7, 0.6]),
        PlaneOrientationSequence=item(ImageOrientationPatient=[float(value) for value in cosines]),
        **more,
    )


def test_an_enhanced_object_is_read_by_its_functional_groups(tmp_path: Path, run: Any) -> None:
    rescale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    order = [4, 2, 7, 0, 1, 3, 6, 5]
    each = _groups(8, SAGITTAL)
    shared = _shared(SAGITTAL, PixelValueTransformationSequence=rescale)
    write(tmp_path / "src", [enhanced(BODY[order] + 1024, shared, [each[number] for number in order])])
    _, frames = run()  # as images
    assert len(frames) == 8 and all(frame["pixel_spacing_mm"] == [0.7, 0.6] for frame in frames)
    _, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], BODY.transpose(1, 2, 0)[::-1, :, ::-1])
    assert sample["spacing_mm"] == [0.7, 0.6, 5.0]


def test_slopes_of_each_frame(tmp_path: Path, run: Any) -> None:
    each = _groups(8)
    for number, groups in enumerate(each):
        groups.PixelValueTransformationSequence = [item(RescaleSlope=1 + number, RescaleIntercept=0)]
    write(tmp_path / "src", [enhanced(np.abs(BODY), _shared(), each)])
    _, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], np.abs(BODY).astype(int) * np.arange(1, 9)[:, None, None])


def test_three_planes_of_one_object_are_three_stacks(tmp_path: Path, run: Any) -> None:
    square = BODY[:, :8, :8]
    each = []
    for cosines in ((1.0, 0, 0, 0, 1, 0), SAGITTAL, CORONAL):
        turn = item(ImageOrientationPatient=[float(value) for value in cosines])
        each += _groups(3, cosines, PlaneOrientationSequence=turn)
    frames = np.concatenate([square, square])[:9]
    write(tmp_path / "src", [enhanced(frames, item(PixelMeasuresSequence=item(PixelSpacing=[1, 1])), each)])
    _, found = run(content="volumes")
    assert sorted(sample["image"].shape for sample in found) == [(3, 8, 8), (8, 3, 8), (8, 8, 3)]


# ---------------------------------------------------------- what is not one regular stack


def test_two_patients_under_one_series_uid_are_two_volumes(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src" / "a", slices(BODY))
    write(tmp_path / "src" / "b", slices(BODY + 50, PatientID="P2"))
    report, found = run(content="volumes")
    assert [np.array_equal(*pair) for pair in zip(volumes(found), (BODY, BODY + 50), strict=True)] == [True, True]
    assert "files of 2 patients" in told(report) and len({sample["split_group"] for sample in found}) == 2


def test_a_series_without_uid_is_that_of_its_folder(tmp_path: Path, run: Any) -> None:
    for folder in ("a", "b"):
        write(tmp_path / "src" / folder, slices(BODY, SeriesInstanceUID=""))
    report, found = run(content="volumes")
    assert [len(sample["image"]) for sample in found] == [8, 8] and "names no series" in told(report)


@pytest.mark.parametrize("scout", [BODY[:1], BODY[:1, :6, :7]], ids=["same size", "another size"])
def test_a_scout_in_a_series_is_left_out_by_name(tmp_path: Path, run: Any, scout: np.ndarray) -> None:
    write(tmp_path / "src", [*slices(BODY), *slices(scout, cosines=SAGITTAL)])
    report, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], BODY)
    assert [skipped.file for skipped in report.skipped] == ["im008.dcm"] and "1 plane, of 9" in reasons(report)


def test_a_series_is_cut_at_its_gap_and_the_numbers_are_told(tmp_path: Path, run: Any) -> None:
    planes = slices(BODY)
    write(tmp_path / "src", planes[:3] + planes[5:])
    report, found = run(content="volumes")
    expected = sorted((BODY[:3], BODY[5:]), key=lambda part: float(part.astype(int).sum()))
    assert [np.array_equal(*pair) for pair in zip(volumes(found), expected, strict=True)] == [True, True]
    assert all(sample["spacing_mm"] == [2.5, 0.7, 0.6] for sample in found)
    assert "gap of 7.5 mm after 5 mm, where 2 slices are missing; the usual step is 2.5 mm" in told(report)


def test_uneven_steps_are_refused_within_a_tolerance_of_the_users_own(tmp_path: Path, run: Any) -> None:
    planes = slices(BODY)
    for plane, place in zip(planes, (0, 2.5, 5.3, 7.5, 10.2, 12.5, 15.3, 17.5), strict=True):
        plane.ImagePositionPatient = [0, 0, place]
    write(tmp_path / "src", planes)
    with pytest.raises(RequestError, match=r"not evenly spaced: steps of 2.2 to 2.8 mm"):
        run(content="volumes")
    _, (sample,) = run(content="volumes", spacing_tolerance=0.15)
    assert sample["spacing_mm"] == [2.5, 0.7, 0.6] and np.array_equal(sample["image"], BODY)


def test_two_acquisitions_that_overlap_are_two_stacks(tmp_path: Path, run: Any) -> None:
    lower = slices(BODY, AcquisitionNumber=1)
    upper = slices(BODY + 50, start_mm=16.0, AcquisitionNumber=2)
    write(tmp_path / "src", [*upper, *lower])
    report, found = run(content="volumes")
    assert [np.array_equal(*pair) for pair in zip(volumes(found), (BODY, BODY + 50), strict=True)] == [True, True]
    assert "told apart by acquisition" in told(report) and "gap" not in told(report)


def test_a_mosaic_is_no_slice(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src", slices(BODY, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]))
    with pytest.raises(RequestError, match="it is a mosaic"):
        run(content="volumes")


def test_a_dose_grid_lies_where_its_offsets_say(tmp_path: Path, run: Any) -> None:
    grid = {"ImagePositionPatient": [0, 0, -4], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [3, 2]}
    offsets = [float(5 * number) for number in range(8)]
    dose = dicom(np.abs(BODY).astype(np.uint32), DOSE, Modality="RTDOSE", GridFrameOffsetVector=offsets, **grid)
    write(tmp_path / "src", [dose, *slices(BODY)])
    _, found = run(content="volumes", include=("dose",))
    assert sorted(sample["spacing_mm"] for sample in found) == [[2.5, 0.7, 0.6], [5.0, 3.0, 2.0]]


def test_copies_of_slices_are_kept_once(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src", [*slices(BODY), *slices(BODY)[2:5]])
    report, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], BODY) and "3 planes stand there twice" in told(report)


MARKED: dict[str, Any] = {
    "TemporalPositionIdentifier": lambda time: time + 1,
    "EchoTime": lambda time: 10.0 * (time + 1),
    "DiffusionBValue": lambda time: 500.0 * time,
    "AcquisitionNumber": lambda time: time + 1,
    "AcquisitionTime": lambda time: f"12000{time}",
}


@pytest.mark.parametrize("tag", MARKED)
def test_time_points_echoes_and_b_values_are_volumes_of_their_own(tmp_path: Path, run: Any, tag: str) -> None:
    planes = [
        (number, plane)
        for time in range(3)
        for number, plane in enumerate(slices(BODY + 100 * time, **{tag: MARKED[tag](time)}))
    ]
    order = RANDOM.permutation(len(planes))
    write(tmp_path / "src", [planes[index][1] for index in order])
    _, found = run(content="volumes")
    pairs = zip(volumes(found), (BODY, BODY + 100, BODY + 200), strict=True)
    assert [np.array_equal(*pair) for pair in pairs] == [True] * 3


@pytest.mark.parametrize("slowly", [False, True], ids=["volume by volume", "slice by slice"])
def test_time_points_are_told_apart_by_the_order_of_their_numbers(tmp_path: Path, run: Any, slowly: bool) -> None:
    times = [slices(BODY + 100 * time) for time in range(3)]
    for time, planes in enumerate(times):
        for number, plane in enumerate(planes):
            plane.InstanceNumber = 1 + (number * 3 + time if slowly else time * 8 + number)
    planes = [plane for planes in times for plane in planes]
    write(tmp_path / "src", [planes[index] for index in RANDOM.permutation(24)])
    report, found = run(content="volumes")
    assert len(found) == 3 and np.array_equal(volumes(found)[1], BODY + 100)
    assert "told apart by the order" in told(report)


def test_time_points_that_nothing_tells_apart_are_refused(tmp_path: Path, run: Any) -> None:
    planes = [plane for time in range(3) for plane in slices(BODY + 100 * time)]
    write(tmp_path / "src", [planes[index] for index in np.random.default_rng(3).permutation(24)])
    with pytest.raises(RequestError, match="24 planes at 8 places, up to 3 at one"):
        run(content="volumes")


def test_a_tilted_gantry_is_corrected_or_refused(tmp_path: Path, run: Any) -> None:
    """A straight rod along the table: by the tilt it wanders down the slices, corrected it stands still."""
    rod = np.zeros((8, 20, 6), np.int16)
    for number in range(8):
        rod[number, 12 - number, 3] = 1000
    write(tmp_path / "src", slices(rod, shift_mm=0.7))
    report, (sample,) = run(content="volumes")
    assert "tilted by 15.6 degrees" in told(report) and sample["tilt_corrected_deg"] == pytest.approx(15.64, abs=0.01)
    rows = [int(plane.sum(axis=1).argmax()) for plane in sample["image"]]
    assert len(set(rows)) == 1 and (sample["image"].max(axis=(1, 2)) == 1000).all()
    assert sample["image"].shape[1] == 27  # nothing is cut off
    with pytest.raises(RequestError, match=r"tilted by 15\.6 degrees"):
        run(content="volumes", tilt="refuse")


def test_cines_radiographs_and_single_planes_are_no_volumes(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src" / "ct", slices(BODY))
    cine = dicom(np.abs(BODY).astype(np.uint16), ULTRASOUND_CINE, Modality="US", SeriesInstanceUID="1.2.8")
    film = dicom(BODY[0], Modality="CR", ImagerPixelSpacing=[0.1, 0.1], SeriesInstanceUID="1.2.9")
    write(tmp_path / "src" / "flat", [cine, film, *slices(BODY[:1], SeriesInstanceUID="1.2.10")])
    report, found = run(content="volumes")
    assert len(found) == 1 and len(report.skipped) == 3
    assert all(word in reasons(report) for word in ("a cine or rotation", "as of a radiograph", "1 plane"))


def test_a_spacing_that_is_not_known_is_null(tmp_path: Path, run: Any) -> None:
    planes = slices(BODY)
    for plane in planes:
        del plane.PixelSpacing
    write(tmp_path / "src", planes)
    report, (sample,) = run(content="volumes")
    assert sample["spacing_mm"] == [2.5, None, None] and sample["affine_ras_mm"] is None
    assert "no pixel spacing" in told(report)
    for plane in planes:
        plane.ImagerPixelSpacing = [0.1, 0.2]
    write(tmp_path / "src", planes)
    _, (sample,) = run(content="volumes")
    assert sample["spacing_mm"] == [2.5, 0.1, 0.2] and "ImagerPixelSpacing" in sample["spacing_from"]


def test_a_damaged_slice_is_named_not_the_first_of_its_series(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src" / "a", slices(BODY))
    write(tmp_path / "src" / "b", slices(BODY, SeriesInstanceUID="1.2.9"))
    damaged = tmp_path / "src" / "a" / "im005.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    report, found = run(content="volumes")
    assert len(found) == 1 and [skipped.file for skipped in report.skipped] == ["a/im005.dcm"]


def test_a_volume_beyond_the_budget_is_named_and_not_decoded(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src" / "a", slices(BODY))
    write(tmp_path / "src" / "b", slices(np.zeros((8, 300, 300), np.int16), SeriesInstanceUID="1.2.9"))
    report, found = run(content="volumes", volume_budget_gib=0.001)
    assert len(found) == 1 and "8 x 300 x 300 voxels" in reasons(report)


def test_real_series_of_pydicom(tmp_path: Path, run: Any) -> None:
    """Localizers, rotated projections and scouts are no volumes; five CT slices are one, and three of four others."""
    folder = Path(str(get_testdata_file("DICOMDIR"))).parent
    (tmp_path / "src").symlink_to(folder, target_is_directory=True)
    report, found = run(content="volumes")
    assert sorted((len(sample["image"]), sample["spacing_mm"][0]) for sample in found) == [(3, 1.25), (5, 2.5)]
    assert "gap of 202.5 mm" in told(report)


# --------------------------------------------------------------- one grey for one tissue


def test_slices_of_a_series_share_a_scale(tmp_path: Path, run: Any) -> None:
    values = np.stack([BODY[0] // 4, BODY[0]])
    write(tmp_path / "src", slices(values))
    for rule in ("full", "window", "percentiles:1,99"):
        report, found = run(intensity=rule)
        scales = [sample["intensity"] for sample in found]
        assert scales[0] == scales[1] and report.samples == 2
    low, high = values.min(), values.max()
    _, found = run(intensity="full")
    for sample, plane in zip(sorted(found, key=lambda s: s["image"].std()), values, strict=True):
        assert np.abs(sample["image"] / 65535 - (plane.astype(float) - low) / (high - low)).max() < 1e-4


def test_a_series_that_ends_the_process_that_measures_it_goes_without_a_common_scale(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "settle", deadly_settle)
    values = np.stack([BODY[0] // 4, BODY[0]])
    for folder in ("a", "deadly", "z"):
        write(tmp_path / "src" / folder, slices(values, SeriesInstanceUID=pydicom.uid.generate_uid()))
    report, found = run(intensity="full", processes=2)
    assert report.samples == 6 and not report.skipped
    (note,) = report.notes
    assert "deadly" in note.file and "each file of the series has a scale of its own" in note.text
    scales = [json.dumps(sample["intensity"]) for sample in found]
    assert sorted(map(scales.count, set(scales))) == [1, 5], "the whole range, and that of the weaker slice alone"


def test_slices_with_windows_of_their_own_take_the_middle_one(tmp_path: Path, run: Any) -> None:
    planes = slices(np.stack([BODY[0]] * 3))
    for plane, (centre, width) in zip(planes, ((40, 400), (-600, 1500), (50, 350)), strict=True):
        plane.WindowCenter, plane.WindowWidth = centre, width
    write(tmp_path / "src", planes)
    _, found = run()
    assert all(sample["intensity"] == {"by": "window", "center": 40, "width": 400} for sample in found)
    assert all((sample["image"] == found[0]["image"]).all() for sample in found)


def test_kinds_of_images_in_one_series_keep_scales_of_their_own(tmp_path: Path, run: Any) -> None:
    """Magnitude and phase of an MR are unlike quantities."""
    kinds = {"M": BODY[:2], "P": BODY[:2] // 10}
    planes = [p for kind, part in kinds.items() for p in slices(part, ImageType=["ORIGINAL", "PRIMARY", kind])]
    write(tmp_path / "src", planes)
    _, found = run(intensity="full")
    assert len({(tuple(sample["image_type"]), sample["intensity"]["high"]) for sample in found}) == 2


def test_radiographs_of_one_series_keep_windows_of_their_own(tmp_path: Path, run: Any) -> None:
    films = [dicom(BODY[0], Modality="CR", SeriesInstanceUID="1.2", WindowCenter=c, WindowWidth=900) for c in (0, 500)]
    write(tmp_path / "src", films)
    _, found = run()
    assert {sample["intensity"]["center"] for sample in found} == {0, 500}


# -------------------------------------------------------------------- what is no sample


def _archive(folder: Path) -> None:
    bits = np.packbits((BODY[0] > 0).ravel(), bitorder="little")
    segmentation = dicom(np.zeros((12, 10), np.uint8), SEGMENTATION, Modality="SEG")
    segmentation.BitsAllocated = segmentation.BitsStored = 1
    segmentation.HighBit, segmentation.PixelData = 0, bits.tobytes() + bytes(len(bits) % 2)
    axial = dicom(BODY[0], CT, Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], StudyInstanceUID="1.1")
    localizer = dicom(BODY[1], CT, Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dose = dicom(np.abs(BODY).astype(np.uint32), DOSE, Modality="RTDOSE", DoseGridScaling="0.1")
    capture = dicom(BODY[2], CAPTURE, Modality="CT", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    shown = dicom(BODY[3], Modality="MG", StudyInstanceUID="1.5", PresentationIntentType="FOR PRESENTATION")
    raw = dicom(BODY[4], Modality="MG", StudyInstanceUID="1.5", PresentationIntentType="FOR PROCESSING")
    write(folder, [axial, localizer, segmentation, dose, capture, shown, raw])


def test_objects_that_are_no_images_are_left_out_by_name_unless_asked_for(tmp_path: Path, run: Any) -> None:
    _archive(tmp_path / "src")
    report, found = run()
    assert sorted(sample["modality"] for sample in found) == ["CT", "MG"] and len(report.skipped) == 5
    for kind in ("localizer", "segmentation", "dose", "report", "for-processing"):
        more, _ = run(include=(kind,))
        frames = 8 if kind == "dose" else 1
        assert more.samples == 2 + frames and f"--include {kind}" in reasons(report), kind
    with pytest.raises(ValueError, match="no kind of"):
        ShardOptions(include=("sr",))


def test_a_raw_image_without_a_twin_is_a_sample_and_so_is_a_source_of_nothing_else(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src", [dicom(BODY[4], Modality="MG", PresentationIntentType="FOR PROCESSING")])
    _, (sample,) = run()
    assert sample["presentation_intent"] == "FOR PROCESSING"
    write(tmp_path / "src", [dicom(np.abs(BODY).astype(np.uint32), DOSE, Modality="RTDOSE")])
    report, found = run()
    assert len(found) == 8 and "nothing but DICOM objects" in told(report)


# --------------------------------------------------------------------- patients


def _of_patients(identifiers: list[str]) -> list[FileDataset]:
    return [dicom(BODY[n % 8], Modality="CR", PatientID=text) for n, text in enumerate(identifiers)]


def test_dicom_is_grouped_by_patient_unless_that_is_refused(tmp_path: Path, run: Any) -> None:
    """Blanks and NULs around an identifier only pad it (PS3.5, LO)."""
    write(tmp_path / "src", _of_patients([" " * (n % 2) + f"P{n // 4:02d}" + " " * (n % 3) for n in range(80)]))
    report, found = run(split={"train": 0.5, "val": 0.5})
    parts = [{sample["split_group"] for sample in read(part.address)} for part in report.parts.values()]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 20
    assert any("PatientID" in line for line in report.lines())
    report, found = run(split={"train": 0.5, "val": 0.5}, group_by="none")
    assert not any("split_group" in sample for sample in found)


def test_identifiers_that_hardly_differ_are_warned_of_without_naming_them(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src", _of_patients(["ab7", "AB7", "0047", "47", "47.0", "48"]))
    report, _ = run()
    warned = [line for line in report.warnings if "leading zeros" in line]
    assert warned and not any(text in "".join(warned) for text in ("ab7", "AB7", "0047"))


def test_images_without_a_patient_are_told_where_they_are_split(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "src", _of_patients(["P1"] * 4 + ["P2"] * 4 + [""] * 20))
    report, found = run(split={"train": 0.5, "val": 0.5})
    assert len(found) == 28 and "20 images name no patient" in told(report)


# --------------------------------------------------------------------- privacy


def test_planted_identities_stay_behind(tmp_path: Path, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    secrets = {
        "PatientName": "LEAK^ANNA",
        "PatientID": "LEAKID",
        "SeriesDescription": "LEAKDESC",
        "StationName": "LEAKSTATION",
        "ViewPosition": "LEAKVP",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "LEAKTYPE"],
        "WindowCenterWidthExplanation": "LEAKWIN",
        "ProtocolName": "LEAKPROT",
        "DeviceSerialNumber": "LEAKSERIAL",
    }
    write(tmp_path / "src", slices(BODY, **secrets))
    shared = _shared(SAGITTAL)
    shared.PixelMeasuresSequence[0].LossyImageCompressionMethod = "LEAKNEST"
    object_ = enhanced(BODY, shared, _groups(8, SAGITTAL))
    object_.PatientName, object_.SeriesInstanceUID = "LEAK^ANNA", "1.2.77"
    write(tmp_path / "src", [object_], "e")
    for options in ({"content": "volumes"}, {"content": "slices"}, {}):
        report, found = run(**options)
        assert found
        stored = b"".join(path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())
        said = report.model_dump_json() + "\n".join(report.lines()) + caplog.text
        assert b"LEAK" not in stored and "LEAK" not in said


def test_a_series_read_from_a_file_without_meta_group(tmp_path: Path, run: Any) -> None:
    (tmp_path / "src").mkdir()
    for number, plane in enumerate(slices(BODY)):
        data = dicom_bytes(plane)
        (tmp_path / "src" / f"IM{number}").write_bytes(data[data.index(b"\x08\x00\x16\x00UI") :])
    _, (sample,) = run(content="volumes")
    assert np.array_equal(sample["image"], BODY)
    assert pydicom.uid.UID(ENHANCED_CT).name == "Enhanced CT Image Storage"
