"""Fine-tuning in 3D through the real driver, and what its models say of files, voxel for voxel in their geometry."""

import csv
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from chaos import ChaosJob
from dicom_files import slices, write
from safetensors.torch import save_file

import dira_dist
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions
from dira_dist.data.store import open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import preflight
from dira_dist.models.unet3d import UNet3dConfig
from dira_dist.prediction.evaluate import evaluate
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.prediction.predict import Results, embed, predict
from dira_dist.quickstart.phantom_volume import write_volumes
from dira_dist.runs.report import read_report
from dira_dist.views.sliding_window import slide
from tests.prediction.test_prediction_files import table
from tests.prediction.test_prediction_volumes import WHOLE, canonical, segments_of
from tests.tracking.conftest import bare_python

pytestmark = pytest.mark.timeout(900)

WINDOW = (16, 16, 16)
RANGE = "range:-1000,1000"
TASKS = {
    "segment": "{name: segment, classes: [liver, lesion, spine], patches: {foreground: 0.7, overlap: 0.25}}",
    "classify": "{name: classify, label: label}",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, anisotropic and turned in several ways: as whole volumes at 7 mm, and as cubes around candidates."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volumes(folder, 12, side_px=24)
    common = {
        "masks": str(folder / "masks"),
        "group_by": "patient",
        "intensity": RANGE,
        "processes": 1,
        "split": {"train": 0.5, "val": 0.25, "test": 0.25},
    }
    volumes = ShardOptions(content="volumes", spacing=(7, 7, 7), labels=str(folder / "labels.csv"), **common)
    dira_dist.shard(folder / "images", folder / "segment", volumes)
    cubes = ShardOptions(content="cubes", cube=WINDOW, centres=str(folder / "centres.csv"), centres_in="ras", **common)
    dira_dist.shard(folder / "images", folder / "classify", cubes)
    return folder


@pytest.fixture(scope="module")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Each task's job through the driver, once: two steps from the weights of a file."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    save_file(network_config().build().state_dict(), folder / "start.safetensors")

    @cache
    def made(task: str) -> tuple[ChaosJob, Outcome]:
        job = ChaosJob(folder, task, 0, f"{folder}/runs")
        job.file.write_text(f"""
kind: finetune
name: {task}
start: {{from: {folder}/start.safetensors, parts: {"encoder_decoder" if task == "segment" else "encoder"}}}
data: {{train: {archive}/{task}/train, val: {archive}/{task}/val, test: {archive}/{task}/test,
  image_size: [16, 16, 16], global_batch: 4, loader_workers: 0}}
model: {{name: unet3d, width: 4, levels: 3}}
task: {TASKS[task]}
optimizer: {{lr: 1.0e-2, schedule: constant}}
epochs: 2
report: {{bootstrap: 100{", localization: {truth: masks, threshold: tuned}" if task == "classify" else ""}}}
precision: fp32
resources: {{workers: 1, cpus_per_worker: 1}}
checkpoint: {{storage: "{job.storage}", every_steps: 2, keep: 2}}
tracking: {{uri: "sqlite:///{folder}/{task}.db", register_as: {task}, log_every_steps: 1, system_metrics_every_s: 0}}
""")
        return job, job.run()

    with embedded_ray(ResourcesConfig(workers=1)):
        yield made


def network_config() -> UNet3dConfig:
    return UNet3dConfig(width=4, levels=3)


def model_folder(job: ChaosJob, outcome: Outcome, dest: Path) -> Path:
    from dira_dist.registry.model_folder import fetch_model_folder
    from dira_dist.tracking.config import tracking_at

    return fetch_model_folder(outcome.model, dest, tracking_at(job.database), lambda tuned: (), as_registered=True)


def run(job: ChaosJob, outcome: Outcome, source: Path, dest: Path, **options: Any) -> Results:
    options = {"processes": 1, **options}
    return predict(outcome.model, str(source), str(dest), PredictOptions(**options), tracking_uri=job.database)


def network_of(job: ChaosJob, outcome: Outcome) -> torch.nn.Module:
    """The chosen network, built from its checkpoint as any user could."""
    from dira_dist.training.finetune.networks import build_networks

    recipe = preflight(load_job(job.file).job).job
    networks = build_networks(recipe)
    chosen = job.checkpoints.fetch(outcome.best.rsplit("/", 1)[1])
    networks.load_state_dict(chosen.tensors["networks"])
    return networks.network.eval()


def by_hand(network: torch.nn.Module, image: Any, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """(D, H, W) labels and (K, D, H, W) chances of a file: resampled axis by axis, scaled, slid over, and back."""
    values = canonical(image).astype(np.float64)
    steps = [spacing_mm / float(length) for length in voxel_sizes(image)]
    grid = values
    for axis, step in enumerate(steps):
        sides = max(1, round(values.shape[axis] * step**-1)) if step != 1 else values.shape[axis]
        grid = interpolated(grid, (np.arange(sides) + 0.5) * step - 0.5, axis)
    shares = np.rint(np.clip((grid + 1000) / 2000, 0, 1) * 65535) / 65535
    with torch.no_grad():
        volume = torch.from_numpy(shares.transpose(2, 1, 0).astype(np.float32).copy())[None, None]
        logits = slide(network, volume, WINDOW, overlap=0.25, blend="gaussian")
    chances = logits.softmax(1)[0].permute(0, 3, 2, 1).numpy().astype(np.float64)
    for axis, step in enumerate(steps):
        place = (np.arange(values.shape[axis]) + 0.5) / step - 0.5
        chances = interpolated(chances, place, axis + 1)
    return chances.argmax(0), chances


def voxel_sizes(image: Any) -> np.ndarray:
    """Along (D, H, W), by nibabel alone."""
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(("S", "P", "L"))
        )
    )
    return nibabel.affines.voxel_sizes(turned.affine)


def interpolated(values: np.ndarray, place: np.ndarray, axis: int) -> np.ndarray:
    """By numpy's own interpolation, line by line."""
    known = np.arange(values.shape[axis])
    return np.apply_along_axis(lambda line: np.interp(place, known, line), axis, values)


def test_a_segmenter_of_volumes_is_trained_and_reported(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("segment")
    files = read_report(open_store(f"{job.storage}/{job.name}"))
    report = json.loads(files["report.json"])
    assert report["classes"] == ["background", "liver", "lesion", "spine"]
    head, *rows = csv.reader(files["cases-test.csv"].decode().splitlines())
    assert rows and "hd95 liver" in head and "surface_dice spine" in head
    assert b"HD95 (mm)" in files["report.md"]
    assert all(len(each) > 1 for each in (job.history("val/dice"), job.history("train/loss/supervised")))
    evaluated = evaluate(outcome.model, str(archive / "segment" / "test"), tracking_uri=job.database)
    for name, value in report["metrics"].items():
        if name.startswith("test/") and value == value:
            assert evaluated.metrics[name] == pytest.approx(value, abs=1e-6), name


def test_turned_anisotropic_files_come_back_voxel_for_voxel(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("segment")
    done = run(job, outcome, archive / "images", tmp_path / "out", overlays=True)
    assert done.rows == 12 and not done.unread
    network, wrong, voxels, labels = network_of(job, outcome), 0, 0, set[int]()
    for row in table(tmp_path / "out"):
        image, mask = (
            nibabel.load(place) for place in (archive / "images" / row["file"], tmp_path / "out" / row["mask"])
        )
        assert mask.shape == image.shape and (mask.affine == image.affine).all()
        wanted, chances = by_hand(network, image, 7.0)
        found = canonical(mask)
        ranked = np.sort(chances, axis=0)
        doubtful = ranked[-1] - ranked[-2] < 1e-4
        assert (found == wanted)[~doubtful].all(), row["file"]
        wrong, voxels, labels = (
            wrong + int((found != wanted).sum()),
            voxels + found.size,
            labels | set(np.unique(found)),
        )
        assert int(row["pixels liver"]) == (found == 1).sum()
        size_ml = float(np.prod(voxel_sizes(image))) / 1000
        assert float(row["ml liver"]) == pytest.approx((found == 1).sum() * size_ml, rel=1e-3)
    assert wrong < voxels / 1000 and len(labels) > 1, "the test would see nothing otherwise"
    assert len({nibabel.aff2axcodes(nibabel.load(file).affine) for file in (archive / "images").iterdir()}) > 2


def test_a_series_gets_a_segmentation_of_its_planes(trained: Any, tmp_path: Path) -> None:
    """The same voxels as DICOM and as NIfTI."""
    job, outcome = trained("segment")
    drawn = np.random.default_rng(0).integers(0, 2000, (9, 20, 22))
    planes = slices(drawn.astype(np.int16), **WHOLE)
    write(tmp_path / "series", planes[::-1])
    run(job, outcome, tmp_path / "series", tmp_path / "out")
    run(job, outcome, tmp_path / "series", tmp_path / "plain", masks="plain")
    (row,), (plain,) = table(tmp_path / "out"), table(tmp_path / "plain")
    image = nibabel.load(tmp_path / "plain" / plain["mask"])
    maps, (made, found) = canonical(image), segments_of(tmp_path / "out" / row["mask"])
    assert made.Modality == "SEG" and set(found) == {"liver", "lesion", "spine"}
    for place, name in enumerate(("liver", "lesion", "spine"), start=1):
        for plane, wanted in zip(planes, maps == place, strict=True):
            frame = found[name].get(plane.SOPInstanceUID)
            assert wanted.sum() == 0 if frame is None else (frame == wanted).all()
    assert any(found.values())


def test_the_pyfunc_says_the_same_where_nothing_of_this_is(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("segment")
    file = next((archive / "images").iterdir())
    values = np.clip((canonical(nibabel.load(file)).transpose(2, 1, 0) + 1000) / 2000, 0, 1).astype(np.float32)
    np.save(tmp_path / "volume.npy", values[None, None])
    (tmp_path / "script.py").write_text(
        "import mlflow, numpy\n"
        "from importlib.util import find_spec\n"
        "assert not find_spec('dira_dist') and not find_spec('segmentation_models_pytorch')\n"
        f"model = mlflow.pyfunc.load_model('{outcome.model}')\n"
        "numpy.save('answers.npy', model.predict(numpy.load('volume.npy'), params={'output': 'probabilities'}))\n"
    )
    subprocess.run(
        [bare_python(tmp_path / "bare", "mlflow", "torch", "monai"), "-I", "script.py"],
        cwd=tmp_path,
        check=True,
        env={"HOME": str(tmp_path), "MLFLOW_TRACKING_URI": job.database},
    )
    network = network_of(job, outcome)
    with torch.no_grad():
        logits = slide(network, torch.from_numpy(values[None, None]), WINDOW, overlap=0.25, blend="gaussian")
    assert np.abs(np.load(tmp_path / "answers.npy") - logits.softmax(1).numpy()).max() < 1e-5


def test_cubes_around_candidates_are_classified(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("classify")
    report = json.loads(read_report(open_store(f"{job.storage}/{job.name}"))["report.json"])
    assert report["task"] == "classify" and len(report["classes"]) in (1, 2)
    source = archive / "classify" / "test"
    done = run(job, outcome, source, tmp_path / "out", pool="patient")
    rows = list(
        csv.reader(read_report(open_store(f"{job.storage}/{job.name}"))["predictions-test.csv"].decode().splitlines())
    )
    said = {row[0]: float(row[-1]) for row in rows[1:]}
    name = rows[0][-1]
    assert done.rows == len(said)
    for row in table(tmp_path / "out"):
        assert float(row[f"probability {name}"]) == pytest.approx(said[row["key"]], abs=2e-6)
    with pytest.raises(RequestError, match="classifies cubes, and files hold whole volumes"):
        run(job, outcome, archive / "images", tmp_path / "files")


def test_where_a_classifier_of_cubes_looks(trained: Any, archive: Path, tmp_path: Path) -> None:
    """Boxes along x, y and z, and the report's figures beside the masks of the cubes."""
    job, outcome = trained("classify")
    report = json.loads(read_report(open_store(f"{job.storage}/{job.name}"))["report.json"])
    assert report["localization"]["settings"]["truth"] == "masks"
    run(job, outcome, archive / "classify" / "test", tmp_path, heatmaps=True)
    boxes = [
        box
        for row in table(tmp_path)
        for name, text in row.items()
        if name.startswith("boxes ") and text
        for box in json.loads(text)
    ]
    assert boxes and all(set(box) == {"x", "y", "z", "width", "height", "depth", "score"} for box in boxes)
    assert all(box["z"] >= 0 and box["z"] + box["depth"] <= WINDOW[2] for box in boxes)
    assert len(list((tmp_path / "heatmaps").glob("*.png"))) == sum(bool(row["heatmap"]) for row in table(tmp_path))


def test_features_of_files_are_means_over_windows_that_tile_them(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("segment")
    embed(outcome.model, str(archive / "images"), str(tmp_path), EmbedOptions(processes=1), tracking_uri=job.database)
    pq: Any = pytest.importorskip("pyarrow.parquet")
    found = pq.read_table(tmp_path / "features.parquet").to_pylist()
    assert len(found) == 12 and {len(row["features"]) for row in found} == {16}
    assert len({tuple(row["features"]) for row in found}) == 12


def test_masks_of_a_set_have_no_file_to_lie_on(trained: Any, archive: Path, tmp_path: Path) -> None:
    job, outcome = trained("segment")
    done = run(job, outcome, archive / "segment" / "test", tmp_path / "out")
    assert done.rows > 0 and "mask" not in table(tmp_path / "out")[0]
    with pytest.raises(RequestError, match="masks plain: a mask of a volume lies on the voxels of its file"):
        run(job, outcome, archive / "segment" / "test", tmp_path / "masks", masks="plain")
    with pytest.raises(RequestError, match="axis: is of slices"):
        run(job, outcome, archive / "images", tmp_path / "axis", axis="axial")
