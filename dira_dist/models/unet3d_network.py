"""The 3D U-Net of Models Genesis and TransVW, in plain torch.

Çiçek et al., *3D U-Net* (MICCAI 2016), with the dimensions of Zhou et al., *Models Genesis* (Medical Image Analysis
2021) and Haghighi et al., *TransVW* (IEEE TMI 2021). Their batch norms use the batch's statistics in evaluation too, so
that an answer depends on its batch mates; these do not.

This file imports torch alone. A copy of it travels with every model of this network, which is loaded with it where this
package is not installed.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
"""Most groups of a group norm, of channels that they divide."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm3d,
    "group": lambda channels: nn.GroupNorm(math.gcd(channels, GROUPS), channels),
    "instance": lambda channels: nn.InstanceNorm3d(channels, affine=True),
}


class ConvBlock(nn.Sequential):
    """Two 3 x 3 x 3 convolutions, each with a norm and ReLU: (B, inputs, *S) to (B, outputs, *S)."""

    def __init__(self, inputs: int, between: int, outputs: int, norm: str) -> None:
        super().__init__(
            nn.Conv3d(inputs, between, 3, padding=1),
            NORMS[norm](between),
            nn.ReLU(inplace=True),
            nn.Conv3d(between, outputs, 3, padding=1),
            NORMS[norm](outputs),
            nn.ReLU(inplace=True),
        )


class EncoderBlock(nn.Module):
    """A level of the encoder: the map above, halved by its largest values where this is not the first, and mixed."""

    def __init__(self, inputs: int, between: int, outputs: int, norm: str, *, halves: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(2) if halves else nn.Identity()
        self.mix = ConvBlock(inputs, between, outputs, norm)

    def forward(self, above: Tensor) -> Tensor:
        """(B, inputs, *S) to (B, outputs, *S), or *S / 2."""
        mixed: Tensor = self.mix(self.pool(above))
        return mixed


class Encoder(nn.Module):
    """Volumes (B, in_channels, *S) to feature maps (B, width * 2^k, *S / 2^k) for each level k, whose sides divide.

    Attributes:
        channels: of the feature maps.
    """

    def __init__(self, in_channels: int, width: int, levels: int, norm: str) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(levels))
        first = EncoderBlock(in_channels, width // 2, width, norm, halves=False)
        deeper = (EncoderBlock(inputs, inputs, 2 * inputs, norm, halves=True) for inputs in self.channels[:-1])
        self.blocks = nn.ModuleList([first, *deeper])

    def forward(self, volumes: Tensor) -> list[Tensor]:
        """The feature maps, full resolution first."""
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(maps[-1] if maps else volumes))
        return maps


class Join(nn.Module):
    """The map of a level, enlarged, and the encoder's of the level above, convolved as if they were one.

    They are never copied into one: of all maps that one would take the most memory.
    """

    def __init__(self, channels: int, skip: int, norm: str) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.conv = nn.Conv3d(channels + skip, skip, 3, padding=1)
        self.norm, self.act = NORMS[norm](skip), nn.ReLU(inplace=True)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """(B, channels, *S / 2) and (B, skip, *S) to (B, skip, *S)."""
        activated: Tensor = self.act(self.norm(self.convolved(deep, skip)))
        return activated

    def convolved(self, deep: Tensor, skip: Tensor) -> Tensor:
        """The same before norm and ReLU. Nothing of what it makes on the way is as large as the map enlarged."""
        of_deep, of_skip = self.conv.weight.split([deep.shape[1], skip.shape[1]], 1)
        joined = functional.conv3d(skip, of_skip, self.conv.bias, padding=1)
        return joined.add_(functional.conv3d(self.enlarge(deep), of_deep, padding=1))  # the last is undone first


class DecoderBlock(nn.Module):
    """The map of a level, enlarged, beside the encoder's of the level above: two convolutions with norm and ReLU."""

    def __init__(self, channels: int, skip: int, norm: str) -> None:
        super().__init__()
        self.join = Join(channels, skip, norm)
        self.mix = nn.Sequential(nn.Conv3d(skip, skip, 3, padding=1), NORMS[norm](skip), nn.ReLU(inplace=True))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """(B, channels, *S / 2) and (B, skip, *S) to (B, skip, *S)."""
        mixed: Tensor = self.mix(self.join(deep, skip))
        return mixed


class Decoder(nn.Module):
    """Feature maps to one map (B, width, *S)."""

    def __init__(self, channels: tuple[int, ...], norm: str) -> None:
        super().__init__()
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.blocks = nn.ModuleList(DecoderBlock(deep, skip, norm) for deep, skip in pairs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The map of full resolution."""
        found = maps[-1]
        for block, skip in zip(self.blocks, maps[-2::-1], strict=True):
            found = block(found, skip)
        return found


def last_layer(width: int, outputs: int) -> nn.Sequential:
    """A 1 x 1 x 1 convolution of what the decoder gives: (B, width, *S) to (B, outputs, *S)."""
    return nn.Sequential(nn.Conv3d(width, outputs, 1))


class UNet3d(nn.Module):
    """Encoder, decoder and last layer: (B, in_channels, *S) in [0, 1] to (B, out_channels, *S) logits.

    Args:
        in_channels: of the volumes.
        out_channels: of the logits.
        width: channels of the map of full resolution; 64 as published.
        levels: resolutions, each half the one before; 4 as published.
        norm: ``batch`` as published, ``group`` or ``instance``.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, width: int = 64, levels: int = 4, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, width, levels, norm)
        self.decoder = Decoder(self.encoder.channels, norm)
        self.segmentation_head = last_layer(width, out_channels)

    def forward(self, volumes: Tensor) -> Tensor:
        """The logits; their sigmoid is the restoration of a pretrained network."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(volumes)))
        return logits
