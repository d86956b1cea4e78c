"""The patch discriminator that tells restored from real crops.

Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks* (CVPR 2017), in DiRA's dimensions.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from dira_dist.config import Section
from dira_dist.models.precision import at_least_float32, without_autocast

LEAK = 0.2
INIT_STD = 0.02

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class DiscriminatorConfig(Section):
    """The patch discriminator."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (64, 128, 256, 512), min_length=1, description="channels of the blocks; all but the last halve the resolution"
    )


class PatchDiscriminator(nn.Module):
    """A score per patch: ``(B, channels, *S)`` to ``(B, 1, *S / 8)``, with the published four blocks.

    Instance norm keeps samples apart: real and restored images may share a batch, and a batch may be any part of the
    global one. Convolutions before an instance norm have no bias, which the norm would cancel.
    """

    def __init__(self, config: DiscriminatorConfig, dims: Literal[2, 3] = 2, channels: int = 1) -> None:
        super().__init__()
        convolution, norm = _CONVOLUTIONS[dims], _NORMS[dims]
        first, *_, last = config.channels
        blocks: list[nn.Module] = [
            convolution(channels, first, 3, stride=2, padding=1),
            nn.LeakyReLU(LEAK, inplace=True),
        ]
        for index, (inputs, outputs) in enumerate(pairwise(config.channels), start=2):
            stride = 1 if index == len(config.channels) else 2
            blocks += [
                convolution(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                norm(outputs),
                nn.LeakyReLU(LEAK, inplace=True),
            ]
        self.model = nn.Sequential(*blocks, convolution(last, 1, 3, padding=1))
        self.apply(_initialize)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the patches, unbounded."""
        scores: Tensor
        if image.ndim == 5 and image.device.type == "cpu":
            # Of maps of 2 voxels a side PyTorch's bfloat16 gradient of a 3D convolution's weights reads memory that
            # nobody has written, and is now and then not finite.
            with without_autocast(image):
                scores = self.model(at_least_float32(image))
        else:
            scores = self.model(image)
        return scores


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
