"""The folder that a registered classifier or segmenter is: network, program, weights for other libraries, report."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dira_dist.config import RequestError, parse_document, per_axis
from dira_dist.formats import FileFormat
from dira_dist.models.backbone import BackboneSection, Size, built_on_meta
from dira_dist.models.choice import read_model
from dira_dist.models.ensemble import MEMBERS, Ensemble
from dira_dist.models.export import Exported, Format, export_classifier, save_weights
from dira_dist.models.model_files import (
    CARD,
    FACTS,
    card_table,
    check_plausible,
    facts_content,
    tells_task,
    write_checksums,
)
from dira_dist.models.supervised import Classifier, Segmenter
from dira_dist.models.unet import UNetConfig

NETWORK, PROGRAM = "network.safetensors", "network.pt2"
WEIGHTS = "weights.safetensors"
GROUPS, JOB = "groups.json", "job.yaml"
_WEIGHTS_OF_FOLDS = "weights-fold*.safetensors"

_NOTICE = """## Licence and patents
The software that made this model is licensed under Apache-2.0. It is an independent implementation of DiRA
(Haghighi, Hosseinzadeh Taher, Gotway, Liang, CVPR 2022). Its authors license their own code for non-commercial use only
and mark the method as patent pending: whoever uses the method or this model commercially clears that with them. The
rights to the images and labels it was trained on are their owner's; this card cannot know them.

## Intended use
Research on images like those it was trained on, by people who judge its answers on their own data before they rely on
any. It is no medical device and gives no diagnosis.

## Limits
Its figures are of the samples in the report, of their scanners, hospitals and patients; elsewhere they may be worse,
and for some groups of patients worse than for others. Probabilities are calibrated for the prevalence of its val set. A
class that its training did not know is answered with one that it did.
"""


@dataclass(frozen=True)
class FineTunedFile:
    """``model.json``: what using the model needs to know, and what a person asks.

    Attributes:
        task: ``classify`` or ``segment``.
        kind: of the classes: binary, multiclass, multilabel; or of masks: binary, multiclass, regions.
        classes: names of the outputs, in order.
        encoder: name in segmentation_models_pytorch.
        in_channels: of the network.
        image_size: pixels of its input, a side or one for each axis.
        fit: how an image is brought there: ``crop``, its centre; ``fit``, the whole of it; ``slide``, window by window.
        weights_names: library whose names ``weights.safetensors`` has, or of an ensemble each member's own file.
        construction: Python lines that make the model there, without weights.
        features: the expression for its answer.
        calibration: slopes and intercepts of the logits; empty of masks.
        thresholds: above which a class is said to be there; empty of masks.
        label: what was learned: names of labels, or ``mask``.
        localization: how a classifier's report located lesions: ``settings``, and ``thresholds`` by class where its
            sets have boxes.
        fed: how the images that it learned from were made: options of ``dira-dist shard``, and their mode.
        sliding: ``overlap`` and ``blend`` of the windows, where ``fit`` is ``slide``.
    """

    task: Literal["classify", "segment"]
    kind: str
    classes: list[str]
    encoder: str
    in_channels: int
    image_size: int | tuple[int, ...]
    fit: Literal["crop", "fit", "slide"]
    weights_names: str
    construction: list[str]
    features: str
    calibration: dict[str, list[float]] = field(default_factory=dict)
    thresholds: list[float] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    localization: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    fed: dict[str, Any] = field(default_factory=dict)
    sliding: dict[str, Any] = field(default_factory=dict)


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Nothing was said then of how the images were made."""
    return _from_2({"fed": {}, **values})


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """No model slid over volumes then."""
    return {"sliding": {}, **values}


FORMAT = FileFormat(FineTunedFile, version=3, upgrades={1: _from_1, 2: _from_2})


def is_fine_tuned(folder: Path) -> bool:
    """Whether a model folder is of a classifier or segmenter.

    Raises:
        RequestError: it is no model folder.
    """
    return tells_task(facts_content(folder))


def read_fine_tuned(folder: Path) -> FineTunedFile:
    """What ``model.json`` says.

    Raises:
        RequestError: it is no model folder, or one of a pretrained model.
        FormatError: the file is damaged, or of another version.
    """
    content = facts_content(folder)
    if not tells_task(content):
        raise RequestError(
            f"{folder}: holds no classifier or segmenter, by its {FACTS}: give a model of kind: finetune, or fetch it "
            "anew where it is one"
        )
    facts = FORMAT.load(content, str(folder / FACTS))
    check_plausible(facts.encoder, facts.in_channels, facts.image_size, str(folder / FACTS))
    return facts


def load_classifier(folder: Path) -> tuple[Classifier, FineTunedFile]:
    """The network of a classifier's folder, on the CPU and in evaluation mode, and what the folder says of it.

    Raises:
        RequestError: the folder is of no classifier, or its weights are of another network than it says.
        FormatError: ``model.json`` is damaged, or of another version.
    """
    facts = read_fine_tuned(folder)
    if facts.task != "classify":
        raise RequestError(f"{folder}: holds a segmenter; give a classifier, a model of task: {{name: classify}}")
    config = _network_of(folder, facts)
    network = built_on_meta(partial(Classifier, config, len(facts.classes)))
    try:
        state = load_file(folder / NETWORK)
        if any(name.startswith(MEMBERS) for name in state):
            raise RequestError(
                f"{folder}: holds the ensemble of several folds' classifiers, and a heat map is of one: give the run "
                "of one of its folds (NAME-fold1)"
            )
        network.load_state_dict(state, assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RequestError(
            f"{folder / NETWORK}: cannot be loaded ({str(error).splitlines()[0]}): fetch the model anew"
        ) from error
    return network.eval(), facts


def _network_of(folder: Path, facts: FineTunedFile) -> BackboneSection:
    """The section of its network: as its job has it, else, of a folder without one, the 2D U-Net of its encoder."""
    file = folder / JOB
    text = file.read_text() if file.is_file() else ""
    section = parse_document(text, str(file)).values.get("model") if text.strip() else None
    if isinstance(section, dict):
        return read_model(section)
    return UNetConfig(encoder=facts.encoder, in_channels=facts.in_channels)


def weights_of_fold(fold: int) -> str:
    """The name of the plain state dict of a fold's member, from 1 on."""
    return _WEIGHTS_OF_FOLDS.replace("*", str(fold))


def plain_weights(folder: Path) -> list[Path]:
    """The plain state dicts in a model's folder: one, or of an ensemble that of each member, in the order of folds."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    count = len(list(folder.glob(_WEIGHTS_OF_FOLDS)))
    return [folder / weights_of_fold(fold) for fold in range(1, count + 1)]


@dataclass(frozen=True)
class FineTunedFacts:
    """What is known of a model beside its weights; see :class:`FineTunedFile`.

    ``groups`` are digests of the patients of its sets, by the name of the set.
    """

    name: str
    task: Literal["classify", "segment"]
    kind: str
    classes: tuple[str, ...]
    encoder: str
    in_channels: int
    image_size: Size
    fit: Literal["crop", "fit", "slide"]
    calibration: Mapping[str, list[float]]
    thresholds: tuple[float, ...]
    label: tuple[str, ...]
    quality: Mapping[str, float]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    origin: Mapping[str, Any]
    localization: Mapping[str, Any] = field(default_factory=dict)
    fed: Mapping[str, Any] = field(default_factory=dict)
    sliding: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] | None = None


def write_fine_tuned_folder(
    folder: Path,
    network: Classifier | Segmenter | Ensemble,
    facts: FineTunedFacts,
    *,
    job: str,
    report: Mapping[str, bytes],
    pictures: Mapping[str, npt.NDArray[np.uint8]],
) -> Path:
    """Write everything that a registered version holds.

    ``weights.safetensors`` has torchvision's names where torchvision has the classifier, else timm's; else, and of a
    segmenter, segmentation_models_pytorch's; an ensemble has ``weights-fold1.safetensors`` and so on. ``network.pt2``
    runs with torch alone.

    Raises:
        RequestError: the folder is not empty, or the network cannot be stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RequestError(f"{folder}: not empty; give a folder that does not exist yet")
    network = network.cpu().eval()
    save_weights(network.state_dict(), folder / NETWORK, {"encoder": facts.encoder})
    members = {WEIGHTS: network} if not isinstance(network, Ensemble) else _members(network)
    for file, member in members.items():
        library, exported = exported_network(member)
        save_weights(exported.state, folder / file, {"names": library, "encoder": facts.encoder})
    for code in exported.code:
        shutil.copyfile(code, folder / code.name)
    _save_program(network, facts, folder / PROGRAM)
    for name, content in report.items():
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / name).write_bytes(content)
    for name, picture in pictures.items():
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / "pictures" / f"{name.replace('/', '-')}.png")
    (folder / JOB).write_text(job)
    if facts.groups is not None:
        (folder / GROUPS).write_text(json.dumps(facts.groups))
    (folder / FACTS).write_bytes(FORMAT.dump(_file(facts, library, exported)))
    (folder / CARD).write_text("\n".join(_card(facts, exported, report, list(members))))
    write_checksums(folder)
    return folder


def _members(network: Ensemble) -> dict[str, Classifier | Segmenter]:
    """By the names of their files."""
    return {weights_of_fold(place + 1): member for place, member in enumerate(network.parts)}


def exported_network(network: Classifier | Segmenter) -> tuple[Format, Exported]:
    """The whole network by the names of the library that is known best among those that have it."""
    config, own = network.config, network.config.libraries[-1]
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    of_encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if isinstance(network, Segmenter):
        exported = config.export(state, own, config.in_channels)
        lines = tuple(line.replace(", activation='sigmoid'", "") for line in exported.construction)
        return own, replace(exported, construction=lines, features="model(x)  # logits")
    known = export_classifier(of_encoder, network.head, config.label, config.in_channels) if config.dims == 2 else None
    return known or (own, _encoder_and_head(state, network.head, config.export(of_encoder, own, config.in_channels)))


def _encoder_and_head(state: Mapping[str, Tensor], head: nn.Linear, encoder: Exported) -> Exported:
    """A classifier that no library has as one: its own library's encoder, and a layer beside it."""
    lines = ("import torch", *(line for line in encoder.construction if line != "import torch"))
    joined = f"model = torch.nn.ModuleDict({{'encoder': model, 'head': torch.nn.{head!r}}})"
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state.items()}
    weights |= {name: tensor for name, tensor in state.items() if name.startswith("head.")}
    features = re.sub(r"\bmodel\b", "model['encoder']", encoder.features)
    return replace(
        encoder, state=weights, construction=(*lines, joined), features=f"model['head']({features})  # logits"
    )


class _Named(nn.Module):
    """The network with the argument's name that the program has."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Tensor) -> Tensor:
        logits: Tensor = self.network(views)
        return logits


def _save_program(network: Classifier | Segmenter | Ensemble, facts: FineTunedFacts, path: Path) -> None:
    example = torch.zeros(2, facts.in_channels, *per_axis(facts.image_size, network.config.dims))
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Named(network).eval(), (example,), dynamic_shapes={"views": {0: torch.export.Dim("batch", min=1)}}
            )
    except Exception as error:
        raise RequestError(
            f"encoder {facts.encoder!r} cannot be stored as a program: {str(error).splitlines()[0]}"
        ) from error
    torch.export.save(program, path)


def _file(facts: FineTunedFacts, library: str, exported: Exported) -> FineTunedFile:
    size = facts.image_size if isinstance(facts.image_size, int) else tuple(facts.image_size)
    return FineTunedFile(
        task=facts.task,
        kind=facts.kind,
        classes=list(facts.classes),
        encoder=facts.encoder,
        in_channels=facts.in_channels,
        image_size=size,
        fit=facts.fit,
        weights_names=library,
        construction=list(exported.construction),
        features=exported.features,
        calibration=dict(facts.calibration),
        thresholds=list(facts.thresholds),
        label=list(facts.label),
        localization=dict(facts.localization),
        quality=dict(facts.quality),
        settings=dict(facts.settings),
        data=dict(facts.data),
        origin=dict(facts.origin),
        fed=dict(facts.fed),
        sliding=dict(facts.sliding),
    )


def _card(
    facts: FineTunedFacts, exported: Exported, report: Mapping[str, bytes], weights: Sequence[str]
) -> Iterator[str]:
    what = "classifier" if facts.task == "classify" else "segmenter"
    answers = "probabilities" if facts.task == "classify" else "masks"
    yield f"# {facts.name}\n"
    yield (
        f"A {what} of {', '.join(facts.classes)} on encoder `{facts.encoder}`, for images of {facts.in_channels} "
        "channel(s), values in [0, 1]. `mlflow.pyfunc.load_model(...).predict(images)` brings images of any size to "
        f"its input and gives {answers}.\n"
    )
    if len(weights) > 1:
        yield (
            f"It is an ensemble: the mean of the {answers if facts.task == 'classify' else 'probabilities'} of "
            f"{len(weights)} networks, each trained without one of {len(weights)} folds of the training set. The "
            f"weights of each lie in a file of its own, {weights[0]} to {weights[-1]}.\n"
        )
    yield f"## Load the weights elsewhere\n```python\n{exported.loading_lines(weights[0])}\n```\n"
    if "report.md" in report:
        yield report["report.md"].decode().replace("\n## ", "\n### ").replace("# ", "## ", 1)
    yield from card_table("Training images", facts.data)
    yield from card_table("Settings", facts.settings)
    yield from card_table("Origin", facts.origin)
    yield _NOTICE
