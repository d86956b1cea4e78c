"""A model over ordinary files: the table, what is said of bad input, and what an interruption leaves."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.ingest.salt import read_salt
from dira_dist.evaluation.calibration import Calibration
from dira_dist.evaluation.classification import plain_chances
from dira_dist.models.model_files import ModelFacts, write_checksums, write_model_folder
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.prediction import work
from dira_dist.prediction.model import load_fine_tuned
from dira_dist.prediction.options import PredictOptions
from dira_dist.prediction.predict import Results, predict
from dira_dist.views.center_view import center_view
from dira_dist.views.frame_view import fit_view, unfit
from tests.prediction.conftest import SIDE_PX, MakeModel

Row = dict[str, str]
Run = Callable[..., Results]


def table(dest: Path, name: str = "predictions") -> list[Row]:
    with (dest / f"{name}.csv").open() as lines:
        return list(csv.DictReader(lines))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(model: Path, source: Path, dest: Path, progress: Any = None, **options: Any) -> Results:
    return predict(str(model), str(source), str(dest), PredictOptions(processes=1, **options), progress=progress)


@pytest.fixture
def archive(labelled: Path, tmp_path: Path) -> Path:
    """Ten images in two folders, of other sizes and kinds, one of them no image, beside a file of another kind."""
    folder = tmp_path / "archive"
    images = sorted((labelled / "images").glob("*.png"))[:8]
    for number, file in enumerate(images):
        place = folder / f"patient-{number // 4}" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    grey = np.asarray(Image.open(images[0]))
    wide = np.repeat(np.repeat(grey, 5, axis=0), 9, axis=1)
    Image.fromarray(wide).save(folder / "patient-1" / "wide.jpg", quality=95)
    Image.fromarray(np.stack([wide, wide, 255 - wide], axis=2)).save(folder / "patient-1" / "colour.png")
    Image.fromarray(wide.astype(np.uint16) * 257).save(folder / "patient-1" / "deep.tiff")
    (folder / "patient-0" / "broken.png").write_bytes(images[0].read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_probabilities_and_decisions_are_those_of_the_network(
    make_model: MakeModel, archive: Path, tmp_path: Path
) -> None:
    model, dest = make_model("classify"), tmp_path / "out"
    done = run(model, archive, dest)
    rows = {row["file"]: row for row in table(dest)}
    assert (done.entries, done.rows, done.ignored) == (12, 12, 1)
    assert rows["patient-0/broken.png"]["reason"] and not rows["patient-0/broken.png"]["probability normal"]
    assert sum(done.unread.values()) == 1 and "broken" not in "".join(done.lines())
    found = load_fine_tuned(model, "")
    told = found.facts
    calibration = Calibration("multiclass", told.calibration["slopes"], told.calibration["intercepts"])
    for name in ("patient-0/000000.png", "patient-1/wide.jpg"):
        image = Image.open(archive / name)
        short = min(image.size)
        size = (round(image.width * min(1, 40 / short)), round(image.height * min(1, 40 / short)))
        small = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
        with torch.no_grad():
            view = center_view(torch.from_numpy(small.copy())[None, None], SIDE_PX, 1)
            logits = found.network(view).double().numpy()
        chances, raw = calibration.chances(logits)[0], plain_chances(logits, "multiclass")[0]
        for place, label in enumerate(told.classes):
            row = rows[name]
            close = 1e-6 if name.endswith("png") else 0.02  # a JPEG is decoded small, where it is large
            assert float(row[f"probability {label}"]) == pytest.approx(chances[place], abs=close)
            assert float(row[f"raw {label}"]) == pytest.approx(raw[place], abs=close)
            if name.endswith("png"):
                assert row[f"decision {label}"] == str(int(chances[place] > told.thresholds[place]))
        assert rows[name]["class"] == told.classes[int(chances.argmax())]
    assert "colour" in rows["patient-1/colour.png"]["note"] and not rows["patient-1/colour.png"]["reason"]
    held = parquet.read_table(dest / "predictions.parquet")
    assert held.num_rows == 12 and held.schema.metadata[b"weights"].decode() == found.digest
    assert held["probability normal"].to_pylist() == [
        None if not row["probability normal"] else float(row["probability normal"]) for row in rows.values()
    ]


def test_files_are_answered_as_the_samples_of_a_set_made_of_them(
    make_model: MakeModel, labelled: Path, tmp_path: Path
) -> None:
    model = make_model("regions")
    run(model, labelled / "images", tmp_path / "files", names="keys")
    run(model, labelled / "shards" / "test", tmp_path / "set")
    of_files, of_set = ({row["key"]: row for row in table(tmp_path / name)} for name in ("files", "set"))
    assert set(of_set) < set(of_files)
    for key, row in of_set.items():
        for name in ("highest lungs", "highest right"):
            assert float(row[name]) == pytest.approx(float(of_files[key][name]), abs=1e-4)
        stored = np.asarray(Image.open(tmp_path / "set" / "masks" / f"{key}.lungs.png"))
        own = np.asarray(Image.open(tmp_path / "files" / "masks" / f"{key}.lungs.png"))
        assert (stored.shape, own.shape) == ((40, 40), (48, 48)), "each in the pixels of its own"
        assert abs(stored.mean() - own.mean()) < 0.02


@pytest.mark.parametrize("task", ["binary", "segment", "regions"])
def test_masks_have_the_size_of_their_image(make_model: MakeModel, archive: Path, tmp_path: Path, task: str) -> None:
    model, dest = make_model(task), tmp_path / "out"
    run(model, archive, dest, overlays=True)
    found = load_fine_tuned(model, "")
    rows = {row["file"]: row for row in table(dest)}
    for name in ("patient-0/000000.png", "patient-1/wide.jpg", "patient-1/colour.png", "patient-1/deep.tiff"):
        size = Image.open(archive / name).size
        names = rows[name]["mask"].split("|")
        masks = [np.asarray(Image.open(dest / each)) for each in names]
        assert all(mask.shape == size[::-1] and mask.dtype == np.uint8 for mask in masks)
        measured = found.facts.classes[1:] if task == "segment" else found.facts.classes
        counts = [int((masks[0] == number + 1).sum()) for number in range(len(measured))]
        if task == "regions":
            assert names == [f"masks/{name.rpartition('.')[0]}.{region}.png" for region in ("lungs", "right")]
            counts = [int(mask.sum()) for mask in masks]
        assert [int(rows[name][f"pixels {each}"]) for each in measured] == counts
        assert [int(rows[name][f"decision {each}"]) for each in measured] == [int(count > 0) for count in counts]
        assert Image.open(dest / rows[name]["overlay"]).mode == "RGB"
    assert any(counts), "the test would see nothing otherwise"
    _assert_plain(found, archive / "patient-0" / "000000.png", dest / "masks" / "patient-0", task)


def _assert_plain(found: Any, file: Path, folder: Path, task: str) -> None:
    """The mask of one image by hand: reduced as for the set, framed, answered, brought back, decided."""
    small = np.asarray(Image.open(file).resize((40, 40), Image.Resampling.BICUBIC, reducing_gap=3.0))
    with torch.no_grad():
        view = fit_view(center_view(torch.from_numpy(small.copy())[None, None], (40, 40), 1), SIDE_PX)
        logits = found.network(view)
    chances = unfit(logits.softmax(1) if task == "segment" else logits.sigmoid(), (48, 48))[0]
    wanted = chances.argmax(0)[None] if task == "segment" else chances > 0.5
    regions = (".lungs", ".right") if task == "regions" else ("",)
    for mask, region in zip(wanted.numpy(), regions, strict=True):
        assert (np.asarray(Image.open(folder / f"000000{region}.png")) == mask).mean() > 0.999


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_an_interrupted_call_goes_on_to_the_same_bytes(
    make_model: MakeModel, labelled: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_CHUNK", 8)
    model, images, whole, broken = make_model(task), labelled / "images", tmp_path / "whole", tmp_path / "broken"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 30:
            raise KeyboardInterrupt

    run(model, images, whole)
    with pytest.raises(KeyboardInterrupt):
        run(model, images, broken, stop)
    assert len(list((broken / "parts").iterdir())) == 3 and not (broken / "predictions.csv").exists()
    seen.clear()
    run(model, images, broken, lambda done, total: seen.append(done))
    assert seen[:2] == [24, 25] and seen[-1] == 72, "three chunks were done already"
    assert files_of(whole) == files_of(broken)
    again = run(model, images, broken, lambda done, total: pytest.fail("there was nothing to do"))
    assert again.was_complete and again.rows == 72


def test_other_processes_write_the_same_bytes(
    make_model: MakeModel, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = make_model("regions"), labelled / "images"
    run(model, images, tmp_path / "one")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    predict(str(model), str(images), str(tmp_path / "two"), PredictOptions(processes=2))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_place_that_holds_something_else_is_refused(make_model: MakeModel, archive: Path, tmp_path: Path) -> None:
    model, dest = make_model("classify"), tmp_path / "out"
    run(model, archive, dest)
    before = files_of(dest)
    for other, changes, words in (
        (make_model("findings"), {}, "holds results of another model, .*classify"),
        (model, {"flips": "both"}, r"made with other options: flips \('none' there, 'both' now\)"),
        (model, {"names": "keys"}, "names"),
    ):
        with pytest.raises(RequestError, match=words):
            run(other, archive, dest, **changes)
    (archive / "patient-0" / "000000.png").unlink()
    with pytest.raises(RequestError, match="another source, or files of the source have changed"):
        run(model, archive, dest)
    assert files_of(dest) == before
    with pytest.raises(RequestError, match="holds other files"):
        run(model, archive, tmp_path)
    with pytest.raises(RequestError, match="lies in SOURCE"):
        run(model, archive, archive / "out")


def test_a_model_that_gives_no_answers_is_said_what_it_is(make_model: MakeModel, archive: Path, tmp_path: Path) -> None:
    network = UNet(UNetConfig(encoder="resnet18", in_channels=1, decoder_channels=(8, 8, 8, 8, 8)))
    facts = ModelFacts("start", "resnet18", 1, SIDE_PX, trained=("discriminative",))
    folder = write_model_folder(tmp_path / "start", network.state_dict(), facts, job="kind: pretrain\n")
    with pytest.raises(RequestError, match="is a pretrained resnet18, which gives features and no answers: fine-tune"):
        run(folder, archive, tmp_path / "out")
    with pytest.raises(RequestError, match="is a file of weights, which does not say"):
        run(make_model("classify") / "weights.safetensors", archive, tmp_path / "out")
    with pytest.raises(RequestError, match=r"neither a model .* nor a checkpoint"):
        run(tmp_path, archive, tmp_path / "out")
    with pytest.raises(RequestError, match=r"overlays: are of masks, and .* is a classifier"):
        run(make_model("classify"), archive, tmp_path / "out", overlays=True)
    with pytest.raises(RequestError, match=r"pool: .* is a segmenter"):
        run(make_model("segment"), archive, tmp_path / "out", pool="file")
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_images_is_refused(make_model: MakeModel, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"takes images of 4 channels, and ordinary files hold 1 .grey. or 3"):
        run(_altered(make_model("classify"), tmp_path / "model", {"in_channels": 4}), archive, tmp_path / "out")


def _altered(model: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """The same model with another ``model.json``."""
    for name, content in files_of(model).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    told = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(told | changes))
    write_checksums(folder)
    return folder


def test_a_model_that_does_not_say_how_its_images_were_made_is_noted(
    make_model: MakeModel, archive: Path, tmp_path: Path
) -> None:
    done = run(_altered(make_model("classify"), tmp_path / "model", {"fed": {}}), archive, tmp_path / "out")
    assert any("does not say how its images were made" in note for note in done.notes) and done.rows == 12


def test_a_full_disk_is_told_in_one_sentence(
    make_model: MakeModel, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 5
    sync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(JobFailedError, match=r"out: the disk is full; make room, and the same command goes on"):
            run(make_model("segment"), archive, tmp_path / "out")
    assert run(make_model("segment"), archive, tmp_path / "out").rows == 12


def test_nothing_of_a_name_is_written_where_keys_are_asked_for(
    make_model: MakeModel, archive: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    done = run(make_model("segment"), archive, dest, names="keys", overlays=True)
    written = files_of(dest)
    names = r"patient-\d|00000\d|wide|broken|colour\.png|deep"
    assert not [name for name, content in written.items() if re.search(names, name + content.decode("latin-1"))]
    assert not re.search(names, "".join(done.lines()).replace("colour", ""))
    salt = read_salt(None)
    keys = {salt.digest("sample", path.relative_to(archive).as_posix()) for path in archive.glob("*/*")}
    assert {row["key"] for row in table(dest)} == keys
    assert {name.removeprefix("masks/").removesuffix(".png") for name in written if "masks" in name} < keys


def test_mirrored_images_are_averaged(make_model: MakeModel, archive: Path, tmp_path: Path) -> None:
    model = make_model("findings")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for number in range(4):
        image = Image.open(archive / "patient-0" / f"00000{number}.png")
        image.save(mirror / f"{number}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirror / f"{number}m.png")
    run(model, mirror, tmp_path / "plain")
    run(model, mirror, tmp_path / "flipped", flips="horizontal")
    plain, flipped = ({row["file"]: row for row in table(tmp_path / name)} for name in ("plain", "flipped"))
    for number in range(4):
        pair = [float(plain[f"{number}{end}.png"]["probability nodule"]) for end in ("", "m")]
        assert float(flipped[f"{number}.png"]["probability nodule"]) == pytest.approx(np.mean(pair), abs=2e-3)
        assert float(flipped[f"{number}.png"]["raw nodule"]) == pytest.approx(
            float(flipped[f"{number}m.png"]["raw nodule"]), abs=2e-3
        )


def test_probabilities_are_pooled(make_model: MakeModel, archive: Path, labelled: Path, tmp_path: Path) -> None:
    model = make_model("findings")
    run(model, archive, tmp_path / "out", pool="folder")
    rows = [row for row in table(tmp_path / "out") if not row["reason"]]
    pooled = {row["group"]: row for row in table(tmp_path / "out", "pooled")}
    assert set(pooled) == {"patient-0", "patient-1"} and pooled["patient-0"]["images"] == "4"
    for group, row in pooled.items():
        chances = [float(each["probability effusion"]) for each in rows if each["group"] == group]
        assert float(row["mean probability effusion"]) == pytest.approx(np.mean(chances), abs=1e-6)
        assert float(row["largest probability effusion"]) == max(chances)
        assert row["largest decision effusion"] == str(
            max(int(each["decision effusion"]) for each in rows if each["group"] == group)
        )
    with pytest.raises(RequestError, match=r"pool study: the samples of .* do not tell theirs"):
        run(model, labelled / "shards" / "test", tmp_path / "set", pool="study")
    run(model, labelled / "shards" / "test", tmp_path / "set", pool="patient")
    of_set = table(tmp_path / "set")
    assert len(table(tmp_path / "set", "pooled")) == len({row["group"] for row in of_set}) < len(of_set)
