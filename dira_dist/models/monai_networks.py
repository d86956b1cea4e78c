"""Networks of MONAI whose encoder stands apart, by name: SegResNet, BasicUNet and DynUNet, in three dimensions.

The modules are MONAI's own, put in the order of an encoder and a decoder; weights go back under MONAI's names. MONAI is
imported where a network is built, for that takes seconds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from dira_dist.config import RequestError, per_axis
from dira_dist.models.backbone import Backbone, BackboneSection, Size, built_on_meta, fitting_sides
from dira_dist.models.bf16_on_cpus import avoid_faulty_bf16
from dira_dist.models.checkpointing import recompute
from dira_dist.models.export import Exported, Format
from dira_dist.models.precision import at_least_float32
from dira_dist.models.unet3d import AXES

Channels = Annotated[int, Field(ge=1)]
_HEAD = "segmentation_head."
Stride = Annotated[int, Field(ge=1, le=4)]


@dataclass(frozen=True)
class Parts:
    """Modules of a MONAI network, by what they do.

    Attributes:
        encoder: one for each resolution, each called with the map above.
        decoder: one for each resolution but the deepest, from there up, called with the map below and the encoder's.
        last: between the decoder and the last convolution.
        head: the last convolution.
    """

    encoder: Sequence[nn.Module]
    decoder: Sequence[nn.Module]
    last: nn.Module
    head: nn.Module


class MonaiSection(BackboneSection):
    """A network of MONAI. Its settings have the names of MONAI's arguments."""

    dims: ClassVar[Literal[2, 3]] = 3
    libraries: ClassVar[tuple[Format, ...]] = ("monai",)
    monai_name: ClassVar[str]
    """The class of ``monai.networks.nets``."""
    encoder_modules: ClassVar[tuple[str, ...]]
    """Expressions for the modules of a network ``model`` that one after the other are its encoder."""
    beside_encoder: ClassVar[tuple[str, ...]]
    """Attributes of the network that are no part of its encoder."""

    def arguments(self) -> dict[str, Any]:
        """What MONAI's class is built with, beside the dimensions and channels."""
        raise NotImplementedError

    def parts(self, network: Any) -> Parts:
        """Modules of a network of :attr:`monai_name`."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[int, int, int]:
        """Voxels along each axis that the deepest map has one for."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's maps."""
        raise NotImplementedError

    @property
    def stored_names(self) -> str:
        return "dira-dist"

    @property
    def label(self) -> str:
        return f"{self.name}-{self.widths[0]}"

    @property
    def cell_px(self) -> int:
        return min(self.steps)

    def build(self) -> "MonaiBackbone":
        return MonaiBackbone(self)

    def network(self, out_channels: int) -> nn.Module:
        """MONAI's network.

        Raises:
            RequestError: MONAI is not there, or refuses the settings.
        """
        kind = getattr(_networks(), self.monai_name)
        try:
            network: nn.Module = kind(**self._called_with(out_channels))
        except (ValueError, TypeError) as error:
            raise RequestError(f"model: MONAI's {self.monai_name} refuses {self.arguments()}: {error}") from error
        return network

    def check_image_size(self, image_size: Size) -> None:
        """Sides that the levels divide without a rest, and more than one voxel of them left at the deepest."""
        sides, steps = per_axis(image_size, self.dims), self.steps
        fitting = fitting_sides(sides, steps)
        if list(sides) != fitting:
            raise RequestError(
                f"a {self.name} of these settings takes sides that are multiples of {list(steps)}, twice that or more "
                f"along one axis at least: the nearest is {fitting}; or give the network fewer levels"
            )

    def unused_parameters(self, restore: bool) -> set[str]:
        """All of the decoder where nothing is restored."""
        names = (name for name, _ in built_on_meta(self.build).named_parameters())
        return set() if restore else {name for name in names if not name.startswith("encoder.")}

    def own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under MONAI's names, of this network, by its own ones; those that are none of MONAI's as they are."""
        mine = self._monai_names()
        return {mine.get(name, name): tensor for name, tensor in weights.items()}

    def export(self, state: Mapping[str, Tensor], library: Format, in_channels: int) -> Exported:
        """The network as MONAI builds it; of the encoder alone, without what it has beside."""
        if library not in self.libraries:
            raise RequestError(f"format {library!r}: {library} has no {self.name}; possible for this network: monai")
        if in_channels != self.in_channels:
            raise RequestError(
                f"input channels: found {in_channels}, of a network that takes {self.in_channels}; allowed: "
                f"{self.in_channels}, its own"
            )
        outputs = next((each.shape[0] for name, each in state.items() if name.startswith(_HEAD)), None)
        own = {theirs: state[mine] for theirs, mine in self._monai_names().items() if mine in state}
        if outputs is None:
            own = {name: each for name, each in own.items() if name.partition(".")[0] not in self.beside_encoder}
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in own.items()}
        chain = f"torch.nn.Sequential({', '.join(self.encoder_modules)})"
        return Exported(own, self._construction(outputs), f"{chain}(x).mean((-3, -2, -1))", axes=AXES)

    def _monai_names(self) -> dict[str, str]:
        """MONAI's names of the weights, of which some have several, to those of :class:`MonaiBackbone`."""
        network = built_on_meta(lambda: self.network(1))
        mine = {id(value): name for name, value in _arranged(self.parts(network)).state_dict(keep_vars=True).items()}
        return {name: mine[id(value)] for name, value in network.state_dict(keep_vars=True).items()}

    def _construction(self, outputs: int | None) -> tuple[str, ...]:
        """Lines that make the network, or what of it is the encoder."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._called_with(outputs or 1).items())
        lines = (
            "import torch",
            f"from monai.networks.nets import {self.monai_name}",
            f"model = {self.monai_name}({arguments})",
        )
        if outputs is not None:
            return lines
        return (*lines, f"del {', '.join(f'model.{name}' for name in self.beside_encoder)}  # the encoder stays")

    def _called_with(self, out_channels: int) -> dict[str, Any]:
        dimensions = {"spatial_dims": self.dims, "in_channels": self.in_channels, "out_channels": out_channels}
        return dimensions | self.arguments()


class MonaiBackbone(Backbone):
    """Encoder, decoder and head made of a MONAI network's own modules."""

    config: MonaiSection

    def __init__(self, config: MonaiSection) -> None:
        super().__init__()
        self.config = config
        parts = config.parts(config.network(self.restored_channels))
        arranged = _arranged(parts)
        self.encoder, self.decoder = arranged["encoder"], arranged["decoder"]
        self.segmentation_head = arranged["segmentation_head"]
        self.channels = config.widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                avoid_faulty_bf16(module)
        if config.gradient_checkpointing:
            for segment in (*parts.encoder, *parts.decoder):
                recompute(segment)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The restoration; its sigmoid is in float32."""
        logits: Tensor = self.segmentation_head(self.decoder(maps))
        return at_least_float32(logits).sigmoid()

    def last_layer(self, outputs: int) -> nn.Module:
        return nn.Sequential(self.config.parts(self.config.network(outputs)).head)


class MonaiEncoder(nn.Module):
    """Volumes (B, in_channels, *S) to feature maps, full resolution first."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, volumes: Tensor) -> list[Tensor]:
        """The feature maps."""
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(maps[-1] if maps else volumes))
        return maps


class MonaiDecoder(nn.Module):
    """Feature maps to one map of full resolution."""

    def __init__(self, blocks: Iterable[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(blocks), last

    def forward(self, maps: list[Tensor]) -> Tensor:
        """That map."""
        found = maps[-1]
        for block, skip in zip(self.blocks, maps[-2::-1], strict=True):
            found = block(found, skip)
        activated: Tensor = self.last(found)
        return activated


class Added(nn.Module):
    """The map below, enlarged, plus the encoder's, through SegResNet's residual blocks."""

    def __init__(self, enlarge: nn.Module, mix: nn.Module) -> None:
        super().__init__()
        self.enlarge, self.mix = enlarge, mix

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """(B, 2 C, *S / 2) and (B, C, *S) to (B, C, *S)."""
        mixed: Tensor = self.mix(self.enlarge(deep) + skip)
        return mixed


def _arranged(parts: Parts) -> nn.ModuleDict:
    """The parts under the names that every backbone of this package has."""
    return nn.ModuleDict(
        {
            "encoder": MonaiEncoder(parts.encoder),
            "decoder": MonaiDecoder(parts.decoder, parts.last),
            "segmentation_head": nn.Sequential(parts.head),
        }
    )


def _networks() -> Any:
    try:
        return import_module("monai.networks.nets")
    except ImportError as error:
        raise RequestError(
            f"model: its network is MONAI's, which cannot be imported ({error}): install it, `pip install monai`, or "
            "take model.name: unet3d"
        ) from error


class SegResNetConfig(MonaiSection):
    """Residual blocks with group norms; the decoder adds the encoder's maps.

    Myronenko, *3D MRI Brain Tumor Segmentation Using Autoencoder Regularization* (BrainLes 2018), without the
    autoencoder. The defaults are the published widths and depths.
    """

    monai_name: ClassVar[str] = "SegResNet"
    encoder_modules: ClassVar[tuple[str, ...]] = ("model.convInit", "*model.down_layers")
    beside_encoder: ClassVar[tuple[str, ...]] = ("up_layers", "up_samples", "conv_final")

    name: Literal["segresnet"] = "segresnet"
    init_filters: int = Field(
        32, ge=8, multiple_of=8, description="channels at full resolution, doubled at each level below"
    )
    blocks_down: tuple[Channels, ...] = Field(
        (1, 2, 2, 4), min_length=2, max_length=6, description="residual blocks of each level of the encoder"
    )
    blocks_up: tuple[Channels, ...] | None = Field(
        None, description="residual blocks of each level of the decoder, one level fewer; left out: 1 each"
    )

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        wanted = len(self.blocks_down) - 1
        if self.blocks_up is not None and len(self.blocks_up) != wanted:
            raise ValueError(
                f"found blocks_up {list(self.blocks_up)} beside blocks_down {list(self.blocks_down)}; the decoder has "
                f"one level fewer: give {wanted} numbers, or leave blocks_up out"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        up = self.blocks_up or (1,) * (len(self.blocks_down) - 1)
        return {"init_filters": self.init_filters, "blocks_down": self.blocks_down, "blocks_up": up}

    def parts(self, network: Any) -> Parts:
        first, *deeper = network.down_layers
        norm, activation, head = network.conv_final
        decoder = [Added(*pair) for pair in zip(network.up_samples, network.up_layers, strict=True)]
        return Parts([nn.Sequential(network.convInit, first), *deeper], decoder, nn.Sequential(norm, activation), head)

    @property
    def steps(self) -> tuple[int, int, int]:
        step = 2 ** (len(self.blocks_down) - 1)
        return step, step, step

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.init_filters * 2**level for level in range(len(self.blocks_down)))


class BasicUNetConfig(MonaiSection):
    """A U-Net of five levels with instance norms, after Falk et al., *U-Net* (Nature Methods 16, 2019)."""

    monai_name: ClassVar[str] = "BasicUNet"
    encoder_modules: ClassVar[tuple[str, ...]] = ("model.conv_0", *(f"model.down_{level}" for level in range(1, 5)))
    beside_encoder: ClassVar[tuple[str, ...]] = (*(f"upcat_{level}" for level in range(4, 0, -1)), "final_conv")

    name: Literal["basicunet"] = "basicunet"
    features: tuple[Channels, ...] = Field(
        (32, 32, 64, 128, 256, 32),
        min_length=6,
        max_length=6,
        description="channels of the five levels, full resolution first, and of the decoder's last map",
    )

    def arguments(self) -> dict[str, Any]:
        return {"features": self.features}

    def parts(self, network: Any) -> Parts:
        encoder = [network.conv_0, network.down_1, network.down_2, network.down_3, network.down_4]
        decoder = [network.upcat_4, network.upcat_3, network.upcat_2, network.upcat_1]
        return Parts(encoder, decoder, nn.Identity(), network.final_conv)

    @property
    def steps(self) -> tuple[int, int, int]:
        return 16, 16, 16

    @property
    def widths(self) -> tuple[int, ...]:
        return self.features[:5]


class DynUNetConfig(MonaiSection):
    """nnU-Net's U-Net: strided convolutions, instance norms, strides by axis for voxels that are no cubes.

    Isensee et al., *nnU-Net* (Nature Methods 18, 2021). Kernels are 3 x 3 x 3; without deep supervision.
    """

    monai_name: ClassVar[str] = "DynUNet"
    encoder_modules: ClassVar[tuple[str, ...]] = ("model.input_block", "*model.downsamples", "model.bottleneck")
    beside_encoder: ClassVar[tuple[str, ...]] = ("upsamples", "output_block", "skip_layers")

    name: Literal["dynunet"] = "dynunet"
    filters: tuple[Channels, ...] = Field(
        (32, 64, 128, 256, 320), min_length=3, max_length=7, description="channels of each level, full resolution first"
    )
    strides: tuple[Stride | tuple[Stride, Stride, Stride], ...] | None = Field(
        None, description="of each level, one number or one for each axis, the first 1; left out: 1, then 2 each"
    )
    res_block: bool = Field(False, description="residual blocks")

    @model_validator(mode="after")
    def _strides_fit(self) -> Self:
        strides = self._strides
        if len(strides) != len(self.filters) or per_axis(strides[0], 3) != (1, 1, 1):
            raise ValueError(
                f"found strides {list(strides)}; allowed is one for each of the {len(self.filters)} levels of filters, "
                "the first 1, for the restoration has the size of the input; or leave strides out"
            )
        return self

    @property
    def _strides(self) -> tuple[int | tuple[int, int, int], ...]:
        return self.strides or (1, *(2 for _ in self.filters[1:]))

    def arguments(self) -> dict[str, Any]:
        strides = self._strides
        return {
            "kernel_size": (3,) * len(strides),
            "strides": strides,
            "upsample_kernel_size": strides[1:],
            "filters": self.filters,
            "res_block": self.res_block,
        }

    def parts(self, network: Any) -> Parts:
        encoder = [network.input_block, *network.downsamples, network.bottleneck]
        return Parts(encoder, list(network.upsamples), nn.Identity(), network.output_block)

    @property
    def steps(self) -> tuple[int, int, int]:
        each = [per_axis(stride, 3) for stride in self._strides]
        x, y, z = (math.prod(along) for along in zip(*each, strict=True))
        return x, y, z

    @property
    def widths(self) -> tuple[int, ...]:
        return self.filters
