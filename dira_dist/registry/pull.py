"""``dira-dist pull``: weights from the registry, a run or a checkpoint, under another library's names."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from safetensors.torch import load_file
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.models.export import Format, export, save_weights
from dira_dist.models.model_files import FACTS, ModelFile, read_facts
from dira_dist.registry.checkpoint import download_checkpoint
from dira_dist.registry.download import Progress
from dira_dist.registry.fetch import fetch
from dira_dist.tracking.config import TrackingConfig, tracking_at
from dira_dist.training.task import About, recipe_of

FILE_FORMATS = ("safetensors", "pt")


@dataclass(frozen=True)
class Pulled:
    """Weights on this disk.

    Attributes:
        path: the file of weights.
        sha256: its digest.
        loading_lines: Python that loads it strictly.
    """

    path: Path
    sha256: str
    loading_lines: str


def pull(
    model: str,
    dest: Path | str,
    *,
    format: str = "torchvision",  # noqa: A002 (the word of the command line)
    in_channels: int | None = None,
    file_format: str = "safetensors",
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Bring weights here as a plain state dict.

    A call that is broken off leaves what it fetched below ``dest``, and the same call goes on with it.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID``; or the folder or prefix of a
            checkpoint, or of a run, whose newest checkpoint is meant.
        dest: folder; the file in it is named after encoder and format.
        format: ``torchvision`` or ``timm`` (the encoder), or ``smp`` (encoder and decoder).
        in_channels: 1 or 3 where the model has one of them; the model's own if none.
        file_format: ``safetensors``, or ``pt`` for ``torch.load(..., weights_only=True)``.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: called with the bytes that are here and the bytes in all.

    Raises:
        RequestError: for an unknown model, version, alias or format, an encoder that the library does not have, damaged
            files, an address that cannot be, and a registry or storage that is away or refuses the credentials.
        StoreError: storage failed in the middle.
    """
    chosen, channels = _known_format(format), _known_channels(in_channels)
    if file_format not in FILE_FORMATS:
        raise RequestError(f"--file-format {file_format!r}: allowed are {', '.join(FILE_FORMATS)}")
    dest = Path(dest)
    if dest.exists() and not dest.is_dir():
        raise RequestError(f"{dest}: is a file; give a folder")
    work = dest / f".pulling-{hashlib.sha256(model.encode()).hexdigest()[:12]}"
    state, facts = _fetch(model, work, tracking_at(tracking_uri), progress)
    try:
        if chosen == "smp":
            _check_decoder(model, facts)
        exported = export(state, facts.encoder, chosen, channels or facts.in_channels)
    finally:
        shutil.rmtree(work)
    path = dest / f"{facts.encoder}-{chosen}.{file_format}"
    digest = save_weights(exported.state, path, {"names": chosen, "encoder": facts.encoder})
    return Pulled(path, digest, exported.loading_lines(path))


def _fetch(
    model: str, work: Path, config: TrackingConfig, progress: Progress | None
) -> tuple[dict[str, Tensor], ModelFile]:
    """The U-Net's weights, and what the network is; what a checkpoint holds is made a model first, as it would be."""
    if model.startswith(("models:", "runs:")):
        folder = fetch(model, work, config, progress, only=("unet.safetensors", FACTS))
    else:
        found = download_checkpoint(model, work, progress).checkpoint
        task = recipe_of(found.job).build_task()
        shutil.rmtree(work / "model", ignore_errors=True)  # of a call that was broken off while it wrote
        package = task.package(found.tensors, found.position, work / "model", About(found.job["name"]))
        folder = package.folder
    return load_file(folder / "unet.safetensors"), read_facts(folder)


def _check_decoder(model: str, facts: ModelFile) -> None:
    """The format ``smp`` is encoder and decoder."""
    if not facts.decoder:
        raise RequestError(
            f"--format smp: {model} has no trained decoder, for nothing that restores was trained up to that point; "
            "take torchvision or timm for the encoder, or a later checkpoint, of a stage that restores (dir, dira, re, "
            "rea), or pretrain with such a stage"
        )


def _known_format(name: str) -> Format:
    for known in get_args(Format):
        if name == known:
            found: Format = known
            return found
    raise RequestError(f"--format {name!r}: allowed are {', '.join(get_args(Format))}")


def _known_channels(count: int | None) -> int | None:
    if count is not None and count < 1:
        raise RequestError(f"--in-channels {count}: allowed are numbers from 1; leave it out for the model's own")
    return count
