"""MoCo-v2, Barlow Twins and SimSiam beside those of lightly: the same weights, the same views, the same figures?

    make lightly
    python benchmarks/compare_lightly.py jobs/pretrain-kermany.yaml [--set data.train=...] [--seeds 0 1 2] [--steps 300]

The job file says which images, views and probe; its shards must be there. For each method and seed both sides begin
with one set of weights (and one queue), see the same views, one step after the other, and go on by SGD with the same
rates, on the CPU. What is found is appended to `--results`, and what is there already is not done again. The table at
the end shows the mean loss of each tenth of the steps, and the probes.

At these rates a training magnifies rounding up to a hundredfold at each step, and the two sides do not add up in the
same order. Whether they compute the same is therefore asked for in float64 (`--double`), or at rates so low that
float32 can tell (`--rate-share 0.01`), both with `--set probe=null`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dira_dist.data.stream import ShardStream
from dira_dist.data.validation import ValidationStream
from dira_dist.evaluation.features import extract_features
from dira_dist.evaluation.probes import encode_labels, knn_probe, linear_probe
from dira_dist.jobs.load import load_job
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import METHODS
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views, make_views

REFERENCE = Path(__file__).with_name("lightly_reference.py")
LIGHTLY = Path(os.environ.get("LIGHTLY_PYTHON") or Path(sys.prefix) / "lightly" / "bin" / "python")
"""Of the environment that `make lightly` builds, or of another one that has lightly."""
ENCODER, FIRST, PARTS = "resnet18", 20, 10
WEIGHT_DECAY = 1e-4
SAME_KERNELS = ExecutionConfig(channels_last=False)
"""lightly's layout in memory: another one rounds otherwise, which the first steps of a training magnify."""
PROBES = ("linear AUROC", "k-NN AUROC", "k-NN accuracy")


@dataclass(frozen=True)
class Case:
    """A method with a rate that it bears under SGD, of which Barlow Twins, a sum over 512 x 512 terms, bears little.

    Attributes:
        section: settings of the method, as in a job file.
        lr: at its highest.
    """

    section: Mapping[str, Any]
    lr: float


CASES = {
    "moco_v2": Case({"queue_size": 1024, "momentum": 0.99}, lr=0.03),
    "barlow_twins": Case({"projector_width": 512}, lr=1e-4),
    "simsiam": Case({"outputs": 512, "bottleneck": 128}, lr=0.05),
}


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the loss of each step, and the encoder's weights by torchvision's names."""

    losses: list[float]
    encoder: dict[str, Tensor]


def start(method: str, case: Case, seed: int, encoder: str = ENCODER) -> PretrainNetworks:
    """PretrainNetworks as a job builds them."""
    section = METHODS[method].model_validate({"name": method, **case.section})
    return build_networks(UNetConfig(encoder=encoder), section, seed=seed)


def train_here(case: Case, networks: PretrainNetworks, views: Mapping[str, Tensor]) -> Trained:
    """This project's step; ``views`` are ``view_1`` and ``view_2``, (steps, B, 1, H, W) uint8."""
    optimizer = OptimizerConfig(lr=case.lr, weight_decay=WEIGHT_DECAY)
    step = pretrain_step(networks, "di", optimizer=optimizer, execution=SAME_KERNELS, total_steps=len(views["view_1"]))
    dtype, losses = next(networks.parameters()).dtype, []
    for number, (view_1, view_2) in enumerate(zip(views["view_1"], views["view_2"], strict=True)):
        given = Views(view_1.to(dtype) / 255, view_2.to(dtype) / 255, None, torch.arange(len(view_1)))
        losses.append(float(step(given, number).losses["discriminative"]))
    return Trained(losses, weights_of(networks))


def weights_of(networks: PretrainNetworks) -> dict[str, Tensor]:
    """A copy of the encoder's weights, whatever becomes of the networks."""
    return {name: value.clone() for name, value in networks.unet.encoder.state_dict().items()}


def train_there(python: Path, case: Case, networks: PretrainNetworks, views: Path, encoder: str = ENCODER) -> Trained:
    """lightly's, in its own environment, from the same weights; ``views`` is a file of what :func:`train_here` takes.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    assert networks.method is not None
    method: dict[str, Any] = cast(Any, networks.method).config.model_dump()
    settings = {**method, "method": method["name"], "encoder": encoder, "lr": case.lr, "weight_decay": WEIGHT_DECAY}
    with tempfile.TemporaryDirectory() as folder:
        begun, losses, trained = (Path(folder) / name for name in ("start", "losses", "trained"))
        save_file(_by_part(networks), begun, {"settings": json.dumps(settings)})
        subprocess.run(
            [python, REFERENCE, begun, views, losses, trained],
            check=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        weights = {name.removeprefix("encoder."): value for name, value in load_file(trained).items()}
        return Trained(json.loads(losses.read_text()), weights)


def _by_part(networks: PretrainNetworks) -> dict[str, Tensor]:
    """Encoder, heads and queue under the names that the reference reads."""
    assert networks.method is not None
    method = {name: value for name, value in networks.method.state_dict().items() if isinstance(value, Tensor)}
    encoder = {f"encoder.{name}": value for name, value in networks.unet.encoder.state_dict().items()}
    heads = {name: value for name, value in method.items() if not name.startswith("key.")}
    return {name: value.contiguous() for name, value in (encoder | heads).items()}


def draw_views(job: PretrainJob, seed: int, steps: int) -> dict[str, Tensor]:
    """The views of a job's first steps under another seed, ``view_1`` and ``view_2``, (steps, B, 1, H, W) uint8."""
    views: dict[str, list[Tensor]] = {"view_1": [], "view_2": []}
    with ShardStream.from_config(job.data, seed=seed) as stream:
        for batch in islice(stream, steps):
            made = make_views(
                batch.images,
                batch.sizes_px,
                batch.sample_ids,
                batch.epochs,
                seed=seed,
                image_size=job.data.image_size,
                in_channels=1,
                config=job.views,
                with_target=False,
            )
            for name, kept in views.items():
                kept.append((getattr(made, name) * 255).round().to(torch.uint8))
    return {name: torch.stack(each) for name, each in views.items()}


def probe(job: PretrainJob, networks: PretrainNetworks, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Linear and k-NN probe of an encoder on the job's labelled sets; nothing where it has none."""
    if job.probe is None:
        return {}
    networks.unet.encoder.load_state_dict(weights)
    (train_x, train_y), (val_x, val_y) = (
        _labelled(job, networks, address, job.probe.label) for address in (job.probe.train, job.probe.val)
    )
    targets = encode_labels(train_y, val_y)
    linear, neighbours = linear_probe(train_x, val_x, targets), knn_probe(train_x, val_x, targets)
    return dict(zip(PROBES, (linear.auroc, neighbours.auroc, neighbours.accuracy), strict=True))


def _labelled(job: PretrainJob, networks: PretrainNetworks, address: str, label: str) -> tuple[Tensor, list[Any]]:
    """Features of all samples of a set, and their labels."""
    labels: list[Any] = []

    def images(stream: ValidationStream) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in stream:
            labels.extend(known.get(label) for known in batch.labels)
            yield batch.images, batch.sizes_px

    with ValidationStream(address, batch_size=64) as stream:
        size = job.data.image_size
        features = extract_features(networks.unet.encoder, images(stream), image_size=size, in_channels=1, device="cpu")
    kept = [place for place, name in enumerate(labels) if name is not None]
    return features[kept], [labels[place] for place in kept]


def farthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def curve(losses: Sequence[float]) -> list[float]:
    """The mean loss of each tenth."""
    length = max(1, len(losses) // PARTS)
    return [statistics.mean(losses[part * length : (part + 1) * length]) for part in range(PARTS)]


def table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What was found, one line per method and figure."""
    found = list(rows)
    for method in CASES:
        seeds = [row for row in found if row["method"] == method]
        if not seeds:
            continue
        first = max(farthest(row["ours"]["losses"][:FIRST], row["lightly"]["losses"][:FIRST]) for row in seeds)
        yield f"{method}: {len(seeds)} seeds; first {FIRST} steps within {first:.1e} relative"
        sides = {side: [curve(row[side]["losses"]) for row in seeds] for side in ("ours", "lightly")}
        for part in range(PARTS):
            yield _line(f"loss, tenth {part + 1}", *([each[part] for each in sides[side]] for side in sides))
        for name in seeds[0]["untrained"]:
            untrained = statistics.mean(row["untrained"][name] for row in seeds)
            values = ([row[side]["probes"][name] for row in seeds] for side in sides)
            yield f"{_line(name, *values)}   untrained {untrained:.4f}"


def _line(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Means over the seeds, how far the two sides are apart at one seed, and how far the seeds are on one side."""
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    spread = max(theirs) - min(theirs)
    means = f"ours {statistics.mean(ours):8.4f}   lightly {statistics.mean(theirs):8.4f}"
    return f"  {name:16} {means}   apart at one seed {apart:.4f}   spread of seeds {spread:.4f}"


def compare(asked: argparse.Namespace, job: PretrainJob, method: str, seed: int, views: Path) -> dict[str, Any]:
    """One method and one seed on both sides."""
    case = replace(CASES[method], lr=CASES[method].lr * asked.rate_share)
    networks = start(method, case, seed).to(torch.float64 if asked.double else torch.float32)
    untrained = weights_of(networks)
    sides = {"lightly": train_there(asked.python, case, networks, views)}
    sides["ours"] = train_here(case, networks, load_file(views))
    trained = {
        side: {"losses": each.losses, "probes": probe(job, networks, each.encoder)} for side, each in sides.items()
    }
    return {"method": method, "seed": seed, **trained, "untrained": probe(job, networks, untrained)}


def setup_of(asked: argparse.Namespace, job: PretrainJob) -> dict[str, Any]:
    """What makes results comparable."""
    sizes = {"image_size": job.data.image_size, "global_batch": job.data.global_batch}
    return {"job": job.name, **sizes, "steps": asked.steps, "double": asked.double, "rate_share": asked.rate_share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="a job file with a probe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of dira-dist run")
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--rate-share", type=float, default=1.0, help="of each method's rate")
    parser.add_argument("--python", type=Path, default=LIGHTLY, help="of the environment that has lightly")
    parser.add_argument("--results", type=Path, default=Path("lightly.jsonl"))
    asked = parser.parse_args()
    job = load_job(asked.job, asked.set).job
    assert isinstance(job, PretrainJob), "kind: pretrain"
    setup = setup_of(asked, job)
    kept = map(json.loads, asked.results.read_text().splitlines()) if asked.results.exists() else ()
    rows = [row for row in kept if row["setup"] == setup]
    done = {(row["method"], row["seed"]) for row in rows}
    for seed in asked.seeds:
        missing = [method for method in asked.methods if (method, seed) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            views = Path(folder) / "views"
            save_file(draw_views(job, seed, asked.steps), views)
            for method in missing:
                rows.append({"setup": setup, **compare(asked, job, method, seed, views)})
                with asked.results.open("a") as results:
                    results.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
