"""The U-Net that is pretrained: an encoder of segmentation_models_pytorch or timm, a decoder with skips, a sigmoid.

Ronneberger et al., *U-Net* (MICCAI 2015). Parts, their names and state dicts are segmentation_models_pytorch's.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar

import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import Field, field_validator
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from dira_dist.config import RequestError, Section, per_axis
from dira_dist.models.checkpointing import recompute, segments
from dira_dist.models.precision import at_least_float32, average_over_positions

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TIMM_PREFIX = "tu-"
DEFAULT_IMAGE_SIZE_PX = 224


class UNetConfig(Section):
    """The network to pretrain."""

    encoder: str = Field(
        default="resnet50", description="any encoder of segmentation_models_pytorch; timm's are `tu-` and timm's name"
    )
    in_channels: Literal[1, 3] = Field(default=1, description="channels of the input: 1 (grey) or 3")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, more time"
    )
    init: str | None = Field(
        default=None, description="file of weights to start from (.pt, .pth, .safetensors); random where left out"
    )
    decoder_channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=5, max_length=5)] = Field(
        default=(256, 128, 64, 32, 16), description="channels of the five decoder blocks, deepest first"
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


class UNet(nn.Module):
    """Encoder, decoder and head; random weights, drawn from torch's global generator.

    Shapes: input ``(B, in_channels, H, W)``; features a list, from full resolution down; pooled ``(B, channels)``;
    restoration ``(B, 1, H, W)`` in [0, 1], float32.

    Raises:
        RequestError: the encoder cannot give feature maps for a decoder.
    """

    def __init__(self, config: UNetConfig) -> None:
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
        self.segmentation_head = smp.base.SegmentationHead(config.decoder_channels[-1], out_channels=1)
        smp.base.initialization.initialize_decoder(self.decoder)
        smp.base.initialization.initialize_head(self.segmentation_head)
        if config.gradient_checkpointing:
            self._recompute_stages()

    def forward(self, image: Tensor, restore: bool = True) -> tuple[Tensor, Tensor | None]:
        """``(pooled, restoration)``; without ``restore`` the decoder does not run and the restoration is None."""
        features = self.encode(image)
        return self.pooled(features), self.decode(features) if restore else None

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps, the input's resolution first and the deepest last."""
        features: list[Tensor] = self.encoder(image)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """The restoration, ``(B, 1, H, W)``; its sigmoid is in float32, for bfloat16 has 256 grey levels at best."""
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return at_least_float32(logits).sigmoid()

    def pooled(self, features: list[Tensor]) -> Tensor:
        """The deepest feature map, averaged over its positions: ``(B, channels)``."""
        return average_over_positions(features[-1])

    def _recompute_stages(self) -> None:
        for name in _encoder_segments(self.config.encoder, self.config.in_channels):
            recompute(self.encoder.get_submodule(name))
        for block in self.decoder.blocks:
            recompute(block)


def check_image_size(config: UNetConfig, image_size: int | Sequence[int]) -> None:
    """Runs the network's shapes, not its arithmetic, at ``image_size`` pixels, or as many for each axis.

    Raises:
        RequestError: the encoder or decoder cannot take that size.
    """
    network, sides_px = on_meta(config), per_axis(image_size, 2)
    try:
        with torch.no_grad():
            _, restoration = network.eval()(torch.empty(1, config.in_channels, *sides_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"encoder {config.encoder!r} cannot take images of {image_size} px ({_first_line(error)}): choose "
            f"another image size, {_usual_image_size(config.encoder)} px for one, or another encoder"
        ) from error
    if restoration is None or restoration.shape[2:] != sides_px:
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
    try:
        encoder: nn.Module = smp.encoders.get_encoder(config.encoder, in_channels=config.in_channels, weights=None)
    except (RuntimeError, ValueError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise RequestError(
            f"encoder {config.encoder!r} gives no pyramid of feature maps for a U-Net ({_first_line(error)}): choose a "
            "convolutional or hierarchical encoder, such as resnet50 or tu-convnext_tiny"
        ) from error
    return encoder.to(torch.get_default_device())  # smp makes a first convolution of one channel on the CPU


def _feature_channels(encoder: Any) -> list[int]:
    """Channels of each feature map, the input's first: an attribute of smp's encoders, not of every module."""
    return list(encoder.out_channels)


@cache
def _encoder_segments(encoder: str, in_channels: Literal[1, 3]) -> tuple[str, ...]:
    network = on_meta(UNetConfig(encoder=encoder, in_channels=in_channels)).encoder.eval()
    size = _usual_image_size(encoder)
    with torch.no_grad():
        return tuple(segments(network, lambda: network(torch.empty(1, in_channels, size, size, device="meta"))))


def on_meta(config: UNetConfig) -> UNet:
    """The network without memory for its weights; gradient checkpointing is no matter for its shapes."""
    return built_on_meta(partial(UNet, config.model_copy(update={"gradient_checkpointing": False})))


def built_on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """A module without memory for its weights, and no random number drawn for it."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build().to("meta")
        except RequestError:  # some encoders compute with numbers while they are built, and meta tensors have none
            return build().to("meta")


@cache
def _known_encoders() -> tuple[str, ...]:
    return (*smp.encoders.get_encoder_names(), *(TIMM_PREFIX + name for name in timm.list_models()))


def _is_known(name: str) -> bool:
    if name.startswith(TIMM_PREFIX):
        return bool(timm.is_model(name.removeprefix(TIMM_PREFIX)))
    return name in _known_encoders()


def _usual_image_size(encoder: str) -> int:
    """Side in pixels the encoder was made for."""
    if not encoder.startswith(TIMM_PREFIX):
        return DEFAULT_IMAGE_SIZE_PX
    settings = timm.get_pretrained_cfg(encoder.removeprefix(TIMM_PREFIX))
    return int(settings.input_size[-1]) if settings else DEFAULT_IMAGE_SIZE_PX


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
