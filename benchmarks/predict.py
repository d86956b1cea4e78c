"""``predict`` and ``embed`` beside a plain loop over a DataLoader: images per second, as ratios in one run.

    python benchmarks/predict.py [--task classify|segment|embed] [--rounds 5] [--processes 2]

Both answer the same folder of PNG with the same network on one thread each: the plain loop decodes by Pillow, resizes
by torchvision, and writes a CSV (and masks by Pillow). They take turns, so that whatever else the machine does falls on
both; starting (listing the files, loading the model) is in neither. With ``--processes`` the same work on one process
and on several take turns, too.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dira_dist.config import Document, dump_yaml
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.jobs.load import load_training_job
from dira_dist.jobs.preflight import preflight
from dira_dist.prediction.model import load_encoder, load_fine_tuned
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.prediction.predict import embed, predict
from dira_dist.prediction.work import Chunk, Here, Tell, Work
from dira_dist.quickstart.phantom import write_archive
from dira_dist.training.stages import Position
from dira_dist.training.task import About

IMAGES, IMAGE_PX, SIDE_PX, BATCH = 192, 512, 224, 32
TASKS: dict[str, dict[str, Any]] = {
    "classify": {"name": "classify", "label": "finding"},
    "segment": {"name": "segment"},
    "embed": {"name": "classify", "label": "finding"},
}
Timed = Callable[[Path], float]


@dataclass
class Stopwatch:
    """A runner that tells how long the chunks took, without what went before them."""

    processes: int
    seconds: list[float] = field(default_factory=list)

    def device(self, asked: str | None) -> str:
        return Here().device(asked)

    def run(self, work: Work, todo: Sequence[Chunk], tell: Tell) -> None:
        with _stopped(self.seconds):
            Here(self.processes).run(work, todo, tell)


@contextmanager
def _stopped(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


class Folder(Dataset[tuple[Tensor, str]]):
    """Images of a folder, each decoded and resized when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.png"))
        self.change = v2.Compose(
            [v2.Resize(SIDE_PX, antialias=True), v2.CenterCrop(SIDE_PX), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        image = torch.from_numpy(np.array(Image.open(self.files[place])))[None]
        return self.change(image), self.files[place].name


def make_model(archive: Path, folder: Path, task: str) -> Path:
    """A ResNet-18 that was drawn, packaged as a run would."""
    options = ShardOptions(
        image_size=None,
        labels=str(archive / "labels.csv"),
        masks=str(archive / "masks"),
        group_by="patient",
        split={"train": 0.5, "val": 0.5},
        processes=1,
    )
    shard(archive / "images", folder / "shards", options)
    values = {
        "kind": "finetune",
        "name": "benchmark",
        "data": {
            **{part: str(folder / "shards" / part) for part in ("train", "val")},
            "image_size": SIDE_PX,
            "global_batch": 16,
        },
        "model": {"encoder": "resnet18"},
        "task": TASKS[task],
    }
    loaded = load_training_job(Document(values, "job"))
    facts = preflight(loaded.job)
    loaded, work = loaded.settled(facts.job, facts.changes), facts.job.build_task()
    about = About("benchmark", job=dump_yaml(loaded.public), trained_on=facts.job.trained_on())
    return work.package({"networks": work.build().state_dict()}, Position(), folder / "model", about).folder


@torch.inference_mode()
def plain(model: Path, images: Path, task: str) -> Timed:
    """A loop as people write it."""
    loaded = load_encoder(model, "") if task == "embed" else load_fine_tuned(model, "")
    network = loaded.network

    def once(dest: Path) -> float:
        seconds: list[float] = []
        dest.mkdir()
        with _stopped(seconds), torch.inference_mode(), (dest / "predictions.csv").open("w") as lines:
            table = csv.writer(lines)
            for batch, names in DataLoader(Folder(images), BATCH):
                answers = network(batch).numpy()
                for answer, name in zip(answers, names, strict=True):
                    if task == "segment":
                        mask = Image.fromarray((answer[0] > 0).astype(np.uint8))
                        mask.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.NEAREST).save(dest / name)
                    table.writerow([name, *([] if task == "segment" else answer.tolist())])
        return seconds[0]

    return once


def project(model: Path, images: Path, task: str, processes: int) -> Timed:
    """What the command does."""

    def once(dest: Path) -> float:
        watch = Stopwatch(processes)
        if task == "embed":
            embed(str(model), str(images), str(dest), EmbedOptions(device="cpu", batch=BATCH), runner=watch)
        else:
            predict(str(model), str(images), str(dest), PredictOptions(device="cpu", batch=BATCH), runner=watch)
        return watch.seconds[0]

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="classify")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", type=int, default=IMAGES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "archive"
        write_archive(archive, asked.images, size_px=IMAGE_PX)
        model = make_model(archive, Path(scratch), asked.task)
        sides = {
            "plain": plain(model, archive / "images", asked.task),
            "project": project(model, archive / "images", asked.task, 1),
        }
        if asked.processes > 1:
            sides[f"project, {asked.processes} processes"] = project(
                model, archive / "images", asked.task, asked.processes
            )
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(asked.rounds):
            for name, work in sides.items():
                times[name].append(work(Path(scratch) / f"{name}-{number}"))
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(times["plain"], seconds, strict=True)]
        print(f"{name:24} {asked.images / statistics.median(seconds):7.1f} images/s", end="")
        print(f"  {statistics.median(ratios):.2f} times plain ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
