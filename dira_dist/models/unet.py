"""The U-Net that is pretrained: an encoder of segmentation_models_pytorch or timm, a decoder with skips, a sigmoid.

Ronneberger et al., *U-Net* (MICCAI 2015). Parts, their names and state dicts are segmentation_models_pytorch's.

The libraries are imported where a network is built: they and what they import take as long as PyTorch itself.
"""

import difflib
from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from dira_dist.config import RequestError, per_axis
from dira_dist.models.backbone import Backbone, BackboneSection, Size, built_on_meta
from dira_dist.models.checkpointing import recompute, segments
from dira_dist.models.export import Exported, Format, export
from dira_dist.models.precision import at_least_float32

TIMM_PREFIX = "tu-"
DEFAULT_IMAGE_SIZE_PX = 224
RESNETS = frozenset(f"resnet{layers}" for layers in (18, 34, 50, 101, 152))
"""Encoders that are known without a look at the libraries: with them every multiple of 32 px is a size of images."""


class UNetConfig(BackboneSection):
    """A two-dimensional U-Net on an encoder of segmentation_models_pytorch or timm."""

    libraries: ClassVar[tuple[Format, ...]] = ("torchvision", "timm", "smp")

    name: Literal["unet"] = "unet"
    encoder: str = Field(
        "resnet50", description="any encoder of segmentation_models_pytorch; timm's are `tu-` and timm's name"
    )
    rgb: bool = Field(
        True,
        description="three channels are red, green and blue: views turn their hue, and their luma is restored; false: "
        "they are three sequences, changed and restored one by one",
    )
    zero_init_residual: bool = Field(
        False,
        description="start residual blocks as the identity, their last norms at 0, as SimSiam does; timm's always do",
    )
    decoder_channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256, 128, 64, 32, 16),
        min_length=5,
        max_length=5,
        description="channels of the five decoder blocks, deepest first",
    )

    @field_validator("encoder")
    @classmethod
    def _encoder_is_known(cls, name: str) -> str:
        if not _is_known(name):
            nearest = difflib.get_close_matches(name, _known_encoders(), n=3, cutoff=0.5)
            hint = f" Nearest known: {', '.join(nearest)}." if nearest else ""
            raise RequestError(
                f"unknown encoder {name!r}: allowed are the encoders of segmentation_models_pytorch "
                f"and timm's as `{TIMM_PREFIX}NAME`.{hint}"
            )
        return name

    @model_validator(mode="after")
    def _residual_blocks_are_there(self) -> "UNetConfig":
        if self.zero_init_residual:
            built_on_meta(partial(_build_encoder, self))
        return self

    def build(self) -> "UNet":
        return UNet(self)

    def check_image_size(self, image_size: Size) -> None:
        check_image_size(self, image_size)

    def unused_parameters(self, restore: bool) -> set[str]:
        return unused_parameters(self, restore)

    def export(self, state: Mapping[str, Tensor], library: Format, in_channels: int) -> Exported:
        return export(state, self.encoder, library, in_channels)

    @property
    def is_rgb(self) -> bool:
        return self.in_channels == 3 and self.rgb

    @property
    def label(self) -> str:
        return self.encoder

    @property
    def cell_px(self) -> int:
        return 32  # five times halved, as all of smp's and most of timm's


class UNet(Backbone):
    """Encoder, decoder and head; random weights, drawn from torch's global generator.

    Raises:
        RequestError: the encoder cannot give feature maps for a decoder.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        import segmentation_models_pytorch as smp
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__()
        self.config = config
        self.encoder = _build_encoder(config)
        channels = _feature_channels(self.encoder)
        self.channels = channels[-1]
        self.decoder = UnetDecoder(
            encoder_channels=channels,
            decoder_channels=config.decoder_channels,
            n_blocks=len(config.decoder_channels),
            add_center_block=config.encoder.startswith("vgg"),
        )
        self.segmentation_head = smp.base.SegmentationHead(
            config.decoder_channels[-1], out_channels=self.restored_channels
        )
        smp.base.initialization.initialize_decoder(self.decoder)
        smp.base.initialization.initialize_head(self.segmentation_head)
        if config.gradient_checkpointing:
            self._recompute_stages()

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The restoration; its sigmoid is in float32, for bfloat16 has 256 grey levels at best."""
        logits: Tensor = self.segmentation_head(self.decoder(maps))
        return at_least_float32(logits).sigmoid()

    def last_layer(self, outputs: int) -> nn.Module:
        import segmentation_models_pytorch as smp

        head: nn.Module = smp.base.SegmentationHead(self.config.decoder_channels[-1], outputs)
        smp.base.initialization.initialize_head(head)
        return head

    def _recompute_stages(self) -> None:
        for name in _encoder_segments(self.config.encoder, self.config.in_channels):
            recompute(self.encoder.get_submodule(name))
        for block in self.decoder.blocks:
            recompute(block)


def check_image_size(config: UNetConfig, image_size: Size) -> None:
    """Runs the network's shapes, not its arithmetic, at ``image_size`` pixels.

    Raises:
        RequestError: the encoder or decoder cannot take that size.
    """
    size = per_axis(image_size, config.dims)
    if config.encoder in RESNETS and all(side and side % config.cell_px == 0 for side in size):
        return
    network = on_meta(config)
    try:
        with torch.no_grad():
            _, restoration = network.eval()(torch.empty(1, config.in_channels, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"encoder {config.encoder!r} cannot take images of {image_size} px ({_first_line(error)}): choose "
            f"another image size, {_usual_image_size(config.encoder)} px for one, or another encoder"
        ) from error
    if restoration is None or tuple(restoration.shape[2:]) != size:
        raise RequestError(
            f"encoder {config.encoder!r} turns images of {image_size} px into restorations of another size: choose an "
            "image size that is a multiple of 32"
        )


def unused_parameters(config: UNetConfig, restore: bool) -> set[str]:
    """Names of parameters that get no gradient from a forward pass, so that nothing waits for them.

    Found by a backward pass over shapes alone. Some encoders keep layers of their classifier; without ``restore``
    the decoder is among them, and with some encoders norms of the skips.
    """
    network = on_meta(config)
    size = _usual_image_size(config.encoder)
    pooled, restoration = network(torch.empty(2, config.in_channels, size, size, device="meta"), restore)
    (pooled.sum() if restoration is None else pooled.sum() + restoration.sum()).backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is None}


def _build_encoder(config: UNetConfig) -> nn.Module:
    import segmentation_models_pytorch as smp

    try:
        encoder: nn.Module = smp.encoders.get_encoder(config.encoder, in_channels=config.in_channels, weights=None)
    except (RuntimeError, ValueError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise RequestError(
            f"encoder {config.encoder!r} gives no pyramid of feature maps for a U-Net ({_first_line(error)}): choose a "
            "convolutional or hierarchical encoder, such as resnet50 or tu-convnext_tiny"
        ) from error
    if config.zero_init_residual:
        _start_as_identity(encoder, config.encoder)
    return encoder.to(torch.get_default_device())  # smp makes a first convolution of one channel on the CPU


def _start_as_identity(encoder: nn.Module, name: str) -> None:
    """The last norm of each residual block at 0 (Goyal et al., *Accurate, Large Minibatch SGD*, 2017, section 5.1)."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    norms = [block.bn3 for block in encoder.modules() if isinstance(block, Bottleneck)]
    norms += [block.bn2 for block in encoder.modules() if isinstance(block, BasicBlock)]
    timms: list[Any] = [block for block in encoder.modules() if hasattr(block, "zero_init_last")]
    if not norms and not timms:
        raise RequestError(
            f"encoder {name!r} has no residual blocks of torchvision's or timm's ResNets, whose last norms could start "
            "at 0: leave model.zero_init_residual out, or choose such an encoder, resnet50 for one"
        )
    for norm in norms:
        nn.init.zeros_(norm.weight)
    for block in timms:
        block.zero_init_last()


def _feature_channels(encoder: Any) -> list[int]:
    """Channels of each feature map, the input's first: an attribute of smp's encoders, not of every module."""
    return list(encoder.out_channels)


@cache
def _encoder_segments(encoder: str, in_channels: int) -> tuple[str, ...]:
    network = on_meta(UNetConfig(encoder=encoder, in_channels=in_channels)).encoder.eval()
    size = _usual_image_size(encoder)
    with torch.no_grad():
        return tuple(segments(network, lambda: network(torch.empty(1, in_channels, size, size, device="meta"))))


def on_meta(config: UNetConfig) -> UNet:
    """The network without memory for its weights; gradient checkpointing is no matter for its shapes."""
    return built_on_meta(partial(UNet, config.model_copy(update={"gradient_checkpointing": False})))


@cache
def _known_encoders() -> tuple[str, ...]:
    import segmentation_models_pytorch as smp
    import timm

    return (*smp.encoders.get_encoder_names(), *(TIMM_PREFIX + name for name in timm.list_models()))


def _is_known(name: str) -> bool:
    if name in RESNETS:
        return True
    if name.startswith(TIMM_PREFIX):
        import timm

        return bool(timm.is_model(name.removeprefix(TIMM_PREFIX)))
    return name in _known_encoders()


def _usual_image_size(encoder: str) -> int:
    """Side in pixels the encoder was made for."""
    if not encoder.startswith(TIMM_PREFIX):
        return DEFAULT_IMAGE_SIZE_PX
    import timm

    settings = timm.get_pretrained_cfg(encoder.removeprefix(TIMM_PREFIX))
    return int(settings.input_size[-1]) if settings else DEFAULT_IMAGE_SIZE_PX


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
