"""Augmentation of framed images and their masks for supervised training: one resampling, then intensities.

Everything is drawn from (seed, epoch, sample), for whole batches on the images' device. The mask goes through the same
affine map as its image, nearest neighbour; beyond the frame's edge images are black and masks unlabelled.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from dira_dist.config import Positive, Probability, Range, Section
from dira_dist.views.randomness import RandomPurpose, uniform, uniform_between, view_keys

NO_LABEL = -1
_GEOMETRY_NUMBERS, _INTENSITY_NUMBERS = 10, 4


class AugmentationConfig(Section):
    """Small changes that keep a label true.

    Nothing is mirrored unless asked for: a mirrored chest has its heart on the other side, and a finding that is named
    by its side a wrong label. The method's laboratory fine-tunes classifiers with `crop_scale` [0.08, 1],
    `flip_probability` 0.5 and `rotation_degrees` 7; its segmenters are not mirrored.
    """

    strength: float = Field(
        1.0, ge=0, le=2, description="factor of all that follows (flips grow no more likely above 1); 0: nothing"
    )
    flip_probability: Probability = Field(
        0.0, description="of mirroring left and right; above 0 only where the side means nothing"
    )
    crop_scale: Range[Positive] = Field(
        (1.0, 1.0),
        description="smallest and largest part of the frame's area (3D: volume) that is cut out and enlarged",
    )
    rotation_degrees: float = Field(10.0, ge=0, le=180, description="most that is turned, either way, in the plane")
    scale: Range[Positive] = Field((0.9, 1.1), description="smallest and largest magnification")
    translation: float = Field(0.05, ge=0, le=0.5, description="most that is moved, as a share of the side")
    brightness: float = Field(0.1, ge=0, le=1, description="most that is added or taken away")
    contrast: float = Field(0.1, ge=0, lt=1, description="most that the distance from the mean is changed by, a share")
    gamma: Range[Positive] = Field((0.8, 1.25), description="smallest and largest exponent")
    noise: float = Field(0.02, ge=0, le=1, description="most standard deviation of Gaussian noise")

    @field_validator("scale", "gamma")
    @classmethod
    def _around_one(cls, found: tuple[float, float]) -> tuple[float, float]:
        if not found[0] <= 1 <= found[1]:
            raise ValueError(f"found {list(found)}; the range holds 1, which changes nothing: such as [0.8, 1.25]")
        return found

    @field_validator("crop_scale")
    @classmethod
    def _a_part_of_the_frame(cls, found: tuple[float, float]) -> tuple[float, float]:
        if found[1] > 1:
            raise ValueError(f"found {list(found)}; a part is at most 1, the whole frame: such as [0.5, 1]")
        return found

    @property
    def moves(self) -> bool:
        """Whether geometry is changed at all."""
        sizes = (self.scale[1] > self.scale[0], self.crop_scale[0] < 1)
        return self.strength > 0 and any((self.flip_probability, self.rotation_degrees, self.translation, *sizes))

    @property
    def shades(self) -> bool:
        """Whether intensities are changed at all."""
        return self.strength > 0 and any((self.brightness, self.contrast, self.gamma[1] > self.gamma[0], self.noise))


@torch.no_grad()
def augment(
    images: Tensor,
    masks: Tensor | None,
    sample_ids: Tensor,
    epochs: Tensor,
    *,
    seed: int,
    config: AugmentationConfig,
) -> tuple[Tensor, Tensor | None]:
    """Framed images and masks, changed; the same for a sample of an epoch whatever batch it is in.

    Args:
        images: (B, C, *S) float32 in [0, 1]; spatial axes (H, W), or (x, y, z), of which the first two are turned.
        masks: (B, *S) int16, or none.
        sample_ids: (B,) int64.
        epochs: (B,) int64.
        seed: of the draws.
        config: the section.

    Returns:
        Images and masks of the same shapes.
    """
    keys = view_keys(seed, epochs, sample_ids, views=1)[0]
    if config.moves:
        grid = _grid(keys, images.shape[2:], config)
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        masks = None if masks is None else _nearest(masks, grid)
    if config.shades:
        images = _shaded(images, keys, config)
    return images, masks


def _nearest(masks: Tensor, grid: Tensor) -> Tensor:
    """Labels moved up by one while they are sampled, so that what lies outside, 0, is unlabelled."""
    lifted = (masks[:, None] - NO_LABEL).float()
    found = functional.grid_sample(lifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return (found[:, 0].round() + NO_LABEL).to(masks.dtype)


def _grid(keys: Tensor, sides_px: Sequence[int], config: AugmentationConfig) -> Tensor:
    """Where each pixel of the result comes from, as `grid_sample` takes it: (B, *S, n).

    Summed axis by axis, not by `affine_grid`: its matrix product would obey autocast and TF32, which move pixels.
    """
    axes = len(sides_px)
    matrix = _matrix(keys, sides_px, config).float().view(-1, *(1,) * axes, axes, axes + 1)
    grid = matrix[..., axes]
    for axis in reversed(range(axes)):  # coordinate 0 is of the last side; the one that fills the memory comes last
        side = sides_px[-1 - axis]
        places = (2 * torch.arange(side, device=keys.device) + 1) / side - 1
        grid = grid + matrix[..., axis] * places.view(-1, *(1,) * axis, 1)
    return grid


def _matrix(keys: Tensor, sides_px: Sequence[int], config: AugmentationConfig) -> Tensor:
    """(B, n, n + 1) from places in the result to places in the frame, both in [-1, 1], the last spatial axis first.

    An image's plane has its columns as coordinate 0 and its rows as coordinate 1; a cube's has x as 2 and y as 1.
    """
    axes, numbers = len(sides_px), uniform(keys, RandomPurpose.AUGMENTATION_GEOMETRY, _GEOMETRY_NUMBERS)
    flip, turn, size = numbers[:, :3].unbind(-1)
    move, area, place = numbers[:, 3 : 3 + axes], numbers[:, 6], numbers[:, 7 : 7 + axes]
    angle = uniform_between(turn, -1, 1) * math.radians(config.rotation_degrees) * config.strength
    share = uniform_between(area, *(part**config.strength for part in config.crop_scale)).pow(1 / axes)
    zoom = _between_logs(size, config.scale, config.strength) / share
    mirrored = torch.where(flip < config.flip_probability * min(1.0, config.strength), -1.0, 1.0)
    across, down = (0, 1) if axes == 2 else (2, 1)
    tall = sides_px[-1 - down] / sides_px[-1 - across]  # in [-1, 1] a frame that is no square is stretched
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.zeros(len(keys), axes, axes + 1, dtype=torch.float64, device=keys.device)
    matrix[:, across, across], matrix[:, across, down] = mirrored * cos, -mirrored * sin * tall
    matrix[:, down, across], matrix[:, down, down] = sin / tall, cos
    if axes == 3:
        matrix[:, 0, 0] = 1 / zoom
    matrix[:, :, axes] = 2 * config.translation * config.strength * uniform_between(move, -1, 1)
    matrix[:, :, axes] += (1 - share)[:, None] * uniform_between(place, -1, 1)  # the crop's centre
    return matrix


def _shaded(images: Tensor, keys: Tensor, config: AugmentationConfig) -> Tensor:
    numbers = uniform(keys, RandomPurpose.AUGMENTATION_INTENSITY, _INTENSITY_NUMBERS)
    signed, size = uniform_between(numbers, -1, 1) * config.strength, (-1, *(1,) * (images.ndim - 1))
    gamma = _between_logs(numbers[..., 0], config.gamma, config.strength)
    images = images.clamp_min(0).pow(gamma.float().view(size))
    mean = images.mean(dim=tuple(range(1, images.ndim)), keepdim=True)
    images = mean + (images - mean) * (1 + config.contrast * signed[..., 1]).clamp_min(0).float().view(size)
    images = images + (config.brightness * signed[..., 2]).float().view(size)
    if config.noise:
        deviation = (config.noise * config.strength * numbers[..., 3]).float().view(size)
        images = images + deviation * _normal(keys, images)
    return images.clamp(0, 1)


def _normal(keys: Tensor, images: Tensor) -> Tensor:
    """Independent standard normal numbers for each pixel (Box & Muller, 1958)."""
    pixels = images[0].numel()
    numbers = uniform(keys, RandomPurpose.AUGMENTATION_NOISE, 2 * ((pixels + 1) // 2))
    one, other = numbers.chunk(2, dim=-1)
    radius, angle = (-2 * (1 - one).float().log()).sqrt(), (2 * math.pi * other).float()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[:, :pixels].view(images.shape)


def _between_logs(numbers: Tensor, bounds: tuple[float, float], strength: float) -> Tensor:
    """Numbers of [0, 1) as factors, uniform in the logarithm, their distance from 1 grown by the strength."""
    low, high = (math.log(bound) * strength for bound in bounds)
    return uniform_between(numbers, low, high).exp()
