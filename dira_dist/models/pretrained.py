"""Start from weights made elsewhere: published DiRA and MoCo, torchvision, timm. Every key is accounted for."""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.models.backbone import Backbone, BackboneSection
from dira_dist.models.weights import load_weights, read_weights

# What a checkpoint may hold beside the network that is wanted, by the key's name without wrappers, and why it stays
# behind. The first pattern that fits counts.
_LEFT_BEHIND = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"encoder_k\.", "the key encoder, a moving average of the query encoder"),
        (r"(queue|queue_ptr)$", "the queue of keys"),
        (r"(encoder_q\.|backbone\.)?(projector|projection_head|predictor)\.", "head of the pretext task"),
        (r"encoder_q\.fc\.", "projection head of the pretext task"),
        (r"bn\.", "norm of the pretext task"),
        (r"(backbone\.)?(encoder\.)?(fc|_fc|classifier|last_linear|head|head_fc)\.", "classifier or projection head"),
        (r"(encoder_q\.)?(conv_head|bn2|norm|head_norm)\.", "behind the last feature map"),
    )
)
_WRAPPERS = re.compile(r"^(encoder_q\.)?(backbone\.)?")
_STAGE = re.compile(r"^(\w+)\.(\d+)\.")


@dataclass(frozen=True)
class ImportReport:
    """What became of every key.

    Attributes:
        source: the file.
        used: the network's names that have the file's weights now, to the file's names.
        left_behind: the file's names that were not wanted, and why.
        missing: the network's names that keep their own start.
    """

    source: str
    used: Mapping[str, str]
    left_behind: Mapping[str, str]
    missing: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report as a person reads it: counts and reasons."""
        yield f"{self.source}: {len(self.used)} weights loaded"
        for reason in dict.fromkeys(self.left_behind.values()):
            names = [name for name, why in self.left_behind.items() if why == reason]
            yield f"  left behind: {len(names)} ({reason}), such as {names[0]}"
        for part in ("decoder", "segmentation_head", "encoder"):
            names = [name for name in self.missing if name.startswith(f"{part}.")]
            if names:
                yield f"  not in the file: {len(names)} of the {part}, which keep their own start, such as {names[0]}"


class Start(NamedTuple):
    """What a U-Net starts from: its whole state, and which of it came from where."""

    weights: dict[str, Tensor]
    report: ImportReport


def starting_weights(config: BackboneSection, seed: int) -> Start | None:
    """What the whole U-Net starts from where ``model.init`` names a file, whoever made it; else none.

    Parts that the file does not have are drawn from ``seed``, as they would have been without it.

    Raises:
        RequestError: see :func:`import_weights`.
    """
    if config.init is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = config.build()
    report = import_weights(network, config.init)
    return Start(network.state_dict(), report)


def import_weights(network: Backbone, path: Path | str) -> ImportReport:
    """Load a file of weights into the U-Net, whoever made it.

    Known are: the U-Net of a published DiRA run (``unet.pth``) and its training checkpoint (``encoder_q.backbone...``);
    MoCo (``module.encoder_q...``), SimSiam and Barlow Twins; encoders of torchvision and timm; this project's exports.
    A first convolution of three channels is summed to one, and of one channel spread over three.

    Args:
        network: its encoder and, where the file has them, decoder and head are overwritten.
        path: ``.pt``, ``.pth``, ``.tar`` or ``.safetensors``.

    Raises:
        RequestError: for keys that are neither wanted nor known, for an encoder that is not complete in the file, and
            for other shapes than the network's.
    """
    # Published checkpoints keep their command line's settings, an argparse.Namespace of plain values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights = network.config.own_names(read_weights(path))
    renamed, left_behind = translate(weights, network.state_dict())
    if not renamed:
        raise RequestError(
            f"{path}: none of its {len(weights)} keys belongs to the network {network.config.label!r} "
            f"(first key: {next(iter(weights), 'none')}); give weights of that encoder, or set model.encoder to theirs"
        )
    loaded = load_weights(network, {name: weights[source] for name, source in renamed.items()})
    assert not loaded.left_out
    missing = tuple(name for name in network.state_dict() if name not in renamed)
    return ImportReport(str(path), renamed, left_behind, missing)


def translate(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Which key of a file is which weight of the network, and why others are not wanted.

    Args:
        weights: the file's.
        target: the network's state dict.

    Returns:
        The network's names to the file's; the file's other names to reasons. A key that is in neither was not
        understood; it is an error.

    Raises:
        RequestError: for keys that are not understood.
    """
    used: dict[str, str] = {}
    left_behind: dict[str, str] = {}
    unknown = []
    for name in weights:
        bare = name.removeprefix("module.")
        place = next((place for place in _places(bare) if place in target and place not in used), None)
        reason = next((reason for pattern, reason in _LEFT_BEHIND if pattern.match(bare)), None)
        if place is not None and not bare.startswith("encoder_k."):
            used[place] = name
        elif reason is not None:
            left_behind[name] = reason
        else:
            unknown.append(name)
    if unknown and used:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise RequestError(
            f"the file of weights has keys that are neither the network's nor known to be of no use: "
            f"{', '.join(unknown[:5])}{more}. Give weights of the same encoder and decoder, or remove these keys"
        )
    return used, left_behind


def _places(name: str) -> Iterator[str]:
    """Names that a key may have in the U-Net: as it is, without wrappers, as an encoder's, as a timm encoder's."""
    bare = _WRAPPERS.sub("", name)
    yield bare
    yield f"encoder.{bare}"
    inner = bare.removeprefix("encoder.")
    yield f"encoder.model.{inner}"
    flat = _STAGE.sub(r"\1_\2.", inner)  # timm's pyramid of features names stages.0 stages_0
    yield f"encoder.model.{flat}"
