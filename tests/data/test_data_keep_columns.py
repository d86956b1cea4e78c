"""Columns that ride along with the samples: values as they stand, ages as they may leave, identities never."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dira_dist import cli
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.shards import read_index
from dira_dist.data.validation import ValidationStream


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


AGES = ["41", "89", "90", "103", "", "7"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six images of three patients."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.fromarray(np.full((16, 16), number * 40, np.uint8)).save(tmp_path / "images" / f"i{number}.png")
    (tmp_path / "salt").write_text("0123456789abcdef")
    write_table(
        tmp_path,
        "image,patient,Patient Age,sex,View Position,site,label",
        *(f"i{n}.png,p{n // 2},{AGES[n]},{'MF'[n % 2]},{['PA', 'AP', 'LL'][n % 3]},0{n},l" for n in range(6)),
    )
    return tmp_path


def write_table(archive: Path, *rows: str) -> None:
    (archive / "labels.csv").write_text("\n".join(rows) + "\n")


def run(archive: Path, *columns: str, **more: Any) -> ShardReport:
    defaults: dict[str, Any] = {
        "salt_file": str(archive / "salt"),
        "processes": 1,
        "labels": str(archive / "labels.csv"),
    }
    return shard(archive / "images", archive / "set", ShardOptions(keep_columns=columns, **defaults | more))


def kept(archive: Path, *columns: str, **more: Any) -> dict[int, Any]:
    """What rode along, by the number that an image's grey tells."""
    run(archive, *columns, **more)
    address = str(archive / "set")
    table: SampleTable = read_samples(address, read_index(address))
    with ValidationStream(address, batch_size=6) as stream:
        (batch,) = stream
    return {int(image[0, 0, 0]) // 40: columns for image, columns in zip(batch.images, table.columns, strict=True)}


def ages(archive: Path, *cells: str, column: str = "age") -> list[Any]:
    write_table(archive, f"image,label,{column}", *(f"i{number}.png,l,{cell}" for number, cell in enumerate(cells)))
    found = kept(archive, column, overwrite=True)
    return [found[number].get(column) for number in range(len(cells))]


def test_columns_ride_along_as_they_are_and_ages_as_they_may(archive: Path) -> None:
    found = kept(archive, "Patient Age", "sex", "View Position", "site")
    assert found[0] == {"Patient Age": 41, "sex": "M", "View Position": "PA", "site": "00"}
    assert [found[number].get("Patient Age") for number in range(6)] == [41, 89, "90+", "90+", None, 7]
    assert b'": 103' not in (archive / "set" / "000000.tar").read_bytes()


def test_what_is_not_asked_for_stays_behind(archive: Path) -> None:
    assert set(map(tuple, kept(archive).values())) == {()}
    assert "keep_columns" not in (archive / "set" / "index.json").read_text()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["034Y", "089Y", "090Y", "007M", "012W", "400D"], [34, 89, "90+", 0, 0, 1]),
        (["30.5", "89.9", "90.1", "12 years", "95 yrs", "88yo"], [30, 89, "90+", 12, "90+", 88]),
        (["90+", "> 89", ">=90", ">95", "80-89", "0-9"], ["90+", "90+", "90+", "90+", "80-89", "0-9"]),
        (["85-94", "412", "old", "-3", "n/a", "5"], [None, None, None, None, None, 5]),
    ],
)
def test_ages_of_all_spellings_are_no_higher_than_89(archive: Path, cells: list[str], expected: list[Any]) -> None:
    assert ages(archive, *cells) == expected


@pytest.mark.parametrize(
    "column", ["AGE", "PatientAge", "patient_age", "age_at_scan", "patientage", "Age (years)", "ageyears"]
)
def test_a_column_of_ages_is_known_by_its_name(archive: Path, column: str) -> None:
    assert ages(archive, "95", "20", column=column) == ["90+", 20]


def test_a_column_of_dicom_ages_is_known_by_its_cells_and_others_are_no_ages(archive: Path) -> None:
    assert ages(archive, "095Y", "020Y", column="AS") == ["90+", 20]
    for column in ("image_count", "stage", "percentage", "dose"):
        assert ages(archive, "95", "20", column=column) == [95, 20]


def test_ages_that_are_none_are_counted(archive: Path) -> None:
    write_table(archive, "image,label,age", "i0.png,l,old", "i1.png,l,85-94", "i2.png,l,3")
    report = run(archive, "age")
    assert "labels.csv: 2 cells of 'age' are no ages, or bands that reach over 89, and are left out" in report.warnings
    with pytest.raises(RequestError, match=r"strict: .*2 cells of 'age'"):
        run(archive, "age", strict=True, overwrite=True)


@pytest.mark.parametrize(
    "column",
    ["patient", "PatientID", "patient_name", "Name", "id", "PatientBirthDate", "birth", "DOB", "StudyDate_DICOM", "MRN",
     "StudyID", "Accession Number", "StudyInstanceUID", "Physician Name", "Address", "surname", "subject_no"],
)  # fmt: skip
def test_columns_that_name_somebody_are_refused(archive: Path, column: str) -> None:
    write_table(archive, f"image,label,sex,{column}", "i0.png,l,F,1", "i1.png,l,M,2")
    with pytest.raises(RequestError, match=rf"'{column}' tells who a patient is.*can be kept: 'label', 'sex'\."):
        run(archive, "sex", column)
    assert not (archive / "set").exists()


@pytest.mark.parametrize(
    "cell", ["Doe^Jane", "1961-03-05", "05.03.1961", "3/5/61", "19610305", "seen by " + "word " * 20]
)
def test_columns_with_cells_that_tell_somebody_are_refused(archive: Path, cell: str) -> None:
    write_table(archive, "image,label,odd", "i0.png,l,x", f"i1.png,l,{cell}")
    with pytest.raises(RequestError, match=r"'odd' tells who a patient is.*can be kept: 'label'\.") as caught:
        run(archive, "odd")
    assert cell not in str(caught.value)


@pytest.mark.parametrize(
    "column", ["sex", "PatientSex_DICOM", "View Position", "site_name", "scanner", "Follow-up #", "race"]
)
def test_columns_for_subgroups_are_not(archive: Path, column: str) -> None:
    write_table(archive, f"image,label,{column}", "i0.png,l,1", "i1.png,l,b")
    assert kept(archive, column)[1] == {column: "b"}


def test_what_is_grouped_by_and_unknown_columns_are_refused_with_the_known_ones(archive: Path) -> None:
    with pytest.raises(RequestError, match=r"'site' tells who.*kept: 'Patient Age', 'sex', 'View Position', 'label'\."):
        run(archive, "site", group_by="site")
    with pytest.raises(
        RequestError, match=r"keep_columns: 'gender' does not exist; those .* kept: 'Patient Age', 'sex'"
    ):
        run(archive, "gender")
    for labels in (None, "folders"):
        with pytest.raises(RequestError, match="no label table that they could be columns of; give one with --labels"):
            run(archive, "sex", labels=labels)


def test_a_column_that_looks_like_patients_is_warned_of(archive: Path) -> None:
    for number in range(6, 10):
        Image.fromarray(np.full((16, 16), number, np.uint8)).save(archive / "images" / f"i{number}.png")
    write_table(archive, "image,label,who", *(f"i{number}.png,l,x{number // 2}07" for number in range(10)))
    assert any("kept column 'who' looks as if it told patients apart" in line for line in run(archive, "who").warnings)


def test_a_set_made_with_other_columns_is_another_one(archive: Path) -> None:
    run(archive)
    assert all(part.was_complete for part in run(archive).parts.values())
    with pytest.raises(RequestError, match=r"made otherwise: keep_columns \(None there, \['sex'\] now\)"):
        run(archive, "sex")
    run(archive, "sex", overwrite=True)
    assert all(part.was_complete for part in run(archive, "sex").parts.values())
    with pytest.raises(RequestError, match=r"made otherwise: keep_columns \(\['sex'\] there, None now\)"):
        run(archive)


def test_slices_and_frames_carry_them_too(archive: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16), number * 50, np.uint8)) for number in range(3)]
    frames[0].save(archive / "images" / "film.tiff", save_all=True, append_images=frames[1:])
    write_table(archive, "image,label,sex", "film.tiff,l,F")
    run(archive, "sex")
    table = read_samples(str(archive / "set"), read_index(str(archive / "set")))
    assert sorted(map(len, table.columns)) == [0] * 6 + [1] * 3


def test_the_command_takes_them(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["shard", str(archive / "images"), str(archive / "set"), "--labels", str(archive / "labels.csv")]
    more = ["--keep-columns", "sex, View Position", "--salt-file", str(archive / "salt"), "--processes", "1"]
    result = CliRunner().invoke(cli.app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    table = read_samples(str(archive / "set"), read_index(str(archive / "set")))
    assert {tuple(sorted(columns)) for columns in table.columns} == {("View Position", "sex")}
