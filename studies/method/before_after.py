"""Points 1, 2 and 4 of "the method, before it is judged" (rates of Barlow Twins' norms, rates for the batch, order of
samples): a pretraining with the code before them and with the code after them, judged by a linear probe.

    python studies/method/before_after.py FOLDER ../shared/data/kermany-chestxray

Kermany at 64 px, four epochs of ``di``, an encoder of timm's tests, one thread; the measure was chosen beforehand:
AUROC of the linear probe (one class against the rest, mean over classes) on the patients of ``val``, from 1, 10 (means
of five draws) and 100 % of the labels, over seeds 0, 1 and 2. FOLDER keeps the two states of the code, the shards and
``results.jsonl``; the same command does what is missing there and prints the table. 18 trainings of about a minute.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

ARMS = {"before": "e33d956", "after": "d7457ec"}
"""The last commit without the three points, and the first with all of them: both have the job floor's older names."""

SEEDS = (0, 1, 2)
EPOCHS = 4
DRAWS = {0.01: 5, 0.1: 5, 1.0: 1}
"""Draws of the labelled samples, by their share."""

METHODS: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 1024, "momentum": 0.99},
    "barlow_twins": {"projector_width": 1024},
    "simsiam": {},
}


def main(folder: Path, data: Path) -> None:
    """Trains what is missing, then prints the table."""
    for arm, commit in ARMS.items():
        unpack(commit, folder / arm)
    if not (folder / "shards" / "val" / "index.json").is_file():
        split = ["--labels", f"{data}/labels.csv", "--split", "train=0.8,val=0.2", "--group-by", "patient"]
        shard = ["-m", "dira_dist", "shard", f"{data}/images", f"{folder}/shards", "--image-size", "96", *split]
        run_in(folder / "before", *shard)
    done = {(row["method"], row["arm"], row["seed"]) for row in results(folder)}
    for seed in SEEDS:
        for arm in ARMS:
            for method in METHODS:
                if (method, arm, seed) not in done:
                    run_in(folder / arm, __file__, str(folder), method, arm, str(seed))
    print_table(results(folder))


def unpack(commit: str, tree: Path) -> None:
    """The package as of a commit of this repository."""
    if not tree.is_dir():
        archive = subprocess.run(
            ["git", "archive", commit, "dira_dist"],
            cwd=Path(__file__).parent.parent.parent,
            check=True,
            capture_output=True,
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(tree, filter="data")


def run_in(tree: Path, *arguments: str) -> None:
    """Python with the package of that tree."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree.absolute())}
    subprocess.run([sys.executable, *arguments], env=environment, cwd=tree, check=True)


def results(folder: Path) -> list[dict[str, Any]]:
    """What was found so far."""
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def train_and_probe(folder: Path, method: str, arm: str, seed: int) -> None:
    """One training with the package that is on the path, and its probe; a line more in the results."""
    import torch
    from dira_dist.job import load_job

    from dira_dist.data.stream import ShardStream
    from dira_dist.training.networks import build_networks
    from dira_dist.training.step import TrainStep
    from dira_dist.views import make_views

    torch.set_num_threads(1)
    job = load_job(job_of(folder, method, seed)).job
    networks = build_networks(job.model, job.method, job.adversarial, seed=seed)
    untrained = probe(folder, networks.unet.encoder) if (method, arm) == ("moco_v2", "before") else None
    losses = []
    with ShardStream.from_config(job.data, seed=seed, lanes=job.lanes) as stream:
        steps = round(EPOCHS * stream.steps_per_epoch)
        optimizer = job.stages[0].optimizer
        step = TrainStep(networks, "di", optimizer=optimizer, total_steps=steps, steps_per_epoch=stream.steps_per_epoch)
        for number, batch in enumerate(islice(stream, steps)):
            ids = batch.images, batch.sizes_px, batch.sample_ids, batch.epochs
            views = make_views(*ids, seed=seed, image_size=64, in_channels=1, config=job.views, with_target=False)
            losses.append(float(step(views, number).losses["discriminative"]))
    found = {"probe": probe(folder, networks.unet.encoder), "untrained": untrained}
    loss = {"loss_first": losses[0], "loss_last": statistics.mean(losses[-20:])}
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({"method": method, "arm": arm, "seed": seed, "steps": steps, **found, **loss}) + "\n")


def job_of(folder: Path, method: str, seed: int) -> dict[str, Any]:
    """The job, alike in both arms; ten epochs of warm-up would leave Barlow Twins none of four."""
    warm_up = {"optimizer": {"warmup_epochs": 1}} if method == "barlow_twins" else {}
    train = str((folder / "shards" / "train").absolute())
    return {
        "name": "before-after",
        "seed": seed,
        "data": {"train": train, "image_size": 64, "global_batch": 64, "loader_workers": 0},
        "model": {"encoder": "tu-test_resnet", "in_channels": 1, "decoder_channels": [32, 16, 16, 8, 8]},
        "method": {"name": method, **METHODS[method]},
        "views": {
            "crop": {"scale": [0.5, 1.0]},
            "jitter": {"brightness": 0.15, "contrast": 0.15},
            "blur": {"probability": 0},
        },
        "stages": [{"objective": "di", "epochs": EPOCHS}],
        **warm_up,
    }


def probe(folder: Path, encoder: Any) -> dict[str, float]:
    """AUROC by share of the labels."""
    from dira_dist.evaluation.probes import encode_labels, linear_probe

    (train_x, train_y), (val_x, val_y) = (features(folder / "shards" / part, encoder) for part in ("train", "val"))
    targets = encode_labels(train_y, val_y)
    return {
        str(share): statistics.mean(
            linear_probe(train_x, val_x, targets, fraction=share, seed=draw).auroc for draw in range(draws)
        )
        for share, draws in DRAWS.items()
    }


def features(shards: Path, encoder: Any) -> tuple[Any, list[Any]]:
    """Features (N, F) and labels of a set."""
    import torch

    from dira_dist.data.stream import ValidationStream
    from dira_dist.evaluation.features import extract_features

    batches = []

    def images() -> Any:
        with ValidationStream(str(shards), batch_size=64) as stream:
            for batch in stream:
                batches.append(batch)
                yield batch.images, batch.sizes_px

    found = extract_features(encoder, images(), image_size=64, in_channels=1, device="cpu")
    valid = torch.cat([batch.valid for batch in batches])
    labels = [each["label"] for batch in batches for each in batch.labels]
    return found[valid], [label for label, is_sample in zip(labels, valid.tolist(), strict=True) if is_sample]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, and the difference of each seed."""
    cells, pairs = defaultdict(list), defaultdict(dict)
    for row in rows:
        for share, auroc in row["probe"].items():
            cells[row["method"], row["arm"], share].append(auroc)
            pairs[row["method"], share, row["seed"]][row["arm"]] = auroc
        for share, auroc in (row["untrained"] or {}).items():
            cells["untrained", "", share].append(auroc)
    for key, values in sorted(cells.items()):
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(*key, f"{statistics.mean(values):.4f} sd {spread:.4f} of {len(values)}")
    for key, pair in sorted(pairs.items()):
        if len(pair) == len(ARMS):
            print(*key, f"after - before {pair['after'] - pair['before']:+.4f}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
    else:
        train_and_probe(Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]))
