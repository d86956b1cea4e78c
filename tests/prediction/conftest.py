"""Models of narrow networks, packaged as their runs would; their weights were drawn, and nothing was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dira_dist.config import dump_yaml
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.store import LocalStore
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import preflight
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint, write_checkpoint
from dira_dist.training.task import About, Package

SIDE_PX = 32
TASKS: dict[str, Any] = {
    "classify": {"name": "classify", "label": "finding"},
    "findings": {"name": "classify", "label": "findings"},
    "binary": {"name": "segment"},
    "segment": {"name": "segment", "classes": ["right", "left", "heart"]},
    "regions": {"name": "segment", "regions": {"lungs": [1, 2], "right": [1]}},
}


@dataclass(frozen=True)
class Made:
    """A model as a run would leave it: what is registered, and the address of the run's checkpoint."""

    package: Package
    checkpoint: str


MakePackage = Callable[[str], Made]
MakeModel = Callable[[str], Path]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 phantoms of 36 patients as an archive and as shard sets, split by patient, with findings and masks."""
    folder = tmp_path_factory.mktemp("labelled")
    write_archive(folder, 72, size_px=48)
    options = ShardOptions(
        image_size=40,
        processes=1,
        labels=str(folder / "labels.csv"),
        masks=str(folder / "masks"),
        group_by="patient",
        split={"train": 0.4, "val": 0.3, "test": 0.3},
    )
    shard(folder / "images", folder / "shards", options)
    return folder


@pytest.fixture(scope="session")
def make_model(make_package: MakePackage) -> MakeModel:
    """The folder of a model of a task of :data:`TASKS`, made once."""
    return lambda task: make_package(task).package.folder


@pytest.fixture(scope="session")
def make_package(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    """The same, ready for the registry."""

    @cache
    def make(task: str) -> Made:
        values = {
            "kind": "finetune",
            "name": task,
            "data": {
                **{part: str(labelled / "shards" / part) for part in ("train", "val")},
                "image_size": SIDE_PX,
                "global_batch": 8,
            },
            "model": {"encoder": "resnet18", "decoder_channels": [8, 8, 8, 8, 8]},
            "task": TASKS[task],
            "report": {"bootstrap": 100},
            "precision": "fp32",
        }
        loaded = load_job(values)
        facts = preflight(loaded.job)
        loaded = loaded.settled(facts.job, facts.changes)
        work = facts.job.build_task(facts.samples)
        networks = work.build()
        with torch.no_grad():  # answers that differ from image to image and from pixel to pixel
            for name, weight in networks.named_parameters():
                if name.endswith(("head.weight", "segmentation_head.0.weight")):
                    weight.mul_(20)
        report = work.validator(networks, torch.device("cpu")).report()
        assert report is not None
        about = About(task, job=dump_yaml(loaded.public), report=report.files, trained_on=facts.job.trained_on())
        tensors = {"networks": networks.state_dict()}
        folder = tmp_path_factory.mktemp(task)
        write_checkpoint(folder / "scratch", Checkpoint(Position(step=1), loaded.public, tensors=tensors))
        run = CheckpointFolder(LocalStore(str(folder / "run")))
        run.upload("step-1", folder / "scratch")
        return Made(work.package(tensors, Position(), folder / "model", about), str(folder / "run" / "step-1"))

    return make
