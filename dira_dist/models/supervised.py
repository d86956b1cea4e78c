"""Networks for labels and masks: what was pretrained, and a last layer of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.backbone import BackboneSection
from dira_dist.models.precision import average_over_positions
from dira_dist.models.pretrained import translate
from dira_dist.models.torch_internals import BatchNorm
from dira_dist.models.weights import fit_weight

HEADS = ("head.", "segmentation_head.")


class SupervisedNetwork(nn.Module):
    """An encoder, perhaps a decoder, and a last layer; weights are drawn from torch's global generator.

    Args:
        encoder: images to feature maps.
        norms_stay: whether the encoder's batch norms keep the statistics that they came with.

    Attributes:
        is_frozen: whether everything before the last layer stays as it is.
    """

    def __init__(self, encoder: nn.Module, norms_stay: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
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
            stays = self.is_frozen or (self._norms_stay and name.startswith("encoder."))
            if mode and stays and isinstance(module, BatchNorm):
                module.eval()
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
        super().__init__(backbone.encoder, norms_stay)
        self._unused = {name for name in config.unused_parameters(restore=False) if name.startswith("encoder.")}
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.dropout(average_over_positions(self.encoder(images)[-1])))
        return logits

    def unused_parameters(self) -> set[str]:
        return self._unused


class Segmenter(SupervisedNetwork):
    """Encoder and decoder of a U-Net, and a last convolution; its names are segmentation_models_pytorch's.

    Shapes: images ``(B, in_channels, H, W)`` to logits ``(B, outputs, H, W)``.

    Args:
        config: of the U-Net.
        outputs: how many.
        norms_stay: see :class:`SupervisedNetwork`.
    """

    def __init__(self, config: BackboneSection, outputs: int, *, norms_stay: bool = False) -> None:
        backbone = config.build()
        super().__init__(backbone.encoder, norms_stay)
        self._unused = set(config.unused_parameters(restore=True))
        self.decoder = backbone.get_submodule("decoder")
        last = backbone.get_submodule("segmentation_head.0")
        assert isinstance(last, nn.Conv2d), "U-Nets in two dimensions, so far"
        self.segmentation_head = smp.base.SegmentationHead(last.in_channels, outputs)
        smp.base.initialization.initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(images)))
        return logits

    def unused_parameters(self) -> set[str]:
        return self._unused


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
    known = {name: weight for name, weight in weights.items() if not _is_left(name, wanted)}
    used, left_behind = translate(known, target)
    missing = [name for name in target if name not in used and not name.endswith("num_batches_tracked")]
    if not used or missing:
        found = f"lack {len(missing)} of its {len(target)}, such as {missing[0]}" if used else "fit none of its weights"
        raise RequestError(
            f"start.from: the weights {found}: give those of the same encoder (and, for encoder_decoder, decoder), or "
            "set model to theirs"
        )
    with torch.no_grad():
        for name, source in used.items():
            own[name].copy_(fit_weight(name, weights[source], own[name]))
    others = {name: "not asked for by start.parts" for name in weights if _is_left(name, wanted)}
    return StartReport(tuple(used), left_behind | others, tuple(name for name in own if name not in used))


def _is_left(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a name is of a decoder that is not wanted, or of a last layer, which never is."""
    bare = name.removeprefix("module.")
    return bare.startswith(HEADS) or (bare.startswith("decoder.") and "decoder." not in wanted)


def parameter_depths(network: SupervisedNetwork) -> dict[str, int]:
    """How far behind the input each weight lies, by name: 0 of the stem, most of the last layer.

    The modules of the encoder and of the decoder count as they are listed, those that are numbered (``layer1``,
    ``blocks.3``) each by itself.
    """
    order: dict[str, int] = {}
    places = {name: order.setdefault(_block_of(name), len(order)) for name, _ in network.named_parameters()}
    last = len(order)
    return {name: last if name.startswith(HEADS) else place for name, place in places.items()}


_STEM = ("conv1", "bn1", "stem", "conv_stem", "patch_embed")


def _block_of(name: str) -> str:
    """The block that a weight belongs to."""
    words = name.split(".")[:-1]
    inner = [word for word in words if word != "model"]
    if words[0] == "encoder" and len(inner) > 1:
        return (
            "stem" if inner[1].startswith(_STEM) else ".".join(inner[: 3 if inner[2:3] and _is_list(inner[1]) else 2])
        )
    return ".".join(inner[:3])


def _is_list(name: str) -> bool:
    return name in ("stages", "blocks", "layers", "features")
