"""Every file of a source is read, or named with the reason: links, other formats, copies, and what ends no run."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadly import DeadlyConverter
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, planning, shard, work
from dira_dist.data.ingest.kinds import why_ignored
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.store import StoreError, open_store

RAMP = np.tile(np.arange(80, dtype=np.uint8), (60, 1))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One image and a salt."""
    (tmp_path / "src").mkdir()
    (tmp_path / "salt").write_text("0123456789abcdef")
    Image.fromarray(RAMP).save(tmp_path / "src" / "a.png")
    return tmp_path


def image(path: Path, shift: int = 0, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(RAMP, shift, 1)).save(path, form)


def run(archive: Path, **more: Any) -> ShardReport:
    options = ShardOptions(**({"salt_file": str(archive / "salt"), "processes": 1, "overwrite": True} | more))
    return shard(archive / "src", archive / "set", options)


def told(report: ShardReport) -> str:
    return "\n".join(report.lines())


# ------------------------------------------------------------------------------- links


def test_linked_folders_are_read_and_links_back_are_told(archive: Path) -> None:
    for number in range(5):
        image(archive / "disk" / "deep" / f"{number}.png", number + 1)
    (archive / "src" / "there").symlink_to("../disk")
    (archive / "src" / "loop").symlink_to(".")
    (archive / "disk" / "up").symlink_to("..")  # leads back to the folder in which the source lies
    (archive / "src" / "broken.png").symlink_to("nowhere.png")
    report = run(archive)
    assert report.samples == 6
    reasons = {found.file: found.reason for found in report.ignored_files}
    assert reasons["loop"] == "is a link back to a folder that it lies in"
    assert reasons["broken.png"] == "is a link that leads nowhere"
    assert "broken.png" in told(report) and "loop" in told(report)
    with pytest.raises(
        RequestError, match=r"strict: broken\.png cannot go into the set: it is a link that leads nowhere"
    ):
        run(archive, strict=True)


# ------------------------------------------------------------------------ other kinds


def test_what_is_not_read_is_counted_named_and_minded(archive: Path) -> None:
    for name in ("scans.zip", "more.tar.gz", "cine.mp4", "slide.svs", "x.unknown", "notes.txt", "README"):
        (archive / "src" / name).write_bytes(b"x" * 50)
    report = run(archive, report=str(archive / "report.json"))
    assert report.ignored == 7 == len(report.ignored_files)
    lines = told(report)
    assert "7 files of the source were ignored:" in lines
    assert "2 (more.tar.gz, scans.zip): each is an archive; unpack it" in lines
    assert json.loads((archive / "report.json").read_text())["ignored"] == 7
    with pytest.raises(RequestError, match=r"strict: cine\.mp4 cannot go into the set: it is a film"):
        run(archive, strict=True)
    for name in ("scans.zip", "more.tar.gz", "cine.mp4", "slide.svs", "x.unknown"):
        (archive / "src" / name).unlink()
    assert run(archive, strict=True).ignored == 2, "notes lie beside images everywhere"


@pytest.mark.parametrize(("kind", "suffix"), [("bmp", "bmp"), ("gif", "gif"), ("webp", "webp"), ("jpeg2000", "jp2")])
def test_formats_that_are_seldom_originals_are_read_when_asked_for(archive: Path, kind: str, suffix: str) -> None:
    image(archive / "src" / f"b.{suffix}")
    report = run(archive)
    assert report.samples == 1 and f"--include {kind} reads such files" in told(report)
    assert run(archive, include=(kind,)).samples == 2


def test_files_are_what_their_first_bytes_say(archive: Path) -> None:
    image(archive / "src" / "really.tif", 1, "PNG")
    image(archive / "src" / "really.dcm", 2, "TIFF")
    image(archive / "src" / "photo.jfif", 3, "JPEG")
    image(archive / "src" / "without_suffix", 4, "PNG")
    assert run(archive).samples == 5


@pytest.mark.parametrize("name", ["a.zip", "b.nd2", "c.heic", "d.csv", "e", "LICENSE", "f.bmp"])
def test_every_reason_ends_a_sentence(name: str) -> None:
    reason, _ = why_ignored(name)
    assert reason.split()[0] in ("is", "may", "lies") and not reason.endswith(".")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_depth_of_a_tiff_is_found_at_its_end_too(archive: Path, compression: str | None) -> None:
    """Of more files than are decoded for it."""
    deep = np.random.default_rng(0).integers(0, 65536, (120, 120)).astype(np.uint16)
    for number in range(260):
        path = archive / "src" / f"{number}.tif"
        Image.fromarray(np.roll(deep, number, 1)).save(path, **({"compression": compression} if compression else {}))
    assert run(archive, image_size=16).mode == "I;16"


def test_a_report_that_cannot_be_written_is_refused_before_the_work(archive: Path) -> None:
    with pytest.raises(RequestError, match="there is no such folder"):
        run(archive, report=str(archive / "nowhere" / "report.json"))
    assert not (archive / "set").exists()


# ----------------------------------------------------------------------------- copies


def test_byte_equal_files_are_told_and_kept_together(archive: Path) -> None:
    for number in range(12):
        for copy in ("x", "copy of x", "backup/x"):
            image(archive / "src" / f"{copy}{number}.png", number * 5)
    report = run(archive, split={"train": 0.5, "val": 0.5})
    assert any("25 files hold the same bytes as another" in warning for warning in report.warnings)
    sides = {part: _pictures(archive / "set" / part) for part in ("train", "val")}
    assert not sides["train"] & sides["val"] and len(sides["train"] | sides["val"]) == 12


def test_files_of_one_size_that_differ_are_no_copies(archive: Path) -> None:
    for number in range(3):
        (archive / "src" / f"{number}.png").write_bytes((archive / "src" / "a.png").read_bytes() + bytes([number]))
    assert not [warning for warning in run(archive).warnings if "same bytes" in warning]


def _pictures(folder: Path) -> set[bytes]:
    found = set()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            files = [(member, tar.extractfile(member)) for member in tar if member.name.endswith("png")]
            found |= {np.asarray(Image.open(io.BytesIO(file.read()))).tobytes() for _, file in files if file}
    return found


# ------------------------------------------------------------------- what ends no run


@pytest.mark.parametrize("processes", [2, None])
def test_a_file_that_ends_its_process_is_named_and_the_run_goes_on(
    archive: Path, monkeypatch: pytest.MonkeyPatch, processes: int | None
) -> None:
    for number in range(6):
        image(archive / "src" / f"{number}.png", number + 1)
    image(archive / "src" / "deadly.png", 30)
    monkeypatch.setattr(work, "Converter", DeadlyConverter)
    report = run(archive, processes=processes, samples_per_shard=3)
    assert report.samples == 7
    assert [found.file for found in report.skipped] == ["deadly.png"]
    assert "the process that read it was ended 2 times (SIGKILL, as the kernel does when memory runs out)" in told(
        report
    )


def test_what_a_survivor_makes_is_what_an_undisturbed_run_makes(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        image(archive / "src" / f"{number}.png", number + 1)
    image(archive / "src" / "deadly.png", 30)
    (archive / "src" / "deadly.png").write_bytes(b"damaged")
    whole = run(archive, samples_per_shard=3).parts["all"].digest
    monkeypatch.setattr(work, "Converter", DeadlyConverter)
    assert run(archive, samples_per_shard=3, processes=2).parts["all"].digest == whole


# ---------------------------------------------------------------------------- privacy


def test_names_are_relative_and_give_way_to_keys_where_others_read(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive / "src" / "DOE_JANE.png").write_bytes(b"damaged")
    (archive / "src" / "DOE_JOHN.zip").write_bytes(b"x")
    shutil.copy(archive / "src" / "a.png", archive / "src" / "DOE_TWIN.png")
    by_name = told(run(archive))
    assert "skipped DOE_JANE.png: " in by_name and str(archive / "src") not in by_name
    report = run(archive, names="keys", report=str(archive / "report.json"))
    assert "DOE" not in told(report)
    (skipped,) = report.skipped
    assert skipped.file == "DOE_JANE.png" and f"skipped {skipped.key}: " in told(report)
    assert "DOE_JANE.png" in (archive / "report.json").read_text()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "DOE" not in told(run(archive))
    assert "DOE_JANE" in told(run(archive, names="files"))


@pytest.mark.parametrize(
    "trouble", ["strict", "ambiguous mask", "unknown rows", "row twice", "half", "nothing left", "two files"]
)
def test_refusals_name_no_file_either(archive: Path, trouble: str) -> None:
    table = archive / "labels.csv"
    options: dict[str, Any] = {"names": "keys"}
    if trouble == "strict":
        (archive / "src" / "DOE.png").write_bytes(b"damaged")
        options["strict"] = True
    elif trouble == "ambiguous mask":
        for folder in ("p", "q"):
            image(archive / "src" / folder / "DOE.png", ord(folder))
        image(archive / "masks" / "DOE.png")
        options["masks"] = str(archive / "masks")
    elif trouble == "unknown rows":
        (archive / "src" / "a.png").rename(archive / "src" / "DOE.png")
        table.write_text("image,label\nDOE_2.png,x\n")
        options["labels"] = str(table)
    elif trouble == "row twice":
        table.write_text("image,label\nDOE.png,x\nDOE.png,y\n")
        options["labels"] = str(table)
    elif trouble == "half":
        (archive / "src" / "a.png").unlink()
        (archive / "src" / "DOE.hdr").write_bytes(bytes([92, 1]) + bytes(346))
    elif trouble == "nothing left":
        (archive / "src" / "a.png").unlink()
        (archive / "src" / "DOE.png").write_bytes(b"damaged")
    else:
        for folder in ("p", "q"):
            image(archive / "src" / folder / "DOE.png", ord(folder))
        table.write_text("image,label\nDOE.png,x\n")
        options["labels"] = str(table)
    with pytest.raises(RequestError) as caught:
        run(archive, **options)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize("where", [(work, "survey"), (planning, "list_source"), (planning, "read_headers")])
def test_trouble_with_storage_names_no_object_either(
    archive: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("read s3://bucket/DOE_JANE.png failed")

    monkeypatch.setattr(*where, refuse)
    with pytest.raises(StoreError, match="DOE_JANE"):
        run(archive)
    with pytest.raises(StoreError) as caught:
        run(archive, names="keys")
    assert "DOE" not in str(caught.value) and "goes on from there" in str(caught.value)


# --------------------------------------------------------------------------------- S3


def test_of_an_object_no_more_is_read_to_know_it_than_its_first_bytes(s3: Any, proxy: Any) -> None:
    data = os.urandom(1 << 20)
    open_store(s3.address("archive")).write_bytes("big.tar", data)
    with open_store(s3.address("archive")).open("big.tar", ObjectRange(first_bytes=1 << 14)) as stream:
        assert stream.read(1000) == data[:1000]
        assert proxy.object_bytes == 1 << 14
        assert stream.read() == data[1000:]
