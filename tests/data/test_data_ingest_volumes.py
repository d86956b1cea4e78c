"""NIfTI, Analyze, NRRD and MetaImage files to volumes, their masks, and their slices as pictures."""

import gzip
import io
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_files import SUPINE, dicom, dicom_bytes, slices, write
from PIL import Image
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.data.ingest.assembly import read_stack
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.greys import read_dicom
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.itk import read_itk
from dira_dist.data.ingest.nifti import read_nifti
from dira_dist.data.ingest.pixels import encode_array
from dira_dist.data.ingest.stacks import Plane, Stack
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store

RANDOM = np.random.default_rng(0)
BODY = RANDOM.integers(-1000, 2000, (5, 6, 7)).astype(np.int16)  # x, y, z in RAS
STEPS = np.diag([2.0, 3.0, 4.0, 1.0])
HERE = np.array([[2.0, 0, 0, -9], [0, 3, 0, 11], [0, 0, 4, 5], [0, 0, 0, 1]])


def spl(ras: np.ndarray) -> np.ndarray:
    """The stored axes (towards head, back, left) of an array in RAS."""
    return np.ascontiguousarray(ras.transpose(2, 1, 0)[:, ::-1, ::-1])


def nifti(values: np.ndarray, affine: np.ndarray | None = STEPS, **header: Any) -> bytes:
    image = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    return image.to_bytes()


# ------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("packed", [False, True])
def test_axes_run_to_head_back_and_left(packed: bool) -> None:
    data = nifti(BODY)
    volume = read_nifti([gzip.compress(data) if packed else data])
    assert np.array_equal(volume.voxels, spl(BODY)) and volume.voxels.dtype == np.int16
    assert volume.spacing_mm == (4, 3, 2) and not volume.notes
    assert volume.tags == {"spacing_from": "sform", "orientation_from": "sform"}


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_the_affine_leads_back_to_the_patient_whatever_the_order_of_the_file(codes: str) -> None:
    image = nibabel.Nifti1Image(BODY, HERE)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(HERE), nibabel.orientations.axcodes2ornt(codes)
    )
    volume = read_nifti([image.as_reoriented(turn).to_bytes()])
    assert np.array_equal(volume.voxels, spl(BODY)) and volume.affine is not None
    for index in np.ndindex(BODY.shape):
        (place,) = np.argwhere(volume.voxels == BODY[index])[:1]
        if (BODY[index] == BODY).sum() == 1:
            assert np.allclose(volume.affine @ [*place, 1], HERE @ [*index, 1])


def _forms(sform: np.ndarray | None, qform: np.ndarray | None, pixdim: tuple[float, ...] | None = None) -> bytes:
    image = nibabel.Nifti1Image(BODY, None)
    if qform is not None:
        image.set_qform(qform, 1)
    if sform is not None:
        image.set_sform(sform, 1)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    return image.to_bytes()


TURNED = STEPS @ np.diag([-1.0, -1.0, 1.0, 1.0])
GEOMETRIES: dict[str, tuple[bytes, Any, str | None, str]] = {
    "qform alone": (_forms(None, STEPS), (4, 3, 2), "qform", ""),
    "sform of bare turns": (_forms(np.eye(4), STEPS), (4, 3, 2), "pixdim", "1 x 1 x 1, its pixdim says 2 x 3 x 4"),
    "sform of bare turns, no qform": (_forms(np.eye(4), None, (2, 3, 4)), (4, 3, 2), "pixdim", "of the sform its dir"),
    "pixdim that was never set": (_forms(STEPS, None, (1, 1, 1)), (4, 3, 2), "sform", "the sform is believed"),
    "sform of another space": (_forms(STEPS * [1.1, 1.1, 1.1, 1], STEPS), (4, 3, 2), "pixdim", "qform, with the steps"),
    "forms turned against each other": (_forms(STEPS, TURNED), (4, 3, 2), "sform", "turned against each other"),
    "nothing set but sizes": (_forms(None, None, (2, 3, 4)), (4, 3, 2), "pixdim", "orientation is not known"),
    "nothing set, the sform no numbers": (
        nifti(BODY, STEPS)[:280] + struct.pack("<f", np.nan) + nifti(BODY, STEPS)[284:],
        (4, 3, 2),
        "pixdim",
        "orientation is not known",
    ),
    "nothing set": (_forms(None, None, (0, 0, 0)), (None, None, None), None, "how large a voxel is"),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_contradictions_and_gaps_of_a_header_are_told(name: str) -> None:
    data, spacing, source, note = GEOMETRIES[name]
    volume = read_nifti([data])
    assert volume.spacing_mm == spacing and volume.tags["spacing_from"] == source
    assert (note in "; ".join(volume.notes)) if note else not volume.notes
    assert (volume.affine is None) == ("nothing" in name)


@pytest.mark.parametrize(("unit", "steps"), [("micron", (2000, 3000, 4000)), ("meter", (0.002, 0.003, 0.004))])
def test_units_become_millimetres(unit: str, steps: tuple[float, ...]) -> None:
    image = nibabel.Nifti1Image(BODY, np.diag([*steps, 1]))
    image.header.set_xyzt_units(unit)
    assert read_nifti([image.to_bytes()]).spacing_mm == pytest.approx((4, 3, 2))


# -------------------------------------------------------------------------------- values


def _scaled(slope: float, intercept: float) -> bytes:
    data = bytearray(nifti(BODY))
    data[112:120] = struct.pack("<ff", slope, intercept)
    return bytes(data)


def test_values_keep_their_unit_in_the_smallest_type_that_holds_them() -> None:
    assert np.array_equal(read_nifti([_scaled(1, -24)]).voxels, spl(BODY.astype(int) - 24))
    half = read_nifti([_scaled(-0.5, 10)]).voxels
    assert np.array_equal(half, spl(BODY * -0.5 + 10)) and half.dtype == np.float32
    kinds = [(np.abs(BODY) % 200, np.uint8), (BODY, np.int16), (np.abs(BODY.astype(int)) * 20, np.uint16)]
    kinds += [(BODY.astype(np.int32) * 1000, np.float32), (BODY.astype(np.int32) * 1_000_003 // 7, np.float64)]
    for values, kind in kinds:
        stored = read_nifti([nifti(values.astype(np.float64))]).voxels
        assert stored.dtype == kind and np.array_equal(stored, spl(values))


def test_numbers_beyond_float32_and_none_at_all() -> None:
    large = read_nifti([nifti(BODY * 1e37)]).voxels
    assert large.dtype == np.float64 and np.array_equal(large, spl(BODY * 1e37))
    holes = BODY.astype(np.float32)
    holes[:2] = np.nan
    volume = read_nifti([nifti(holes)])
    assert (
        np.array_equal(volume.voxels, spl(np.nan_to_num(holes))) and "84 voxels that are no numbers" in volume.notes[0]
    )


HUGE = struct.pack("<4h", 3, 4000, 4000, 4000)  # the header's dim
REFUSED: dict[str, tuple[bytes, str]] = {
    "time points": (nifti(np.stack([BODY, BODY], -1)), r"\(5, 6, 7, 2\).*one time point"),
    "a flat image": (nifti(BODY[:, :, 0]), "three dimensions"),
    "complex": (nifti(BODY.astype(np.complex64)), "complex64"),
    "cut off": (nifti(BODY)[:-40], "cut off"),
    "cut off gzip": (gzip.compress(nifti(BODY))[:-30], "gzip stream is cut off"),
    "no NIfTI": (bytes(500), "no NIfTI"),
    "over the budget": (nifti(BODY)[:40] + HUGE + nifti(BODY)[48:], "more than the budget of 2 GiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(UnreadableError, match=reason):
        read_nifti([data])


def test_colours_are_refused_in_words() -> None:
    colours = np.zeros(BODY.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UnreadableError, match="colours"):
        read_nifti([nibabel.Nifti1Image(colours, STEPS).to_bytes()])


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(nifti(np.zeros((40, 40, 40), np.uint8)) + bytes(50_000_000))
    assert read_nifti([bomb]).voxels.shape == (40, 40, 40)  # what follows the voxels stays packed
    with pytest.raises(UnreadableError, match="raise --volume-budget-gib"):
        read_nifti([gzip.compress(nifti(np.zeros((90, 90, 90), np.uint8)))], budget_bytes=1 << 20)


# ------------------------------------------------------------------------- whole runs


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "salt").write_text("0123456789abcdef")
    (tmp_path / "src").mkdir()
    (tmp_path / "masks").mkdir()

    def go(**options: Any) -> tuple[ShardReport, list[dict[str, Any]]]:
        usual = {"salt_file": str(tmp_path / "salt"), "processes": 1, "overwrite": True, "image_size": None}
        report = shard(tmp_path / "src", tmp_path / "set", ShardOptions(**(usual | options)))
        found = []
        for info in read_index(str(tmp_path / "set")).shards:
            for key, members in read_shard(open_store(str(tmp_path / "set")), info.name):
                arrays = {name.partition(".")[0]: _array(data) for name, data in members.items() if name != "json"}
                image = _array(members["npy"] if "npy" in members else members["png"])
                found.append({**json.loads(members["json"]), **arrays, "image": image, "key": key})
        return report, found

    return go


def _array(data: bytes) -> np.ndarray:
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_set_has_the_type_that_holds_all_its_volumes(tmp_path: Path, run: Any) -> None:
    for name, values in {"a": BODY, "b": BODY * 1e37}.items():
        (tmp_path / "src" / f"{name}.nii").write_bytes(nifti(values))
    _, found = run()
    assert {sample["image"].dtype.name for sample in found} == {"int16", "float64"}
    assert read_index(str(tmp_path / "set")).image.dtype == "float64"


def test_pairs_of_header_and_voxels(tmp_path: Path, run: Any) -> None:
    nibabel.save(nibabel.Nifti1Pair(BODY, STEPS), tmp_path / "src" / "a.hdr")
    _, (sample,) = run()
    assert np.array_equal(sample["image"], spl(BODY)) and sample["spacing_mm"] == [4, 3, 2]
    nibabel.AnalyzeImage(BODY[:4], STEPS).to_filename(tmp_path / "src" / "a.hdr")
    report, (sample,) = run()
    assert sample["spacing_mm"] == [4, 3, 2] and sample["affine_ras_mm"] is None
    assert "orientation is not known" in report.notes[0].text
    (tmp_path / "src" / "a.img").unlink()
    with pytest.raises(RequestError, match=r"other half, of the same name with the suffix \.img, is not there"):
        run()


@pytest.mark.parametrize("row", ["scan", "scan.hdr", "scan.img", "deep/scan.img"])
def test_a_row_means_a_pair_by_either_of_its_files(tmp_path: Path, run: Any, row: str) -> None:
    (tmp_path / "src" / "deep").mkdir()
    nibabel.save(nibabel.Nifti1Pair(BODY, STEPS), tmp_path / "src" / "deep" / "scan.hdr")
    (tmp_path / "labels.csv").write_text(f"image,label\n{row},mass\n")
    report, (sample,) = run(labels=str(tmp_path / "labels.csv"))
    assert sample["labels"] == {"label": "mass"} and not report.unmatched and not report.unlabelled


def test_a_second_row_of_a_pair_is_told_of(tmp_path: Path, run: Any) -> None:
    nibabel.save(nibabel.Nifti1Pair(BODY, STEPS), tmp_path / "src" / "scan.hdr")
    (tmp_path / "labels.csv").write_text("image,label\nscan,mass\nscan.img,none\n")
    report, (sample,) = run(labels=str(tmp_path / "labels.csv"))
    assert sample["labels"] == {"label": "none"} and report.unmatched == {"labels.csv": ("scan",)}


def test_a_name_that_a_pair_shares_with_another_file_is_refused(tmp_path: Path, run: Any) -> None:
    """Unless another row tells what the pair is called."""
    nibabel.save(nibabel.Nifti1Pair(BODY, STEPS), tmp_path / "src" / "scan.hdr")
    (tmp_path / "src" / "scan.nii").write_bytes(nifti(BODY))
    (tmp_path / "labels.csv").write_text("image,label\nscan,mass\n")
    with pytest.raises(RequestError, match=r"'scan' could be any of 2 files"):
        run(labels=str(tmp_path / "labels.csv"))
    (tmp_path / "labels.csv").write_text("image,label\nscan.img,mass\nscan.nii,none\n")
    _, found = run(labels=str(tmp_path / "labels.csv"))
    assert sorted(sample["labels"]["label"] for sample in found) == ["mass", "none"]


@pytest.mark.parametrize("content", ["volumes", "images"])
def test_boxes_of_a_volume_are_left_out_with_a_word(tmp_path: Path, run: Any, content: str) -> None:
    for name in "ab":
        (tmp_path / "src" / f"{name}.nii").write_bytes(nifti(BODY))
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\na.nii,1,1,2,2\nb.nii,,,,\n")
    report, found = run(content=content, boxes=str(tmp_path / "boxes.csv"))
    assert not any(sample["boxes"] for sample in found)
    (note,) = (note for note in report.notes if "boxes" in note.text)
    assert note.file == "a.nii" and "they are left out" in note.text


@pytest.mark.parametrize("name", ["p", "p/im001.dcm"])
def test_boxes_of_a_series_are_left_out_with_a_word_whatever_they_call_it(tmp_path: Path, run: Any, name: str) -> None:
    write(tmp_path / "src" / "p", slices(BODY))
    (tmp_path / "boxes.csv").write_text(f"image,x,y,width,height\n{name},1,1,2,2\n")
    report, _ = run(content="volumes", boxes=str(tmp_path / "boxes.csv"))
    assert any("its boxes belong to: they are left out" in note.text for note in report.notes)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage(tmp_path: Path, run: Any, suffix: str) -> None:
    sitk: Any = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    image = sitk.GetImageFromArray(BODY[::-1, ::-1].transpose(2, 1, 0))
    image.SetSpacing((2, 3, 4))
    image.SetOrigin((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "src" / f"a{suffix}"))
    _, (sample,) = run()
    assert np.array_equal(sample["image"], spl(BODY)) and sample["spacing_mm"] == [4, 3, 2]
    assert np.allclose(np.array(sample["affine_ras_mm"])[:3, 3], [-1, -2, 3])


def test_a_metaimage_may_not_name_another_file() -> None:
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    with pytest.raises(UnreadableError, match="stand in another file"):
        read_itk(header + b"/etc/hostname\n" + bytes(8), ".mha")
    with pytest.raises(UnreadableError, match="stand in another file"):
        read_itk(b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\ndata file: /etc/hostname\n\n", ".nrrd")


# -------------------------------------------------------------------------------- memory


def _peak_bytes(work: Callable[[], Any]) -> int:
    work()  # imports
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_volume_takes_no_more_than_four_times_its_size() -> None:
    """With a slope, which makes float64 of every voxel that is read; the file itself lies in memory before."""
    values = RANDOM.integers(0, 2000, (64, 256, 256)).astype(np.int16)
    plain = bytearray(nifti(values))
    plain[112:120] = struct.pack("<ff", 1, -1024)
    for data in (bytes(plain), gzip.compress(bytes(plain), 1)):
        peak = _peak_bytes(lambda data=data: encode_array(read_nifti([data]).voxels))  # type: ignore[misc]
        assert peak + len(data) < 4 * values.nbytes
    planes = {f"{number}": dicom_bytes(plane) for number, plane in enumerate(slices(values, RescaleIntercept="-1024"))}
    placed = [Plane(f"{n}", 0, 256, 256, (0.0, 0.0, float(n)), SUPINE, (1.0, 1.0)) for n in range(64)]
    peak = _peak_bytes(lambda: encode_array(read_stack(Stack(tuple(placed), 1.0), planes.__getitem__).voxels))
    assert peak < 4 * values.nbytes


def test_frames_of_a_cine_are_decoded_one_by_one() -> None:
    data = dicom_bytes(dicom(RANDOM.integers(0, 2000, (150, 256, 256)).astype(np.uint16), Modality="XA"))
    rule = parse_intensity("full")
    assert _peak_bytes(lambda: [picture.pixels[0, 0] for picture in read_dicom(data, rule)]) < len(data) // 2


# --------------------------------------------------------------------------------- masks


def _mask(values: np.ndarray, affine: np.ndarray) -> bytes:
    return nifti(values.astype(np.uint8), affine)


ORGAN = (BODY > 500).astype(np.uint8)
FLIPPED = np.array([[-2.0, 0, 0, -1], [0, -3, 0, 26], [0, 0, 4, 5], [0, 0, 0, 1]])
MASKS: dict[str, tuple[bytes, bool, str]] = {
    "the same header": (_mask(ORGAN, HERE), True, ""),
    "another order of voxels": (_mask(ORGAN[::-1, ::-1], FLIPPED), True, ""),
    "rounded": (_mask(ORGAN, HERE + 1e-3), True, ""),
    "a bare identity": (_mask(ORGAN, np.eye(4)), True, "says nothing"),
    "an origin never set": (_mask(ORGAN, STEPS), True, "never set"),
    "elsewhere": (_mask(ORGAN, HERE + np.eye(4, k=3) * 8), False, "elsewhere by up to 8 mm"),
    "of another size": (_mask(ORGAN[:4], HERE), False, "of shape"),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_lies_on_its_volume_or_is_left_out_with_a_word(tmp_path: Path, run: Any, name: str) -> None:
    data, kept, note = MASKS[name]
    (tmp_path / "src" / "a.nii").write_bytes(nifti(BODY, HERE))
    (tmp_path / "masks" / "a.nii").write_bytes(data)
    report, (sample,) = run(masks=str(tmp_path / "masks"))
    assert ("mask" in sample) == kept and (not kept or np.array_equal(sample["mask"], spl(ORGAN)))
    assert (note in "".join(found.text for found in report.notes)) if note else not report.notes


def test_a_mask_is_resampled_where_that_is_asked_for(tmp_path: Path, run: Any) -> None:
    moved = HERE.copy()
    moved[0, 3] += 4  # two voxels
    (tmp_path / "src" / "a.nii").write_bytes(nifti(BODY, HERE))
    (tmp_path / "masks" / "a.nii").write_bytes(_mask(ORGAN[2:], moved))
    report, (sample,) = run(masks=str(tmp_path / "masks"), volume_masks="resample")
    expected = ORGAN.copy()
    expected[:2] = 0
    assert np.array_equal(sample["mask"], spl(expected)) and "resampled" in report.notes[0].text


def test_a_nifti_mask_is_found_by_the_folder_of_a_series(tmp_path: Path, run: Any) -> None:
    volume = RANDOM.integers(0, 2000, (5, 6, 7)).astype(np.int16)
    write(tmp_path / "src" / "case1", slices(volume))
    mask = (volume > 900).astype(np.uint8)
    affine = np.diag([-0.6, -0.7, 2.5, 1.0])
    (tmp_path / "masks" / "case1.nii.gz").write_bytes(gzip.compress(_mask(mask.transpose(2, 1, 0), affine)))
    _, (sample,) = run(content="volumes", masks=str(tmp_path / "masks"))
    assert np.array_equal(sample["mask"], mask) and np.array_equal(sample["image"], volume)


# -------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("axis", "planes", "spacing"),
    [
        ("axial", list(spl(BODY)), [3, 2]),
        ("coronal", [spl(BODY)[::-1, number] for number in range(6)], [4, 2]),
        ("sagittal", [spl(BODY)[::-1, :, number] for number in range(5)], [4, 3]),
    ],
)
@pytest.mark.parametrize("every", [1, 2])
def test_slices_of_volumes_are_pictures(
    tmp_path: Path, run: Any, axis: str, planes: list[np.ndarray], spacing: list[int], every: int
) -> None:
    (tmp_path / "src" / "a.nii").write_bytes(nifti(BODY))
    _, found = run(content="slices", axis=axis, every=every, intensity="range:-1000,2000")
    taken = range((len(planes) - 1) % every // 2, len(planes), every)
    assert [sample["slice"] for sample in found] == list(taken)
    for sample in found:
        grey = (planes[sample["slice"]].astype(float) + 1000) / 3000
        assert np.abs(sample["image"] / 65535 - grey).max() < 1e-4
        assert sample["pixel_spacing_mm"] == spacing and sample["axis"] == axis
    assert len({sample["key"] for sample in found}) == len(found)


def test_slices_share_the_scale_of_their_volume_and_carry_their_mask(tmp_path: Path, run: Any) -> None:
    (tmp_path / "src" / "a.nii").write_bytes(nifti(BODY))
    (tmp_path / "masks" / "a.nii").write_bytes(_mask(ORGAN, STEPS))
    _, found = run(content="slices", masks=str(tmp_path / "masks"), intensity="full")
    for sample in found:
        assert sample["intensity"] == {"by": "full", "low": float(BODY.min()), "high": float(BODY.max())}
        assert np.array_equal(sample["mask"], spl(ORGAN)[sample["slice"]])


def test_volumes_among_images_are_cut_to_slices_and_blank_ones_left_out(tmp_path: Path, run: Any) -> None:
    half = BODY.copy()
    half[:, :, 4:] = 0
    (tmp_path / "src" / "a.nii").write_bytes(nifti(half))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "src" / "b.png")
    report, found = run()
    assert len(found) == 5 and report.files == 2


def test_slices_of_a_dicom_series(tmp_path: Path, run: Any) -> None:
    volume = RANDOM.integers(0, 2000, (5, 6, 7)).astype(np.int16)
    write(tmp_path / "src", slices(volume))
    _, found = run(content="slices", axis="sagittal", intensity="range:0,2000")
    assert len(found) == 7 and found[0]["pixel_spacing_mm"] == [2.5, 0.7] and found[0]["modality"] == "CT"
