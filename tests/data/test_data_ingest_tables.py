"""What rides along: labels, boxes, masks, keys and the split, with every mistake in them refused by name."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, parse_split, shard
from dira_dist.data.ingest.options import check_split
from dira_dist.data.ingest.salt import Salt, part_of, read_salt
from dira_dist.data.ingest.tables import scale_boxes
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twelve images of six patients, 40 x 20 px, and a salt."""
    (tmp_path / "images").mkdir()
    rows = ["image,patient,age,finding,findings"]
    for number in range(12):
        pixels = np.full((20, 40), number * 20, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"i{number}.png")
        findings = "Mass|Edema" if number % 3 == 0 else "Mass" if number % 3 == 1 else ""
        rows.append(f"i{number}.png,p{number // 2},{30 + number},{'ab'[number % 2]},{findings}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "salt").write_text("0123456789abcdef")
    return tmp_path


def options(archive: Path, **more: Any) -> ShardOptions:
    return ShardOptions(salt_file=str(archive / "salt"), processes=1, **more)


def run(archive: Path, **more: Any) -> ShardReport:
    return shard(archive / "images", archive / "set", options(archive, **more))


def contents(address: Path | str) -> dict[str, dict[str, Any]]:
    """Samples of a set by key: the record, with decoded ``image`` and ``mask`` beside it."""
    store = open_store(str(address))
    found = {}
    for info in read_index(str(address)).shards:
        for key, members in read_shard(store, info.name):
            found[key] = json.loads(members["json"]) | {"members": members}
    return found


def pixels_of(sample: dict[str, Any], member: str = "png") -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(sample["members"][member])))


def by_grey(address: Path | str) -> dict[int, dict[str, Any]]:
    """Samples of the archive by the number that their grey tells."""
    return {int(pixels_of(sample)[0, 0]) // 20: sample for sample in contents(address).values()}


# ---------------------------------------------------------------------------- labels


def test_labels_reach_their_images_and_the_index(archive: Path) -> None:
    run(archive, labels=str(archive / "labels.csv"))
    samples = by_grey(archive / "set")
    assert len(samples) == 12
    assert samples[3]["labels"] == {"finding": "b", "findings": ["Mass", "Edema"]}
    assert samples[4]["labels"] == {"finding": "a", "findings": ["Mass"]}
    assert samples[5]["labels"] == {"finding": "b"}, "an empty cell is no label"
    index = read_index(str(archive / "set"))
    assert index.labels == ("finding", "findings")
    assert index.classes == {"finding": ("a", "b"), "findings": ("Edema", "Mass")}


def test_columns_that_may_identify_stay_behind_unless_asked_for(archive: Path) -> None:
    run(archive, labels=str(archive / "labels.csv"), label_columns=("age",))
    assert by_grey(archive / "set")[7]["labels"] == {"age": 37}
    assert "patient" not in (archive / "set" / "index.json").read_text()
    (archive / "odd.csv").write_text("image,patient,age\ni0.png,p0,3\n")
    with pytest.raises(RequestError, match=r"not clear which columns are labels.*--label-columns.*'patient', 'age'"):
        shard(archive / "images", archive / "other", options(archive, labels=str(archive / "odd.csv")))


@pytest.mark.parametrize("column", ["PatientName", "label"])
def test_the_only_column_is_no_label_by_being_the_only_one(archive: Path, column: str) -> None:
    (archive / "one.csv").write_text(f"image,{column}\ni0.png,Doe^Jane\n")
    if column == "label":
        run(archive, labels=str(archive / "one.csv"))
        assert by_grey(archive / "set")[0]["labels"] == {"label": "Doe^Jane"}
        return
    with pytest.raises(RequestError, match=r"not clear which columns are labels.*--label-columns.*'PatientName'"):
        run(archive, labels=str(archive / "one.csv"))
    assert not (archive / "set").exists()


def test_rows_may_name_path_name_or_stem(archive: Path) -> None:
    (archive / "images" / "deep").mkdir()
    (archive / "images" / "i3.png").rename(archive / "images" / "deep" / "i3.png")
    rows = "\ufeffimage,label\ndeep/i3.png,path\ni4.png,name\ni5,stem\n"
    (archive / "labels.csv").write_text(rows)
    report = run(archive, labels=str(archive / "labels.csv"))
    samples = by_grey(archive / "set")
    assert [samples[number]["labels"] for number in (3, 4, 5, 6)] == [
        {"label": "path"},
        {"label": "name"},
        {"label": "stem"},
        {},
    ]
    assert report.unlabelled == 9


def test_a_name_of_two_files_is_refused_but_paths_tell_them_apart(archive: Path) -> None:
    (archive / "images" / "deep").mkdir()
    Image.fromarray(np.full((20, 40), 255, np.uint8)).save(archive / "images" / "deep" / "i3.png")
    with pytest.raises(RequestError, match=r"'i3.png' could be any of 2 files"):
        run(archive, labels=str(archive / "labels.csv"))


def test_folder_names_are_labels(archive: Path) -> None:
    for number in range(12):
        folder = archive / "images" / ("sick" if number % 4 == 0 else "well")
        folder.mkdir(exist_ok=True)
        (archive / "images" / f"i{number}.png").rename(folder / f"i{number}.png")
    run(archive, labels="folders")
    samples = by_grey(archive / "set")
    assert all(sample["labels"] == {"label": "well" if number % 4 else "sick"} for number, sample in samples.items())
    assert read_index(str(archive / "set")).classes == {"label": ("sick", "well")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "nowhere.csv"}, "nowhere.csv: there is no such table"),
        ({"label_columns": ("nodule",)}, r"there is no column 'nodule'; the columns are 'image', 'patient'"),
        ({"image_column": "file"}, r"there is no column 'file'"),
        ({"group_by": "person"}, r"group_by 'person': the label table has no such column.*'patient'.*'PatientID'"),
        ({"group_by": "patient", "label_columns": ("patient",)}, "never enter a shard"),
        ({"split": {"train": 0.9, "val": 0.2}}, "sum to 1; these sum to 1.1"),
        ({"split": {"train": 1.5, "val": -0.5}}, "must be positive"),
        ({"split": {"a/b": 1.0}}, "'a/b' names a folder"),
        (
            {"split": {"train": 0.9999, "val": 0.0001}, "group_by": "patient"},
            "part 'val' of the split got nothing.*6 patient",
        ),
        ({"salt_file": "no-such-salt"}, r"salt_file no-such-salt: there is no such file.*openssl"),
        ({"coding": "jpeg", "mode": "I;16"}, "JPEG holds 8 bits"),
        ({"masks": "no-such-masks"}, "no-such-masks"),
        ({"boxes": "LABELS"}, "there is no column 'x'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    archive: Path, change: dict[str, Any], message: str
) -> None:
    table = str(archive / "labels.csv")
    change = {name: table if value == "LABELS" else value for name, value in change.items()}
    settings = options(archive).model_dump() | {"labels": table} | change
    with pytest.raises(RequestError, match=f"(?s){message}"):
        shard(archive / "images", archive / "set", ShardOptions(**settings))
    assert not (archive / "set").exists()


def test_a_table_about_other_images_and_one_with_an_image_twice_are_refused(archive: Path) -> None:
    table = archive / "labels.csv"
    table.write_text("image,label\nx.png,1\n")
    with pytest.raises(RequestError, match=r"no image has a row there.*'i\d+.png'.*'x.png'"):
        run(archive, labels=str(table))
    table.write_text("image,label\ni1.png,1\ni1.png,2\n")
    with pytest.raises(RequestError, match=r"one image stands in 2 rows \(line 2, 3\)"):
        run(archive, labels=str(table))
    table.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(RequestError, match="no CSV text in UTF-8"):
        run(archive, labels=str(table))


# ------------------------------------------------------------------- boxes and masks


def test_boxes_and_masks_shrink_with_their_image(archive: Path) -> None:
    (archive / "boxes.csv").write_text(
        "image,finding,x,y,width,height\ni4.png,Mass,8,4,20,10\ni4.png,Edema,0,0,1.5,1\n"
    )
    (archive / "masks").mkdir()
    mask = np.zeros((20, 40), np.uint8)
    mask[5:14, 7:28] = 200
    Image.fromarray(mask).save(archive / "masks" / "i4.png")
    run(archive, boxes=str(archive / "boxes.csv"), masks=str(archive / "masks"), image_size=20, side="longest")
    sample = by_grey(archive / "set")[4]
    assert pixels_of(sample).shape == (10, 20) and sample["original_px"] == [20, 40]
    assert sample["boxes"] == [
        {"label": "Mass", "x": 4, "y": 2, "width": 10, "height": 5},
        {"label": "Edema", "x": 0, "y": 0, "width": 0.75, "height": 0.5},
    ]
    small = pixels_of(sample, "mask.png")
    assert small.shape == (10, 20) and set(np.unique(small)) == {0, 200} and (small[3:7, 4:14] == 200).all()
    assert "mask.png" not in by_grey(archive / "set")[5]["members"]


def test_a_mask_of_two_images_is_refused_but_paths_tell_them_apart(archive: Path) -> None:
    mask = Image.fromarray(np.ones((20, 40), np.uint8))
    for place in ("images/p1", "images/p2", "masks/p1"):
        (archive / place).mkdir(parents=True)
    for patient in ("p1", "p2"):
        Image.fromarray(np.full((20, 40), 250, np.uint8)).save(archive / "images" / patient / "scan.png")
    mask.save(archive / "masks" / "i4.png")
    mask.save(archive / "masks" / "scan.png")
    with pytest.raises(
        RequestError, match=r"'scan\.png' could be the mask of any of 2 images, 'p[12]/scan\.png' for one"
    ):
        run(archive, masks=str(archive / "masks"))
    assert not (archive / "set").exists()
    (archive / "masks" / "scan.png").rename(archive / "masks" / "p1" / "scan.png")
    run(archive, masks=str(archive / "masks"))
    assert sum("mask.png" in sample["members"] for sample in contents(archive / "set").values()) == 2


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_boxes_keep_their_share_of_the_image(before: tuple[int, int], after: tuple[int, int], share: Any) -> None:
    x, y, width, height = share
    box = {
        "label": "",
        "x": x * before[1],
        "y": y * before[0],
        "width": width * before[1],
        "height": height * before[0],
    }
    (scaled,) = scale_boxes([box], before, after)
    assert scaled["x"] == pytest.approx(x * after[1], abs=0.01) and scaled["y"] == pytest.approx(y * after[0], abs=0.01)
    assert scaled["width"] == pytest.approx(width * after[1], abs=0.01)
    assert scaled["height"] == pytest.approx(height * after[0], abs=0.01)


def test_masks_inside_the_source_are_no_images_and_one_of_another_size_is_reported(archive: Path) -> None:
    (archive / "images" / "masks").mkdir()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(archive / "images" / "masks" / "i4.png")
    report = run(archive, masks=str(archive / "images" / "masks"))
    assert report.files == 12 and report.samples == 11
    assert [(skipped.file, skipped.reason) for skipped in report.skipped] == [
        ("i4.png", "its mask is 5 x 5 px, it 20 x 40")
    ]


def test_a_box_that_is_no_number_is_left_out_with_a_word(archive: Path) -> None:
    (archive / "boxes.csv").write_text(
        "image,x,y,width,height\ni4.png,8,4,wide,10\ni4.png,1,2,3,4\ni5.png,1,1e999,1,1\n"
    )
    report = run(archive, boxes=str(archive / "boxes.csv"))
    assert [len(sample["boxes"]) for _, sample in sorted(by_grey(archive / "set").items())][4:6] == [1, 0]
    assert any("2 boxes are left out" in warning and "width" in warning for warning in report.warnings)


# ------------------------------------------------------------------- keys and splits


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_every_fraction_has_one_part(fraction: float, weights: list[int]) -> None:
    split = {f"p{number}": weight / sum(weights) for number, weight in enumerate(weights)}
    check_split(split)
    ends = np.cumsum(list(split.values()))
    expected = min(int(np.searchsorted(ends, fraction, side="right")), len(split) - 1)
    assert part_of(fraction, split) == f"p{expected}"


@settings(deadline=None)
@given(st.text(max_size=30), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_hashes_hang_on_salt_text_and_purpose(text: str, secret: bytes, other: bytes) -> None:
    salt = Salt(secret)
    assert salt.digest("sample", text) == Salt(secret).digest("sample", text) != salt.digest("group", text)
    assert salt.digest("sample", text) != salt.digest("sample", text + "x")
    assert (secret == other) == (salt.digest("sample", text) == Salt(other).digest("sample", text))
    assert 0 <= salt.fraction(text) < 1


def test_shares_are_met_by_many_groups() -> None:
    salt = Salt(b"0" * 32)
    parts = [part_of(salt.fraction(f"patient {number}"), {"train": 0.8, "val": 0.2}) for number in range(5000)]
    assert abs(parts.count("val") / 5000 - 0.2) < 0.02


def test_no_patient_is_in_two_parts_and_growth_moves_nobody(archive: Path) -> None:
    settings = {"labels": str(archive / "labels.csv"), "split": {"train": 0.5, "val": 0.5}, "group_by": "patient"}
    report = run(archive, **settings)
    assert set(report.parts) == {"train", "val"} and report.samples == 12

    def places(folder: Path) -> dict[int, str]:
        return {number: part for part in ("train", "val") for number in by_grey(folder / part)}

    before = places(archive / "set")
    groups: dict[int, set[str]] = defaultdict(set)
    hashes: dict[int, set[str]] = defaultdict(set)
    for part in ("train", "val"):
        for number, sample in by_grey(archive / "set" / part).items():
            groups[number // 2].add(part)
            hashes[number // 2].add(sample["split_group"])
    assert all(len(found) == 1 for found in groups.values()) and len(groups) == 6
    assert all(len(found) == 1 for found in hashes.values()) and len(set.union(*hashes.values())) == 6
    (archive / "images" / "i3.png").unlink()
    shard(archive / "images", archive / "less", options(archive, **settings))
    after = places(archive / "less")
    assert after == {number: part for number, part in before.items() if number != 3}


def test_a_split_by_image_warns_where_the_table_names_patients(archive: Path) -> None:
    report = run(archive, labels=str(archive / "labels.csv"), split={"a": 0.5, "b": 0.5})
    assert any("--group-by" in warning for warning in report.warnings)
    assert any("warning" in line for line in report.lines())


def test_an_image_without_a_group_is_left_out_by_name(archive: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(archive / "images" / "stranger.png")
    report = run(archive, labels=str(archive / "labels.csv"), split={"train": 0.5, "val": 0.5}, group_by="patient")
    assert [(skipped.file, skipped.reason) for skipped in report.skipped] == [
        ("stranger.png", "it has no patient to group by")
    ]


def test_first_folder_as_group(archive: Path) -> None:
    for number in range(12):
        (archive / "images" / f"p{number // 2}" / "study").mkdir(parents=True, exist_ok=True)
        (archive / "images" / f"i{number}.png").rename(
            archive / "images" / f"p{number // 2}" / "study" / f"i{number}.png"
        )
    run(archive, group_by="folder", split={"train": 0.5, "val": 0.5})
    parts = [{number // 2 for number in by_grey(archive / "set" / part)} for part in ("train", "val")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 6


def test_keys_hang_on_the_salt_and_tell_nothing(archive: Path) -> None:
    run(archive)
    keys = set(contents(archive / "set"))
    (archive / "salt").write_text("another secret")
    shard(archive / "images", archive / "other", options(archive))
    others = list(contents(archive / "other"))
    assert not keys & set(others) and all(len(key) == 20 for key in keys)
    assert others == sorted(others), "samples lie in the order of their keys: shuffled, and always alike"


def test_a_home_that_takes_no_salt_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in ("/proc/nobody", str(tmp_path / "file")):
        monkeypatch.setenv("XDG_DATA_HOME", place)
        with pytest.raises(RequestError, match=r"cannot be kept in the home folder .*--salt-file FILE"):
            read_salt(None)


def test_without_a_file_the_salt_is_made_once_and_kept_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first = read_salt(None)
    assert read_salt(None) == first and first.secret.hex() not in repr(first)
    (file,) = (tmp_path / "dira_dist").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.unlink()
    assert read_salt(None) != first
    file.write_text("short")
    with pytest.raises(RequestError, match="5 characters are no secret"):
        read_salt(str(file))


@pytest.mark.parametrize("text", ["train", "train=0.9,val", "train=x", "=1", ""])
def test_a_split_is_written_one_way(text: str) -> None:
    assert parse_split("train=0.9, val=0.1") == {"train": 0.9, "val": 0.1}
    with pytest.raises(RequestError, match=r"train=0\.9,val=0\.1"):
        parse_split(text)
