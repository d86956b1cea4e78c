"""Intensity changes, for whole batches: colour jitter and Gaussian blur with each sample's own strength."""

import math
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from dira_dist.config import Section
from dira_dist.views.randomness import Stream, uniform, uniform_between

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey
_YIQ = (_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
_REFERENCE_PX = 224

Strength = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class JitterConfig(Section):
    """Colour jitter: each factor is uniform in [max(0, 1 - s), 1 + s]. The defaults are the published ones."""

    probability: Probability = Field(default=0.8, description="of jittering a view at all")
    brightness: Strength = Field(default=0.4, description="strength s of the brightness factor")
    contrast: Strength = Field(default=0.4, description="strength s of the contrast factor")
    saturation: Strength = Field(default=0.4, description="strength s of the saturation factor; RGB only")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="largest turn of the hue circle; RGB only"
    )


class BlurConfig(Section):
    """Gaussian blur. The defaults are the published ones."""

    probability: Probability = Field(default=0.5, description="of blurring a view")
    sigma_px: tuple[Strength, Strength] = Field(
        default=(0.1, 2.0), description="smallest and largest standard deviation at 224 px; scales with image_size"
    )

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        if self.sigma_px[0] > self.sigma_px[1]:
            raise ValueError(f"sigma_px {self.sigma_px}: wanted low <= high")
        return self


def to_grey(images: Tensor) -> Tensor:
    """(N, C, *S) with C 1 or 3 to (N, 1, *S): the luma of RGB, grey as it is."""
    if images.shape[1] == 1:
        return images
    luma = images.new_tensor(_LUMA)
    return torch.einsum("nc...,c->n...", images, luma).unsqueeze(1)


def jitter(images: Tensor, keys: Tensor, config: JitterConfig) -> Tensor:
    """Brightness, contrast and, for RGB, saturation and hue, in an order drawn for each sample.

    Every step is an affine map of the colours followed by a cut to [0, 1]: brightness f x; contrast f x + (1 - f) m
    with m the mean grey level; saturation f x + (1 - f) grey(x); hue a turn of the chroma plane of YIQ (torchvision
    turns HSV's hue instead, which costs two conversions and differs a little). Works in place.

    Args:
        images: (N, C, *S) float32 in [0, 1].
        keys: (N,) int64.
        config: the section.
    """
    numbers = uniform(keys, Stream.JITTER, 9)
    on = numbers[:, :1] < config.probability
    strengths = (config.brightness, config.contrast, config.saturation)
    factors = torch.stack(
        [uniform_between(numbers[:, 1 + k], max(0.0, 1 - s), 1 + s) for k, s in enumerate(strengths)], 1
    )
    factors = torch.where(on, factors, 1.0).float()
    if images.shape[1] == 1:
        return _jitter_grey(images, factors, numbers[:, 5:7].argsort(1))
    angle = torch.where(on[:, 0], uniform_between(numbers[:, 4], -config.hue, config.hue), 0.0) * (2 * math.pi)
    return _jitter_rgb(images, factors, angle.float(), numbers[:, 5:9].argsort(1))


def _jitter_grey(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness (0) and contrast (1) in each sample's order, (N, 2) int64."""
    flat = images.flatten(1)
    for operation in order.unbind(1):
        factor = factors.gather(1, operation[:, None])
        offset = torch.where(operation[:, None] == 1, (1 - factor) * flat.mean(1, keepdim=True), 0.0)
        flat.mul_(factor).add_(offset).clamp_(0, 1)
    return images


def _jitter_rgb(images: Tensor, factors: Tensor, angle: Tensor, order: Tensor) -> Tensor:
    """Brightness (0), contrast (1), saturation (2) and hue (3) in each sample's order, (N, 4) int64."""
    flat = images.flatten(2)
    matrices = _colour_matrices(factors, angle)
    luma = flat.new_tensor(_LUMA)
    for operation in order.unbind(1):
        matrix = matrices[torch.arange(len(operation), device=operation.device), operation]
        mean = flat.mean(2) @ luma
        offset = torch.where(operation == 1, (1 - factors[:, 1]) * mean, 0.0)
        flat.copy_(torch.baddbmm(offset[:, None, None], matrix, flat).clamp_(0, 1))
    return images


def _colour_matrices(factors: Tensor, angle: Tensor) -> Tensor:
    """(N, 4, 3, 3): the linear part of brightness, contrast, saturation and hue."""
    identity = torch.eye(3, device=factors.device)
    grey = factors.new_tensor(_LUMA).expand(3, 3)
    scale = factors[:, :, None, None]
    saturation = scale[:, 2] * identity + (1 - scale[:, 2]) * grey
    yiq = torch.tensor(_YIQ, dtype=torch.float64)
    # Turning (I, Q): the luma part + cos * the chroma part + sin * the chroma part turned by a right angle.
    quarter = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    turned = (yiq.inverse() @ quarter @ yiq).to(factors)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    hue = grey + cos * (identity - grey) + sin * turned
    return torch.stack((scale[:, 0] * identity, scale[:, 1] * identity, saturation, hue), 1)


def blur(images: Tensor, keys: Tensor, config: BlurConfig) -> Tensor:
    """Gaussian blur with each sample's own standard deviation; the image's edge is continued outwards.

    Args:
        images: (N, C, *S) float32, all of S equal.
        keys: (N,) int64.
        config: the section.

    Returns:
        a new tensor like `images`.
    """
    side = images.shape[-1]
    scale = side / _REFERENCE_PX
    numbers = uniform(keys, Stream.BLUR, 2)
    sigma = torch.where(
        numbers[:, 0] < config.probability, uniform_between(numbers[:, 1], *config.sigma_px) * scale, 0.0
    )
    radius = max(1, math.ceil(3 * config.sigma_px[1] * scale))
    kernels = gaussian(sigma.float(), radius)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    taps = (torch.arange(side, device=images.device)[:, None] + offset).clamp_(0, side - 1)
    for _ in range(images.ndim - 2):
        images = _blur_axis(images, taps, kernels)
    return images


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """(N,) standard deviations to (N, 2 * radius + 1) kernels that sum to 1; a sigma of 0 changes nothing."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2, dim=1)


def _blur_axis(images: Tensor, taps: Tensor, kernels: Tensor) -> Tensor:
    """Blurs (N, C, S, ...) along its first spatial axis, which becomes its last."""
    batch, channels, side = images.shape[:3]
    rows = images.reshape(batch * channels * side, -1)
    base = torch.arange(0, rows.shape[0], side, device=rows.device)
    index = (taps + base[:, None, None]).flatten(0, 1)
    weights = kernels[:, None, None].expand(-1, channels, side, -1).flatten(0, 2)
    mixed = F.embedding_bag(index.int(), rows, per_sample_weights=weights, mode="sum")
    return mixed.view_as(images).movedim(2, -1)
