"""Crop, resize and flip in one resampling, for whole batches, in two and three dimensions.

A crop box resized to the output grid is a linear map that acts on each axis by itself. Along an axis of L source
pixels every output pixel is a weighted sum of a few neighbouring source pixels, so an axis is one *banded* product:
a gather of K taps with weights. That is what `torch.nn.functional.embedding_bag` computes, with rows of the image as
the table's entries; it is the same call on CPU and GPU, and it costs K rather than L multiplications for each value.
The filter is the antialiased triangle that PIL and torchvision use (bilinear when enlarging), cut at the crop's edge
and normalised: the result equals cropping first and resizing afterwards, and pixels outside the box, the canvas's
padding among them, have no weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from dira_dist.config import Positive, Probability, Range, Section, per_axis
from dira_dist.views.colour import to_grey
from dira_dist.views.randomness import PerView, RandomPurpose, integers_between, uniform, uniform_between

_TRIES = 10
_CPU_TABLE_BYTES = 2 << 20
_DEVICE_TABLE_BYTES = 1 << 30


class CropConfig(Section):
    """Random resized crop and flip. The defaults are the published ones."""

    scale: Range[Positive] = Field((0.2, 1.0), description="smallest and largest part of the image's area (3D: volume)")
    ratio: Range[Positive] = Field(
        (3 / 4, 4 / 3),
        description="smallest and largest width over height, before resizing; of a cube each side over the first, "
        "beside the proportions of data.image_size",
    )
    flip_probability: Probability = Field(0.5, description="of mirroring left and right")

    @field_validator("scale")
    @classmethod
    def _a_part_of_the_image(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[1] > 1:
            raise ValueError(f"found {list(scale)}; wanted low <= high <= 1")
        return scale


@dataclass(frozen=True)
class Crops(PerView):
    """Where each view lies in its image, for V views of B images with n axes.

    Attributes:
        start_px: (V, B, n) int64, first pixel inside.
        size_px: (V, B, n) int64, pixels inside; `start_px + size_px` never exceeds the image's true size.
        flipped: (V, B) bool, whether left and right are mirrored, see :func:`left_right`.
    """

    start_px: Tensor
    size_px: Tensor
    flipped: Tensor


def draw_crops(keys: Tensor, sizes_px: Tensor, config: CropConfig, view_px: Sequence[int] = ()) -> Crops:
    """Inception-style crops (Szegedy et al. 2015), as torchvision draws them, for the whole batch.

    Up to ten boxes are tried: a part of the area and, for each axis but the first, its ratio to the first, uniform in
    the logarithm. The first box that fits is taken, else the largest central one within the ratios.

    Args:
        keys: (V, B) int64.
        sizes_px: (B, n) int64, true sizes without padding.
        config: the section.
        view_px: sides of a cube's views. A cube has few slices and its views as well: ratios are those of boxes of
            the views' proportions. Of images ratios are of their pixels, as published.
    """
    sizes_px = sizes_px.clamp_min(1)
    axes = sizes_px.shape[-1]
    numbers = uniform(keys, RandomPurpose.CROP, _TRIES * axes + axes + 1)
    tries, place, flip = numbers.tensor_split((_TRIES * axes, (_TRIES + 1) * axes), dim=-1)
    shape = _proportions(view_px if axes == 3 else (), sizes_px)
    drawn = _try_boxes(tries.view(*keys.shape, _TRIES, axes), sizes_px, config, shape)
    fits = ((drawn >= 1) & (drawn <= sizes_px[:, None])).all(-1)
    first = fits.byte().argmax(-1)[..., None, None].expand(*keys.shape, 1, axes)
    found = fits.any(-1, keepdim=True)
    size = torch.where(found, drawn.gather(-2, first).squeeze(-2), _largest_box(sizes_px, config, shape))
    free = sizes_px - size
    start = torch.where(found, integers_between(place, 0, free), free // 2)
    return Crops(start, size, flip.squeeze(-1) < config.flip_probability)


def _proportions(view_px: Sequence[int], sizes_px: Tensor) -> Tensor:
    """(n,) sides of a box of volume 1 that has the views' proportions; without views those of a square or cube."""
    if not view_px:
        return torch.ones(sizes_px.shape[-1], dtype=torch.float64, device=sizes_px.device)
    sides = torch.tensor(view_px, dtype=torch.float64, device=sizes_px.device)
    return sides / sides.log().mean().exp()


def _try_boxes(numbers: Tensor, sizes_px: Tensor, config: CropConfig, shape: Tensor) -> Tensor:
    """(V, B, tries, n) numbers in [0, 1) to as many box sizes, int64."""
    axes = sizes_px.shape[-1]
    volume = sizes_px.double().prod(-1)[:, None, None] * uniform_between(numbers[..., :1], *config.scale)
    log_ratio = uniform_between(numbers[..., 1:], math.log(config.ratio[0]), math.log(config.ratio[1]))
    stretch = F.pad(log_ratio, (1, 0)) - log_ratio.sum(-1, keepdim=True) / axes
    return (volume.pow(1 / axes) * stretch.exp() * shape).round().long()


def _largest_box(sizes_px: Tensor, config: CropConfig, shape: Tensor) -> Tensor:
    """(B, n) int64: the largest box of each image whose ratios to the first axis are allowed."""
    sizes = sizes_px.double() / shape
    others = (sizes[:, 1:] / config.ratio[0]).amin(-1, keepdim=True)
    first = torch.minimum(sizes[:, :1], others)
    rest = torch.minimum(sizes[:, 1:], first * config.ratio[1])
    return (torch.cat((first, rest), -1) * shape).round().long().clamp_min(1)


def resample(images: Tensor, crops: Crops, out_px: int | Sequence[int], channels: int) -> Tensor:
    """Each crop of each image, flipped where asked and resized to `out_px`.

    Args:
        images: (B, C, *canvas) uint8, uint16 or floating, padded at the end of each axis to one canvas.
        crops: of N = V * B views, all first views before all second ones: (N, n) and (N,).
        out_px: side of the result, or one for each axis.
        channels: of the result; 1 makes grey of RGB.

    Returns:
        (N, channels, *out_px) float32, in the images' own units. Its memory is dense with the last axis slowest:
        each product leaves the axis it worked on in front, and turning the last one back would cost a copy.
    """
    batch, _, *canvas = images.shape
    sides = per_axis(out_px, len(canvas))
    bands = []
    for axis, (length, side) in enumerate(zip(canvas, sides, strict=True)):
        flipped = crops.flipped if axis == left_right(len(canvas)) else torch.zeros_like(crops.flipped)
        bands.append(band(crops.start_px[:, axis], crops.size_px[:, axis], flipped, length, side))
    views = len(crops.flipped) // batch
    turned = torch.empty((views, batch, channels, sides[-1], *sides[:-1]), device=images.device)
    table = _empty_table(images, channels)
    for first in range(0, batch, len(table)):
        part = slice(first, min(first + len(table), batch))
        chosen = [(_rows(taps, batch, part), _rows(weights, batch, part)) for taps, weights in bands]
        mixed = _products(_fill(table, images[part], channels), chosen, canvas)
        turned[:, part] = mixed.view(turned[:, part].shape)
    return turned.flatten(0, 1).movedim(2, -1)


def left_right(axes: int) -> int:
    """The spatial axis from left to right: the last of an image (H, W), the first of a cube (x, y, z)."""
    return 0 if axes == 3 else axes - 1


def _rows(parameters: Tensor, batch: int, part: slice) -> Tensor:
    """Of parameters (V * B, ...) those of some of the B samples, (V * b, ...)."""
    return parameters.view(-1, batch, *parameters.shape[1:])[:, part].flatten(0, 1)


def _products(source: Tensor, bands: list[tuple[Tensor, Tensor]], canvas: list[int]) -> Tensor:
    """(M, C, rows, columns) tables to (N, C, out_px, ...), last axis first: a product for each axis, turned between."""
    for axis, (taps, weights) in enumerate(bands):
        if axis > 0:
            rest = math.prod(canvas[axis:]) * math.prod(done.shape[1] for done, _ in bands[: axis - 1])
            source = source[..., :rest].mT.reshape(*source.shape[:2], canvas[axis], -1)
        source = banded_product(source, taps, weights)
    return source


def _empty_table(images: Tensor, channels: int) -> Tensor:
    """Room for some of the (B, C, *canvas) images as a float32 table (b, channels, rows, columns).

    A float copy of all canvases would be four times the batch and, on a CPU, would leave the caches. The rows are an
    odd multiple of 64 bytes long: columns read at a stride of a power of two fall into one set of the cache. What
    stands in the added columns is never read.
    """
    rows, columns = images.shape[2], (math.ceil(math.prod(images.shape[3:]) / 16) | 1) * 16
    limit = _CPU_TABLE_BYTES if images.device.type == "cpu" else _DEVICE_TABLE_BYTES
    count = min(len(images), max(1, limit // (4 * channels * rows * columns)))
    return torch.empty((count, channels, rows, columns), device=images.device)


def _fill(table: Tensor, images: Tensor, channels: int) -> Tensor:
    """The first rows of the table, with the images in them."""
    flat = (images if channels > 1 else to_grey(images)).flatten(3)
    table = table[: len(flat)]
    table[..., : flat.shape[-1]].copy_(flat)
    return table


def banded_product(source: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Rows of tables, mixed: result[n, c, i] = sum_k weights[n, i, k] * source[n mod M, c, taps[n, i, k]].

    Args:
        source: (M, C, L, R) float32.
        taps: (N, I, K) int64 in [0, L), N a multiple of M.
        weights: (N, I, K) float32.

    Returns:
        (N, C, I, R) float32.
    """
    entries, channels, length, _ = source.shape
    views, out_px, count = taps.shape
    base = torch.arange(0, entries * channels * length, length, device=source.device).view(-1, channels)
    index = taps[:, None] + base.repeat(views // entries, 1)[..., None, None]
    weights = weights[:, None].expand(index.shape)
    rows = source.reshape(entries * channels * length, -1)
    mixed = F.embedding_bag(index.view(-1, count), rows, per_sample_weights=weights.reshape(-1, count), mode="sum")
    return mixed.view(views, channels, out_px, -1)


def band(start_px: Tensor, size_px: Tensor, flipped: Tensor, length_px: int, out_px: int) -> tuple[Tensor, Tensor]:
    """The taps of one axis: which source pixels make each output pixel, and with what weight.

    Output pixel i stands at source coordinate c = start + (i + 1/2) s with s = size / out_px. Pixel j has weight
    max(0, 1 - |j + 1/2 - c| / max(s, 1)) if it lies in the box, and the weights are normalised to sum 1.

    Args:
        start_px: (N,) int64, the box's first pixel on this axis.
        size_px: (N,) int64, the box's pixels on this axis.
        flipped: (N,) bool.
        length_px: of the canvas; bounds the number of taps without asking the device.
        out_px: output pixels.

    Returns:
        taps (N, out_px, K) int64 inside the box, weights (N, out_px, K) float32.
    """
    count = math.ceil(2 * max(1.0, length_px / out_px))
    position = torch.arange(out_px, device=start_px.device)
    position = torch.where(flipped[:, None], out_px - 1 - position, position)
    step = (size_px.double() / out_px)[:, None]
    centre = start_px[:, None] + (position + 0.5) * step
    reach = step.clamp_min(1)
    first = (centre - reach + 0.5).floor()
    offset = torch.arange(count, device=start_px.device)
    # The first tap's distance needs double precision at large coordinates; from there on float32 is exact enough.
    nearest = ((first + 0.5 - centre) / reach).float()
    weights = torch.addcmul(nearest[..., None], offset.float(), reach.float().reciprocal()[..., None])
    weights.abs_().neg_().add_(1).clamp_min_(0)
    taps = first.long()[..., None] + offset
    inside = taps.clamp(start_px[:, None, None], (start_px + size_px - 1)[:, None, None])
    weights.masked_fill_(taps != inside, 0)
    return inside, weights.div_(weights.sum(-1, keepdim=True))
