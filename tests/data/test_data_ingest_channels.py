"""Registered volumes as channels of one sample: which go together, where each voxel goes, and what is refused."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from shard_sets import read_shard

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.data.ingest.channels import case_of
from dira_dist.data.lanes import ReadOptions
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.verify import verify
from dira_dist.views.views import check_viewable

NAMES = ("t1", "flair", "t2")
SHAPE = (14, 12, 10)  # x, y, z of the files
Run = Callable[..., tuple[ShardReport, list[dict[str, Any]]]]


def voxels(patient: int, channel: int) -> NDArray[np.int16]:
    numbers = np.random.default_rng([patient, channel]).integers(0, 1000, SHAPE)
    return np.asarray(numbers + 100 * channel, dtype=np.int16)


def write(file: Path, values: NDArray[Any], shift_mm: float = 0.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # to the left, the back and the head, as volumes lie in a set
    affine[0, 3] = shift_mm
    nibabel.save(nibabel.Nifti1Image(values, affine), file)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three patients: two whole, one without its FLAIR; and a file of no channel."""
    for patient in range(3):
        for channel, name in enumerate(NAMES):
            if (patient, name) != (2, "flair"):
                write(tmp_path / "images" / f"p{patient}_{name.upper()}.nii.gz", voxels(patient, channel))
        write(tmp_path / "masks" / f"p{patient}_seg.nii.gz", (voxels(patient, 0) > 500).astype(np.uint8))
    write(tmp_path / "images" / "localizer.nii.gz", voxels(9, 0))
    (tmp_path / "labels.csv").write_text("image,label\np0,high\np1,low\np2,low\n")
    return tmp_path


@pytest.fixture
def run(archive: Path) -> Run:
    (archive / "salt").write_text("0123456789abcdef")

    def go(**options: Any) -> tuple[ShardReport, list[dict[str, Any]]]:
        usual: dict[str, Any] = {"salt_file": str(archive / "salt"), "processes": 1, "content": "volumes"}
        usual |= {"channels": NAMES, "intensity": "range:0,1300", "labels": str(archive / "labels.csv")}
        report = shard(archive / "images", archive / "set", ShardOptions(**(usual | options)))
        return report, [sample for part in report.parts.values() for sample in samples_of(part.address)]

    return go


def samples_of(address: str) -> list[dict[str, Any]]:
    found = []
    for info in read_index(address).shards:
        for _, members in read_shard(open_store(address), info.name):
            arrays = {name: np.load(io.BytesIO(data)) for name, data in members.items() if name != "json"}
            found.append({**json.loads(members["json"]), "image": arrays["npy"], "mask": arrays.get("mask.npy")})
    return found


def stored(patient: int) -> NDArray[np.uint16]:
    """What a set holds of a patient: (C, D, H, W)."""
    shares = [voxels(patient, channel).transpose(2, 1, 0) / 1300 for channel in range(3)]
    return np.rint(np.stack(shares) * 65535).astype(np.uint16)


def of_patient(samples: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {
        patient: sample
        for sample in samples
        for patient in range(3)
        if sample["image"].shape[1:] == SHAPE[::-1] and np.abs(stored(patient).astype(int) - sample["image"]).max() <= 1
    }


def test_volumes_of_a_case_become_channels_in_the_order_asked_for(archive: Path, run: Run) -> None:
    report, samples = run(masks=str(archive / "masks"))
    found = of_patient(samples)
    assert len(samples) == 2 and sorted(found) == [0, 1]
    assert {patient: sample["labels"]["label"] for patient, sample in found.items()} == {0: "high", 1: "low"}
    for patient, sample in found.items():
        assert (sample["mask"] == (voxels(patient, 0) > 500).transpose(2, 1, 0)).all()
        assert sample["spacing_mm"] == [2.0, 1.0, 1.0] and sample["shape"] == [*SHAPE[::-1]]
        assert len(sample["intensity"]) == 3
    reasons = {entry.file: entry.reason for entry in report.skipped}
    assert reasons["p2_T1.nii.gz"] == "it is left out with its case: channel flair is not there"
    assert "none of the channels t1, flair, t2 stands in its name" in reasons["localizer.nii.gz"]
    image = read_index(report.parts["all"].address).image
    assert (image.mode, image.channels, image.dtype) == ("volume", 3, "uint16")
    assert verify(report.parts["all"].address) == []


def test_they_stream_and_are_viewable(run: Run) -> None:
    report, _ = run()
    address = report.parts["all"].address
    check_viewable(read_index(address).image, 3, 3)
    with ShardStream(address, ReadOptions(), global_batch=2, lanes=2, shuffle_window=2) as stream:
        batch = next(stream)
    assert batch.images.shape == (2, 3, *SHAPE)


def test_cubes_have_all_channels_of_their_place(run: Run) -> None:
    _, samples = run(content="cubes", cube=(8, 8, 8), cubes_per_volume=3)
    assert len(samples) == 6
    for sample in samples:
        assert sample["image"].shape == (3, 8, 8, 8)
        centre = [share * length - 4 for share, length in zip(sample["place_xyz"], SHAPE, strict=True)]
        x, y, z = (round(place) for place in centre)
        place = (slice(None), slice(z, z + 8), slice(y, y + 8), slice(x, x + 8))
        assert any(np.abs(stored(patient)[place].astype(int) - sample["image"]).max() <= 1 for patient in range(2))


def test_slices_are_planes_of_several_channels(archive: Path, run: Run) -> None:
    report, samples = run(content="slices", image_size=None, masks=str(archive / "masks"))
    assert len(samples) == 2 * SHAPE[2]
    for sample in samples:
        number = sample["slice"]
        matches = [
            patient
            for patient in range(2)
            if np.abs(stored(patient)[:, number].astype(int) - sample["image"]).max() <= 1
        ]
        assert len(matches) == 1
        assert (sample["mask"] == (voxels(matches[0], 0) > 500).transpose(2, 1, 0)[number]).all()
    address = report.parts["all"].address
    image = read_index(address).image
    assert (image.mode, image.channels, image.encoding) == ("planes", 3, "npy")
    check_viewable(image, 2, 3, rgb=False)
    assert verify(address) == []


def test_each_channel_has_percentiles_of_its_own(run: Run) -> None:
    _, samples = run(intensity="percentiles:0,100")
    for sample in samples:
        assert sample["image"].min(axis=(1, 2, 3)).tolist() == [0] * 3
        assert sample["image"].max(axis=(1, 2, 3)).tolist() == [65535] * 3


def test_a_table_says_what_goes_together(archive: Path, run: Run) -> None:
    table = archive / "channels.csv"
    table.write_text("case,b,a\nsome,p0_T2.nii.gz,p0_T1.nii.gz\nother,p1_T2.nii.gz,nowhere.nii.gz\n")
    report, samples = run(channels=(str(table),), labels=None)
    (sample,) = samples
    assert (np.abs(stored(0)[[2, 0]].astype(int) - sample["image"]) <= 1).all()
    reasons = {entry.file: entry.reason for entry in report.skipped}
    assert reasons["p1_T2.nii.gz"] == "it is left out with its case: channel a is not there"
    assert reasons["p2_T1.nii.gz"] == "no row of the table of channels names it"
    index = (archive / "set" / "index.json").read_text()
    assert "channels.csv" not in index and '"b",' in index


@pytest.mark.parametrize(
    ("shift_mm", "shape", "message"),
    [(1.0, SHAPE, "lies elsewhere by up to 1 mm"), (0.0, (14, 12, 9), r"its channel 2 is of shape \(9, 12, 14\)")],
)
def test_channels_that_are_not_registered_are_refused(
    archive: Path, run: Run, shift_mm: float, shape: tuple[int, ...], message: str
) -> None:
    write(archive / "images" / "p0_FLAIR.nii.gz", voxels(0, 1)[tuple(map(slice, shape))], shift_mm)
    report, samples = run()
    assert sorted(of_patient(samples)) == [1]
    (reason,) = (entry.reason for entry in report.skipped if entry.file == "p0_T1.nii.gz")
    assert "its channels are not registered to each other" in reason
    assert re.search(message, reason)


def test_options_that_do_not_go_together(archive: Path, run: Run) -> None:
    with pytest.raises(RequestError, match="say --content slices"):
        run(content="images")
    (archive / "one.csv").write_text("case,only\np0,p0_T1.nii.gz\n")
    with pytest.raises(RequestError, match="found the channels only; a table of channels has"):
        run(channels=(str(archive / "one.csv"),))
    with pytest.raises(RequestError, match="channel dwi is not there"):
        run(channels=("t1", "dwi"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("p7_t1", ("p7", "t1")),
        ("p7/T1/scan", ("p7/scan", "t1")),
        ("t1/p7-FLAIR", ("t1/p7", "flair")),
        ("p7/t1", ("p7", "t1")),
        ("t2", (".", "t2")),
        ("sub-01_ses-2_T2_run-1", ("sub-01_ses-2_run-1", "t2")),
        ("p7_t1_t2", None),
        ("p7_t1w", None),
    ],
)
def test_the_word_of_a_channel_is_taken_out_of_the_name(path: str, expected: tuple[str, str] | None) -> None:
    assert case_of(path, NAMES) == expected
