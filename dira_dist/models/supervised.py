"""Networks for labels and masks: what was pretrained, and a last layer of their own."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.backbone import BackboneSection
from dira_dist.models.precision import average_over_positions
from dira_dist.models.pretrained import translate
from dira_dist.models.torch_internals import BatchNorm
from dira_dist.models.weights import fit_weight

HEADS = ("head.", "segmentation_head.")
_BEFORE_LAST = ("encoder", "decoder")
_WRAPPERS = re.compile(r"^(module\.)?(encoder_q\.)?(backbone\.)?")


class SupervisedNetwork(nn.Module):
    """An encoder, perhaps a decoder, and a last layer; weights are drawn from torch's global generator.

    Args:
        config: of the network whose parts it has.
        encoder: images to feature maps.
        norms_stay: whether the encoder's batch norms keep the statistics that they came with.

    Attributes:
        is_frozen: whether everything before the last layer stays as it is.
    """

    def __init__(self, config: BackboneSection, encoder: nn.Module, norms_stay: bool = False) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.is_frozen = False
        self._norms_stay = norms_stay

    def set_trainable(self, *, encoder: bool) -> None:
        """Lets the last layer learn, and with ``encoder`` all that lies before it and takes part in the outputs."""
        self.is_frozen = not encoder
        unused = self.unused_parameters()
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.startswith(HEADS) or (encoder and name not in unused))
        self.train(self.training)

    def unused_parameters(self) -> set[str]:
        """Names of weights that take no part in the outputs."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "SupervisedNetwork":
        """Training mode; of what is frozen and of norms that stay, evaluation mode."""
        super().train(mode)
        for name, module in self.named_modules():
            is_before_last = name.partition(".")[0] in _BEFORE_LAST
            norm_stays = self._norms_stay and name.startswith("encoder.") and isinstance(module, BatchNorm)
            if mode and (norm_stays or (self.is_frozen and is_before_last)):
                module.training = False
        return self


class Classifier(SupervisedNetwork):
    """The pooled features of an encoder, and a linear layer.

    Shapes: images ``(B, in_channels, *S)`` to logits ``(B, outputs)``.

    Args:
        config: of the network whose encoder it has.
        outputs: how many.
        dropout: of the features.
        norms_stay: see :class:`SupervisedNetwork`.
    """

    def __init__(
        self, config: BackboneSection, outputs: int, *, dropout: float = 0.0, norms_stay: bool = False
    ) -> None:
        backbone = config.build()
        super().__init__(config, backbone.encoder, norms_stay)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.classify(self.encoder(images)[-1])

    def classify(self, deepest: Tensor) -> Tensor:
        """The logits of the encoder's deepest feature map, (B, C, *s)."""
        logits: Tensor = self.head(self.dropout(average_over_positions(deepest)))
        return logits

    def unused_parameters(self) -> set[str]:
        with torch.enable_grad():
            unused = self.config.unused_parameters(restore=False)
        return {name for name in unused if name.startswith("encoder.")}


class Segmenter(SupervisedNetwork):
    """Encoder and decoder of a U-Net, and a last convolution; names as in the U-Net.

    Shapes: images ``(B, in_channels, *S)`` to logits ``(B, outputs, *S)``.

    Args:
        config: of the U-Net.
        outputs: how many.
        norms_stay: see :class:`SupervisedNetwork`.
    """

    def __init__(self, config: BackboneSection, outputs: int, *, norms_stay: bool = False) -> None:
        backbone = config.build()
        super().__init__(config, backbone.encoder, norms_stay)
        self.decoder = backbone.get_submodule("decoder")
        self.segmentation_head = backbone.last_layer(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(images)))
        return logits

    def unused_parameters(self) -> set[str]:
        with torch.enable_grad():
            return self.config.unused_parameters(restore=True)


@dataclass(frozen=True)
class StartReport:
    """What became of the weights that a network starts from.

    Attributes:
        used: names of the network's weights that were taken over.
        left_behind: names of those that were not wanted, and why.
        drawn: names of the network's weights that keep their own start.
    """

    used: tuple[str, ...]
    left_behind: Mapping[str, str]
    drawn: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report as a person reads it: counts and reasons."""
        yield f"  {len(self.used)} weights taken over"
        for reason in dict.fromkeys(self.left_behind.values()):
            names = [name for name, why in self.left_behind.items() if why == reason]
            yield f"  left behind: {len(names)} ({reason}), such as {names[0]}"
        if self.drawn:
            yield f"  drawn anew: {len(self.drawn)}, such as {self.drawn[-1]}"


def load_start(network: SupervisedNetwork, weights: Mapping[str, Tensor], parts: str) -> StartReport:
    """Takes over an encoder, or encoder and decoder; the last layer is always a new one.

    Args:
        network: is written to.
        weights: of a U-Net of this project or of segmentation_models_pytorch, of an encoder of torchvision or timm, or
            of a published training; see :func:`dira_dist.models.pretrained.import_weights`.
        parts: ``encoder`` or ``encoder_decoder``.

    Raises:
        RequestError: nothing fits, something is not understood, or a part is not complete in them.
    """
    wanted = ("encoder.", "decoder.") if parts == "encoder_decoder" else ("encoder.",)
    own = network.state_dict()
    target = {name: weight for name, weight in own.items() if name.startswith(wanted)}
    left_out = {name: reason for name in weights if (reason := _why_left_out(name, wanted)) is not None}
    known = {name: weight for name, weight in weights.items() if name not in left_out}
    used, left_behind = translate(known, target)
    _check_complete(target, used)
    with torch.no_grad():
        for name, source in used.items():
            own[name].copy_(fit_weight(name, weights[source], own[name]))
    return StartReport(tuple(used), left_behind | left_out, tuple(name for name in own if name not in used))


def _why_left_out(name: str, wanted: tuple[str, ...]) -> str | None:
    """Why a weight is not looked for in the network: it is of a last layer, or of a decoder that is not wanted."""
    bare = _WRAPPERS.sub("", name)
    if bare.startswith(HEADS):
        return "a last layer, which is always drawn anew"
    if bare.startswith("decoder.") and "decoder." not in wanted:
        return "the decoder, which start.parts does not ask for"
    return None


def _check_complete(target: Mapping[str, Tensor], used: Mapping[str, str]) -> None:
    """Raises:
    RequestError: says what is missing, and the remedy.
    """
    missing = [name for name in target if name not in used and not name.endswith("num_batches_tracked")]
    if not used:
        raise RequestError(
            "start.from: the weights fit none of its weights: give those of the same encoder, or set model to theirs"
        )
    if missing and not any(name.startswith("decoder.") for name in used) and missing[0].startswith("decoder."):
        raise RequestError(
            "start.parts: encoder_decoder, and the weights have no decoder: set it to encoder, or start from a model "
            "whose decoder was trained"
        )
    if missing:
        raise RequestError(
            f"start.from: the weights lack {len(missing)} of the {len(target)} that are taken over, such as "
            f"{missing[0]}: give those of the same encoder and decoder, or set model to theirs"
        )


def parameter_depths(network: SupervisedNetwork) -> dict[str, int]:
    """How far behind the input each weight lies, by name: 0 of the stem, most of the last layer.

    The modules of the encoder and of the decoder count as they are listed, those that are numbered (``layer1``,
    ``blocks.3``) each by itself; a norm belongs to what stands before it.
    """
    order: dict[str, int] = {}
    for name, _ in network.named_parameters():
        block = _block_of(name)
        if not name.startswith(HEADS) and block not in order:
            is_norm = order and _NORM.match(block.rpartition(".")[2])
            order[block] = max(order.values()) if is_norm else len(set(order.values()))
    last = len(set(order.values()))
    return {name: last if name.startswith(HEADS) else order[_block_of(name)] for name, _ in network.named_parameters()}


_NORM = re.compile(r"_?(bn|norm)\d*$")
_STEM = re.compile(r"stem|patch_embed\d*$")
_LISTS = ("stages", "blocks", "layers", "features")


def _block_of(name: str) -> str:
    """The block that a weight belongs to: a module of the encoder or of the decoder, or one of a list of theirs."""
    words = [word for word in name.split(".")[:-1] if word != "model"]
    if len(words) > 1 and _STEM.match(words[1]):
        return f"{words[0]}.stem"
    is_list = len(words) > 2 and words[1].removeprefix("_") in _LISTS
    return ".".join(words[: 3 if is_list else 2])
