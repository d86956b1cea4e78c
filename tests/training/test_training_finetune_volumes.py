"""Fine-tuning in 3D before and without a cluster: what is refused, what is started from, what a step works on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cube_sets import write_cubes
from PIL import Image

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions
from dira_dist.data.store import LocalStore
from dira_dist.data.stream import ShardStream
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.quickstart.phantom_volume import make_volume, write_nifti, write_volumes
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.finetune.networks import build_networks
from dira_dist.training.finetune.task import FinetuneTask
from dira_dist.training.pretrain.task import PretrainTask
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint, write_checkpoint

Check = Callable[..., Preflight]
SIDES = (20, 18, 22)  # D, H, W
PATCH = [16, 16, 16]
MODEL = {"name": "unet3d", "width": 4, "levels": 3}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes larger than a patch, with masks; and images."""
    folder = tmp_path_factory.mktemp("sets")
    for first, name in ((0, "train"), (8, "val"), (16, "test")):
        write_cubes(str(folder / name), 8, first=first, sides=SIDES, masks=True)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for number in range(6):
        for kind in ("images", "masks"):
            drawn = np.random.default_rng(number).integers(0, 2, (32, 32), dtype=np.uint8)
            Image.fromarray(drawn).save(folder / kind / f"{number}.png")
    dira_dist.shard(
        folder / "images", folder / "flat", ShardOptions(masks=str(folder / "masks"), processes=1, image_size=None)
    )
    return folder


@pytest.fixture
def check(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def checked(*overrides: str, **sections: Any) -> Preflight:
        values = {
            "kind": "finetune",
            "name": "a",
            "data": {
                **{name: f"{sets}/{name}" for name in ("train", "val")},
                "image_size": PATCH,
                "global_batch": 4,
                "loader_workers": 0,
            },
            "model": MODEL,
            "task": {"name": "segment"},
            "precision": "fp32",
            **sections,
        }
        return preflight(load_job(values, overrides).job.resolve_paths())

    return checked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train={}/flat"], "the train set has samples with 2 spatial axes, and the model takes 3"),
        (["data.val={}/flat"], "the val set has samples with 2 spatial axes, and the model takes 3"),
        (["model={{encoder: resnet18}}", "data.image_size=32"], "samples with 3 spatial axes, and the model takes 2"),
        (["data.image_size=[18, 16, 16]"], "multiples of 4"),
        (
            ["model={{encoder: resnet18}}", "data.image_size=32", "task.patches.foreground=0.9", "data.train={}/flat"],
            "task.patches: they are of volumes, and resnet18 takes images",
        ),
        (["task.patches.overlap=1"], "task.patches.overlap"),
        (["task={{name: segment, classes: [a]}}", "data.train={}/three"], "no shard set"),
    ],
)
def test_a_job_that_does_not_fit_is_refused(check: Check, sets: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(*(each.format(sets) for each in overrides))


def test_masks_on_another_grid_are_nothing_to_learn_from(tmp_path: Path, check: Check) -> None:
    """``shard`` leaves them out by name; a set without any mask is refused."""
    write_volumes(tmp_path / "archive", 4, side_px=16)
    for number in range(4):
        phantom = make_volume(0, number, 16)
        moved = phantom.affine.copy()
        moved[:3, 3] += 40
        write_nifti(tmp_path / "archive" / "masks" / f"{number:06d}.nii.gz", phantom.mask(), moved)
    options = ShardOptions(
        content="volumes",
        masks=str(tmp_path / "archive" / "masks"),
        intensity="range:-1000,1000",
        processes=1,
    )
    report = dira_dist.shard(tmp_path / "archive" / "images", tmp_path / "set", options)
    assert "mask is left out" in "\n".join(report.lines())
    with pytest.raises(RequestError, match="mask: no sample of the train set has it"):
        check(f"data.train={tmp_path}/set")


@pytest.mark.parametrize("parts", ["encoder", "encoder_decoder"])
def test_a_pretraining_of_cubes_is_started_from(check: Check, sets: Path, tmp_path: Path, parts: str) -> None:
    """Its encoder alone, or the decoder too; its network where the job names none."""
    values = {
        "kind": "pretrain",
        "name": "p",
        "data": {"train": f"{sets}/train", "image_size": PATCH, "global_batch": 4},
        "model": MODEL,
        "method": {"name": "moco_v2", "queue_size": 8, "outputs": 8},
        "stages": [{"objective": "dir", "steps": 1}],
    }
    loaded = load_job(values)
    task = loaded.job.build_task()
    assert isinstance(task, PretrainTask)
    weights = task.build().state_dict()
    for name, weight in weights.items():
        if name.startswith("unet."):
            weight += 1  # a job of the same seed draws the same
    write_checkpoint(
        tmp_path / "scratch", Checkpoint(Position(stage=1, step=1), loaded.public, tensors={"networks": weights})
    )
    CheckpointFolder(LocalStore(str(tmp_path / "run"))).upload("step-1", tmp_path / "scratch")
    facts = check(start={"from": str(tmp_path / "run"), "parts": parts}, model=None)
    assert facts.job.model is not None and facts.job.model.label == "unet3d-4"
    start = facts.start
    assert start is not None
    network = build_networks(facts.job, start.weights).network.state_dict()  # type: ignore[arg-type]
    other = build_networks(facts.job).network.state_dict()  # type: ignore[arg-type]
    taken = [name for name in network if torch.equal(network[name], weights.get(f"unet.{name}", torch.empty(0)))]
    drawn = [name for name in network if name not in taken]
    assert all(torch.equal(network[name], other[name]) for name in drawn)
    assert all(name.startswith(("decoder.", "segmentation_head.")) for name in drawn)
    assert any(name.startswith("decoder.") for name in drawn) is (parts == "encoder")


def test_steps_on_patches_learn_and_do_not_depend_on_the_loader(check: Check, sets: Path) -> None:
    """The patches of two passes over the same samples are the same; and the loss falls."""
    facts = check("optimizer.lr=0.02", "optimizer.schedule=constant", "augmentation.strength=0")
    task = facts.job.build_task(facts.samples)
    assert isinstance(task, FinetuneTask)
    losses, seen = [], []
    for _ in range(2):
        networks = task.build()
        span = facts.plan.spans[0]
        step = task.step(networks, span, torch.device("cpu"))
        networks.train()
        found = []
        with ShardStream.from_config(facts.job.data, seed=0, global_batch=4, annotations=True) as batches:
            for number in range(20):
                views = task.inputs(next(batches), span)
                assert views.images.shape == (4, 1, *PATCH) and views.masks is not None
                found.append(views.images.sum().item())
                losses.append(float(step(views, number).losses["supervised"]))
        seen.append(found)
    assert seen[0] == seen[1] and losses[:20] == losses[20:]
    assert np.mean(losses[14:20]) < 0.8 * np.mean(losses[:2])
