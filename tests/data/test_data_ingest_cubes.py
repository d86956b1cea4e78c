"""Cubes cut of volumes: every voxel is compared with what its source has at the place that the cube says of itself."""

import csv
import io
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import SUPINE, dicom, slices, write
from scipy import ndimage
from shard_sets import read_shard
from typer.testing import CliRunner

from dira_dist.cli import app
from dira_dist.config import RequestError
from dira_dist.data.decode import NO_LABEL
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.data.ingest.content_filters import AboveRule, is_mostly_lung, parse_filter
from dira_dist.data.ingest.cubes import Source, cubes_of, random_starts
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.grids import grid_of
from dira_dist.data.ingest.volumes import Volume
from dira_dist.data.lanes import ReadOptions
from dira_dist.data.shards import read_index
from dira_dist.data.store import open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.verify import verify
from dira_dist.quickstart.phantom_volume import PhantomVolume, make_volume, write_volumes
from dira_dist.views.views import check_viewable

CT_RANGE = "range:-1000,1000"
VOLUMES = 4
SIDE = 28

Run = Callable[..., tuple[ShardReport, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def phantoms() -> list[PhantomVolume]:
    return [make_volume(5, number, SIDE) for number in range(VOLUMES)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_volumes(folder, VOLUMES, seed=5, side_px=SIDE)
    return folder


@pytest.fixture
def run(archive: Path, tmp_path: Path) -> Run:
    (tmp_path / "salt").write_text("0123456789abcdef")

    def go(source: Path | None = None, dest: str = "set", **options: Any) -> tuple[ShardReport, list[dict[str, Any]]]:
        usual: dict[str, Any] = {"salt_file": str(tmp_path / "salt"), "processes": 1, "overwrite": True}
        usual |= {"content": "cubes", "cube": (12, 10, 8), "cubes_per_volume": 3, "intensity": CT_RANGE}
        report = shard(source or archive / "images", tmp_path / dest, ShardOptions(**(usual | options)))
        return report, [sample for part in report.parts.values() for sample in samples_of(part.address)]

    return go


def samples_of(address: str) -> list[dict[str, Any]]:
    found = []
    for info in read_index(address).shards:
        for key, members in read_shard(open_store(address), info.name):
            arrays = {name: np.load(io.BytesIO(data)) for name, data in members.items() if name != "json"}
            mask = arrays.get("mask.npy")
            found.append({**json.loads(members["json"]), "key": key, "image": arrays["npy"], "mask": mask})
    return found


def tars(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.tar")}


def places_mm(cube: dict[str, Any]) -> np.ndarray:
    """Where the voxels of a cube lie by its own affine: (D, H, W, 3)."""
    affine = np.array(cube["affine_ras_mm"])
    index = np.moveaxis(np.indices(cube["image"].shape), 0, -1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def on_16_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The plain statement of a window."""
    return np.asarray(np.rint(np.clip((values - low) / (high - low), 0, 1) * 65535).astype(np.uint16))


def source_of(cube: dict[str, Any], images: dict[str, Any]) -> str:
    """The file whose voxels lie where the cube's do."""
    (file,) = {file for file, affine in images.items() if is_on_voxels(places_mm(cube), affine)}
    return file


def is_on_voxels(places: np.ndarray, affine: np.ndarray) -> bool:
    index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return bool(np.abs(index - np.rint(index)).max() < 1e-3)


def index_in(places: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, ...]:
    index = np.rint((places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    return tuple(np.moveaxis(index, -1, 0))


# ---------------------------------------------------------------------------- voxels and places


def test_every_voxel_is_that_of_the_file_at_its_place_by_nibabels_reading(archive: Path, run: Run) -> None:
    report, cubes = run(masks=str(archive / "masks"), labels=str(archive / "labels.csv"), label_columns=("finding",))
    images = {file.name: nibabel.load(file) for file in (archive / "images").iterdir()}
    affines = {name: image.affine for name, image in images.items()}
    findings = {row["image"]: row["finding"] for row in csv.DictReader((archive / "labels.csv").open())}
    assert report.samples == len(cubes) == 3 * VOLUMES and not report.skipped and not report.padded
    sources = [source_of(cube, affines) for cube in cubes]
    assert sorted(sources) == sorted([*images] * 3)
    for cube, name in zip(cubes, sources, strict=True):
        there = index_in(places_mm(cube), affines[name])
        assert cube["image"].shape == (8, 10, 12) and cube["image"].dtype == np.uint16
        assert np.array_equal(cube["image"], on_16_bits(images[name].get_fdata()[there], -1000, 1000))
        label_map = np.asarray(nibabel.load(archive / "masks" / name).dataobj)
        assert np.array_equal(cube["mask"], label_map[there]) and cube["labels"] == {"finding": findings[name]}
        steps = nibabel.affines.voxel_sizes(np.array(cube["affine_ras_mm"]))
        assert np.allclose(cube["spacing_mm"], steps, atol=1e-4)
        assert nibabel.aff2axcodes(np.array(cube["affine_ras_mm"])) == ("S", "P", "L")
        assert cube["intensity"] == {"by": "range", "low": -1000, "high": 1000}
    assert {cube["volume"] for cube in cubes} == {cube["key"].rpartition("-")[0] for cube in cubes}
    assert verify(report.parts["all"].address) == []


def test_the_place_is_that_of_the_middle_as_shares_of_the_volume(archive: Path, run: Run) -> None:
    _, cubes = run()
    affines = {file.name: nibabel.load(file).affine for file in (archive / "images").iterdir()}
    for cube in cubes:
        image = nibabel.load(archive / "images" / source_of(cube, affines))
        canonical = nibabel.as_closest_canonical(image)  # RAS: x runs the other way, and so does y
        middle = places_mm(cube).reshape(-1, 3).mean(axis=0)
        index = np.linalg.inv(canonical.affine) @ [*middle, 1]
        shares = (index[:3] + 0.5) / canonical.shape
        assert np.allclose(cube["place_xyz"], [1 - shares[0], 1 - shares[1], shares[2]], atol=1e-4)


@pytest.mark.parametrize("cosines", [SUPINE, (1.0, 0, 0, 0, 0, -1), (-1.0, 0, 0, 0, -1, 0)])
def test_every_voxel_is_that_of_the_series_by_pydicoms_reading(tmp_path: Path, run: Run, cosines: Any) -> None:
    body = np.random.default_rng(1).integers(0, 3000, (10, 12, 14)).astype(np.uint16)
    write(tmp_path / "src", slices(body, cosines=cosines, start_mm=-7.0, RescaleSlope=0.5, RescaleIntercept=-1024))
    report, cubes = run(tmp_path / "src", cube=(8, 8, 8), cubes_per_volume=5, intensity="window")
    assert "no intensity was said: CT is stored with --intensity range:-1000,1000" in report.remarks
    seen = {}
    for file in map(pydicom.dcmread, (tmp_path / "src").iterdir()):
        x, y = np.array(file.ImageOrientationPatient[:3], float), np.array(file.ImageOrientationPatient[3:], float)
        values = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
        for row, column in np.ndindex(values.shape):
            lps = (
                np.array(file.ImagePositionPatient, float)
                + x * column * file.PixelSpacing[1]
                + y * row * file.PixelSpacing[0]
            )
            seen[tuple(np.round(lps * (-1, -1, 1), 3) + 0.0)] = values[row, column]
    assert len(cubes) == 5
    for cube in cubes:
        places = np.round(places_mm(cube), 3) + 0.0
        expected = np.array([seen[tuple(place)] for place in places.reshape(-1, 3)]).reshape(places.shape[:3])
        assert np.array_equal(cube["image"], on_16_bits(expected, -1000, 1000))
        assert sorted(cube["spacing_mm"]) == [0.6, 0.7, 2.5] and cube["modality"] == "CT"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_every_voxel_is_that_of_the_file_by_simpleitks_reading(tmp_path: Path, run: Run, suffix: str) -> None:
    sitk: Any = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    image = sitk.GetImageFromArray(np.random.default_rng(2).integers(-1000, 1000, (9, 10, 11)).astype(np.int16))
    image.SetSpacing((2, 3, 4))
    image.SetOrigin((1, 2, 3))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    (tmp_path / "src").mkdir()
    sitk.WriteImage(image, str(tmp_path / "src" / f"a{suffix}"))
    _, cubes = run(tmp_path / "src", cube=(8, 8, 8))
    assert len(cubes) == 3
    for cube in cubes:
        for index in np.ndindex(8, 8, 8):
            there = image.TransformPhysicalPointToIndex([float(v) for v in places_mm(cube)[index] * (-1, -1, 1)])
            assert cube["image"][index] == on_16_bits(np.array(image[there]), -1000, 1000)


def test_they_stream_as_x_y_z(archive: Path, run: Run) -> None:
    report, cubes = run(masks=str(archive / "masks"))
    address = report.parts["all"].address
    check_viewable(read_index(address).image, axes=3, in_channels=1)
    with ShardStream(address, ReadOptions(annotations=True), global_batch=4, lanes=2, shuffle_window=4) as stream:
        batch = next(stream)
    by_key = {cube["key"]: cube for cube in cubes}
    assert batch.sizes_px.tolist() == [[12, 10, 8]] * 4 and batch.masks is not None
    for image, mask, key, group in zip(batch.images, batch.masks, batch.keys, batch.groups, strict=True):
        assert np.array_equal(image[0].numpy(), by_key[key]["image"].T) and group == by_key[key]["volume"]
        assert np.array_equal(mask.numpy(), by_key[key]["mask"].T) and NO_LABEL not in mask


# --------------------------------------------------------------------------------- another spacing


def test_resampled_cubes_show_what_the_patient_has_at_their_places(
    archive: Path, phantoms: Sequence[PhantomVolume], run: Run
) -> None:
    _, cubes = run(masks=str(archive / "masks"), spacing=(4.0, 5.0, 6.0))
    assert len({cube["volume"] for cube in cubes}) == VOLUMES
    for cube in cubes:
        assert cube["spacing_mm"] == [6.0, 5.0, 4.0]
        assert np.allclose(nibabel.affines.voxel_sizes(np.array(cube["affine_ras_mm"])), (6, 5, 4), atol=1e-4)
        places = places_mm(cube)
        away = [np.median(np.abs(in_hu(cube) - phantom.hounsfield_at(places))) for phantom in phantoms]
        phantom = phantoms[int(np.argmin(away))]
        surfaces = [phantom.body, phantom.liver, *phantom.lungs, phantom.spine, phantom.vessel]
        depths = [surface.depth_mm(places) for surface in (*surfaces, *filter(None, [phantom.lesion]))]
        deep = np.abs([*depths, depths[0] - 7]).min(axis=0) > 9  # no other tissue among the voxels around
        assert deep.sum() > 20 and np.abs(in_hu(cube) - phantom.hounsfield_at(places))[deep].max() < 8
        assert np.array_equal(phantom.structures_at(places)[deep], cube["mask"][deep])


def in_hu(cube: dict[str, Any]) -> np.ndarray:
    return np.asarray(cube["image"] / 65535 * 2000 - 1000)


@pytest.mark.parametrize("spacing", [(2.0, 3.0, 4.0), (1.3, 1.0, 2.5), (4.0, 6.0, 1.0)])
def test_resampling_is_linear_for_values_and_nearest_for_labels(spacing: tuple[float, float, float]) -> None:
    voxels = np.random.default_rng(3).integers(-500, 500, (6, 9, 12)).astype(np.int16)
    volume = Volume(voxels, (4.0, 3.0, 2.0), np.diag([4.0, 3.0, 2.0, 1.0]))
    grid = grid_of(volume, spacing[::-1])
    steps = [wanted / has for wanted, has in zip(spacing[::-1], (4, 3, 2), strict=True)]
    sides = tuple(round(side / step) for side, step in zip(voxels.shape, steps, strict=True))
    assert grid.sides == sides
    places = np.meshgrid(*((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(sides, steps, strict=True)), indexing="ij")
    for labels, order in ((False, 1), (True, 0)):
        expected = ndimage.map_coordinates(voxels.astype(float), places, order=order, mode="nearest")
        whole = grid.read(voxels, (0, 0, 0), grid.sides, fill=0, labels=labels)
        assert np.allclose(whole, expected, atol=1e-3)
        part = grid.read(voxels, (1, -1, 2), (3, 3, 3), fill=7, labels=labels)
        assert np.allclose(part[:, 1:], expected[1:4, :2, 2:5], atol=1e-3) and (part[:, 0] == 7).all()
    if spacing == (2.0, 3.0, 4.0):
        assert grid.is_own and whole.dtype == np.int16
    corner = grid.affine_from((0, 0, 0))
    assert corner is not None
    assert np.allclose((corner @ [-0.5, -0.5, -0.5, 1])[:3], [-2, -1.5, -1])  # both begin at the same face


def test_a_spacing_needs_a_volume_that_says_its_own(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    image = nibabel.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), None)
    image.header["pixdim"][1:4] = 0
    (tmp_path / "src" / "a.nii").write_bytes(image.to_bytes())
    with pytest.raises(RequestError, match="does not say how large a voxel is, and a spacing was asked for"):
        run(tmp_path / "src", cube=(8, 8, 8), spacing=(1, 1, 1))


# ------------------------------------------------------------------- the same bytes every time


def test_processes_and_interruptions_change_no_byte_and_seeds_do(archive: Path, tmp_path: Path, run: Run) -> None:
    settings: dict[str, Any] = {"masks": str(archive / "masks"), "samples_per_shard": 1}
    _, cubes = run(dest="whole", **settings)
    run(dest="two", processes=2, **settings)
    assert tars(tmp_path / "whole") == tars(tmp_path / "two")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    usual = {"salt_file": str(tmp_path / "salt"), "processes": 1, "content": "cubes", "cube": (12, 10, 8)}
    options = ShardOptions(**usual, cubes_per_volume=3, intensity=CT_RANGE, **settings)
    with pytest.raises(KeyboardInterrupt):
        shard(archive / "images", tmp_path / "set", options, interrupt)
    assert 0 < len(tars(tmp_path / "set")) < VOLUMES
    report = shard(archive / "images", tmp_path / "set", options)
    assert report.parts["all"].resumed_shards > 0 and tars(tmp_path / "set") == tars(tmp_path / "whole")
    _, others = run(dest="seeded", seed=1, **settings)
    assert [cube["place_xyz"] for cube in others] != [cube["place_xyz"] for cube in cubes]
    with pytest.raises(RequestError, match=r"seed \(0 there, 2 now\)"):
        shard(archive / "images", tmp_path / "set", options.model_copy(update={"seed": 2}))


def test_more_cubes_begin_with_the_same_ones() -> None:
    spans = [(2, 20), (0, 7), (5, 30)]
    few, tried = random_starts(0, "ab12", spans, 5, lambda start: True)
    many, _ = random_starts(0, "ab12", spans, 40, lambda start: True)
    assert many[:5] == few and tried >= 5 and len(set(many)) == 40
    for axis, (low, count) in enumerate(spans):
        along = [start[axis] for start in many]
        assert low <= min(along) and max(along) < low + count and len(set(along)) > count / 3
    assert random_starts(0, "ab13", spans, 5, lambda start: True)[0] != few


def test_sets_of_other_content_are_asked_for_as_before(archive: Path, tmp_path: Path, run: Run) -> None:
    run(content="volumes", cube=None, cubes_per_volume=32)
    request = read_index(str(tmp_path / "set")).made_by["request"]
    assert not {"cube", "seed", "margin", "spacing", "centres", "content_filter"} & set(request)
    run()
    request = read_index(str(tmp_path / "set")).made_by["request"]
    assert (request["cube"], request["seed"], request["intensity"]) == ([12, 10, 8], 0, CT_RANGE)


def test_a_patients_cubes_lie_in_one_part(archive: Path, run: Run) -> None:
    settings: dict[str, Any] = {"labels": str(archive / "labels.csv"), "label_columns": ("finding",)}
    for salt_of_split in ({"train": 0.5, "val": 0.5}, {"train": 0.35, "val": 0.65}, {"train": 0.75, "val": 0.25}):
        try:
            report, _ = run(split=salt_of_split, group_by="patient", **settings)
        except RequestError as error:
            assert "got nothing" in str(error)  # two patients, and their hashes decide
            continue
        groups = [{cube["split_group"] for cube in samples_of(part.address)} for part in report.parts.values()]
        volumes = [{cube["volume"] for cube in samples_of(part.address)} for part in report.parts.values()]
        assert not groups[0] & groups[1] and [len(each) for each in volumes] == [2, 2]
        return
    pytest.fail("no split of the three has both parts")


# ---------------------------------------------------------------------- margins, padding, filters


def test_margins_are_kept_free_as_far_as_there_is_room(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    body = np.random.default_rng(4).integers(-900, 900, (40, 30, 20)).astype(np.int16)  # x, y, z
    (tmp_path / "src" / "a.nii").write_bytes(nibabel.Nifti1Image(body, np.eye(4)).to_bytes())
    _, cubes = run(tmp_path / "src", cube=(8, 8, 16), cubes_per_volume=40, margin=(0.25, 0.1, 0.3))
    places = np.array([cube["place_xyz"] for cube in cubes])
    assert (places[:, 0] >= 0.25 + 0.1).all() and (places[:, 0] <= 0.75 - 0.1).all() and np.ptp(places[:, 0]) > 0.15
    assert (places[:, 1] >= 0.1 + 4 / 30 - 1e-6).all() and (places[:, 1] <= 0.9 - 4 / 30 + 1e-6).all()
    assert (places[:, 2] == 0.5).all()  # 20 - 2 * 6 slices leave no room for 16


def test_a_volume_smaller_than_the_cube_is_padded_and_counted_or_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "masks").mkdir()
    body = np.random.default_rng(5).integers(-700, 900, (11, 30, 9)).astype(np.int16)
    (tmp_path / "src" / "a.nii").write_bytes(nibabel.Nifti1Image(body, np.eye(4)).to_bytes())
    mask = nibabel.Nifti1Image((body % 3).astype(np.uint8), np.eye(4))
    (tmp_path / "masks" / "a.nii").write_bytes(mask.to_bytes())
    report, cubes = run(tmp_path / "src", cube=(16, 16, 16), masks=str(tmp_path / "masks"))
    assert (
        report.padded == 1 and len(cubes) == 3 and any("1 of 1 volumes are smaller" in line for line in report.lines())
    )
    assert read_index(report.parts["all"].address).made_by["padded"] == 1
    for cube in cubes:
        inside = np.zeros((16, 16, 16), dtype=bool)
        inside[4:13, :, 3:14] = True
        low = on_16_bits(np.array(body.min()), -1000, 1000)
        assert (cube["image"][~inside] == low).all() and (cube["mask"][~inside] == 0).all()
        there = index_in(places_mm(cube)[4:13, :, 3:14], np.eye(4))
        assert np.array_equal(cube["image"][4:13, :, 3:14], on_16_bits(body[there], -1000, 1000))
        assert np.array_equal(cube["mask"][4:13, :, 3:14], body[there] % 3)
        assert (cube["place_xyz"][0], cube["place_xyz"][2]) == pytest.approx((0.5, 0.5), abs=0.06)
    again, _ = run(tmp_path / "src", cube=(16, 16, 16), masks=str(tmp_path / "masks"), overwrite=False)
    assert again.padded == 1 and again.parts["all"].was_complete
    with pytest.raises(
        RequestError, match=r"strict: a\.nii .*its 11 x 30 x 9 voxels .* than the 16 x 16 x 16 of a cube"
    ):
        run(tmp_path / "src", cube=(16, 16, 16), strict=True, dest="strict")


def test_a_volume_gives_no_cube_twice(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    body = np.random.default_rng(6).integers(-700, 900, (9, 8, 8)).astype(np.int16)
    (tmp_path / "src" / "a.nii").write_bytes(nibabel.Nifti1Image(body, np.eye(4)).to_bytes())
    report, cubes = run(tmp_path / "src", cube=(8, 8, 8), cubes_per_volume=5)
    assert len({tuple(cube["place_xyz"]) for cube in cubes}) == len(cubes) == 2
    assert report.notes[0].text == "it gives 2 of 5 cubes: there are 2 places for one"


def plain_lung_share(block: np.ndarray, depth: int) -> float:
    """The published rule, voxel by voxel."""
    counted = []
    for d, h, w in np.ndindex(depth, *block.shape[1:]):
        ahead = next((k for k in range(3) if d + k < len(block) and block[d + k, h, w] >= -150), 2)
        counted.append((1.0, 0.5, 0.0)[ahead])
    return float(np.mean(counted))


def test_the_lung_rule_is_the_published_one() -> None:
    random = np.random.default_rng(7)
    kept = []
    for share in (0.02, 0.08, 0.12, 0.3):
        for _ in range(6):
            block = np.where(random.random((7, 5, 6)) < share, -150, -151)
            kept.append(is_mostly_lung(block, 6))
            assert kept[-1] == (plain_lung_share(block, 6) <= 0.15)
            assert is_mostly_lung(block[:6], 6) == (plain_lung_share(block[:6], 6) <= 0.15)
    assert 0 < sum(kept) < len(kept)


def test_lung_cubes_hold_hardly_more_than_air(archive: Path, run: Run) -> None:
    _, plain = run(cubes_per_volume=6, cube=(8, 8, 8))
    _, cubes = run(cubes_per_volume=6, cube=(8, 8, 8), content_filter="lung")
    solid = on_16_bits(np.array(-150), -1000, 1000)
    assert cubes and all((cube["image"] >= solid).mean() <= 0.15 for cube in cubes)
    assert any((cube["image"] >= solid).mean() > 0.15 for cube in plain)


def test_cubes_above_a_value_are_kept_and_what_holds_none_is_left_out_by_name(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    body = np.full((40, 12, 12), -1000, dtype=np.int16)
    body[:16] = 50
    (tmp_path / "src" / "half.nii").write_bytes(nibabel.Nifti1Image(body, np.eye(4)).to_bytes())
    body[2:] = -1000
    (tmp_path / "src" / "little.nii").write_bytes(nibabel.Nifti1Image(body, np.eye(4)).to_bytes())
    report, cubes = run(tmp_path / "src", cube=(8, 8, 8), cubes_per_volume=20, content_filter="above:-500,0.6")
    assert len(cubes) == 20 and all((cube["image"] > 20000).mean() >= 0.6 for cube in cubes)
    (skipped,) = report.skipped
    assert skipped.file == "little.nii"
    assert "gives 0 of 20 cubes: " in skipped.reason and "above:-500,0.6" in skipped.reason
    _, cubes = run(tmp_path / "src", cube=(8, 8, 8), cubes_per_volume=20, content_filter="above:mean,0.01")
    assert len({cube["volume"] for cube in cubes}) == 2


@pytest.mark.parametrize("text", ["lungs", "above:1", "above:x,0.5", "above:mean,0", "above:mean,1.1", "above:nan,0.5"])
def test_a_filter_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no filter: write lung, or above:VALUE,SHARE"):
        parse_filter(text)
    assert parse_filter("above: -500, 0.3") == AboveRule(-500, 0.3) and parse_filter("lung") is None


def test_a_process_holds_one_volume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(8).integers(-1000, 1000, (96, 128, 128)).astype(np.int16)
    volume = Volume(voxels, (2.0, 1.0, 1.0), np.diag([2.0, 1.0, 1.0, 1.0]))
    options = ShardOptions(
        content="cubes", cube=(32, 32, 16), cubes_per_volume=40, intensity=CT_RANGE, spacing=(1.5, 1.5, 1.5)
    )
    tracemalloc.start()
    source = Source.of([volume], (voxels > 0).astype(np.uint8), options)
    made = sum(1 for _ in cubes_of("ab", source, options, None, {"labels": {}}, lambda text: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == 40 and peak < 2 * voxels.nbytes


# ---------------------------------------------------------------------------------------- centres


def table(path: Path, rows: Sequence[Sequence[object]], columns: str = "volume,x,y,z,label") -> str:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def test_a_cube_around_each_row_with_its_labels(archive: Path, phantoms: Sequence[PhantomVolume], run: Run) -> None:
    centres = str(archive / "centres.csv")
    report, cubes = run(
        centres=centres, centres_in="ras", masks=str(archive / "masks"), cube=(8, 8, 8), group_by="patient"
    )
    rows = list(csv.DictReader((archive / "centres.csv").open()))
    assert len(cubes) == len(rows) and {row["label"] for row in rows} == {"lesion", "liver"}
    assert read_index(report.parts["all"].address).classes == {"label": ("lesion", "liver")}
    assert len({cube["split_group"] for cube in cubes}) == len({row["patient"] for row in rows})
    middles = [places_mm(cube)[4, 4, 4] for cube in cubes]
    for row in rows:
        place = np.array([float(row[axis]) for axis in "xyz"])
        away = [np.abs(middle - place).max() for middle in middles]
        cube = cubes[int(np.argmin(away))]
        assert min(away) <= max(cube["spacing_mm"]) * 0.75  # half a voxel, askew in oblique files
        assert cube["labels"] == {"label": row["label"]}
        assert cube["mask"][4, 4, 4] == (2 if row["label"] == "lesion" else 1)


def test_the_three_ways_to_say_where_a_centre_lies_agree(archive: Path, tmp_path: Path, run: Run) -> None:
    found = []
    name = "000003.nii.gz"
    image = nibabel.load(archive / "images" / name)
    voxel = (6, 12, 15)
    ras = image.affine @ [*voxel, 1]
    for frame, place in (("voxels", voxel), ("ras", ras[:3]), ("lps", ras[:3] * (-1, -1, 1))):
        path = table(tmp_path / "centres.csv", [(name, *place, "a")])
        report, (cube,) = run(centres=path, centres_in=frame, cube=(8, 8, 8))
        assert len(report.skipped) == VOLUMES - 1 and "no row of the table of centres" in report.skipped[0].reason
        found.append(cube["image"])
        assert np.allclose(places_mm(cube)[4, 4, 4], ras[:3], atol=1e-3)
        assert cube["image"][4, 4, 4] == on_16_bits(np.asarray(image.dataobj)[voxel], -1000, 1000)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_voxels_of_a_series_are_column_row_and_slice(tmp_path: Path, run: Run) -> None:
    body = np.random.default_rng(9).integers(0, 900, (10, 12, 14)).astype(np.int16)
    write(tmp_path / "src", slices(body, PatientID="P9"))
    path = table(tmp_path / "centres.csv", [("src", 6, 5, 4, 1)])
    write(tmp_path / "src" / "src", slices(body))
    for file in (tmp_path / "src").glob("*.dcm"):
        file.unlink()
    _, (cube,) = run(tmp_path / "src", centres=path, centres_in="voxels", cube=(8, 8, 8))
    assert cube["image"][4, 4, 4] == on_16_bits(np.array(body[4, 5, 6]), -1000, 1000) and cube["labels"] == {"label": 1}


def test_centres_outside_their_volume_are_told_of_and_strict_refuses_them(
    archive: Path, tmp_path: Path, run: Run
) -> None:
    rows = [("000000.nii.gz", 5, 5, 5, "a"), ("000000.nii.gz", 5, 500, 5, "b"), ("000001.nii.gz", -1, 0, 0, "b")]
    path = table(tmp_path / "centres.csv", rows)
    report, cubes = run(centres=path, centres_in="voxels")
    assert [cube["labels"] for cube in cubes] == [{"label": "a"}]
    texts = [note.text for note in report.notes if note.file == "000000.nii.gz"]
    assert sorted(texts) == [
        "1 of its 1 cubes reach beyond it, where its lowest value stands",
        "1 of its 2 centres lie outside of it (line 3 of the table) and are left out",
    ]
    assert {entry.file: entry.reason for entry in report.skipped}["000001.nii.gz"] == (
        "1 of its 1 centres lie outside of it (line 4 of the table)"
    )
    with pytest.raises(RequestError, match=r"strict: .*centres lie outside of it"):
        run(centres=path, centres_in="voxels", strict=True, dest="strict")


def test_a_row_that_is_no_place_or_of_no_volume_is_told_of(archive: Path, tmp_path: Path, run: Run) -> None:
    rows = [("000000", 9, 9, 9, 1), ("000000", "", 9, 9, 0), ("000000", "nan", 9, 9, 0), ("other", 1, 1, 1, 0)]
    path = table(tmp_path / "centres.csv", rows)
    report, (cube,) = run(centres=path, centres_in="voxels")
    assert cube["labels"] == {"label": 1} and report.unmatched == {"centres.csv": ("other",)}
    assert "centres.csv: 2 centres are left out, for x, y or z is no number (line 3, 4)" in report.warnings
    with pytest.raises(RequestError, match=r"strict: centres\.csv: 2 centres are left out"):
        run(centres=path, centres_in="voxels", strict=True, dest="strict")


def test_labels_of_volumes_and_of_centres_go_together(archive: Path, tmp_path: Path, run: Run) -> None:
    path = table(tmp_path / "centres.csv", [("000000.nii.gz", 9, 9, 9, 1, "P1")], "volume,x,y,z,malignant,patient")
    settings: dict[str, Any] = {"centres": path, "centres_in": "voxels", "labels": str(archive / "labels.csv")}
    _, (cube,) = run(**settings, label_columns=("finding", "malignant"))
    assert set(cube["labels"]) == {"finding", "malignant"} and cube["labels"]["malignant"] == 1
    with pytest.raises(RequestError, match="no column 'stage'"):
        run(centres=path, centres_in="voxels", label_columns=("stage",))
    rows = [("000000.nii.gz", 9, 9, 9, 1, "P1"), ("000000.nii.gz", 8, 9, 9, 1, "P2")]
    path = table(tmp_path / "centres.csv", rows, "volume,x,y,z,malignant,patient")
    with pytest.raises(RequestError, match="the rows of one volume have 2 values of 'patient'"):
        run(centres=path, centres_in="voxels", group_by="patient")


# ----------------------------------------------------------------------------- greys, whole volumes


def test_percentiles_are_those_of_each_volume(archive: Path, run: Run) -> None:
    _, cubes = run(intensity="percentiles:2,90")
    affines = {file.name: nibabel.load(file).affine for file in (archive / "images").iterdir()}
    for cube in cubes:
        name = source_of(cube, affines)
        values = np.sort(np.asarray(nibabel.load(archive / "images" / name).dataobj), axis=None)
        low, high = (float(values[int(np.ceil(share * values.size)) - 1]) for share in (0.02, 0.9))
        assert cube["intensity"] == {"by": "percentiles", "low": low, "high": high}
        there = index_in(places_mm(cube), affines[name])
        stored = np.asarray(nibabel.load(archive / "images" / name).dataobj)[there]
        assert np.array_equal(cube["image"], on_16_bits(stored.astype(float), low, high))


def test_what_does_not_say_what_it_is_needs_an_intensity(archive: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(
        RequestError, match=r"--intensity range:-1000,1000 for CT in HU, --intensity percentiles:0.5,99.5"
    ):
        run(intensity="window")
    body = np.random.default_rng(10).integers(0, 900, (8, 8, 8)).astype(np.int16)
    write(tmp_path / "src" / "a", slices(body, Modality="MR", SeriesInstanceUID="1.2.8"))
    report, (cube,) = run(tmp_path / "src", cube=(8, 8, 8), intensity="window")
    assert cube["intensity"]["by"] == "percentiles"
    assert any("MR is stored with --intensity percentiles:0.5,99.5" in remark for remark in report.remarks)
    write(tmp_path / "src" / "b", slices(body, SeriesInstanceUID="1.2.9"))
    with pytest.raises(RequestError, match="which values of CT, MR become black and white"):
        run(tmp_path / "src", cube=(8, 8, 8), intensity="window")


def test_whole_volumes_are_scaled_and_resampled_where_that_is_said(
    archive: Path, phantoms: Sequence[PhantomVolume], run: Run
) -> None:
    usual: dict[str, Any] = {"content": "volumes", "cube": None, "masks": str(archive / "masks")}
    report, volumes = run(**usual)
    affines = {file.name: nibabel.load(file).affine for file in (archive / "images").iterdir()}
    for volume in volumes:
        name = source_of(volume, affines)
        stored = np.asarray(nibabel.load(archive / "images" / name).dataobj)[index_in(places_mm(volume), affines[name])]
        assert np.array_equal(volume["image"], on_16_bits(stored, -1000, 1000)) and stored.size == volume["image"].size
        assert volume["intensity"] == {"by": "range", "low": -1000, "high": 1000}
    check_viewable(read_index(report.parts["all"].address).image, axes=3, in_channels=1)
    _, resampled = run(**usual, spacing=(6.0, 6.0, 6.0))
    assert all(volume["spacing_mm"] == [6, 6, 6] for volume in resampled)
    assert all(volume["image"].shape == volume["mask"].shape for volume in resampled)
    report, raw = run(**usual, intensity="window")
    assert all(volume["image"].dtype == np.int16 and "intensity" not in volume for volume in raw)
    with pytest.raises(RequestError, match=r"with --intensity"):
        check_viewable(read_index(report.parts["all"].address).image, axes=3, in_channels=1)


# -------------------------------------------------------------------------------------- bad input


def test_bad_volumes_are_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    body = np.random.default_rng(11).integers(-900, 900, (9, 9, 9)).astype(np.float32)
    holes = body.copy()
    holes[0, 0, :5] = np.nan
    files = {"times": np.stack([body, body], -1), "holes": holes, "flat": np.zeros((9, 9, 9), np.float32), "good": body}
    for name, values in files.items():
        (tmp_path / "src" / f"{name}.nii").write_bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    write(tmp_path / "src" / "uneven", uneven(body.astype(np.int16)))
    report, cubes = run(tmp_path / "src", cube=(8, 8, 8))
    reasons = {entry.file: entry.reason for entry in report.skipped}
    assert "(9, 9, 9, 2), where a volume has three dimensions; take one time point" in reasons["times.nii"]
    assert reasons["flat.nii"] == "each of its voxels holds one value"
    assert any("not evenly spaced" in reason for file, reason in reasons.items() if file.startswith("uneven"))
    assert [note.text for note in report.notes if note.file == "holes.nii"] == [
        "5 voxels that are no numbers are stored as 0"
    ]
    assert len({cube["volume"] for cube in cubes}) == 2
    with pytest.raises(RequestError, match="strict: "):
        run(tmp_path / "src", cube=(8, 8, 8), strict=True, dest="strict")


def uneven(body: np.ndarray) -> list[Any]:
    """Slices of a series at steps of 2.5, 4, 7.5 and so on mm."""
    made = []
    for number, plane in enumerate(body):
        place = {"ImagePositionPatient": [0.0, 0.0, 100.0 + 2.5 * number + 1.5 * number**2]}
        tags = {"Modality": "CT", "PixelSpacing": [0.7, 0.6], "SeriesInstanceUID": "1.2.7", "PatientID": "P1"}
        made.append(dicom(plane, "1.2.840.10008.5.1.4.1.1.2", ImageOrientationPatient=list(SUPINE), **place, **tags))
    return made


def test_masks_that_hold_no_labels_are_refused(tmp_path: Path) -> None:
    volume = Volume(np.arange(512, dtype=np.int16).reshape(8, 8, 8), (1.0, 1.0, 1.0), np.eye(4))
    options = ShardOptions(content="cubes", cube=(8, 8, 8), intensity=CT_RANGE)
    source = Source.of([volume], volume.voxels.astype(np.float32), options)
    with pytest.raises(UnreadableError, match="other values than labels from 0 to 32767"):
        next(cubes_of("ab", source, options, None, {"labels": {}}, lambda text: None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cube": None}, "of which size"),
        ({"centres": "a.csv"}, "centres and centres_in go together"),
        ({"centres_in": "ras"}, "centres and centres_in go together"),
        ({"centres": "a.csv", "centres_in": "ras", "content_filter": "lung"}, "content_filter with centres"),
        ({"content": "volumes"}, "cube with content volumes: cubes are cut with --content cubes"),
        ({"content": "slices", "cube": None, "spacing": (1, 1, 1)}, "spacing with content slices"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(**options)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["--cube", "12,10,8", "--margin", "0.1", "--spacing", "4,5,6"], ((12, 10, 8), (0.1, 0.1, 0.1), (4, 5, 6))),
        (["--cube", "16"], ((16, 16, 16), (0, 0, 0), None)),
    ],
)
def test_the_command_line_takes_three_numbers_or_one(
    archive: Path, tmp_path: Path, given: list[str], taken: Any
) -> None:
    said = ["--content", "cubes", "--intensity", CT_RANGE, "--cubes-per-volume", "1", "--processes", "1"]
    found = CliRunner().invoke(app, ["shard", str(archive / "images"), str(tmp_path / "set"), *said, *given])
    assert found.exit_code == 0, found.output
    request = read_index(str(tmp_path / "set")).made_by["request"]
    numbers = (request["cube"], request["margin"], request.get("spacing"))
    assert tuple(each and tuple(each) for each in numbers) == taken


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cube", "64,64"], "cube: found 2 numbers; give three, along x, y and z, or one"),
        (["--cube", "a,b,c"], "cube: 'a' is no number; give three"),
        (["--cube", "4"], "cube: found 4; allowed: greater than or equal to 8"),
        (["--cube", "16.5"], "cube: found 16.5; allowed: a valid integer"),
        (["--cube", "16", "--margin", "0.5"], "margin.*: found 0.5; allowed: less than 0.5"),
        (["--cube", "16", "--spacing", "0"], "spacing.*: found 0; allowed: greater than 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(archive: Path, tmp_path: Path, given: list[str], message: str) -> None:
    said = ["shard", str(archive / "images"), str(tmp_path / "set"), "--content", "cubes", *given]
    with pytest.raises(RequestError, match=message):
        CliRunner().invoke(app, said, catch_exceptions=False)
