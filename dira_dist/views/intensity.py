"""Intensity changes, for whole batches: colour jitter and Gaussian blur with each sample's own strength."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import Probability, Range, Section
from dira_dist.views.colour import LUMA, to_grey, turn_hue
from dira_dist.views.geometry import banded_product
from dira_dist.views.randomness import PerView, RandomPurpose, uniform, uniform_between

_HUE = 3
_REFERENCE_PX = 224

Strength = Annotated[float, Field(ge=0)]


class JitterConfig(Section):
    """Colour jitter: each factor is uniform in [max(0, 1 - s), 1 + s]. The defaults are the published ones."""

    probability: Probability = Field(0.8, description="of jittering a view at all")
    brightness: Strength = Field(0.4, description="strength s of the brightness factor")
    contrast: Strength = Field(0.4, description="strength s of the contrast factor")
    saturation: Strength = Field(0.4, description="strength s of the saturation factor; RGB only")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn of the hue circle; RGB only")


class BlurConfig(Section):
    """Gaussian blur. The defaults are the published ones."""

    probability: Probability = Field(0.5, description="of blurring a view")
    sigma_px: Range[Strength] = Field(
        (0.1, 2.0), description="smallest and largest standard deviation at 224 px; scales with image_size"
    )


@dataclass(frozen=True)
class Jitter(PerView):
    """How each view's colours change.

    Attributes:
        factors: (V, B, 3) float32, of brightness, contrast and saturation; 1 changes nothing.
        hue: (V, B) float32, how far the hue turns, in turns of its circle; from red towards green where above 0.
        order: (V, B, 4) int64, brightness (0), contrast (1), saturation (2) and hue (3) as they follow each other.
    """

    factors: Tensor
    hue: Tensor
    order: Tensor


def draw_jitter(keys: Tensor, config: JitterConfig) -> Jitter:
    """Jitter of the views with the (V, B) keys."""
    numbers = uniform(keys, RandomPurpose.JITTER, 9)
    on = numbers[..., 0] < config.probability
    strengths = (config.brightness, config.contrast, config.saturation)
    factors = [uniform_between(numbers[..., 1 + k], max(0.0, 1 - s), 1 + s) for k, s in enumerate(strengths)]
    hue = uniform_between(numbers[..., 4], -config.hue, config.hue)
    return Jitter(
        factors=torch.where(on[..., None], torch.stack(factors, -1), 1.0).float(),
        hue=torch.where(on, hue, 0.0).float(),
        order=numbers[..., 5:].argsort(-1),
    )


def jitter(images: Tensor, drawn: Jitter) -> Tensor:
    """Brightness, contrast and, for RGB, saturation and hue, in each view's own order; in place.

    All as torchvision has them. Three are affine maps of the colours followed by a cut to [0, 1]: brightness f x;
    contrast f x + (1 - f) m with m the mean grey level; saturation f x + (1 - f) grey(x). The fourth turns the hue of
    HSV. It costs most, so it is done once for all views, between what comes before it in each and what comes after.

    Args:
        images: (N, C, *S) float32 in [0, 1] with C 1 or 3.
        drawn: for the N views.
    """
    if images.shape[1] == 1:
        return _jitter_grey(images, drawn)
    slots = torch.arange(4, device=images.device)
    hue_slot = (drawn.order == _HUE).byte().argmax(1, keepdim=True)
    before, after = (torch.where(at, drawn.order, _HUE) for at in (slots < hue_slot, slots > hue_slot))
    flat = _affine_steps(images.flatten(2), drawn, before[:, :-1])
    flat = _affine_steps(turn_hue(flat, drawn.hue), drawn, after[:, 1:])
    return images.copy_(flat.view(images.shape))


def _affine_steps(colours: Tensor, drawn: Jitter, operations: Tensor) -> Tensor:
    """Steps of (N, 3, P) colours, one after the other: (N, steps), in the numbers of ``order``; hue changes nothing."""
    matrices = _colour_matrices(drawn)
    view = torch.arange(len(colours), device=colours.device)
    for operation in operations.unbind(1):
        offset = torch.where(operation == 1, (1 - drawn.factors[:, 1]) * to_grey(colours.mean(2)).squeeze(1), 0.0)
        colours = torch.baddbmm(offset[:, None, None], matrices[view, operation], colours).clamp_(0, 1)
    return colours


def _jitter_grey(images: Tensor, drawn: Jitter) -> Tensor:
    """Saturation and hue do nothing to grey: two steps, the earlier of brightness and contrast and the later."""
    spatial = tuple(range(1, images.ndim))
    shape = (-1, *(1,) * len(spatial))
    brightness_first = ((drawn.order == 0).byte().argmax(1) < (drawn.order == 1).byte().argmax(1)).view(shape)
    brightness, contrast = (drawn.factors[:, k].view(shape) for k in (0, 1))
    for is_brightness in (brightness_first, ~brightness_first):
        factor = torch.where(is_brightness, brightness, contrast)
        offset = torch.where(is_brightness, 0.0, (1 - contrast) * images.mean(spatial, keepdim=True))
        images.mul_(factor).add_(offset).clamp_(0, 1)
    return images


def _colour_matrices(drawn: Jitter) -> Tensor:
    """(N, 4, 3, 3): the linear parts of brightness, contrast and saturation, and what changes nothing."""
    brightness, contrast, saturation = drawn.factors[..., None, None].unbind(1)
    identity = torch.eye(3, device=drawn.factors.device).expand(len(drawn.factors), 3, 3)
    grey = _grey_map(drawn.factors.device)
    return torch.stack(
        (brightness * identity, contrast * identity, torch.lerp(grey, identity, saturation), identity), 1
    )


@cache
def _grey_map(device: torch.device) -> Tensor:
    """(3, 3): colours to their grey."""
    return torch.tensor(LUMA).expand(3, 3).contiguous().to(device)


@dataclass(frozen=True)
class Blur(PerView):
    """How each view is blurred.

    Attributes:
        kernels: (V, B, 2 * radius + 1) float32, each of sum 1.
    """

    kernels: Tensor


def draw_blur(keys: Tensor, config: BlurConfig, view_px: int) -> Blur:
    """Gaussian kernels for the views with the (V, B) keys, cut at three times the largest standard deviation."""
    scale = view_px / _REFERENCE_PX
    numbers = uniform(keys, RandomPurpose.BLUR, 2)
    sigma = uniform_between(numbers[..., 1], *config.sigma_px) * scale
    sigma = torch.where(numbers[..., 0] < config.probability, sigma, 0.0)
    return Blur(gaussian(sigma, math.ceil(3 * config.sigma_px[1] * scale)))


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """(...) standard deviations to (..., 2 * radius + 1) float32 kernels of sum 1; one of 0 px changes nothing."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (offset / sigma.clamp_min(1e-3)[..., None]) ** 2, dim=-1).float()


def blur(images: Tensor, drawn: Blur) -> Tensor:
    """Gaussian blur with each view's own kernel; the image's edge is continued outwards.

    Args:
        images: (N, C, *S) float32, in any order of memory.
        drawn: for the N views.
    """
    axes = images.ndim - 2
    for axis in (axes - 1, *range(axes - 1)):  # the last axis lies first in what `resample` returns
        front = images.movedim(2 + axis, 2)
        images = _blur_first_axis(front, drawn.kernels).movedim(2, 2 + axis)
    return images


def _blur_first_axis(images: Tensor, kernels: Tensor) -> Tensor:
    batch, channels, side = images.shape[:3]
    radius = kernels.shape[1] // 2
    taps = torch.arange(side, device=images.device)[:, None]
    taps = (taps + torch.arange(-radius, radius + 1, device=images.device)).clamp_(0, side - 1)
    source = images.reshape(batch, channels, side, -1)
    weights = kernels[:, None].expand(-1, side, -1)
    return banded_product(source, taps.expand(batch, -1, -1), weights).view(images.shape)
