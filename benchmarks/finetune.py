"""Fine-tuning beside a plain loop of PyTorch and segmentation_models_pytorch: images per second, as a ratio in one run.

    python benchmarks/finetune.py [--task classify|segment] [--rounds 20] [--image-size 96]

Both train on the same phantoms, one from a shard set and one from a folder of PNG, with augmentation of the same kinds:
the plain loop by torchvision's transforms of each image, in the main process as the stream does here. They take turns,
some steps each per round, so that whatever else the machine does falls on both; figures are medians over the rounds.
How long each waits for its next batch is told as a share of its time.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.shards import read_index
from dira_dist.data.stream import ShardStream
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import preflight
from dira_dist.quickstart.phantom import FINDINGS, write_archive

IMAGES, BATCH, STEPS = 256, 16, 4
Work = Callable[[], "Round"]


@dataclass(frozen=True)
class Round:
    """Some steps: seconds in all, and those in which the loop waited for its next batch."""

    took_s: float
    waited_s: float


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels or masks, each decoded, resized and augmented when it is asked for."""

    def __init__(self, archive: Path, task: str, side: int) -> None:
        self.archive, self.task = archive, task
        with (archive / "labels.csv").open() as file:
            self.rows = list(csv.DictReader(file))
        self.change = v2.Compose(
            [
                v2.Resize((side, side), antialias=True),
                v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1)),
                v2.ColorJitter(0.1, 0.1),
                v2.ToDtype(torch.float32, scale=True),
                v2.GaussianNoise(0, 0.01),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        row = self.rows[place]
        image = tv_tensors.Image(torch.from_numpy(np.array(Image.open(self.archive / "images" / row["image"])))[None])
        if self.task == "classify":
            return self.change(image), torch.tensor(FINDINGS.index(row["finding"]))
        mask = torch.from_numpy(np.array(Image.open(self.archive / "masks" / row["image"])) > 0)
        found: tuple[Tensor, Tensor] = self.change(image, tv_tensors.Mask(mask.to(torch.uint8)))
        return found


def plain(archive: Path, task: str, side: int) -> Work:
    """A loop as people write it."""
    torch.manual_seed(0)
    network: nn.Module
    if task == "classify":
        network = torchvision.models.resnet18(num_classes=len(FINDINGS))
        network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    else:
        network = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-4)
    dice = smp.losses.DiceLoss("binary") if task == "segment" else None

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from DataLoader(Folder(archive, task, side), BATCH, shuffle=True)

    source = batches()

    def steps() -> Round:
        start, waited_s = time.perf_counter(), 0.0
        for _ in range(STEPS):
            asked_at = time.perf_counter()
            images, truth = next(source)
            waited_s += time.perf_counter() - asked_at
            logits = network(images)
            if dice is None:
                loss = nn.functional.cross_entropy(logits, truth)
            else:
                target = truth.float()[:, None]
                loss = dice(logits, target) + nn.functional.binary_cross_entropy_with_logits(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Round(time.perf_counter() - start, waited_s)

    return steps


def project(shards: Path, task: str, side: int) -> Work:
    """What a worker of this project does, without Ray."""
    values: dict[str, Any] = {
        "kind": "finetune",
        "name": "benchmark",
        "data": {
            "train": str(shards / "train"),
            "val": str(shards / "val"),
            "image_size": side,
            "global_batch": BATCH,
            "loader_workers": 0,
        },
        "model": {"encoder": "resnet18"},
        "task": {"name": task} | ({"label": "finding"} if task == "classify" else {}),
        "precision": "fp32",
    }
    facts = preflight(load_job(values).job)
    work = facts.job.build_task(facts.samples)
    (span,) = facts.plan.spans
    step = work.step(work.build(), span, torch.device("cpu"))
    stream = ShardStream.from_config(
        facts.job.data,
        seed=0,
        lanes=facts.job.lanes,
        index=read_index(facts.job.data.train),
        selection=facts.samples.selection,
        annotations=facts.job.reads_masks,
    )
    done = 0

    def steps() -> Round:
        nonlocal done
        start, waited_s = time.perf_counter(), 0.0
        for _ in range(STEPS):
            asked_at = time.perf_counter()
            batch = next(stream)
            waited_s += time.perf_counter() - asked_at
            step(work.inputs(batch, span), done)
            done += 1
        return Round(time.perf_counter() - start, waited_s)

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("classify", "segment"), default="classify")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=96)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        archive, shards = Path(scratch) / "archive", Path(scratch) / "shards"
        write_archive(archive, IMAGES, size_px=128)
        options = ShardOptions(
            image_size=None,
            labels=str(archive / "labels.csv"),
            masks=str(archive / "masks"),
            group_by="patient",
            split={"train": 0.9, "val": 0.1},
            processes=1,
        )
        shard(archive / "images", shards, options)
        sides = {
            "plain": plain(archive, asked.task, asked.image_size),
            "project": project(shards, asked.task, asked.image_size),
        }
        for work in sides.values():
            work()
        rounds: dict[str, list[Round]] = {name: [] for name in sides}
        for _ in range(asked.rounds):
            for name, work in sides.items():
                rounds[name].append(work())
    ratios = [a.took_s / b.took_s for a, b in zip(rounds["plain"], rounds["project"], strict=True)]
    for name, done in rounds.items():
        rate = STEPS * BATCH / statistics.median(each.took_s for each in done)
        share = sum(each.waited_s for each in done) / sum(each.took_s for each in done)
        print(f"{name:8} {rate:7.1f} images/s, {share:6.2%} of it waiting for data")
    print(f"project / plain: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
