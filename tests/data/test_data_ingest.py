"""Whole runs of ``shard``: determinism, interruption, refusal, privacy, and real archives."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.ingest.parts import Part
from dira_dist.data.shards import read_index
from dira_dist.data.store import StoreError, open_store
from dira_dist.data.verify import verify
from dira_dist.quickstart.phantom import write_archive


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty phantoms laid out as users lay their archives, and a salt."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_archive(folder, 40, seed=1, size_px=48)
    (folder / "salt").write_text("0123456789abcdef")
    return folder


def options(folder: Path, **more: Any) -> ShardOptions:
    return ShardOptions(**({"salt_file": str(folder / "salt"), "processes": 1, "samples_per_shard": 5} | more))


def with_everything(folder: Path, **more: Any) -> ShardOptions:
    tables = {"labels": str(folder / "labels.csv"), "boxes": str(folder / "boxes.csv"), "masks": str(folder / "masks")}
    return options(folder, **tables, split={"train": 0.7, "val": 0.3}, group_by="patient", image_size=32, **more)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def samples(address: Path | str) -> list[tuple[str, dict[str, bytes]]]:
    store = open_store(str(address))
    return [sample for info in read_index(str(address)).shards for sample in read_shard(store, info.name)]


# ------------------------------------------------------------- determinism and resume


def test_the_number_of_processes_changes_no_byte(phantoms: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for processes in (1, 2):
        report = shard(
            phantoms / "images",
            tmp_path / str(processes),
            with_everything(phantoms, processes=processes),
            lambda done, total: told.append((done, total)),
        )
        assert report.samples == 40 and not report.skipped
        assert told[-1] == (40, 40) and [done for done, _ in told] == sorted(done for done, _ in told)
        told.clear()
    assert tars(tmp_path / "1") == tars(tmp_path / "2") and len(tars(tmp_path / "1")) >= 8
    for part in ("train", "val"):
        assert read_index(str(tmp_path / "1" / part)) == read_index(str(tmp_path / "2" / part))
        assert verify(str(tmp_path / "2" / part)) == []
        assert not (tmp_path / "1" / part / "plan.json").exists() and not list(
            (tmp_path / "1" / part).glob("progress/*")
        )


def test_an_interrupted_run_goes_on_where_it_was(phantoms: Path, tmp_path: Path) -> None:
    shard(phantoms / "images", tmp_path / "whole", with_everything(phantoms))

    def interrupt(done: int, total: int) -> None:
        if done == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(phantoms / "images", tmp_path / "set", with_everything(phantoms), interrupt)
    published = {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in tars(tmp_path / "set")}
    assert 0 < len(published) < len(tars(tmp_path / "whole")) and not list((tmp_path / "set").rglob("index.json"))
    told: list[int] = []
    report = shard(
        phantoms / "images", tmp_path / "set", with_everything(phantoms), lambda done, total: told.append(done)
    )
    assert sum(part.resumed_shards for part in report.parts.values()) == len(published)
    assert told[0] == 40 - report.files_now >= 15
    assert tars(tmp_path / "set") == tars(tmp_path / "whole")
    assert all((tmp_path / "set" / name).stat().st_mtime_ns == at for name, at in published.items())


def test_a_killed_run_with_processes_goes_on_too(phantoms: Path, tmp_path: Path) -> None:
    """SIGKILL to the parent alone: its workers end by themselves, and the next run completes the set."""
    script = textwrap.dedent(
        """
        import sys, time
        from dira_dist.data.ingest import ShardOptions, shard

        if __name__ == "__main__":
            source, dest, salt = sys.argv[1:]
            chosen = ShardOptions(salt_file=salt, samples_per_shard=1, processes=2)
            shard(source, dest, chosen, lambda done, total: time.sleep(0.05))
        """
    )
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, tmp_path / "run.py", phantoms / "images", tmp_path / "set", phantoms / "salt"]
    child = subprocess.Popen([str(part) for part in command], start_new_session=True)
    try:
        while not list((tmp_path / "set" / "progress").glob("*.json")):
            assert child.poll() is None
            time.sleep(0.02)
        child.kill()
        child.wait()
        assert not (tmp_path / "set" / "index.json").exists()
        deadline = time.monotonic() + 30
        while _group_lives(child.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _group_lives(child.pid), "workers outlive their parent"
    finally:
        if _group_lives(child.pid):
            os.killpg(child.pid, signal.SIGKILL)
    report = shard(phantoms / "images", tmp_path / "set", options(phantoms, samples_per_shard=1))
    shard(phantoms / "images", tmp_path / "whole", options(phantoms, samples_per_shard=1))
    assert report.parts["all"].resumed_shards > 0 and tars(tmp_path / "set") == tars(tmp_path / "whole")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_ended_before_its_index_is_completed(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tars are there and told of, and the process dies before it says so."""
    monkeypatch.setattr(Part, "finish", _killed)
    with pytest.raises(KeyboardInterrupt):
        shard(phantoms / "images", tmp_path / "set", options(phantoms))
    monkeypatch.undo()
    assert len(tars(tmp_path / "set")) == 8 and not (tmp_path / "set" / "index.json").exists()
    report = shard(phantoms / "images", tmp_path / "set", options(phantoms))
    assert report.files_now == 0 and report.samples == 40 and report.parts["all"].resumed_shards == 8
    assert verify(str(tmp_path / "set")) == [] and not (tmp_path / "set" / "plan.json").exists()


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_finished_run_is_left_alone(phantoms: Path, tmp_path: Path) -> None:
    shard(phantoms / "images", tmp_path / "set", options(phantoms))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    report = shard(phantoms / "images", tmp_path / "set", options(phantoms, processes=2, strict=True))
    assert report.parts["all"].was_complete and report.files_now == 0 and report.samples == 40
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    assert any("nothing to do" in line for line in report.lines())


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_for_the_same_place_is_refused_by_name(phantoms: Path, tmp_path: Path, finished: bool) -> None:
    dest = tmp_path / "set"

    def stop(done: int, total: int) -> None:
        if done == 12 and not finished:
            raise KeyboardInterrupt

    try:
        shard(phantoms / "images", dest, options(phantoms), stop)
    except KeyboardInterrupt:
        assert not finished
    before = tars(dest)
    with pytest.raises(RequestError, match=r"made otherwise: image_size \(512 there, 32 now\).*--overwrite"):
        shard(phantoms / "images", dest, options(phantoms, image_size=32))
    (tmp_path / "salt").write_text("another secret")
    with pytest.raises(RequestError, match=r"salt \(another one\)"):
        shard(phantoms / "images", dest, options(tmp_path))
    renamed = shutil.copytree(phantoms / "images", tmp_path / "renamed")
    (renamed / "000003.png").rename(renamed / "000003b.png")
    with pytest.raises(RequestError, match=r"made otherwise: source \(another one\)\."):
        shard(renamed, dest, options(phantoms))
    less = shutil.copytree(phantoms / "images", tmp_path / "less")
    (less / "000003.png").unlink()
    with pytest.raises(RequestError, match=r"made otherwise: source \(another one\)\."):
        shard(less, dest, options(phantoms))
    assert tars(dest) == before
    report = shard(less, dest, options(phantoms, overwrite=True, samples_per_shard=20))  # fewer tars than before
    assert report.samples == 39 and verify(str(dest)) == []


def test_places_that_hold_other_things_are_refused(phantoms: Path, tmp_path: Path) -> None:
    shard(phantoms / "images", tmp_path / "set", options(phantoms))
    with pytest.raises(RequestError, match=r"already holds another shard set \(index.json\).*parts train, val"):
        shard(phantoms / "images", tmp_path / "set", with_everything(phantoms))
    shard(phantoms / "images", tmp_path / "parts", with_everything(phantoms))
    with pytest.raises(RequestError, match=r"another shard set \(train/index.json, val/index.json\)"):
        shard(phantoms / "images", tmp_path / "parts", options(phantoms))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "mine.tar").write_bytes(b"precious")
    with pytest.raises(RequestError, match="tars of unknown making"):
        shard(phantoms / "images", tmp_path / "tars", options(phantoms))
    assert (tmp_path / "tars" / "mine.tar").read_bytes() == b"precious"


# --------------------------------------------------------------------- unreadable files


@pytest.fixture
def damaged(phantoms: Path, tmp_path: Path) -> Path:
    """The archive with one file cut short and one that is no image, and some that are none of our business."""
    images = shutil.copytree(phantoms / "images", tmp_path / "images")
    (images / "000007.png").write_bytes((images / "000007.png").read_bytes()[:300])
    (images / "000008.png").write_text("this is no image")
    (images / "notes.txt").write_text("hello")
    (images / ".hidden.png").write_text("")
    return images


def test_unreadable_files_are_named_and_skipped(damaged: Path, phantoms: Path, tmp_path: Path) -> None:
    chosen = options(phantoms, report=str(tmp_path / "report.json"))
    report = shard(damaged, tmp_path / "set", chosen)
    assert report.samples == 38 and report.ignored == 1
    assert [skipped.file for skipped in report.skipped] == ["000007.png", "000008.png"]
    assert report.skipped[0].reason == "the PNG is cut short"
    assert report.skipped[1].reason == "its first bytes are those of no image that is read"
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["skipped"][0]["file"] == "000007.png" and written["parts"]["all"]["samples"] == 38
    assert sum("skipped 00000" in line for line in report.lines()) == 2
    again = shard(damaged, tmp_path / "set", chosen)
    assert again.parts["all"].was_complete and [skipped.file for skipped in again.skipped] == [
        "000007.png",
        "000008.png",
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_strict_refuses_and_leaves_no_set(damaged: Path, phantoms: Path, tmp_path: Path, processes: int) -> None:
    with pytest.raises(RequestError, match=r"strict: 00000[78]\.png cannot go into the set: .*--strict"):
        shard(damaged, tmp_path / "set", options(phantoms, strict=True, processes=processes))
    assert not (tmp_path / "set" / "index.json").exists()
    assert shard(damaged, tmp_path / "set", options(phantoms)).samples == 38


def test_a_file_that_goes_after_it_was_listed_is_skipped(phantoms: Path, tmp_path: Path) -> None:
    images = shutil.copytree(phantoms / "images", tmp_path / "images")

    def remove(done: int, total: int) -> None:
        (images / "000007.png").unlink(missing_ok=True)

    report = shard(images, tmp_path / "set", options(phantoms), remove)
    assert report.samples == 39
    assert [(found.file, found.reason) for found in report.skipped] == [
        ("000007.png", "it has gone since it was listed")
    ]


def test_a_source_that_goes_is_not_skipped_file_by_file(phantoms: Path, tmp_path: Path) -> None:
    images = shutil.copytree(phantoms / "images", tmp_path / "images")

    def remove(done: int, total: int) -> None:
        if done == 12:
            images.rename(tmp_path / "elsewhere")

    with pytest.raises(RequestError, match="there is no folder"):
        shard(images, tmp_path / "set", options(phantoms), remove)
    (tmp_path / "elsewhere").rename(images)
    report = shard(images, tmp_path / "set", options(phantoms))
    assert report.samples == 40 and report.parts["all"].resumed_shards > 0


@pytest.fixture
def as_a_user(phantoms: Path) -> Iterator[Path]:
    """A copy of the archive that a user without privileges reads, which this process is meanwhile."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(phantoms / "images", folder / "images")
    shutil.copy(phantoms / "salt", folder / "salt")
    privileged = os.geteuid() == 0
    if privileged:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
        if not os.access(pydicom.__file__, os.R_OK, effective_ids=True):
            os.seteuid(0)
            shutil.rmtree(folder)
            pytest.skip("another user may not read this environment's packages")
    yield folder
    if privileged:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_skipped(as_a_user: Path) -> None:
    shutil.copy(as_a_user / "images" / "000003.png", as_a_user / "images" / "IM0001")  # DICOM? only a look tells
    for name in ("000003.png", "IM0001"):
        (as_a_user / "images" / name).chmod(0)
    report = shard(as_a_user / "images", as_a_user / "set", options(as_a_user))
    assert report.samples == 39
    assert [(found.file, "may not read it" in found.reason) for found in report.skipped] == [
        ("000003.png", True),
        ("IM0001", True),
    ]
    with pytest.raises(RequestError, match=r"strict: (IM0001|000003\.png) cannot go into the set: .*may not read it"):
        shard(as_a_user / "images", as_a_user / "other", options(as_a_user, strict=True))


@pytest.mark.parametrize("mode", [0, 0o400])
def test_a_folder_that_may_not_be_read_makes_no_smaller_set(as_a_user: Path, mode: int) -> None:
    closed = as_a_user / "images" / "ward"
    closed.mkdir()
    shutil.copy(as_a_user / "images" / "000003.png", closed / "x.png")
    closed.chmod(mode)
    try:
        with pytest.raises(StoreError, match=r"ward.*Permission denied"):
            shard(as_a_user / "images", as_a_user / "set", options(as_a_user))
    finally:
        closed.chmod(0o700)


def test_names_that_are_no_utf_8_are_sharded_and_shown(tmp_path: Path, phantoms: Path) -> None:
    source = tmp_path / "images"
    folder = os.fsencode(source) + b"/m\xfcde"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    for number, name in enumerate((b"schw\xe4rzung.png", b"br\xfcche.png", b"IM\xfc")):
        data = (phantoms / "images" / f"00000{number}.png").read_bytes()
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(data if number == 1 else b"no image")
    report = shard(source, tmp_path / "set", options(phantoms, labels="folders", report=str(tmp_path / "report.json")))
    assert report.samples == 1 and report.ignored == 1
    assert [found.file for found in report.skipped] == [r"m\xfcde/schw\xe4rzung.png"]
    assert json.loads((tmp_path / "report.json").read_text())["skipped"][0]["file"] == r"m\xfcde/schw\xe4rzung.png"
    ((_, members),) = samples(tmp_path / "set")
    assert json.loads(members["json"])["labels"] == {"label": r"m\xfcde"}
    assert read_index(str(tmp_path / "set")).classes == {"label": (r"m\xfcde",)}


def test_an_archive_without_one_readable_image_is_refused(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    with pytest.raises(RequestError, match=r"none of 1 files could be read. The first was a.png"):
        shard(tmp_path / "images", tmp_path / "set", options(phantoms))
    assert [path for path in (tmp_path / "set").rglob("*") if path.is_file()] == []


def test_missing_and_empty_sources_are_refused(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere"):
        shard(tmp_path / "nowhere", tmp_path / "set", options(phantoms))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(RequestError, match=r"no images in .*empty: of 1 files none is PNG"):
        shard(tmp_path / "empty", tmp_path / "set", options(phantoms))
    assert not (tmp_path / "set").exists()


# ------------------------------------------------------------------------ set's mode


def test_16_bits_are_kept_and_jpeg_makes_8(tmp_path: Path, phantoms: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(deep).save(source / "deep.png")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(source / "flat.png")
    shard(source, tmp_path / "png", options(phantoms))
    images = [np.asarray(Image.open(io.BytesIO(members["png"]))) for _, members in samples(tmp_path / "png")]
    assert read_index(str(tmp_path / "png")).image.mode == "I;16"
    assert {image.dtype for image in images} == {np.dtype(np.uint16)}
    assert any(np.array_equal(image, deep) for image in images) and any((image == 7 * 257).all() for image in images)
    report = shard(source, tmp_path / "jpeg", options(phantoms, coding="jpeg"))
    assert report.converted == 1 and read_index(str(tmp_path / "jpeg")).image.mode == "L"
    assert all(Image.open(io.BytesIO(members["jpg"])).mode == "L" for _, members in samples(tmp_path / "jpeg"))


def test_colour_is_kept_only_where_there_is_some(tmp_path: Path, phantoms: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8).repeat(3, axis=2)
    Image.fromarray(grey).save(source / "grey-in-colour.png")
    shard(source, tmp_path / "grey", options(phantoms))
    assert read_index(str(tmp_path / "grey")).image.mode == "L"
    Image.fromarray(grey * np.array([1, 0, 0], np.uint8)).save(source / "red.png")
    shard(source, tmp_path / "colour", options(phantoms))
    assert read_index(str(tmp_path / "colour")).image.mode == "RGB"
    assert shard(source, tmp_path / "asked", options(phantoms, mode="L")).converted == 1


def test_every_setting_of_size_and_coding_changes_the_set(phantoms: Path, tmp_path: Path) -> None:
    digests = set()
    changes: list[dict[str, Any]] = [
        {},
        {"image_size": 24},
        {"coding": "jpeg"},
        {"coding": "jpeg", "jpeg_quality": 50},
        {"mode": "I;16"},
        {"samples_per_shard": 7},
    ]
    for number, change in enumerate(changes):
        digests.add(shard(phantoms / "images", tmp_path / str(number), options(phantoms, **change)).parts["all"].digest)
    assert len(digests) == len(changes)


# --------------------------------------------------------------------------- privacy

SECRETS = ["Doe^Jane", "MRN-4711", "St Elsewhere", "19610203", "1.2.826.0.1.3680043.8.498.77", "Dr^Who", "JANE-DOE"]


def _identified(number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = (
        SECRETS[0],
        f"{SECRETS[1]}{number // 2}",
        SECRETS[3],
    )
    dataset.InstitutionName, dataset.ReferringPhysicianName = SECRETS[2], SECRETS[5]
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = f"{SECRETS[4]}.{number}"
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"{SECRETS[4]}.{number}.1"
    dataset.Modality, dataset.ViewPosition, dataset.PixelSpacing = "DX", "PA", [0.5, 0.25]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 40, 40, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    pixels = np.random.default_rng(number).integers(0, 4096, (40, 40), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    return dataset


def _all_bytes(folder: Path) -> bytes:
    """Every file of a folder, and every member of its tars with NPY and compressed parts as they are."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def _identified_series(number: int) -> list[FileDataset]:
    """Three slices of a patient, evenly spaced."""
    made = [_identified(number) for _ in range(3)]
    for place, dataset in enumerate(made):
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * place]
    return made


@pytest.mark.parametrize("content", ["images", "volumes"])
def test_no_identity_in_any_byte(
    tmp_path: Path, phantoms: Path, content: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    source = tmp_path / "JANE-DOE"
    for number in range(12):
        for place, dataset in enumerate(_identified_series(number) if content == "volumes" else [_identified(number)]):
            path = source / f"MRN-4711{number // 2}" / f"Doe^Jane-{number}-{place}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[:-100])  # one damaged, for its trace
    chosen = {"content": content, "group_by": "PatientID", "split": {"train": 0.5, "val": 0.5}}

    def watch(done: int, total: int) -> None:  # the state of an unfinished run holds no identity either
        unfinished = _all_bytes(tmp_path / "set")
        assert not [text for text in [*SECRETS, "cannot be read"] if text.encode() in unfinished]

    report = shard(source, tmp_path / "set", options(phantoms, samples_per_shard=1, image_size=20, **chosen), watch)
    assert report.samples == 11 and len(report.skipped) == 1
    found = _all_bytes(tmp_path / "set")
    told = (caplog.text + "".join(str(warning.message) for warning in recwarn)).encode()
    assert not [secret for secret in SECRETS if secret.encode() in found + told]
    records = [
        json.loads(members["json"]) for part in ("train", "val") for _, members in samples(tmp_path / "set" / part)
    ]
    assert all(record["modality"] == "DX" for record in records)
    if content == "images":
        assert records[0]["view_position"] == "PA" and records[0]["pixel_spacing_mm"] == [1.0, 0.5]
    else:
        assert records[0]["spacing_mm"] == [2.0, 0.5, 0.25]
    groups = [
        {json.loads(m["json"])["split_group"] for _, m in samples(tmp_path / "set" / p)} for p in ("train", "val")
    ]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) >= 5


def test_comments_inside_image_files_stay_behind(tmp_path: Path, phantoms: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    source = tmp_path / "images"
    source.mkdir()
    image = Image.fromarray(np.zeros((16, 16), np.uint8))
    note = PngInfo()
    note.add_text("Comment", "Doe^Jane")
    image.save(source / "a.png", pnginfo=note)
    exif = Image.Exif()
    exif[0x010E] = "Doe^Jane"
    image.save(source / "b.jpg", exif=exif, comment=b"Doe^Jane")
    image.save(source / "c.tif", description="Doe^Jane")
    for coding in ("png", "jpeg"):
        assert shard(source, tmp_path / coding, options(phantoms, coding=coding)).samples == 3
        assert b"Jane" not in _all_bytes(tmp_path / coding)


# ------------------------------------------------------------------------------- S3


def test_from_bucket_to_bucket_with_processes(phantoms: Path, tmp_path: Path, s3: Any) -> None:
    store = open_store(s3.address("archive"))
    for path in phantoms.rglob("*"):
        if path.is_file() and path.name != "salt":
            store.upload(path.relative_to(phantoms).as_posix(), path)
    chosen = with_everything(phantoms, processes=2).model_dump() | {
        name: s3.address(f"archive/{file}")
        for name, file in {"labels": "labels.csv", "boxes": "boxes.csv", "masks": "masks"}.items()
    }
    report = shard(s3.address("archive/images"), s3.address("sets/phantoms"), ShardOptions(**chosen))
    assert report.samples == 40 and not report.skipped
    local = shard(phantoms / "images", tmp_path / "set", with_everything(phantoms))
    assert {name: part.digest for name, part in report.parts.items()} == {
        name: part.digest for name, part in local.parts.items()
    }
    assert verify(s3.address("sets/phantoms/train")) == []
    again = shard(s3.address("archive/images"), s3.address("sets/phantoms"), ShardOptions(**chosen))
    assert all(part.was_complete for part in again.parts.values())
    with pytest.raises(RequestError, match="holds nothing there"):
        shard(s3.address("typo"), s3.address("sets/other"), ShardOptions(**chosen))


def _put(phantoms: Path, address: str) -> None:
    for path in (phantoms / "images").iterdir():
        open_store(address).upload(path.name, path)


def test_an_object_that_may_not_be_read_is_skipped(phantoms: Path, s3: Any, proxy: Any, fault: Any) -> None:
    _put(phantoms, s3.address("images"))
    denied = fault("status", status=403, code="AccessDenied")
    proxy.plan = lambda request: denied if request.method == "GET" and "000003.png" in request.path else None
    report = shard(s3.address("images"), s3.address("set"), options(phantoms))
    assert report.samples == 39
    assert [(found.file, "may not read it" in found.reason) for found in report.skipped] == [("000003.png", True)]


def test_keys_that_run_out_end_the_run(phantoms: Path, s3: Any, proxy: Any, fault: Any) -> None:
    """Were every further file skipped, a set of half the archive would be called whole."""
    _put(phantoms, s3.address("images"))
    expired = fault("status", status=403, code="InvalidAccessKeyId")

    def run_out(done: int, total: int) -> None:
        if done == 12:
            proxy.plan = lambda request: expired

    with pytest.raises(StoreError, match="InvalidAccessKeyId"):
        shard(s3.address("images"), s3.address("set"), options(phantoms), run_out)
    proxy.plan = lambda request: None
    assert shard(s3.address("images"), s3.address("set"), options(phantoms)).samples == 40


# --------------------------------------------------------------------- real archives


def _some(source: Path, dest: Path, names: list[str]) -> Path:
    dest.mkdir()
    for name in names:
        (dest / name).symlink_to(source / name)
    return dest


def test_nih_radiographs_with_rgba_labels_and_boxes(shared_data: Path, tmp_path: Path, phantoms: Path) -> None:
    nih = shared_data / "nih-chestxray14"
    images = sorted(path.name for path in (nih / "images").iterdir())
    rgba = [name for name in images if (nih / "images" / name).read_bytes()[25] == 6]  # colour type in the PNG header
    boxed = [line.split(",")[0] for line in (nih / "boxes.csv").read_text().splitlines()[1:9]]
    source = _some(nih / "images", tmp_path / "images", sorted({*images[:8], *rgba[:2], *boxed}))
    tables = {"labels": str(nih / "labels.csv"), "boxes": str(nih / "boxes.csv")}
    report = shard(source, tmp_path / "set", options(phantoms, image_size=256, processes=2, **tables))
    assert report.samples == len(list(source.iterdir())) and not report.skipped and report.converted == 0
    index = read_index(str(tmp_path / "set"))
    assert index.image.mode == "L" and (index.image.height_px.min, index.image.width_px.max) == (256, 256)
    records = [json.loads(members["json"]) for _, members in samples(tmp_path / "set")]
    assert all(record["labels"]["findings"] for record in records)
    boxes = [box for record in records for box in record["boxes"]]
    assert boxes and all(box["x"] >= 0 and box["x"] + box["width"] <= 257 for box in boxes)
    for _, members in samples(tmp_path / "set"):
        assert np.asarray(Image.open(io.BytesIO(members["png"]))).std() > 10


def test_kermany_split_by_patient(shared_data: Path, tmp_path: Path, phantoms: Path) -> None:
    kermany = shared_data / "kermany-chestxray"
    rows = [line.split(",") for line in (kermany / "labels.csv").read_text().splitlines()[1:]]
    chosen = rows[:30] + rows[-120:]
    source = _some(kermany / "images", tmp_path / "images", [row[0] for row in chosen])
    settings = {"labels": str(kermany / "labels.csv"), "split": {"train": 0.8, "val": 0.2}, "group_by": "patient"}
    report = shard(source, tmp_path / "set", options(phantoms, coding="jpeg", samples_per_shard=50, **settings))
    assert report.samples == 150
    patients = {row[1] for row in chosen}
    groups = {
        part: [json.loads(members["json"])["split_group"] for _, members in samples(tmp_path / "set" / part)]
        for part in ("train", "val")
    }
    assert not set(groups["train"]) & set(groups["val"])
    assert len(set(groups["train"] + groups["val"])) == len(patients)
    assert set(read_index(str(tmp_path / "set" / "val")).classes["label"]) == {"NORMAL", "BACTERIA", "VIRUS"}
    assert not [name for name in patients if name.encode() in _all_bytes(tmp_path / "set")]


def test_head_mr_as_images_and_as_one_volume(shared_data: Path, tmp_path: Path, phantoms: Path) -> None:
    head = shared_data / "head-mr-dicom"
    images = shard(head, tmp_path / "images", options(phantoms, image_size=128, samples_per_shard=16))
    assert images.samples == 32 and read_index(str(tmp_path / "images")).image.mode == "I;16"
    volumes = shard(head, tmp_path / "volumes", options(phantoms, content="volumes"))
    assert volumes.samples == 1 and read_index(str(tmp_path / "volumes")).image.mode == "volume"
    ((_, members),) = samples(tmp_path / "volumes")
    voxels = np.load(io.BytesIO(members["npy"]))
    record = json.loads(members["json"])
    assert voxels.shape == (32, 512, 512) == tuple(record["shape"])
    assert record["spacing_mm"] == pytest.approx([1.5, 0.410156, 0.410156]) and record["modality"] == "MR"
    neighbours = np.corrcoef(voxels[10].ravel(), voxels[11].ravel())[0, 1]
    assert neighbours > np.corrcoef(voxels[10].ravel(), voxels[25].ravel())[0, 1] and neighbours > 0.9
    identity = [b"VS-SEG-001", b"1.3.6.1.4.1.14519", b"SIEMENS", b"19940904"]
    assert not [secret for secret in identity for folder in (tmp_path,) if secret in _all_bytes(folder)]


def test_hippocampus_volumes_with_their_masks(shared_data: Path, tmp_path: Path, phantoms: Path) -> None:
    mr = shared_data / "hippocampus-mr"
    names = sorted(path.name for path in (mr / "images").iterdir() if path.name.endswith(".nii.gz"))[:10]
    source = _some(mr / "images", tmp_path / "images", names)
    report = shard(source, tmp_path / "set", options(phantoms, masks=str(mr / "labels")))
    assert report.samples == 10
    for _, members in samples(tmp_path / "set"):
        voxels, mask = np.load(io.BytesIO(members["npy"])), np.load(io.BytesIO(members["mask.npy"]))
        assert voxels.shape == mask.shape and set(np.unique(mask)) == {0, 1, 2} and mask.dtype == np.uint8
        assert voxels[mask > 0].std() > 0


def test_lungs_with_masks(shared_data: Path, tmp_path: Path, phantoms: Path) -> None:
    lungs = shared_data / "chestxray-lungs"
    names = sorted(path.name for path in (lungs / "images").iterdir())[:8]
    source = _some(lungs / "images", tmp_path / "images", names)
    shard(source, tmp_path / "set", options(phantoms, masks=str(lungs / "masks"), image_size=128))
    for _, members in samples(tmp_path / "set"):
        image, mask = (np.asarray(Image.open(io.BytesIO(members[name]))) for name in ("png", "mask.png"))
        assert image.shape == mask.shape and set(np.unique(mask)) == {0, 255}
        assert image[mask > 0].mean() < image[mask == 0].mean() + 40


def test_pydicoms_files_with_their_damaged_ones_named(tmp_path: Path, phantoms: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    good = ["CT_small", "MR_small_RLE", "MR_small_jp2klossless", "JPEGLSNearLossless_16", "SC_rgb_rle_2frame"]
    for name in [*good, "MR_truncated", "rtplan"]:
        shutil.copy(str(get_testdata_file(f"{name}.dcm")), source)
    (source / "CT_small.dcm").rename(source / "1.2.840.113619.2")  # as scanners name their files
    (source / "MR_small_RLE.dcm").rename(source / "IM0001")
    (source / "README").write_text("no image")
    report = shard(source, tmp_path / "set", options(phantoms))
    assert report.samples == 6 and report.ignored == 1
    assert {skipped.file: skipped.reason for skipped in report.skipped} == {
        "MR_truncated.dcm": "its pixels are cut off: 8130 bytes of 8192 are there",
        "rtplan.dcm": "it is a DICOM file without pixels",
    }
    keys = sorted(key for key, _ in samples(tmp_path / "set"))
    assert sum(key.endswith(("-0000", "-0001")) for key in keys) == 2


def test_volumes_and_flat_images_do_not_mix(tmp_path: Path, phantoms: Path) -> None:
    import nibabel

    source = tmp_path / "files"
    source.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(source / "flat.png")
    ramp = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    data = nibabel.Nifti1Image(ramp, np.eye(4)).to_bytes()
    (source / "scan.nii.gz").write_bytes(gzip.compress(data))
    flat = shard(source, tmp_path / "flat", options(phantoms))
    assert flat.samples == 6 and not flat.skipped  # the volume as its five slices
    whole = shard(source, tmp_path / "whole", options(phantoms, content="volumes"))
    assert whole.samples == 1 and whole.skipped[0].file == "flat.png"
    (source / "flat.png").unlink()
    assert read_index(whole.parts["all"].address).image.encoding == "npy"
    assert shard(source, tmp_path / "alone", options(phantoms)).samples == 1
