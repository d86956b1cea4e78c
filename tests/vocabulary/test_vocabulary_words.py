"""Sets of words: each cube against one that is sliced out of its volume, and whatever a set has to be."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shard_sets import ShardWriter, read_shard
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.data.arrays import decode_array
from dira_dist.data.ingest.pixels import encode_array
from dira_dist.data.shards import Sample, read_index
from dira_dist.data.store import open_store
from dira_dist.data.validation import ValidationStream
from dira_dist.data.verify import verify
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import preflight
from dira_dist.prediction.model import Model
from dira_dist.vocabulary.options import WordsOptions
from dira_dist.vocabulary.words import make_words
from tests.conftest import S3Server

SIZE = (4, 5, 6)  # x, y, z of the volumes that features are taken of
OPTIONS = WordsOptions(words=5, nearest=3, cube=(8, 8, 8), apart=0.05, split={"train": 0.6, "val": 0.4}, seed=1)


class Pooled(nn.Module):
    """Features that a person can compute: means over the lower and the upper half of each axis."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, *SIZE)
        halves = [images.narrow(axis, *part).flatten(1).mean(1) for axis in (2, 3, 4) for part in ((0, 2), (2, 2))]
        return torch.stack(halves, dim=1)


def model(network: nn.Module | None = None, **other: Any) -> Model:
    values: dict[str, Any] = {
        "image_size": SIZE,
        "in_channels": 1,
        "fit": "crop",
        "fed": {},
        "dims": 3,
        "rgb": False,
    } | other
    return Model("models:/halves@best", "d" * 64, network or Pooled(), **values)


def sides_of(number: int) -> tuple[int, int, int]:
    """(D, H, W): no two patients have the same."""
    return 14 + number % 3, 18 + number % 5, 16 + number % 7


def voxels_of(number: int) -> np.ndarray:
    """A volume (D, H, W) with a slope of its own, so that features differ, and noise, so that no two places agree."""
    drawn = np.random.default_rng(number)
    slope = np.linspace(0, 1, sides_of(number)[0])[:, None, None] * drawn.uniform(0, 1)
    return ((slope + drawn.uniform(0, 0.3, sides_of(number))) / 1.3 * 65535).astype(np.uint16)


def write_volumes(
    address: Path, count: int = 20, *, placed: int = 20, intensity: bool = True, dtype: Any = np.uint16, **index: Any
) -> None:
    """Volumes of patients, every third of whom has two; keys in the order of nothing."""
    with ShardWriter(str(address), mode="volume", encoding="npy", samples_per_shard=4, **index) as writer:
        for number in range(count):
            _, height, width = sides_of(number)
            affine = np.diag([1.5, 1.0, 2.0, 1.0])
            record: dict[str, Any] = {
                "labels": {"finding": "none"},
                "split_group": f"p{number // 2 * 2 if number % 6 == 1 else number}",
                "spacing_mm": [2.0, 1.0, 1.5],
                "affine_ras_mm": affine.tolist() if number < placed else None,
                "columns": {"sex": "f"},
            }
            if intensity:
                record["intensity"] = {"by": "range", "low": -1000.0, "high": 1000.0}
            key = hashlib.sha256(str(number).encode()).hexdigest()[:20]
            voxels = voxels_of(number).astype(dtype)
            writer.add(Sample(key, encode_array(voxels), "npy", height, width, record))


def numbers() -> dict[str, int]:
    """The volumes by key."""
    return {hashlib.sha256(str(number).encode()).hexdigest()[:20]: number for number in range(40)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 20 volumes of 16 patients, and its words."""
    folder = tmp_path_factory.mktemp("words")
    write_volumes(folder / "volumes", made_by={"request": {"content": "volumes", "intensity": "range:-1000,1000"}})
    make_words(str(folder / "volumes"), str(folder / "words"), model(), OPTIONS)
    return folder


def samples(address: Path) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Key, metadata and voxels of all samples."""
    for shard in read_index(str(address)).shards:
        for key, members in read_shard(open_store(str(address)), shard.name):
            yield key, json.loads(members["json"]), decode_array(members["npy"], lambda shape: None)


def resampled(line: np.ndarray, side: int) -> np.ndarray:
    """A line of values at another number of evenly spaced places, between which it is straight."""
    found = np.empty(side)
    for number in range(side):
        place = min(max((number + 0.5) * len(line) / side - 0.5, 0), len(line) - 1)
        below = int(place)
        above = min(below + 1, len(line) - 1)
        found[number] = line[below] + (place - below) * (line[above] - line[below])
    return found


def resampled_to(values: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """The same along each axis."""
    for axis, side in enumerate(sides):
        values = np.apply_along_axis(resampled, axis, values, side)
    return values


def features(number: int) -> np.ndarray:
    """By loops: the volume resampled to the model's size, and the means of its halves."""
    x_y_z = resampled_to(voxels_of(number).astype(float) / 65535, SIZE[::-1]).T
    return np.array([x_y_z.take(part, axis).mean() for axis in range(3) for part in ((0, 1), (2, 3))])


def patient(number: int) -> str:
    return f"p{number // 2 * 2 if number % 6 == 1 else number}"


def test_words_are_cut_of_the_patients_who_are_nearest_to_the_reference(made: Path) -> None:
    found = json.loads((made / "words" / "words.json").read_text())
    by_key, known = numbers(), {number: features(number) for number in range(20)}
    part_of = {
        metadata["split_group"]: part
        for part in ("train", "val")
        for _, metadata, _ in samples(made / "words" / part)
    }  # fmt: skip
    assert found["finished"] and [word["number"] for word in found["words"]] == list(range(5))
    patients = {part: [] for part in ("train", "val")}  # type: dict[str, list[str]]
    for word in found["words"]:
        reference = by_key[word["reference"]]
        distances = {number: float(np.linalg.norm(known[number] - known[reference])) for number in range(20)}
        assert part_of[patient(reference)] == "train" and word["nearest"]["train"][0] == word["reference"]
        for part, count in (("train", 3), ("val", len(word["nearest"]["val"]))):
            chosen = [by_key[key] for key in word["nearest"][part]]
            patients[part] += map(patient, chosen)
            assert len({patient(each) for each in chosen}) == len(chosen) == count >= 1
            assert [distances[each] for each in chosen] == sorted(distances[each] for each in chosen)
            others = {number for number in range(20) if part_of.get(patient(number)) == part} - set(chosen)
            nearer = [each for each in others if distances[each] < distances[chosen[-1]]]
            assert {patient(each) for each in nearer} <= {patient(each) for each in chosen}
    assert not set(patients["train"]) & set(patients["val"])


def test_a_cube_is_that_part_of_its_volume(made: Path) -> None:
    found = json.loads((made / "words" / "words.json").read_text())["words"]
    by_key, sizes = numbers(), Counter[tuple[int, ...]]()
    for part in ("train", "val"):
        for key, metadata, cube in samples(made / "words" / part):
            volume_key, word, size = key.split("-")
            number, place = by_key[volume_key], metadata["place_xyz"]
            volume, spacing = voxels_of(number), metadata["spacing_mm"]
            sides = tuple(round(8 * step / own) for step, own in zip(spacing, (2.0, 1.0, 1.5), strict=True))
            starts = [
                round(share * has - side / 2)
                for share, has, side in zip(place[::-1], volume.shape, sides, strict=True)
            ]  # fmt: skip
            part_of_it = volume[tuple(slice(first, first + side) for first, side in zip(starts, sides, strict=True))]
            assert part_of_it.shape == sides
            assert np.abs(resampled_to(part_of_it.astype(float), (8, 8, 8)) - cube).max() <= 1, "rounding"
            if int(size) == 0:
                assert sides == (8, 8, 8) and (part_of_it == cube).all()
                wanted = [
                    share * has - 4
                    for share, has in zip(found[int(word)]["place_xyz"][::-1], volume.shape, strict=True)
                ]
                inside = [min(max(each, 0), has - 8) for each, has in zip(wanted, volume.shape, strict=True)]
                assert max(abs(a - b) for a, b in zip(inside, starts, strict=True)) <= 0.5 + 1e-4
            assert metadata["labels"] == {"word": str(int(word))} and metadata["volume"] == volume_key
            assert metadata["split_group"] == patient(number) and metadata["columns"] == {"sex": "f"}
            steps = np.array(sides) / 8
            corner = np.array([*(np.array(starts) + (steps - 1) / 2), 1.0])
            origin = np.diag([1.5, 1.0, 2.0, 1.0]) @ corner
            assert np.allclose(np.array(metadata["affine_ras_mm"])[:3, 3], origin[:3], atol=1e-4)
            sizes[sides] += 1
        index = read_index(str(made / "words" / part))
        labels = Counter(metadata["labels"]["word"] for _, metadata, _ in samples(made / "words" / part))
        each = 9 if part == "train" else index.samples // 5
        assert labels == dict.fromkeys("01234", each), "no word has fewer cubes than another"
        assert index.labels == ("word",) and index.classes == {"word": tuple("01234")}
        assert (
            index.image.array_type == "uint16"
            and index.image.dtype == "uint16"
            and not verify(str(made / "words" / part))
        )
    assert len(sizes) > 2 and all(sides[0] == 8 and 6 <= sides[2] <= 10 for sides in sizes)
    columns = min(6, 3)
    assert Image.open(made / "words" / "words.png").width == columns * (192 + 4) + 4


def test_the_set_streams_and_trains_by_its_words(made: Path) -> None:
    with ValidationStream(str(made / "words" / "val"), batch_size=4) as stream:
        batches = list(stream)
    assert all(tuple(batch.images.shape[1:]) == (1, 8, 8, 8) for batch in batches)
    values: dict[str, Any] = {
        "name": "words",
        "preset": "transvw",
        "data": {part: str(made / "words" / part) for part in ("train", "val")}
        | {"image_size": [16, 16, 16], "global_batch": 8},
        "model": {"name": "unet3d", "width": 2, "levels": 2},
        "method": {"name": "visual_words", "words": 5},
        "adversarial": {"discriminator": {"channels": [4, 8, 8, 8]}},
        "stages": [{"objective": "di", "steps": 2}],
        "precision": "fp32",
    }
    assert preflight(load_job(values).job).train.samples == 45
    with pytest.raises(RequestError, match=r"method.words: the label 'word' has the value '4'"):
        preflight(load_job(values, ["method.words=4"]).job)
    whole = {"train": str(made / "volumes"), "image_size": [16, 16, 16], "global_batch": 8}
    of_the_autoencoder = {"data": whole, "stages": [{"objective": "re", "steps": 2}]}
    assert preflight(load_job(values | of_the_autoencoder).job).train.samples == 20, "it needs no words"
    with pytest.raises(RequestError, match="'word' is none of its labels; known: none"):
        preflight(load_job(values, [f"data.train={made / 'volumes'}"]).job)


def test_the_same_call_makes_the_same_bytes_and_begins_anew_where_one_was_broken_off(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, dest = str(made / "volumes"), tmp_path / "words"

    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("dira_dist.vocabulary.cutting.contact_sheet", broken)
        with pytest.raises(KeyboardInterrupt):
            make_words(volumes, str(dest), model(), OPTIONS)
    assert (dest / "train" / "000000.tar").is_file() and not (dest / "train" / "index.json").exists()
    (dest / "train" / "000099.tar").write_bytes(b"of a call that had more")
    report = make_words(volumes, str(dest), model(), OPTIONS)
    assert not report.was_complete and not (dest / "train" / "000099.tar").exists()
    for file in sorted((made / "words").rglob("*.*")):
        assert file.read_bytes() == (dest / file.relative_to(made / "words")).read_bytes(), file.name
    before = {file: file.stat().st_mtime_ns for file in dest.rglob("*")}
    again = make_words(volumes, str(dest), model(), OPTIONS)
    assert again.was_complete and "nothing to do" in "\n".join(again.lines())
    with pytest.raises(RequestError, match=r"found otherwise \(other seed\), and no set is changed in place"):
        make_words(volumes, str(dest), model(), OPTIONS.model_copy(update={"seed": 2}))
    assert before == {file: file.stat().st_mtime_ns for file in dest.rglob("*")}


def test_more_words_change_none_of_the_first(made: Path, tmp_path: Path) -> None:
    more = OPTIONS.model_copy(update={"words": 9, "sizes": 1})
    make_words(str(made / "volumes"), str(tmp_path / "words"), model(), more)
    first = json.loads((made / "words" / "words.json").read_text())["words"]
    assert json.loads((tmp_path / "words" / "words.json").read_text())["words"][:5] == first
    assert {key[-2:] for key, _, _ in samples(tmp_path / "words" / "train")} == {"00"}


def test_the_picture_shows_the_middle_of_each_words_cubes(made: Path) -> None:
    picture = np.asarray(Image.open(made / "words" / "words.png").convert("L")).astype(float)
    cubes = {key: cube for key, _, cube in samples(made / "words" / "train")}
    row_px = 64 + 4 + 20
    for word in json.loads((made / "words" / "words.json").read_text())["words"]:
        for column, volume in enumerate(word["nearest"]["train"]):
            cube = cubes[f"{volume}-{word['number']:05d}-00"] / 65535 * 255
            top, left = 20 + word["number"] * row_px, 4 + column * 196
            cell = picture[top : top + 64, left : left + 192]
            axial, coronal, sagittal = cube[4], cube[::-1, 4], cube[::-1, :, 4]
            own = np.concatenate([axial, coronal, sagittal], axis=1)
            assert np.abs(cell[4::8, 4::8] - own).mean() < 0.1 * np.ptp(own), "enlarged eight times"


def test_without_a_split_there_is_one_set(made: Path, tmp_path: Path) -> None:
    whole = OPTIONS.model_copy(update={"split": None, "nearest": None, "content_filter": "above:-300,0.4"})
    told: list[tuple[int, int]] = []
    report = make_words(
        str(made / "volumes"), str(tmp_path), model(), whole, lambda done, total: told.append((done, total))
    )
    assert read_index(str(tmp_path)).samples == 5 * 7 * 3, "45 % of 16 patients"
    assert "105 cubes" in next(iter(report.lines())) and "each of 7 of 16 patients" in next(iter(report.lines()))
    assert told == [(done, 40) for done in range(1, len(told) + 1)] and 20 < len(told) <= 40
    by_key = numbers()
    for word in json.loads((tmp_path / "words.json").read_text())["words"]:
        (cube,) = [
            cube for key, _, cube in samples(tmp_path) if key == f"{word['reference']}-{word['number']:05d}-00"
        ]  # fmt: skip
        in_hu = cube / 65535 * 2000 - 1000
        assert (in_hu > -300).mean() >= 0.4, by_key[word["reference"]]


def refusal(volumes: Path, dest: Path, network: Model, **options: Any) -> str:
    with pytest.raises(RequestError) as found:
        make_words(str(volumes), str(dest), network, OPTIONS.model_copy(update=options))
    return str(found.value)


def test_what_cannot_be_done_is_refused_before_anything_is_written(made: Path, tmp_path: Path) -> None:
    volumes, dest = made / "volumes", tmp_path / "words"
    assert "a model of images; give one of 3D" in refusal(volumes, dest, model(dims=2))
    assert "is a set of cubes, and words are cut of whole volumes" in refusal(made / "words" / "train", dest, model())
    assert "nearest 17: part all has 16 patients; give 16 or fewer" in refusal(
        volumes, dest, model(), split=None, nearest=17
    )
    assert "DEST lies in VOLUMES, or around it" in refusal(volumes, volumes / "words", model())
    assert "DEST lies in VOLUMES, or around it" in refusal(volumes, made, model())
    assert "sum to 1" in refusal(volumes, dest, model(), split={"a": 0.5, "b": 0.1})
    assert "part 'b' of the split got nothing: there are 16 patients" in refusal(
        volumes, dest, model(), split={"a": 0.9999, "b": 0.0001}
    )
    assert "fewer words, a smaller --apart" in refusal(volumes, dest, model(), apart=0.9)
    assert "0 of the places tried for word 0" in refusal(volumes, dest, model(), content_filter="above:1000,0.5")
    write_volumes(tmp_path / "no-intensity", 4, intensity=False)
    assert "does not say which of its file's values became black and white" in refusal(
        tmp_path / "no-intensity", dest, model(), split=None
    )
    write_volumes(tmp_path / "hounsfield", 4, dtype=np.int16)
    assert "holds int16, and words are cut of volumes on 16 bits" in refusal(tmp_path / "hounsfield", dest, model())
    write_volumes(tmp_path / "alone", 1)
    assert "1 patient in it, and a word is what several have in common" in refusal(
        tmp_path / "alone", dest, model(), split=None
    )
    with ShardWriter(str(tmp_path / "flat"), mode="L", encoding="png") as writer:
        writer.add(Sample("a", b"", "png", 8, 8))
    assert "is a set of images" in refusal(tmp_path / "flat", dest, model())
    write_volumes(tmp_path / "unlike", 6, placed=3)
    assert "volumes have no common place: of" in refusal(tmp_path / "unlike", dest, model(), split=None)
    assert not dest.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt for one)" in refusal(volumes, tmp_path / "full", model())


def test_the_sets_may_lie_in_a_bucket(made: Path, s3: S3Server) -> None:
    dest = s3.address("words")
    make_words(str(made / "volumes"), dest, model(), OPTIONS)
    for part in ("train", "val"):
        assert read_index(f"{dest}/{part}").digest == read_index(str(made / "words" / part)).digest
        assert not verify(f"{dest}/{part}")
    assert make_words(str(made / "volumes"), dest, model(), OPTIONS).was_complete
