"""Brain MR: are tumours located by a classifier that learned from image labels alone, and does DiRA help it?

    python studies/brain_mr/study.py ARCHIVE

ARCHIVE holds `images/`, `labels.csv` (image, block, label) and `boxes.csv` (image, finding, x, y, width, height). The
command makes the shards, pretrains once, fine-tunes from each start with each seed, and prints and keeps a table
(`runs/brain-mr/table.md`). What is finished already is not done again, so that the same command goes on.

Fixed before any run:

- Blocks of a hundred neighbouring file numbers, two and two side by side, which may share a patient and so stay
  together; which pair is in which part stands below. The test blocks are seen by neither pretraining nor fine-tuning.
- What counts is the hit rate (the hottest point lies in the true box, no tolerance), mean over the three classes, on
  the test blocks; beside it mean IoU and the share of energy inside. Grad-CAM of the true class on the last two stages,
  boxes at half of the largest heat.
- Seeds 0, 1, 2. Both starts have the same rate, epochs, order and augmentation. DiRA - random is of the same images and
  seeds, mean over the seeds, its interval by drawing blocks again.
"""

import argparse
import csv
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dira_dist
from dira_dist import load_job, run
from dira_dist.evaluation.intervals import Resamples, weighted_mean

HERE, STORAGE, SHARDS = Path(__file__).parent, Path("runs/brain-mr"), Path("shards/brain-mr")
PARTS = {
    "train": ("00", "01", "15", "16", "18", "19", "21", "22", "30"),
    "val": ("06", "07", "09", "10"),
    "test": ("03", "04", "12", "13", "24", "25", "27", "28"),
}
SETS = {"unlabelled": ("train", "val"), **{name: (name,) for name in PARTS}}
SEEDS = (0, 1, 2)
STARTS = {"random": "random", "dira": str(STORAGE / "brain-mr-pretrain")}
FIGURES = {"hit_rate": "hit", "mean_iou": "IoU", "energy": "energy"}
TITLES = {"hit_rate": "hit rate", "mean_iou": "mean IoU", "energy": "energy inside"}


def make_shards(archive: Path) -> None:
    """A set of each part's blocks, and one of the train and val blocks without labels."""
    with (archive / "labels.csv").open() as lines:
        block_of = {row["image"]: row["block"].removeprefix("block") for row in csv.DictReader(lines)}
    for name, parts in SETS.items():
        blocks = {block for part in parts for block in PARTS[part]}
        if (SHARDS / name / "all" / "index.json").is_file():
            continue
        folder = STORAGE / "images" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for image, block in block_of.items():
            if block in blocks:
                shutil.copy(archive / "images" / image, folder / image)
        known = {} if name == "unlabelled" else {"boxes": str(archive / "boxes.csv")}
        options = {
            "labels": str(archive / "labels.csv"),
            "group_by": "block",
            "split": {"all": 1.0},
            "image_size": None,
        }
        dira_dist.shard(folder, SHARDS / name, dira_dist.ShardOptions(**options, **known))


def fits() -> Iterator[tuple[str, str, int, list[str]]]:
    """Name, start, seed and overrides of each fine-tuning."""
    for seed in SEEDS:
        for start, address in STARTS.items():
            name = f"{start}-{seed}"
            yield name, start, seed, [f"name={name}", f"seed={seed}", f"start.from={address}"]


def report_of(name: str) -> dict[str, Any]:
    """What a finished fine-tuning says."""
    found: dict[str, Any] = json.loads((STORAGE / name / "report" / "report.json").read_text())
    return found


def cases_of(name: str) -> list[dict[str, str]]:
    """Its cases, in the order of the test set."""
    with (STORAGE / name / "report" / "localization-test.csv").open() as lines:
        return list(csv.DictReader(lines))


def tables() -> Iterator[str]:
    """Of the seeds that are finished for both starts."""
    seeds = [seed for seed in SEEDS if all((STORAGE / f"{start}-{seed}" / "report").is_dir() for start in STARTS)]
    yield f"Seeds {', '.join(map(str, seeds))}; 95 % intervals of a single fit by drawing the 8 test blocks again.\n"
    yield "| | " + " | ".join(TITLES.values()) + " | AUROC |"
    yield "| --- |" + " --- |" * (len(TITLES) + 1)
    for start in STARTS:
        for seed in seeds:
            found = report_of(f"{start}-{seed}")
            yield _row(f"{start}, seed {seed}", found["localization"]["by"]["model"]["mean"], found)
    for by, table in report_of(f"random-{seeds[0]}")["localization"]["by"].items():
        if by != "model":
            yield _row(f"{by}" + (f", seed {seeds[0]}" if "untrained" in by else ""), table["mean"], None)
    yield "\n| DiRA - random, mean over the seeds | value | interval over blocks | by seed |"
    yield "| --- | --- | --- | --- |"
    yield from (_difference(figure, seeds) for figure in FIGURES)


def _row(title: str, mean: dict[str, Any], report: dict[str, Any] | None) -> str:
    cells = [_interval(mean[name]) if name in mean else "" for name in FIGURES]
    return f"| {title} | " + " | ".join([*cells, f"{report['metrics']['test/auroc']:.3f}" if report else ""]) + " |"


def _interval(entry: dict[str, float | None]) -> str:
    return f"{entry['value']:.3f}" + (
        f" ({entry['low']:.3f} to {entry['high']:.3f})" if entry["low"] is not None else ""
    )


def _difference(figure: str, seeds: list[int]) -> str:
    """Mean over the classes of the differences in the same images."""
    column = f"model: {FIGURES[figure]}"
    by_seed = []
    for seed in seeds:
        random, dira = cases_of(f"random-{seed}"), cases_of(f"dira-{seed}")
        assert [case["key"] for case in random] == [case["key"] for case in dira]
        by_seed.append([float(b[column]) - float(a[column]) for a, b in zip(random, dira, strict=True)])
    labels = np.array([case["class"] for case in random])
    values = np.mean(by_seed, axis=0)

    def mean(of: np.ndarray) -> Any:
        parts = [weighted_mean(np.where(labels == label, of, np.nan)) for label in np.unique(labels)]
        return lambda weights: np.nanmean([part(weights) for part in parts], axis=0)

    found = Resamples([case["group"] for case in random], 2000).measure(mean(values))
    each = [float(mean(np.array(gains))(np.ones((1, len(labels))))[0]) for gains in by_seed]
    seen = ", ".join(f"{gain:+.3f}" for gain in each)
    return f"| {TITLES[figure]} | {statistics.mean(each):+.3f} | {found.low:+.3f} to {found.high:+.3f} | {seen} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--set", action="append", default=[], help="override of both job files, to try the study out")
    asked = parser.parse_args()
    make_shards(asked.archive)
    for name, start, _, overrides in fits():
        if start == "dira":
            run(load_job(HERE / "pretrain.yaml", asked.set))
        run(load_job(HERE / "classify.yaml", [*overrides, *asked.set]))
        print(f"{name} is finished", flush=True)
        if start == "dira":
            text = "\n".join(tables()) + "\n"
            (STORAGE / "table.md").write_text(text)
            print(text, flush=True)


if __name__ == "__main__":
    main()
