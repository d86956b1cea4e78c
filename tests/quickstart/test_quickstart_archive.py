"""What a stranger finds in the package to begin with: an archive of DICOM phantoms, and the job files."""

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions
from dira_dist.data.shards import read_index
from dira_dist.jobs.draft import SCHEMA_FILE
from dira_dist.quickstart.phantom import make_phantom


def test_phantoms_are_an_archive_of_dicom_that_is_sharded_without_a_name(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    files = dira_dist.write_phantoms(archive, 4, seed=3, size_px=32)
    first = pydicom.dcmread(files[0])
    assert str(first.PatientName).startswith("Phantom^")
    assert np.array_equal(first.pixel_array >> 4, make_phantom(3, 0, 32).image)
    rows = list(csv.DictReader((archive / "labels.csv").open()))
    assert [row["image"] for row in rows] == [file.name for file in files]
    assert {row["image"] for row in csv.DictReader((archive / "boxes.csv").open())} <= {file.name for file in files}
    options = ShardOptions(
        labels=str(archive / "labels.csv"), boxes=str(archive / "boxes.csv"), group_by="patient", processes=1
    )
    dira_dist.shard(str(archive / "images"), str(tmp_path / "shards"), options)
    assert read_index(str(tmp_path / "shards")).samples == 4
    assert b"hantom" not in (tmp_path / "shards" / "000000.tar").read_bytes()


def test_phantoms_are_drawn_where_nothing_stands(tmp_path: Path) -> None:
    (tmp_path / "mine.dcm").touch()
    with pytest.raises(RequestError, match="holds files already"):
        dira_dist.write_phantoms(tmp_path, 2)


def test_every_example_is_told_in_words_and_finds_its_schema() -> None:
    told = dira_dist.examples()
    assert all(len(text.split()) > 2 for text in told.values()), told
    text = dira_dist.example("pretrain-ct.yaml")
    assert text.splitlines()[1] == f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"
    assert yaml.safe_load(text)["kind"] == "pretrain"
    with pytest.raises(RequestError, match="pretrain-kermany"):
        dira_dist.example("pretrain-cat")
