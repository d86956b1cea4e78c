"""``dira-dist pull``: weights from the registry, a run or a checkpoint, under another library's names."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from safetensors.torch import load_file

from dira_dist.config import RequestError
from dira_dist.models.export import Exported, Format, export, save_weights
from dira_dist.models.fine_tuned_files import WEIGHTS, is_fine_tuned, read_fine_tuned
from dira_dist.models.model_files import UNET, ModelFile, read_facts
from dira_dist.registry.download import Progress
from dira_dist.registry.model_folder import fetch_model_folder
from dira_dist.tracking.config import tracking_at

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
        format: ``torchvision`` or ``timm`` (the encoder), or ``smp`` (encoder and decoder); of what was fine-tuned,
            the whole network, the one whose names its weights have.
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
    folder = fetch_model_folder(model, work, tracking_at(tracking_uri), _weights_of, progress)
    try:
        if is_fine_tuned(folder):
            encoder, exported = _whole_network(model, folder, chosen, channels)
        else:
            encoder, exported = _pretrained(model, folder, chosen, channels)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    path = dest / f"{encoder}-{chosen}.{file_format}"
    digest = save_weights(exported.state, path, {"names": chosen, "encoder": encoder})
    return Pulled(path, digest, exported.loading_lines(path))


def _pretrained(model: str, folder: Path, chosen: Format, channels: int | None) -> tuple[str, Exported]:
    """Encoder, or encoder and decoder, of a pretraining."""
    facts = read_facts(folder)
    if chosen == "smp":
        _check_decoder(model, facts)
    state = load_file(folder / UNET)
    return facts.encoder, export(state, facts.encoder, chosen, channels or facts.in_channels)


def _whole_network(model: str, folder: Path, chosen: Format, channels: int | None) -> tuple[str, Exported]:
    """A classifier or segmenter with its last layer."""
    facts = read_fine_tuned(folder)
    if chosen != facts.weights_names:
        what = "classifier" if facts.task == "classify" else "segmenter"
        raise RequestError(
            f"--format {chosen}: {model} is a {what} whose weights have the names of {facts.weights_names}: give "
            f"--format {facts.weights_names}"
        )
    if channels not in (None, facts.in_channels):
        raise RequestError(f"--in-channels {channels}: {model} takes {facts.in_channels}, and keeps them: leave it out")
    construction = tuple(facts.construction)
    return facts.encoder, Exported(load_file(folder / WEIGHTS), construction, facts.features)


def _weights_of(fine_tuned: bool) -> tuple[str, ...]:
    return (WEIGHTS if fine_tuned else UNET,)


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
