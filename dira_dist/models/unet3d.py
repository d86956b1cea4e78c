"""The 3D U-Net as a network to pretrain; what it is made of stands in ``unet3d_network.py``, with its sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.config import RequestError, per_axis
from dira_dist.models import unet3d_network
from dira_dist.models.backbone import Backbone, BackboneSection, Size, built_on_meta, fitting_sides
from dira_dist.models.bf16_on_cpus import avoid_faulty_bf16
from dira_dist.models.checkpointing import recompute
from dira_dist.models.export import Exported, Format
from dira_dist.models.precision import at_least_float32
from dira_dist.models.torch_internals import convolution_backward
from dira_dist.models.unet3d_network import Join, UNet3d, last_layer

AXES = "X, Y, Z"
CODE = (Path(unet3d_network.__file__),)
"""What its lines of construction import."""


class UNet3dConfig(BackboneSection):
    """A three-dimensional U-Net for cubes of CT and MR. The defaults are the published network of 19.07 M weights."""

    dims: ClassVar[Literal[2, 3]] = 3
    libraries: ClassVar[tuple[Format, ...]] = ("torch",)

    name: Literal["unet3d"] = "unet3d"
    width: int = Field(64, ge=2, multiple_of=2, description="channels at full resolution, doubled at each level below")
    levels: int = Field(4, ge=2, le=6, description="resolutions, each half the one before")
    norm: Literal["batch", "group", "instance"] = Field(
        "batch", description="batch as published; group or instance where a worker has few cubes of a batch"
    )

    def build(self) -> "UNet3dBackbone":
        return UNet3dBackbone(self)

    def check_image_size(self, image_size: Size) -> None:
        """Sides that the levels halve without a rest, and more than one voxel of them left at the deepest."""
        sides, step = per_axis(image_size, self.dims), 2 ** (self.levels - 1)
        fitting = fitting_sides(sides, [step] * self.dims)
        if list(sides) != fitting:
            raise RequestError(
                f"a unet3d of {self.levels} levels takes sides that are multiples of {step}, of {2 * step} px or more "
                f"along one axis at least: the nearest is {fitting}; or set model.levels to fewer"
            )

    def unused_parameters(self, restore: bool) -> set[str]:
        """All of the decoder where nothing is restored."""
        names = (name for name, _ in built_on_meta(self.build).named_parameters())
        return set() if restore else {name for name in names if not name.startswith("encoder.")}

    def export(self, state: Mapping[str, Tensor], library: Format, in_channels: int) -> Exported:
        """The network as ``unet3d_network.py`` makes it, which travels with the weights and imports torch alone."""
        if library not in self.libraries:
            raise RequestError(
                f"format {library!r}: {library} has no 3D U-Net of these layers; possible for this network: torch"
            )
        if in_channels != self.in_channels:
            raise RequestError(
                f"input channels: found {in_channels}, of a network that takes {self.in_channels}; allowed: "
                f"{self.in_channels}, its own"
            )
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        form = f"width={self.width}, levels={self.levels}, norm={self.norm!r}"
        head = own.get("segmentation_head.0.weight")
        if head is None:
            own = {name.removeprefix("encoder."): tensor for name, tensor in own.items() if name.startswith("encoder.")}
            lines = ("from unet3d_network import Encoder", f"model = Encoder({in_channels}, {form})")
            encoder = "model"
        else:
            call = f"UNet3d(in_channels={in_channels}, out_channels={head.shape[0]}, {form})"
            lines, encoder = ("from unet3d_network import UNet3d", f"model = {call}"), "model.encoder"
        features = f"{encoder}(x)[-1].mean((-3, -2, -1))"
        return Exported(own, lines, features, axes=AXES, code=CODE)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.width}"

    @property
    def cell_px(self) -> int:
        return int(2 ** (self.levels - 1))


class UNet3dBackbone(Backbone):
    """Encoder, decoder and head of :class:`~dira_dist.models.unet3d_network.UNet3d`, under its names."""

    config: UNet3dConfig

    def __init__(self, config: UNet3dConfig) -> None:
        super().__init__()
        self.config = config
        network = UNet3d(config.in_channels, self.restored_channels, config.width, config.levels, config.norm)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.segmentation_head = network.segmentation_head
        self.channels = network.encoder.channels[-1]
        if config.gradient_checkpointing:
            _recompute_levels(network)
        for module in (*network.encoder.modules(), *network.decoder.modules()):
            _initialize(module)
            if isinstance(module, nn.Conv3d | Join):
                avoid_faulty_bf16(module)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The restoration; its sigmoid is in float32."""
        logits: Tensor = self.segmentation_head(self.decoder(maps))
        return at_least_float32(logits).sigmoid()

    def last_layer(self, outputs: int) -> nn.Module:
        return last_layer(self.config.width, outputs)


def _recompute_levels(network: UNet3d) -> None:
    """Levels as a whole; of the decoder's last, whose maps are the largest, each half by itself."""
    *deeper, last = network.decoder.blocks
    last.get_submodule("join").__class__ = SparingJoin
    for segment in (*network.encoder.blocks, *deeper, *last.children()):
        recompute(segment)


class SparingJoin(Join):
    """The same numbers, with less memory for the enlarged map, which is the largest of all."""

    def convolved(self, deep: Tensor, skip: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler plans the memory itself
            return super().convolved(deep, skip)
        of_deep, of_skip = self.conv.weight.split([deep.shape[1], skip.shape[1]], 1)
        joined: Tensor = _ConvolvedEnlarged.apply(deep, self.enlarge.weight, self.enlarge.bias, of_deep)
        return joined.add_(functional.conv3d(skip, of_skip, self.conv.bias, padding=1))


class _ConvolvedEnlarged(torch.autograd.Function):
    """A map enlarged by a transposed convolution, and convolved.

    The enlarged map is not kept, and when it is made again for the gradient of the kernel, it is gone before its own
    gradient is there, which is as large.
    """

    @staticmethod
    def forward(ctx: Any, deep: Tensor, up: Tensor, up_bias: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(deep, up, up_bias, kernel)
        return functional.conv3d(functional.conv_transpose3d(deep, up, up_bias, stride=2), kernel, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        given = ctx.saved_tensors
        deep, up, up_bias, kernel = (each.to(gradient.dtype) for each in given)  # as autocast did on the way forth
        enlarged = functional.conv_transpose3d(deep, up, up_bias, stride=2)
        _, of_kernel, _ = _of_convolution(gradient, enlarged, kernel, (False, True, False))
        placeholder = enlarged.new_empty(1).expand(enlarged.shape)  # only its shape matters from here on
        del enlarged
        of_enlarged, _, _ = _of_convolution(gradient, placeholder, kernel, (True, False, False))
        transposed = ([2] * 3, [0] * 3, [1] * 3, True, [0] * 3, 1, (True, True, True))
        found = convolution_backward(of_enlarged, deep, up, [up_bias.numel()], *transposed)
        return tuple(each.to(own.dtype) for each, own in zip((*found, of_kernel), given, strict=True))


def _of_convolution(gradient: Tensor, values: Tensor, kernel: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Those gradients of a 3 x 3 x 3 convolution that are wanted: of the values, of the kernel, of a bias."""
    found: tuple[Tensor, ...] = convolution_backward(
        gradient, values, kernel, None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1, wanted
    )
    return found


def _initialize(module: nn.Module) -> None:
    """He et al. (2015), equation 10: torch's own start lets features vanish before batch norms have seen a batch."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
