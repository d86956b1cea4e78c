"""The folder that a registered model is: weights, the encoder as a program, the job, a card for people, checksums."""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from dira_dist.config import RequestError, per_axis
from dira_dist.files import sha256_of
from dira_dist.formats import FileFormat, FormatError
from dira_dist.models.backbone import BackboneSection, Size
from dira_dist.models.choice import read_model
from dira_dist.models.export import Exported, Format, save_feature_program, save_weights

CHECKSUMS = "SHA256SUMS"
FACTS = "model.json"
CARD = "README.md"
UNET = "unet.safetensors"
# A model that was made here is far below; one that lies could ask for all memory, or write elsewhere.
MOST_CHANNELS, MOST_PIXELS = 1024, 2**28
_PLAIN_NAME = re.compile(r"[\w.+-]+")

_NOTICE = """## Licence and patents
The software that made this model is licensed under Apache-2.0. It is an independent implementation of DiRA
(Haghighi, Hosseinzadeh Taher, Gotway, Liang, CVPR 2022). Its authors license their own code for non-commercial use only
and mark the method as patent pending: whoever uses the method or this model commercially clears that with them. The
rights to the images it was trained on are their owner's; this card cannot know them.

## Intended use
A start for fine-tuning on medical images like those it was trained on (classification with the encoder, segmentation
with encoder and decoder where both were trained), by people who evaluate the result on their own data.

## Limits
It is no medical device and gives no diagnosis. Its features reflect the hospitals, scanners and patients of the
training images, and may serve other groups worse. It was evaluated by the figures above alone. The decoder paints
what is likely, not what is there: a restored image must never be read as a finding.
"""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model beside its weights.

    Attributes:
        name: the registered model's, or the job's.
        encoder: of a 2D U-Net its name in segmentation_models_pytorch; of others the network in a word.
        in_channels: of the network that was trained.
        image_size: pixels of the views it was trained on, a side or one for each axis.
        trained: the parts whose losses were minimised.
        decoder: whether any of them trained the decoder; the model holds none otherwise.
        settings: what a person asks first: method, loss weights, stages, batch, precision ...
        data: address, digest, number of samples ...
        quality: measured figures.
        origin: run, page, version of the software ...
        network: the section of the network, as a job has it; left out: a 2D U-Net on that encoder.
        fed: how the images that it learned from were made: options of ``dira-dist shard``, and their mode.
    """

    name: str
    encoder: str
    in_channels: int
    image_size: int | tuple[int, ...]
    trained: tuple[str, ...] = ()
    decoder: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    fed: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> BackboneSection:
        """Of the network, with nothing that its own training alone was asked."""
        return network_of(self.network, self.encoder, self.in_channels)


def network_of(network: Mapping[str, Any], encoder: str, in_channels: int) -> BackboneSection:
    """The section of a model's network; of a 2D U-Net its encoder's name is all that is needed."""
    return read_model(network or {"encoder": encoder, "in_channels": in_channels})


@dataclass(frozen=True)
class ModelFile:
    """``model.json``: what loading and using the weights needs to know, and what a person asks.

    Attributes:
        encoder: of a 2D U-Net its name in segmentation_models_pytorch; of others the network in a word.
        in_channels: of the network that was trained.
        image_size: pixels of the views it was trained on, a side or one for each axis.
        trained: the parts whose losses were minimised.
        decoder: whether any of them trained the decoder; the model holds none otherwise.
        encoder_names: library whose names ``encoder.safetensors`` has.
        feature_channels: of what ``features.pt2`` gives.
        features: the expression by which the library's model gives the same features.
        network: the section of the network, as a job has it; empty where it is a 2D U-Net on that encoder.
        dims: spatial axes of its images.
    """

    encoder: str
    in_channels: int
    image_size: int | tuple[int, ...]
    trained: list[str]
    decoder: bool
    encoder_names: Format
    feature_channels: int
    features: str
    network: dict[str, Any] = field(default_factory=dict)
    dims: Literal[2, 3] = 2
    quality: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    fed: dict[str, Any] = field(default_factory=dict)


def _from_0_1_0(values: dict[str, Any]) -> dict[str, Any]:
    """The stages' names alone said then what was trained, and ``dira`` was among them unless all were ``di``."""
    stages = str(values.get("settings", {}).get("stages", "dira")).split(" -> ")
    restored = [] if set(stages) == {"di"} else ["restorative"]
    return _from_1({"trained": ["discriminative", *restored], **values})


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Whether there is a decoder was told by the parts then, of which these two trained one."""
    trained = values.get("trained", ())
    return _from_2({"decoder": "restorative" in trained or "adversarial" in trained, **values})


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """All networks were 2D U-Nets then, and nothing was said of how the images were made."""
    return {"network": {}, "dims": 2, "fed": {}, **values}


FORMAT = FileFormat(ModelFile, version=3, upgrades={None: _from_0_1_0, 1: _from_1, 2: _from_2})


def write_model_folder(
    folder: Path,
    unet_state: Mapping[str, Tensor],
    facts: ModelFacts,
    *,
    job: str,
    discriminator_state: Mapping[str, Tensor] | None = None,
    pictures: Mapping[str, npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Write everything that a registered version holds.

    ``encoder.safetensors`` has torchvision's names where torchvision has the encoder, else timm's, else
    segmentation_models_pytorch's; ``unet.safetensors`` the latter's; ``features.pt2`` runs with torch alone. Of a 3D
    network both have its own names, and the file with its layers in plain torch lies beside them.

    Args:
        folder: is made; must be empty.
        unet_state: the U-Net's weights that were trained: of the encoder, and of the decoder where it learned.
        facts: for the card and for ``model.json``.
        job: the recorded job file's text.
        discriminator_state: where one was trained.
        pictures: name to ``(H, W, 3)`` uint8.

    Raises:
        RequestError: if the folder is not empty or the encoder cannot be stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RequestError(f"{folder}: not empty; give a folder that does not exist yet")
    network = facts.section
    library, exported = _best_known_names(unet_state, network)
    save_weights(exported.state, folder / "encoder.safetensors", {"names": library, "encoder": facts.encoder})
    save_weights(unet_state, folder / UNET, {"names": network.stored_names, "encoder": facts.encoder})
    for code in exported.code:
        shutil.copyfile(code, folder / code.name)
    if discriminator_state:
        save_weights(discriminator_state, folder / "discriminator.safetensors")
    program = folder / "features.pt2"
    channels = save_feature_program(unet_state, network, facts.image_size, program)
    for name, picture in (pictures or {}).items():
        file = folder / "pictures" / f"{name.replace('/', '-')}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(file)
    (folder / "job.yaml").write_text(job)
    (folder / FACTS).write_bytes(FORMAT.dump(_model_file(facts, library, exported, channels)))
    (folder / CARD).write_text(model_card(facts, exported))
    write_checksums(folder)
    return folder


def read_facts(folder: Path) -> ModelFile:
    """What ``model.json`` says; older ones are read as well.

    Raises:
        RequestError: if the folder is no model folder, or one of a classifier or segmenter.
        FormatError: if the file is damaged, of another version, or tells of a network that cannot be.
    """
    content, place = facts_content(folder), str(folder / FACTS)
    if tells_task(content):
        raise RequestError(
            f"{folder}: holds a classifier or segmenter, and what is wanted is a pretrained model: give the one that "
            "it was fine-tuned from"
        )
    facts = FORMAT.load(content, place)
    check_plausible(facts.encoder, facts.in_channels, facts.image_size, place)
    try:
        network_of(facts.network, facts.encoder, facts.in_channels)
    except RequestError as error:
        raise FormatError(f"{place}: {error}") from None
    return facts


def check_plausible(encoder: str, in_channels: int, image_size: Size, place: str) -> None:
    """Holds what a model says of itself to what a job may say, before files are named after it or memory is taken.

    Raises:
        FormatError: it says something else.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    wrong = None
    if not _PLAIN_NAME.fullmatch(encoder):
        wrong = f"encoder: found {encoder[:80]!r}; a name has letters, digits and . _ + -"
    elif not 1 <= in_channels <= MOST_CHANNELS:
        wrong = f"in_channels: found {in_channels}; allowed are 1 to {MOST_CHANNELS}"
    elif not 1 <= len(sides) <= 3 or min(sides) < 1 or math.prod(sides) > MOST_PIXELS:
        wrong = f"image_size: found {image_size}; allowed are 1 to 3 sides from 1 px, {MOST_PIXELS:,} px in all"
    if wrong:
        raise FormatError(f"{place}: {wrong}; do not use this model, or have its maker register it again")


def facts_content(folder: Path) -> bytes:
    """``model.json`` as it stands, of whichever kind the model is.

    Raises:
        RequestError: if the folder is no model folder.
    """
    file = folder / FACTS
    if not file.is_file():
        raise RequestError(f"{folder}: holds no {FACTS}; give a folder that was fetched or written as a model")
    return file.read_bytes()


def tells_task(content: bytes) -> bool:
    """Whether a ``model.json`` is that of a classifier or segmenter; one that is damaged is not."""
    try:
        values = json.loads(content)
    except ValueError:
        return False
    return isinstance(values, dict) and "task" in values


def example_input(in_channels: int, image_size: Size, dims: int = 2) -> npt.NDArray[Any]:
    """An image as a request to a served model holds it: one of no patient, that grows brighter from left to right.

    Returns:
        ``(1,)`` base64 of a PNG file; where no PNG holds such images, ``(1, in_channels, *image_size)`` uint8.
    """
    size = per_axis(image_size, dims)
    if dims != 2 or in_channels not in (1, 3):
        return np.zeros((1, in_channels, *size), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8), size)
    file = io.BytesIO()
    Image.fromarray(ramp if in_channels == 1 else np.stack([ramp] * 3, axis=-1)).save(file, "PNG")
    return np.array([base64.b64encode(file.getvalue()).decode()], dtype=object)


def write_checksums(folder: Path) -> str:
    """Write ``SHA256SUMS`` (``sha256sum -c`` reads it). Returns the file's own sha256, which names the content."""
    for sidecar in folder.glob("*.sha256"):
        sidecar.unlink()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(folder / name)}  {name}" for name in names if name != CHECKSUMS]
    (folder / CHECKSUMS).write_text("\n".join(lines) + "\n")
    return sha256_of(folder / CHECKSUMS)


def read_checksums(folder: Path) -> dict[str, str]:
    """Name to sha256, from ``SHA256SUMS``.

    Raises:
        RequestError: if the file is missing or not in that form.
    """
    file = folder / CHECKSUMS
    if not file.is_file():
        raise RequestError(f"{folder}: holds no {CHECKSUMS}, so its files cannot be checked; fetch the model again")
    entries = [line.split("  ", 1) for line in file.read_text().splitlines() if line]
    if any(len(entry) != 2 or len(entry[0]) != 64 for entry in entries):
        raise RequestError(f"{file}: damaged; fetch the model again")
    return {name: digest for digest, name in entries}


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or differ from their checksum."""
    checksums = read_checksums(folder)
    return [n for n, digest in checksums.items() if not (folder / n).is_file() or sha256_of(folder / n) != digest]


def model_card(facts: ModelFacts, exported: Exported) -> str:
    """The card in Markdown: what it is, how to load it, data, settings, quality, licence, use and limits."""
    loading = "\n".join((*exported.loading_lines("encoder.safetensors").splitlines(),))
    quality = {name: f"{value:.4g}" for name, value in facts.quality.items()}
    decoder = "and U-Net decoder" if facts.decoder else "(its decoder was not trained)"
    sections = [
        f"# {facts.name}\n",
        f"Encoder `{facts.encoder}` {decoder}, pretrained by DiRA without labels (parts: {', '.join(facts.trained)}), "
        f"on {_inputs(facts)} with {facts.in_channels} channel(s), values in [0, 1], "
        "no further normalisation.\n",
        f"## Load the encoder\n```python\n{loading}\n```\n",
        *card_table("Training images", facts.data),
        *card_table("Settings", facts.settings),
        *card_table("Measured quality", quality),
        *card_table("Origin", facts.origin),
        _NOTICE,
    ]
    return "\n".join(sections)


def _inputs(facts: ModelFacts) -> str:
    dims = facts.section.dims
    sides = " x ".join(map(str, per_axis(facts.image_size, dims)))
    return f"images of {sides} px" if dims == 2 else f"cubes of {sides} voxels along x, y and z (3D)"


def card_table(title: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """A table of a card, as Markdown; nothing where there is nothing to tell."""
    if rows:
        body = "\n".join(f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items())
        yield f"## {title}\n| | |\n| --- | --- |\n{body}\n"


def _best_known_names(unet_state: Mapping[str, Tensor], network: BackboneSection) -> tuple[Format, Exported]:
    encoder = {name: tensor for name, tensor in unet_state.items() if name.startswith("encoder.")}
    *libraries, own = network.libraries
    for library in libraries:
        try:
            return library, network.export(encoder, library, network.in_channels)
        except RequestError:  # that library has no such encoder; the next may
            continue
    return own, network.export(encoder, own, network.in_channels)


def _model_file(facts: ModelFacts, library: Format, exported: Exported, channels: int) -> ModelFile:
    return ModelFile(
        encoder=facts.encoder,
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        trained=list(facts.trained),
        decoder=facts.decoder,
        encoder_names=library,
        feature_channels=channels,
        features=exported.features,
        network=dict(facts.network),
        dims=facts.section.dims,
        quality=dict(facts.quality),
        settings=dict(facts.settings),
        data=dict(facts.data),
        origin=dict(facts.origin),
        fed=dict(facts.fed),
    )
