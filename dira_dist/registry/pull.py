"""``dira-dist pull``: weights from the registry, a run or a checkpoint, under another library's names or as ONNX."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file

from dira_dist.config import RequestError
from dira_dist.models import unet3d
from dira_dist.models.export import Exported, Format, feature_network, save_weights
from dira_dist.models.fine_tuned_files import (
    PROGRAM,
    WEIGHTS,
    FineTunedFile,
    is_fine_tuned,
    plain_weights,
    read_fine_tuned,
    weights_of_fold,
)
from dira_dist.models.model_files import UNET, ModelFile, facts_content, network_of, read_facts
from dira_dist.models.onnx_files import (
    ImageType,
    OnnxInput,
    OnnxNetwork,
    OnnxSupervised,
    check_onnx_packages,
    known_image_type,
    save_onnx,
)
from dira_dist.registry.download import Progress
from dira_dist.registry.model_folder import content_sum, fetch_model_folder
from dira_dist.tracking.config import tracking_at
from dira_dist.training.finetune.recipe import MOST_FOLDS

FILE_FORMATS = ("safetensors", "pt")
ONNX = "onnx"
FORMATS = (*get_args(Format), ONNX)
_FACTS_IN_ONNX = ("task", "kind", "classes", "thresholds", "fit", "image_size", "in_channels", "trained", "label")


@dataclass(frozen=True)
class Pulled:
    """Weights on this disk.

    Attributes:
        path: the file of weights; of an ensemble the first fold's, with those of the others beside it.
        sha256: its digest.
        loading_lines: Python that loads it strictly; of an ensemble, all of them.
        model_sha256: what names all of the model that they are from; to be compared with what its maker says.
    """

    path: Path
    sha256: str
    loading_lines: str
    model_sha256: str = ""


def pull(
    model: str,
    dest: Path | str,
    *,
    format: str = "torchvision",  # noqa: A002 (the word of the command line)
    in_channels: int | None = None,
    file_format: str = "safetensors",
    input_type: str = "uint8",
    sha256: str | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Bring weights here as a plain state dict, or the whole network as an ONNX file.

    A call that is broken off leaves what it fetched below ``dest``, and the same call goes on with it.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID``; or the folder or prefix of a
            checkpoint, or of a run, whose newest checkpoint is meant.
        dest: folder; the file in it is named after encoder and format.
        format: ``torchvision`` or ``timm`` (the encoder), or ``smp`` (encoder and decoder); of 3D networks ``torch``
            (encoder and, where it was trained, decoder), with the file that makes the network beside it, or ``monai``
            of one of MONAI's; of what was
            fine-tuned, the whole network, the one whose names its weights have; or ``onnx``, a file that onnxruntime
            runs.
        in_channels: 1 or 3 where the model has one of them; the model's own if none.
        file_format: ``safetensors``, or ``pt`` for ``torch.load(..., weights_only=True)``; ONNX has its own.
        input_type: of the images that an ONNX file takes: ``uint8``, ``uint16``, or ``float32`` in [0, 1].
        sha256: of the model, as ``register`` or an earlier ``pull`` has told it: another one is refused before anything
            of it is loaded.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: called with the bytes that are here and the bytes in all.

    Raises:
        RequestError: for an unknown model, version, alias or format, an encoder that the library does not have, damaged
            files, an address that cannot be, a registry or storage that is away or refuses the credentials, and
            packages that ONNX needs and that are missing.
        StoreError: storage failed in the middle.
    """
    _check_request(format, in_channels, file_format)
    image_type = known_image_type(input_type)
    dest = Path(dest)
    if dest.exists() and not dest.is_dir():
        raise RequestError(f"{dest}: is a file; give a folder")
    work = dest / f".pulling-{hashlib.sha256(model.encode()).hexdigest()[:12]}"
    wanted = _program_of if format == ONNX else _weights_of
    folder = fetch_model_folder(model, work, tracking_at(tracking_uri), wanted, progress, sha256=sha256)
    try:
        known = content_sum(folder, work)
        if format == ONNX:
            pulled = _pull_onnx(model, folder, dest, in_channels, image_type)
        else:
            pulled = _pull_weights(model, folder, dest, _library(format), in_channels, file_format)
        return replace(pulled, model_sha256=known)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pull_weights(
    model: str, folder: Path, dest: Path, library: Format, channels: int | None, file_format: str
) -> Pulled:
    """A plain state dict by the names of a library."""
    if is_fine_tuned(folder):
        return _pull_whole_networks(model, folder, dest, library, channels, file_format)
    encoder, exported = _pretrained(model, folder, library, channels)
    return _saved(exported, dest / f"{encoder}-{library}.{file_format}", library, encoder)


def _pull_whole_networks(
    model: str, folder: Path, dest: Path, library: Format, channels: int | None, file_format: str
) -> Pulled:
    """A classifier or segmenter; of an ensemble each member's weights."""
    files = plain_weights(folder)
    ends = [""] if len(files) == 1 else [f"-fold{place}" for place in range(1, len(files) + 1)]
    pulled = []
    for file, end in zip(files, ends, strict=True):
        encoder, exported = _whole_network(model, folder, file, library, channels)
        pulled.append(_saved(exported, dest / f"{encoder}-{library}{end}.{file_format}", library, encoder))
    if len(pulled) == 1:
        return pulled[0]
    lines = [f"# the network of each fold; how they answer together stands in {model}'s network.pt2, or --format onnx"]
    return replace(pulled[0], loading_lines="\n".join([*lines, *(each.loading_lines for each in pulled)]))


def _saved(exported: Exported, path: Path, library: Format, encoder: str) -> Pulled:
    digest = save_weights(exported.state, path, {"names": library, "encoder": encoder})
    for code in exported.code:
        shutil.copyfile(code, path.parent / code.name)
    return Pulled(path, digest, exported.loading_lines(path))


def _pull_onnx(model: str, folder: Path, dest: Path, channels: int | None, image_type: ImageType) -> Pulled:
    """Encoder, classifier or segmenter as a file of ONNX, tried before it is written."""
    if is_fine_tuned(folder):
        encoder, network, fed = _supervised_onnx(model, folder, channels, image_type)
    else:
        facts = read_facts(folder)
        encoder, fed = facts.encoder, OnnxInput(channels or facts.in_channels, facts.image_size, image_type)
        section = network_of(facts.network, facts.encoder, facts.in_channels)
        network = OnnxNetwork(feature_network(load_file(folder / UNET), section, fed.channels), fed.white)
    path = dest / f"{encoder}.onnx"
    known = json.loads(facts_content(folder))
    digest = save_onnx(network, fed, path, {name: known[name] for name in _FACTS_IN_ONNX if name in known})
    return Pulled(path, digest, fed.lines(path, network.output_names))


def _supervised_onnx(
    model: str, folder: Path, channels: int | None, image_type: ImageType
) -> tuple[str, OnnxNetwork, OnnxInput]:
    """The graph that MLflow's model runs, with its calibration."""
    facts = read_fine_tuned(folder)
    _check_keeps_channels(model, facts, channels)
    fed = OnnxInput(facts.in_channels, facts.image_size, image_type)
    graph = torch.export.load(folder / PROGRAM).module()
    exclusive = facts.kind == "multiclass"
    network = OnnxSupervised(graph, fed.white, exclusive=exclusive, calibration=facts.calibration)
    return facts.encoder, network, fed


def _pretrained(model: str, folder: Path, chosen: Format, channels: int | None) -> tuple[str, Exported]:
    """Encoder, or encoder and decoder, of a pretraining."""
    facts = read_facts(folder)
    if chosen == "smp":
        _check_decoder(model, facts)
    state = load_file(folder / UNET)
    network = network_of(facts.network, facts.encoder, facts.in_channels)
    return facts.encoder, network.export(state, chosen, channels or facts.in_channels)


def _whole_network(
    model: str, folder: Path, weights: Path, chosen: Format, channels: int | None
) -> tuple[str, Exported]:
    """A classifier or segmenter with its last layer."""
    facts = read_fine_tuned(folder)
    if chosen != facts.weights_names:
        what = "classifier" if facts.task == "classify" else "segmenter"
        raise RequestError(
            f"--format {chosen}: {model} is a {what} whose weights have the names of {facts.weights_names}: give "
            f"--format {facts.weights_names}"
        )
    _check_keeps_channels(model, facts, channels)
    construction = tuple(facts.construction)
    exported = Exported(load_file(weights), construction, facts.features)
    if chosen in ("torch", "monai"):
        exported = replace(exported, axes=unet3d.AXES, code=unet3d.CODE if chosen == "torch" else ())
    return facts.encoder, exported


def _check_keeps_channels(model: str, facts: FineTunedFile, channels: int | None) -> None:
    if channels not in (None, facts.in_channels):
        raise RequestError(f"--in-channels {channels}: {model} takes {facts.in_channels}, and keeps them: leave it out")


def _weights_of(fine_tuned: bool) -> tuple[str, ...]:
    """A fine-tuned model has one of them, or of an ensemble several."""
    return (WEIGHTS, *map(weights_of_fold, range(1, MOST_FOLDS + 1))) if fine_tuned else (UNET,)


def _program_of(fine_tuned: bool) -> tuple[str, ...]:
    return (PROGRAM if fine_tuned else UNET,)


def _check_decoder(model: str, facts: ModelFile) -> None:
    """The format ``smp`` is encoder and decoder."""
    if not facts.decoder:
        raise RequestError(
            f"--format smp: {model} has no trained decoder, for nothing that restores was trained up to that point; "
            "take torchvision or timm for the encoder, or a later checkpoint, of a stage that restores (dir, dira, re, "
            "rea), or pretrain with such a stage"
        )


def _check_request(name: str, in_channels: int | None, file_format: str) -> None:
    """Refuses what cannot be before anything is fetched."""
    if name not in FORMATS:
        raise RequestError(f"--format {name!r}: allowed are {', '.join(FORMATS)}")
    if in_channels is not None and in_channels < 1:
        raise RequestError(f"--in-channels {in_channels}: allowed are numbers from 1; leave it out for the model's own")
    if file_format not in FILE_FORMATS:
        raise RequestError(f"--file-format {file_format!r}: allowed are {', '.join(FILE_FORMATS)}")
    if name == ONNX:
        check_onnx_packages()


def _library(name: str) -> Format:
    return next(known for known in get_args(Format) if known == name)
