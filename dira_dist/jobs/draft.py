"""A first job file for a shard set: what can be found out is filled in, and each choice says where it comes from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dira_dist.config import RequestError
from dira_dist.data.shards import INDEX_NAME, ShardSetIndex, read_index
from dira_dist.data.store import asking

DraftKind = Literal["pretrain", "finetune", "compare"]
PARTS = ("train", "val", "test")
SCHEMA_FILE = Path(__file__).with_name("job.schema.json")
"""What :func:`dira_dist.jobs.load.job_schema` gives, for editors: a job file's second line names it to them."""


@dataclass(frozen=True)
class Room:
    """What a cluster, or this machine, has.

    Attributes:
        cpus: of all machines.
        gpus: likewise.
        where: in words.
    """

    cpus: int
    gpus: int
    where: str


@dataclass(frozen=True)
class PretrainDefaults:
    """What to begin a pretraining of so many images with; docs/recipes.md says what was measured.

    Attributes:
        images: the fewest that it is meant for.
        encoder: of the U-Net.
        global_batch: images per step.
        method: section ``method``.
        views: section ``views``.
        optimizer: section ``optimizer``.
        epochs: of di, dir and dira.
        source: where these values come from.
    """

    images: int
    encoder: str
    global_batch: int
    method: str
    views: str
    optimizer: str
    epochs: tuple[int, int, int]
    source: str


_GENTLE = "{crop: {scale: [0.4, 1.0]}, jitter: {brightness: 0.2, contrast: 0.2}, blur: {probability: 0.2}}"
DEFAULTS = (
    PretrainDefaults(
        images=0,
        encoder="resnet18",
        global_batch=128,
        method="{name: moco_v2, queue_size: 1024, momentum: 0.99}",
        views=_GENTLE,
        optimizer="{name: adamw, lr: 1.0e-3, lr_batch: 128, warmup_epochs: 1}",
        epochs=(20, 10, 10),
        source="measured on 3,600 radiographs of 64 px",
    ),
    PretrainDefaults(
        images=10_000,
        encoder="resnet50",
        global_batch=256,
        method="{name: moco_v2, queue_size: 8192, momentum: 0.996}",
        views=_GENTLE,
        optimizer="{name: sgd, lr: 0.03, warmup_epochs: 5}",
        epochs=(100, 100, 100),
        source="between the measured and the published values, not measured itself",
    ),
    PretrainDefaults(
        images=60_000,
        encoder="resnet50",
        global_batch=256,
        method="{name: moco_v2, queue_size: 65536, momentum: 0.999}",
        views="{}",
        optimizer="{name: sgd, lr: 0.03}",
        epochs=(200, 200, 400),
        source="published for 75,312 radiographs (Haghighi et al. 2022)",
    ),
    PretrainDefaults(
        images=500_000,
        encoder="resnet50",
        global_batch=1024,
        method="{name: moco_v2, queue_size: 65536, momentum: 0.999}",
        views="{}",
        optimizer="{name: sgd, lr: 0.03, warmup_epochs: 2}",
        epochs=(50, 50, 50),
        source="the published recipe with fewer epochs of more images and the batch that they allow, not measured here",
    ),
)


@dataclass(frozen=True)
class FoundSets:
    """The parts of a shard set that stand at an address.

    Attributes:
        addresses: by part; ``train`` always.
        train: its index.
    """

    addresses: Mapping[str, str]
    train: ShardSetIndex

    @property
    def label(self) -> str | None:
        """A label that has classes to tell apart, else any."""
        classes = self.train.classes
        several = (name for name in self.train.labels if len(classes.get(name, ())) > 1)
        return next(several, next(iter(self.train.labels), None))

    @property
    def image_size(self) -> int | list[int]:
        """The usual side of its images, as a multiple of 32 (of 8 along each axis of volumes) up to 224 (64)."""
        image = self.train.image
        if image.depth_px is None:
            side = min(image.height_px.median, image.width_px.median, 224)
            return max(32, side // 32 * 32)
        sides = (image.width_px.median, image.height_px.median, image.depth_px.median)
        return [max(16, min(side, 64) // 8 * 8) for side in sides]

    def batch(self, usual: int) -> int:
        """The usual batch, halved until an epoch of the set has four."""
        while usual > max(2, self.train.samples // 4):
            usual //= 2
        return usual

    @property
    def name(self) -> str:
        """Of the set: the last part of its address that says more than ``train``."""
        words = [word for word in self.addresses["train"].rstrip("/").split("/") if word not in ("", *PARTS)]
        kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in words[-1]).strip("._-")
        return kept or "images"


def find_sets(address: str) -> FoundSets:
    """The set at an address, or the parts of a split below it.

    Raises:
        RequestError: there is no set.
    """
    with asking(address) as store:
        if store.stat(INDEX_NAME) is not None:
            return FoundSets({"train": address}, read_index(address))
        there = [part for part in PARTS if store.stat(f"{part}/{INDEX_NAME}") is not None]
    if "train" not in there:
        raise RequestError(
            f"{address}: there is no shard set, nor a part train of one (found: {', '.join(there) or 'no part'}); "
            "make one with dira-dist shard, or give the address that it printed"
        )
    addresses = {part: f"{address.rstrip('/')}/{part}" for part in there}
    return FoundSets(addresses, read_index(addresses["train"]))


def draft(
    kind: DraftKind,
    sets: FoundSets,
    room: Room,
    *,
    storage: str,
    tracking: str,
    start: str | None,
    network: Mapping[str, Any] | None = None,
) -> str:
    """A commented job file.

    Args:
        kind: of job.
        sets: what it reads.
        room: what it runs on.
        storage: where runs are kept.
        tracking: MLflow's address, or ``${env:MLFLOW_TRACKING_URI}``.
        start: the pretrained model that is fine-tuned; ``random`` stands where it is none.
        network: its section ``model``, which all starts of a comparison have in common; none where nobody tells.

    Raises:
        RequestError: the sets lack what the kind of job asks for.
    """
    if kind == "pretrain":
        lines = _pretrain(sets, room, storage, tracking)
    elif kind == "finetune":
        lines = _finetune(sets, room, storage, tracking, start)
    else:
        lines = _compare(sets, room, storage, tracking, start, network)
    return "\n".join([*_head(sets, room), *lines]) + "\n"


def _head(sets: FoundSets, room: Room) -> list[str]:
    image = sets.train.image
    size = f"{image.height_px.median} x {image.width_px.median}"
    size = size if image.depth_px is None else f"{image.depth_px.median} x {size}"
    return [
        "#!/usr/bin/env -S python -m dira_dist run",
        f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}",
        f"# For {sets.train.samples:,} samples of {size} px ({image.mode}) on {room.where}.",
        "# Every key may be changed; `dira-dist check` says what the file does, and what is likely to go wrong.",
    ]


def defaults_for(images: int) -> PretrainDefaults:
    """The row of :data:`DEFAULTS` for a training set of so many images."""
    return next(row for row in reversed(DEFAULTS) if images >= row.images)


def _pretrain(sets: FoundSets, room: Room, storage: str, tracking: str) -> list[str]:
    chosen, flat = defaults_for(sets.train.samples), sets.train.image.axes == 2
    encoder = chosen.encoder if room.gpus else "resnet18"
    network = f"encoder: {encoder}" if flat else f"name: unet3d, width: {64 if room.gpus else 16}"
    saving = ", gradient_checkpointing: true" if room.gpus else ""
    probe = sets.label is not None and "val" in sets.addresses
    batch = sets.batch(chosen.global_batch if flat else 32)
    return [
        "kind: pretrain",
        f"name: {sets.name}-dira                # the same name and storage resume the run",
        "data:",
        *_addresses(sets, ("train", "val")),
        f"  image_size: {sets.image_size}",
        f"  global_batch: {batch}                   # over all workers",
        f"model: {{{network}, in_channels: {sets.train.image.channels}{saving}}}",
        f"# Method, views, optimiser and epochs: {chosen.source}.",
        f"method: {chosen.method}",
        f"views: {chosen.views}",
        f"optimizer: {chosen.optimizer}",
        "stages:",
        *(
            f"  - {{objective: {objective}, epochs: {epochs}}}"
            for objective, epochs in zip(("di", "dir", "dira"), chosen.epochs, strict=True)
        ),
        "precision: auto                        # bf16 where every worker has instructions for it",
        *([_probe(sets)] if probe else []),
        *_tail(sets, room, storage, tracking, f"{sets.name}-dira"),
    ]


def _probe(sets: FoundSets) -> str:
    return f"probe: {{train: {sets.addresses['train']}, val: {sets.addresses['val']}, label: {sets.label}}}"


def _finetune(sets: FoundSets, room: Room, storage: str, tracking: str, start: str | None) -> list[str]:
    if "val" not in sets.addresses:
        raise RequestError(
            f"{sets.addresses['train']}: there is no part val, on which networks are chosen; shard with "
            "--split train=0.7,val=0.1,test=0.2 --group-by patient"
        )
    task = (
        f"{{name: classify, label: {sets.label}}}" if sets.label else "{name: segment}   # by the masks in the shards"
    )
    network = [] if start else [f"model: {{encoder: resnet18, in_channels: {sets.train.image.channels}}}"]
    return [
        "kind: finetune",
        f"name: {sets.name}-finetune",
        f'start: {{from: "{start or "random"}"}}          # models:/NAME@best, a run, a checkpoint, a file, or random',
        "data:",
        *_addresses(sets, PARTS),
        f"  image_size: {sets.image_size}",
        f"  global_batch: {sets.batch(32)}",
        "  label_fraction: 1.0                  # of the patients",
        *network,
        f"task: {task}",
        "optimizer: {name: adamw, lr: 2.0e-4}",
        "epochs: 50",
        "early_stopping: {patience_epochs: 10}  # by the figure on val",
        *_tail(sets, room, storage, tracking, f"{sets.name}-finetune"),
    ]


def _compare(
    sets: FoundSets, room: Room, storage: str, tracking: str, start: str | None, network: Mapping[str, Any] | None
) -> list[str]:
    if start is None:
        raise RequestError("--start: name the pretrained model that is compared with a random start: models:/NAME@best")
    base = _finetune(sets, room, storage, tracking, start)
    left_out = ("name:", "start:", "  label_fraction:", "tracking:")  # no fit is registered
    return [
        "kind: compare",
        f"name: {sets.name}-compare",
        f'starts: {{random: random, pretrained: "{start}"}}',
        "label_fractions: [0.1, 0.5, 1.0]",
        "seeds: 3",
        "learning_rates: [2.0e-4, 1.0e-3]        # each start's rate is chosen on val from this list",
        "base:",
        *(f"  {line}" for line in base if not line.startswith(left_out)),
        *([f"  model: {json.dumps(network)}   # that of the pretrained start"] if network else []),
        f'  tracking: {{uri: "{tracking}", experiment: {sets.name}}}',
    ]


def _addresses(sets: FoundSets, parts: tuple[str, ...]) -> list[str]:
    return [f"  {part}: {sets.addresses[part]}" for part in parts if part in sets.addresses]


def _tail(sets: FoundSets, room: Room, storage: str, tracking: str, model: str) -> list[str]:
    workers = max(1, min(room.gpus, sets.batch(32) // 2))  # two images each at least
    cpus = max(1, room.cpus // workers)
    return [
        f"resources: {{workers: {workers}, cpus_per_worker: {cpus}}}",
        f"checkpoint: {{storage: {storage}, every_steps: 500}}",
        f'tracking: {{uri: "{tracking}", experiment: {sets.name}, register_as: {model}}}',
    ]
