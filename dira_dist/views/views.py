"""From a batch of images to what the networks see: two distorted views and the target, on the images' device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import RequestError, Section, per_axis
from dira_dist.data.shards import ImageInfo
from dira_dist.views.colour import to_grey
from dira_dist.views.distortions import DiraDistortion, DistortionConfig
from dira_dist.views.geometry import CropConfig, Crops, draw_crops, resample
from dira_dist.views.intensity import (
    Blur,
    BlurConfig,
    Jitter,
    JitterConfig,
    blur,
    draw_blur,
    draw_jitter,
    jitter,
)
from dira_dist.views.randomness import PerView, RandomPurpose, noise, view_keys

_CPU_PART_BYTES = 4 << 20
_DEVICE_PART_BYTES = 1 << 30
_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class ViewsConfig(Section):
    """How views are made. The defaults are those of the published 2D run."""

    crop: CropConfig = Field(CropConfig(), description="random resized crop and flip")
    jitter: JitterConfig = Field(JitterConfig(), description="brightness, contrast; saturation and hue of RGB")
    blur: BlurConfig = Field(BlurConfig(), description="Gaussian blur")
    distortion: DistortionConfig = Field(DiraDistortion(), description="what the network has to undo")
    target: Literal["crop", "view"] = Field(
        "crop", description="restore the crop before jitter and blur (as published), or the view after them"
    )


@dataclass(frozen=True)
class Views:
    """What a step works on. With `in_channels` 3 from grey images the channels share memory: do not write into them.

    Attributes:
        view_1: (B, in_channels, *S) float32 in [0, 1], distorted.
        view_2: (B, in_channels, *S) float32 in [0, 1], distorted: another crop of the same image; None where not
            asked for.
        target: (B, R, *S) float32 in [0, 1], undistorted, with the geometry of `view_1`; None where not asked for. R is
            1 of colour, whose luma is restored, and else `in_channels`.
        sample_ids: (B,) int64.
        distortion: labels of how `view_1` is distorted, by name; of DiRA's ``kind`` (B,) int64.
        labels: of the samples, by name, where somebody needs them.
        mix: (B,) float32 in [0, 1), a place between a restoration and its target, for a gradient penalty.
    """

    view_1: Tensor
    view_2: Tensor | None
    target: Tensor | None
    sample_ids: Tensor
    distortion: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[Mapping[str, Any], ...] | None = None
    mix: Tensor | None = None

    def __len__(self) -> int:
        return len(self.view_1)


@dataclass(frozen=True)
class _Drawn:
    crops: Crops
    jitter: Jitter
    blur: Blur
    distortion: PerView


def _draw(keys: Tensor, sizes_px: Tensor, sides_px: tuple[int, ...], config: ViewsConfig) -> _Drawn:
    """Everything that is random, for the whole batch at once: small tensors and many calls."""
    return _Drawn(
        draw_crops(keys, sizes_px, config.crop, sides_px),
        draw_jitter(keys, config.jitter),
        draw_blur(keys, config.blur, round(math.prod(sides_px) ** (1 / len(sides_px)))),
        config.distortion.draw(keys, sides_px),
    )


@torch.no_grad()
def make_views(
    images: Tensor,
    sizes_px: Tensor,
    sample_ids: Tensor,
    epochs: Tensor,
    *,
    seed: int,
    image_size: int | Sequence[int],
    in_channels: int,
    rgb: bool = True,
    config: ViewsConfig,
    with_target: bool = True,
    with_second: bool = True,
) -> Views:
    """Two distorted views and the target of each image, the whole batch at once, on the images' device.

    Each sample's parameters come from (seed, epoch, sample) alone, so any worker makes the same views of it.

    Args:
        images: (B, C, *canvas) uint8 or uint16; two or three spatial axes, padded at their ends.
        sizes_px: (B, n) int64, true sizes, of at least a pixel; pixels beyond are never read.
        sample_ids: (B,) int64, index in the shard set.
        epochs: (B,) int64.
        seed: the job's.
        image_size: side of the views in pixels, or one for each axis.
        in_channels: of the views: C; or any number where C is 1, which is repeated; or 1 where C is 3, of which the
            luma is taken.
        rgb: whether three channels of flat images are red, green and blue, and no sequences.
        config: the section.
        with_target: False where no restoration is trained.
        with_second: False where nobody compares two views; the first one is the same either way.

    Raises:
        RequestError: the images' type or channels are not supported, or the size has another number of axes.
    """
    assert images.ndim in (4, 5)
    _check(images.dtype, images.shape[1], in_channels)
    if images.device.type == "cpu":
        _keep_pages()
    sides_px = per_axis(image_size, images.ndim - 2)
    keys = view_keys(seed, epochs, sample_ids, views=1 + with_second)
    drawn = _draw(keys, sizes_px, sides_px, config)
    with torch.autocast(images.device.type, enabled=False):
        rgb = rgb and images.ndim == 4
        look = _Look(config, min(in_channels, images.shape[1]), rgb, with_target)
        views, target = _render(images, drawn, sides_px, look)
    view_1, *others = views.expand(-1, -1, in_channels, *views.shape[3:])
    if target is not None and not (rgb and in_channels == 3):
        target = target.expand(-1, in_channels, *sides_px)  # grey is repeated like the views
    labels = config.distortion.labels(drawn.distortion)
    mix = noise(keys[0], RandomPurpose.PENALTY_MIX, 1).squeeze(-1) if with_target else None
    return Views(view_1, others[0] if others else None, target, sample_ids, labels, mix=mix)


@dataclass(frozen=True)
class _Look:
    """How views are rendered: the section, their channels before grey is repeated, and whether they are of RGB."""

    config: ViewsConfig
    channels: int
    rgb: bool
    with_target: bool

    @property
    def is_colour(self) -> bool:
        return self.rgb and self.channels == 3


def _render(images: Tensor, drawn: _Drawn, sides_px: tuple[int, ...], look: _Look) -> tuple[Tensor, Tensor | None]:
    """Views (V, B, channels, *S) and target (B, R, *S) with the parameters that were drawn."""
    config, channels = look.config, look.channels
    shape = (len(images), 1 if look.is_colour else channels, *sides_px)
    views = torch.empty((len(drawn.crops.flipped), shape[0], channels, *shape[2:]), device=images.device)
    target = torch.empty(shape, device=images.device) if look.with_target else None
    for part in _parts(views):
        count = len(images[part])
        crop = resample(images[part], drawn.crops.of(part), sides_px, channels)
        crop = config.distortion.align(crop.div_(_WHITE[images.dtype]).clamp_(0, 1), drawn.distortion.of(part))
        if target is not None and config.target == "crop":
            target[part] = to_grey(crop[:count]) if look.is_colour else crop[:count]
        view = blur(_jittered(crop, drawn.jitter.of(part), look.is_colour), drawn.blur.of(part))
        if target is not None and config.target == "view":
            target[part] = to_grey(view[:count]) if look.is_colour else view[:count]
        distorted = config.distortion.distort(view.contiguous(), drawn.distortion.of(part))
        views[:, part] = distorted.view(len(views), count, *distorted.shape[1:])
    return views, target


def _jittered(images: Tensor, drawn: Jitter, is_colour: bool) -> Tensor:
    """Grey and colour as such; each of the sequences of a sample by itself, with the sample's own strengths."""
    channels = images.shape[1]
    if channels == 1 or is_colour:
        return jitter(images, drawn)
    each = Jitter(*(getattr(drawn, field.name).repeat_interleave(channels, 0) for field in fields(Jitter)))
    return jitter(images.flatten(0, 1)[:, None], each).view(images.shape)


@cache
def _keep_pages() -> None:
    """Makes glibc keep freed memory of the size of our intermediate tensors, once in a process.

    It gives freed blocks back to the kernel above a threshold that starts at 128 kB and follows the largest block
    freed so far, up to 32 MiB. Below it every tensor of a part would be paged in anew, at up to ten times the cost of
    what is computed in it. The block allocated here is never written, so it costs nothing; other allocators ignore it.
    """
    torch.empty((32 << 20) - 8192, dtype=torch.uint8)


def _parts(views: Tensor) -> list[slice]:
    """The batch in parts whose (V, b, C, *S) views stay within a bound.

    On a GPU that is a bound on memory: one part as a rule. On a CPU it keeps them in the caches and below what
    the allocator hands out again: fresh pages cost more than the arithmetic.
    """
    limit = _CPU_PART_BYTES if views.device.type == "cpu" else _DEVICE_PART_BYTES
    batch = views.shape[1]
    step = max(1, limit // (4 * views[:, 0].numel()))
    return [slice(first, min(first + step, batch)) for first in range(0, batch, step)]


def check_viewable(image: ImageInfo, axes: int, in_channels: int, *, rgb: bool = True) -> None:
    """Refuses a set of whose images no views can be made. Needs what its index says of them alone.

    Args:
        image: of the set's index.
        axes: spatial ones that the network takes.
        in_channels: that it takes.
        rgb: whether it takes three channels for red, green and blue.

    Raises:
        RequestError: with what was found and what is allowed.
    """
    if image.axes != axes:
        raise RequestError(
            f"samples with {image.axes} spatial axes, and the model takes {axes}: choose another model.name, or a set "
            f"of {'images' if axes == 2 else 'volumes or cubes'}"
        )
    if axes == 2 and image.channels == in_channels == 3 and rgb != (image.mode == "RGB"):
        kind, taken = ("three sequences", "red, green and blue") if rgb else ("colour images", "three sequences")
        raise RequestError(f"{kind}, and the model takes {taken}: set model.rgb to {str(not rgb).lower()}")
    if image.mode != "RGB" and (image.channels, in_channels) == (3, 1):
        raise RequestError("three sequences, and the model takes one grey image: set model.in_channels to 3")
    assert image.dtype is not None, "see check_set"
    _check(getattr(torch, image.dtype), image.channels, in_channels)


def _check(dtype: torch.dtype, channels: int, in_channels: int) -> None:
    if dtype not in _WHITE:
        raise RequestError(
            f"images of type {dtype}: views are made of uint8 or uint16. Volumes with values in their unit: shard them "
            "with --intensity (range:-1000,1000 for CT in HU, percentiles:0.5,99.5 for MR), which stores 16 bits"
        )
    if channels not in (1, in_channels) and (channels, in_channels) != (3, 1):
        raise RequestError(
            f"images with {channels} channels, and the model takes {in_channels}: it takes 1 (repeated), 3 (RGB, "
            f"of which a model of 1 takes the luma) or as many as its own; set model.in_channels to {channels}"
        )
