"""What the rest of the house asks of a network to pretrain, in two or three dimensions: encode, pool, decode.

Each kind of network lives in one file of this package, found by its section's name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dira_dist.config import MAY_CHANGE, RequestError, Section, per_axis
from dira_dist.models.precision import average_over_positions

if TYPE_CHECKING:
    from dira_dist.models.export import Exported, Format

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Size = int | Sequence[int]
"""Pixels along each spatial axis: one number for all, or one for each."""


class BackboneSection(Section):
    """The network to pretrain. A subclass names it: ``name: Literal["..."] = "..."``."""

    dims: ClassVar[Literal[2, 3]] = 2
    """Spatial axes of its images."""
    libraries: ClassVar[tuple["Format", ...]] = ()
    """Whose names its weights may have in an export, the best known first; the last has all of its parts."""

    name: str
    in_channels: int = Field(
        1, ge=1, le=1024, description="channels of the input: 1 (grey), 3 (colour), or one per MR sequence"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, more time",
        json_schema_extra=MAY_CHANGE,
    )
    init: str | None = Field(
        None, description="file of weights to start from (.pt, .pth, .safetensors); random where left out"
    )

    def build(self) -> "Backbone":
        """The network, its weights drawn from torch's global generator.

        Raises:
            RequestError: there is no such network.
        """
        raise NotImplementedError

    def check_image_size(self, image_size: Size) -> None:
        """Raises:
        RequestError: the network cannot take images of that size, in pixels.
        """
        raise NotImplementedError

    def unused_parameters(self, restore: bool) -> set[str]:
        """Names of parameters that get no gradient from a forward pass, so that nothing waits for them."""
        raise NotImplementedError

    def own_names(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A file's weights, those that have the names of one of its libraries under this network's own."""
        return weights

    def export(self, state: Mapping[str, Tensor], library: "Format", in_channels: int) -> "Exported":
        """Weights of this network under the names of one of its libraries.

        Args:
            state: of the whole network, or of the encoder alone (``encoder.*``).
            library: one of :attr:`libraries`.
            in_channels: of the exported model.

        Raises:
            RequestError: the library has no such network, or the channels cannot be converted.
        """
        raise NotImplementedError

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green and blue, and no sequences."""
        return False

    @property
    def restored_channels(self) -> int:
        """Colour is restored as grey, as published; of several sequences each is restored."""
        return 1 if self.is_rgb else self.in_channels

    @property
    def stored_names(self) -> str:
        """Whose names the weights have that a run keeps."""
        return self.libraries[-1]

    @property
    def label(self) -> str:
        """The network in a word or two, for tags and cards."""
        return self.name

    @property
    def cell_px(self) -> int:
        """Pixels along a side of what one place of the deepest feature map stands for."""
        raise NotImplementedError


class Backbone(nn.Module):
    """Encoder, decoder and head.

    Shapes: input ``(B, in_channels, *S)``; feature maps a list, from full resolution down; pooled ``(B, channels)``;
    restoration ``(B, restored_channels, *S)`` in [0, 1], float32.

    Attributes:
        config: its section.
        encoder: input to feature maps.
        channels: of the pooled features.
    """

    config: BackboneSection
    encoder: nn.Module
    channels: int

    @property
    def dims(self) -> Literal[2, 3]:
        """Spatial axes."""
        return self.config.dims

    @property
    def restored_channels(self) -> int:
        """Of the restoration."""
        return self.config.restored_channels

    def forward(self, image: Tensor, restore: bool = True) -> tuple[Tensor, Tensor | None]:
        """``(pooled, restoration)``; without ``restore`` the decoder does not run and the restoration is None."""
        maps = self.encode(image)
        return self.pooled(maps), self.decode(maps) if restore else None

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps, the input's resolution first and the deepest last."""
        maps: list[Tensor] = self.encoder(image)
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The restoration."""
        raise NotImplementedError

    def last_layer(self, outputs: int) -> nn.Module:
        """A new last layer behind the decoder, for ``(B, outputs, *S)`` logits."""
        raise NotImplementedError

    def pooled(self, maps: list[Tensor]) -> Tensor:
        """The deepest feature map, averaged over its positions."""
        return average_over_positions(maps[-1])


def fitting_sides(sides: Sequence[int], steps: Sequence[int]) -> list[int]:
    """The nearest sides that are multiples of a step along each axis, with two of them along one axis at least."""
    fitting = [max(step, round(side / step) * step) for side, step in zip(sides, steps, strict=True)]
    return [2 * step for step in steps] if fitting == list(steps) else fitting


def input_size(network: BackboneSection, image_size: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """How a model's file says the size of its input: of a volume a side for each axis, of which their number is read"""
    return image_size if network.dims == 2 else per_axis(image_size, network.dims)


def built_on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """A module without memory for its weights, and no random number drawn for it."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build().to("meta")
        except RequestError:  # some encoders compute with numbers while they are built, and meta tensors have none
            return build().to("meta")
