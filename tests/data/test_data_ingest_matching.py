"""What rides along finds its image, or is counted and named: rows, boxes, masks and patients."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom, dicom_bytes
from PIL import Image
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.data.ingest.pairing import MASK_ENDINGS, pair
from dira_dist.data.ingest.parts import Part
from dira_dist.data.ingest.tables import column_of_groups, patient_column, read_table
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store

RAMP = np.tile(np.arange(80, dtype=np.uint8), (60, 1))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Eight images whose first pixel is their number."""
    for folder in ("src", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "salt").write_text("0123456789abcdef")
    for number in range(8):
        pixels = RAMP.copy()
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / "src" / f"x{number}.png")
    return tmp_path


def run(archive: Path, **more: Any) -> ShardReport:
    options = ShardOptions(**({"salt_file": str(archive / "salt"), "processes": 1, "overwrite": True} | more))
    return shard(archive / "src", archive / "set", options)


def table(archive: Path, text: str, name: str = "t.csv") -> str:
    (archive / name).write_text(text)
    return str(archive / name)


def samples(address: Path) -> list[dict[str, Any]]:
    """Records with the decoded ``image`` and ``mask``, by their first pixel."""
    store = open_store(str(address))
    found = []
    for info in read_index(str(address)).shards:
        for _, members in read_shard(store, info.name):
            images = {
                name: np.asarray(Image.open(io.BytesIO(members[member])))
                for name, member in (("image", "png"), ("mask", "mask.png"))
                if member in members
            }
            found.append(json.loads(members["json"]) | images)
    return sorted(found, key=lambda sample: int(sample["image"][0, 0]))


def warned(report: ShardReport) -> str:
    return "\n".join(report.warnings)


# ------------------------------------------------------------------------------- rows


def test_rows_of_no_image_are_counted_and_named(archive: Path) -> None:
    rows = "image,label\nx0.png,a\n" + "".join(f"gone{number}.png,b\n" for number in range(5))
    report = run(archive, labels=table(archive, rows))
    assert "5 rows of t.csv name no image of the source: gone0.png, gone1.png, gone2.png, ..." in warned(report)
    assert report.unmatched["t.csv"][-1] == "gone4.png" and report.unlabelled == 7


@pytest.mark.parametrize("option", ["labels", "boxes"])
def test_a_table_of_no_image_is_refused(archive: Path, option: str) -> None:
    rows = table(archive, "image,label,x,y,width,height\nzzz.png,a,1,2,3,4\n")
    with pytest.raises(RequestError, match=r"no image has a row there.*'x\d\.png'.*'zzz\.png'"):
        run(archive, **{option: rows})


def test_a_row_with_too_many_fields_is_left_out_by_its_line(archive: Path) -> None:
    """A comma without quotes moves the patient's cell."""
    rows = "image,label,patient\n" + "".join(
        f"x{number}.png,{'Effusion, left' if number % 2 else 'Normal'},P{number // 4}\n" for number in range(8)
    )
    report = run(archive, labels=table(archive, rows), group_by="patient")
    assert report.samples == 4 and len({sample["split_group"] for sample in samples(archive / "set")}) == 2
    assert "t.csv: 4 rows have more fields than the 3 of the header and are left out (line 3, 5, 7, 9)" in warned(
        report
    )
    with pytest.raises(RequestError, match=r"strict: .*more fields"):
        run(archive, labels=str(archive / "t.csv"), group_by="patient", strict=True)


def test_rows_without_an_image_and_cells_that_stand_for_nothing(archive: Path) -> None:
    rows = "image,label,score\nx0.png,a,1.0\n,b,\n,c,\nx1.png,nan,nan\nx2.png,N/A,-1.0\nx3.png,a,1e999\nx4.png,a,+.5\n"
    report = run(archive, labels=table(archive, rows), label_columns=("label", "score"))
    assert [sample["labels"] for sample in samples(archive / "set")][:5] == [
        {"label": "a", "score": 1.0},
        {},
        {"score": -1.0},
        {"label": "a"},
        {"label": "a", "score": 0.5},
    ]
    assert "1 numbers in 'score' are out of range" in warned(report)
    assert read_index(str(archive / "set")).classes == {"label": ("a",)}


def test_lists_as_python_writes_them_are_lists(archive: Path) -> None:
    rows = "image,Labels\nx0.png,\"['normal']\"\nx1.png,\"['mass', 'edema']\"\nx2.png,[1\n"
    run(archive, labels=table(archive, rows))
    found = [sample["labels"] for sample in samples(archive / "set")]
    assert found[:3] == [{"Labels": ["normal"]}, {"Labels": ["mass", "edema"]}, {"Labels": ["[1"]}]


def test_empty_box_cells_mean_no_box(archive: Path) -> None:
    rows = "image,x,y,width,height,Target\nx0,,,,,0\nx1,10,20,30,40,1\nx1,50,10,20,30,1\n"
    report = run(archive, boxes=table(archive, rows))
    assert [len(sample["boxes"]) for sample in samples(archive / "set")][:3] == [0, 2, 0]
    assert not report.warnings


def test_boxes_lie_on_the_picture_as_viewers_show_it(archive: Path) -> None:
    image = Image.new("L", (80, 60))
    image.paste(255, (10, 5, 30, 15))  # lies at x 45 to 55, y 10 to 30 once it is turned
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(archive / "src" / "turned.jpg", quality=98, exif=exif)
    run(archive, boxes=table(archive, "image,x,y,width,height\nturned.jpg,46,11,8,18\n"))
    (turned,) = (sample for sample in samples(archive / "set") if sample["boxes"])
    box = {name: int(value) for name, value in turned["boxes"][0].items() if name != "label"}
    part = turned["image"][box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]
    assert turned["image"].shape == (80, 60) and part.mean() > 250


# ------------------------------------------------------------------------------ masks


def mask(archive: Path, name: str, value: int = 3, **options: Any) -> None:
    pixels = np.zeros((60, 80), np.uint8)
    pixels[20:40] = value
    (archive / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(archive / "masks" / name, **options)


@pytest.mark.parametrize("ending", MASK_ENDINGS)
def test_masks_are_found_under_the_usual_endings(archive: Path, ending: str) -> None:
    mask(archive, f"x2{ending}.png")
    report = run(archive, masks=str(archive / "masks"))
    assert [number for number, sample in enumerate(samples(archive / "set")) if "mask" in sample] == [2]
    assert "1 of 8 files have a mask" in "\n".join(report.lines())


def test_nnu_nets_channels_share_the_mask_of_their_case() -> None:
    images = {number: ((f"case_1_000{number}",), ".png") for number in range(2)}
    pairs = pair({str(number): names for number, names in images.items()}, {"case_1": ("case_1.png",)})
    assert pairs.of == {"0": "case_1.png", "1": "case_1.png"} and not pairs.shared and not pairs.unmatched


def test_masks_of_no_image_are_counted_and_named(archive: Path) -> None:
    mask(archive, "x0.png")
    mask(archive, "X1.png")
    report = run(archive, masks=str(archive / "masks"))
    assert "1 masks belong to no image: X1.png" in warned(report) and report.unmatched == {"masks": ("X1.png",)}
    (archive / "masks" / "x0.png").unlink()
    with pytest.raises(RequestError, match=r"none of 1 masks belongs to an image.*'X1\.png'.*'x\d\.png'.*_mask"):
        run(archive, masks=str(archive / "masks"))


def test_of_two_masks_the_one_called_like_the_image_is_taken_and_the_other_named(archive: Path) -> None:
    mask(archive, "x0.tif", 1)
    mask(archive, "x0.png", 2)
    report = run(archive, masks=str(archive / "masks"))
    assert set(np.unique(samples(archive / "set")[0]["mask"])) == {0, 2}
    assert [note.text for note in report.notes] == ["its mask is x0.png; x0.tif could be it as well"]


def test_a_mask_that_its_compression_smears_is_left_out_with_a_word(archive: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 3, (60, 80)).astype(np.uint8) * 100
    Image.fromarray(noisy).save(archive / "masks" / "x0.jpg", quality=75)
    mask(archive, "x1.png")
    report = run(archive, masks=str(archive / "masks"))
    assert report.samples == 8 and "mask" not in samples(archive / "set")[0]
    assert [note.text for note in report.notes] == [
        "its mask is a JPEG, whose compression smears its values: it is left out"
    ]


def test_what_is_said_of_a_mask_does_not_tell_its_name(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def finish(part: Part, mode: Any) -> None:
        written.extend(path.read_text() for path in (archive / "set" / "progress").iterdir())
        finish_really(part, mode)

    finish_really = Part.finish
    monkeypatch.setattr(Part, "finish", finish)
    (archive / "src" / "x0.png").rename(archive / "src" / "DOE_JANE.png")
    noisy = np.random.default_rng(0).integers(0, 3, (60, 80)).astype(np.uint8) * 100
    Image.fromarray(noisy).save(archive / "masks" / "DOE_JANE_mask.jpg", quality=75)
    report = run(archive, masks=str(archive / "masks"), names="keys", samples_per_shard=2)
    written.append((archive / "set" / "index.json").read_text())
    assert sum("smears its values" in text for text in written) == 2
    assert not any("DOE_JANE" in text for text in (*written, *report.lines()))


@pytest.mark.parametrize("where", ["image and mask", "image alone"])
def test_masks_are_turned_with_their_image(archive: Path, where: str) -> None:
    """A mask with its own mark is turned by it; one that lies on the pixels of the file is turned with them."""
    image = Image.new("L", (80, 60), 100)
    labels = Image.new("L", (80, 60))
    labels.paste(7, (10, 5, 30, 15))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(archive / "src" / "turned.png", exif=exif)
    labels.save(archive / "masks" / "turned.png", **({"exif": exif} if where == "image and mask" else {}))
    run(archive, masks=str(archive / "masks"))
    (turned,) = (sample for sample in samples(archive / "set") if "mask" in sample)
    assert turned["mask"].shape == turned["image"].shape == (80, 60)
    assert (turned["mask"][11:29, 46:54] == 7).all() and (turned["mask"] == 7).sum() == 200


def test_masks_and_boxes_of_several_frames_are_left_out_with_a_word(archive: Path) -> None:
    frames = [Image.fromarray(np.roll(RAMP, number, 1)) for number in range(2)]
    frames[0].save(archive / "src" / "film.png", save_all=True, append_images=frames[1:])
    mask(archive, "film.png")
    report = run(archive, masks=str(archive / "masks"))
    assert report.samples == 10
    assert [(note.file, "it has several frames" in note.text) for note in report.notes] == [("film.png", True)]


# --------------------------------------------------------------------------- patients


def test_identifiers_that_look_alike_are_warned_of_by_their_files(archive: Path) -> None:
    names = ["p1", "P1", "007", "7", "12", "12.0", "x", "y"]
    rows = "image,label,patient\n" + "".join(f"x{number}.png,a,{name}\n" for number, name in enumerate(names))
    report = run(archive, labels=table(archive, rows), group_by="patient")
    alike = [warning for warning in report.warnings if "differ only in case, leading zeros or '.0'" in warning]
    assert len(alike) == 3 and not [warning for warning in alike if "007" in warning]
    assert len({sample["split_group"] for sample in samples(archive / "set")}) == 8


def test_blanks_around_an_identifier_are_no_part_of_it(archive: Path) -> None:
    rows = "image,label,patient\n" + "".join(f"x{number}.png,a,{' ' * number}P1\n" for number in range(8))
    run(archive, labels=table(archive, rows), group_by="patient")
    assert len({sample["split_group"] for sample in samples(archive / "set")}) == 1


@pytest.mark.parametrize("column", ["patient", "Patient_ID", "subject", "MRN", "PatientNumber", "study subject id"])
def test_a_column_that_names_patients_groups_without_being_asked(archive: Path, column: str) -> None:
    rows = f"image,label,{column}\n" + "".join(f"x{number}.png,a,P{number // 2}\n" for number in range(8))
    report = run(archive, labels=table(archive, rows))
    assert report.grouped_by == column and f"grouped by the column {column!r}" in warned(report)
    assert len({sample["split_group"] for sample in samples(archive / "set")}) == 4
    report = run(archive, labels=table(archive, rows), group_by="none")
    assert not report.grouped_by and "split_group" not in samples(archive / "set")[0]


def test_a_column_that_looks_like_patients_is_told_of_where_the_set_is_split(archive: Path) -> None:
    rows = "image,label,age,code,row\n" + "".join(
        f"x{number}.png,a,{30 + number // 2},A-{4711 + number // 2},R-{1000 + number}\n" for number in range(8)
    )
    report = run(archive, labels=table(archive, rows), split={"train": 0.5, "val": 0.5})
    assert "the column 'code' looks as if it told patients apart" in warned(report)
    shutil.rmtree(archive / "set")
    assert not run(archive, labels=table(archive, rows)).warnings


def test_which_columns_tell_patients(archive: Path) -> None:
    rows = "image,view,age,scanner,findings,code\n" + "".join(
        f"x{number}.png,PA,{40 + number % 3},S1,Mass,{number // 2:05d}\n" for number in range(12)
    )
    found = read_table(table(archive, rows), "image")
    assert patient_column(found) is None
    assert column_of_groups(found, ("image", "findings")) == "code"
    assert column_of_groups(found, ("image", "findings", "code")) is None


def radiograph(archive: Path, name: str, patient: str, first: int) -> None:
    values = RAMP.astype(np.int16)
    values[0, 0] = first
    (archive / "src" / name).write_bytes(dicom_bytes(dicom(values, Modality="CR", PatientID=patient)))


def groups(archive: Path) -> list[str]:
    """The groups of all samples of a set in one part, in no order."""
    store = open_store(str(archive / "set"))
    shards = read_index(str(archive / "set")).shards
    records = [json.loads(members["json"]) for info in shards for _, members in read_shard(store, info.name)]
    return sorted(record.get("split_group") or "" for record in records)


def test_the_header_names_the_patient_where_the_table_has_a_column_of_that_name(archive: Path) -> None:
    for file in (archive / "src").iterdir():
        file.unlink()
    for name in ("a.dcm", "b.dcm"):
        radiograph(archive, name, "P1", ord(name[0]))
    rows = table(archive, "image,label,PatientID\na.dcm,n,X\n")
    report = run(archive, labels=rows)
    assert report.grouped_by == "PatientID" and not report.warnings
    found = groups(archive)
    assert found[0] and found[0] == found[1]
    assert run(archive, labels=rows, group_by="PatientID").samples == 1, "asked for, the column decides"


def test_images_beside_dicom_are_grouped_by_the_table(archive: Path) -> None:
    """One patient has a radiograph and two pictures, and six pictures are of nobody."""
    radiograph(archive, "a.dcm", "P1", 0)
    rows = table(archive, "image,label,patient_id\nx0.png,n,P1\nx1.png,n,P1\n")
    report = run(archive, labels=rows)
    assert report.grouped_by == "PatientID and patient_id"
    assert "images whose header names no patient are grouped by the column 'patient_id'" in warned(report)
    found = groups(archive)
    assert found.count("") == 6 and len(set(found)) == 2
    shutil.rmtree(archive / "set")
    report = run(archive, labels=rows, split={"train": 0.5, "val": 0.5})
    assert "6 images name no patient: each of them is split by itself" in warned(report)
