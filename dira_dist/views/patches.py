"""Random patches of volumes and their masks, for a segmenter that learns from parts and answers about the whole.

One patch of each sample in each epoch, drawn from (seed, epoch, sample) on the volumes' device. So a sample remains the
unit that is counted, the number of samples consumed remains all that a resumed run has to know, and the patch does not
depend on who decodes the volume or on what else is in its batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import Probability, Section, per_axis
from dira_dist.views.randomness import RandomPurpose, uniform, view_keys

NO_LABEL = -1
_CHOICES = 3  # whether of the foreground, of which value, which of its voxels


class PatchConfig(Section):
    """How a segmenter sees volumes: it learns from patches of `data.image_size`, and slides over the whole."""

    foreground: Probability = Field(
        0.5, description="share of patches that hold a voxel of the mask, of each of its values equally often"
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="of windows that slide over a volume, a share of their sides")
    blend: Literal["gaussian", "constant"] = Field(
        "gaussian", description="how windows are averaged where they overlap; gaussian: by nearness to their centres"
    )
    windows_at_once: int = Field(4, ge=1, description="that the network computes together")


@torch.no_grad()
def draw_patches(
    images: Tensor,
    masks: Tensor,
    sizes_px: Tensor,
    sample_ids: Tensor,
    epochs: Tensor,
    *,
    seed: int,
    image_size: int | Sequence[int],
    foreground: float,
) -> tuple[Tensor, Tensor]:
    """A patch of each volume, with its mask.

    With probability ``foreground`` it is one of those within the volume that hold a voxel of the mask: the value is
    drawn of those above 0 that are there, then the voxel, then its place in the patch. Else, and where the mask is
    empty, the patch lies anywhere within the volume. A volume smaller than the patch is in its middle, between black
    that nobody has labelled.

    Args:
        images: (B, C, *canvas), padded at the ends of their axes.
        masks: (B, *canvas) int16.
        sizes_px: (B, n) int64, true sizes.
        sample_ids: (B,) int64.
        epochs: (B,) int64.
        seed: of the draws.
        image_size: of the patch.
        foreground: see above.

    Returns:
        (B, C, *image_size) of the images' type, and (B, *image_size).
    """
    sides = torch.tensor(per_axis(image_size, sizes_px.shape[1]), device=images.device)
    keys = view_keys(seed, epochs, sample_ids, views=1)[0]
    chosen, placed = uniform(keys, RandomPurpose.PATCH, _CHOICES + len(sides)).split([_CHOICES, len(sides)], dim=-1)
    low, high = _bounds(masks, sizes_px, sides, chosen, foreground)
    starts = low + (placed * (high - low + 1)).long()
    return _cut(images, masks, sizes_px, starts, sides.tolist())


def _bounds(masks: Tensor, sizes_px: Tensor, sides: Tensor, chosen: Tensor, foreground: float) -> tuple[Tensor, Tensor]:
    """(B, n) first and last index at which a patch may begin; both negative along an axis that is too short."""
    room = sizes_px - sides
    low, high = torch.zeros_like(room), room
    for row, (mask, (asked, value, voxel)) in enumerate(zip(masks, chosen, strict=True)):
        found = _voxel(mask, value, voxel)
        use = (asked < foreground) & (found >= 0).all()
        low[row] = torch.where(use, (found - sides + 1).clamp(min=0), low[row])
        high[row] = torch.where(use, torch.minimum(found, high[row]), high[row])
    low = torch.minimum(low, high.clamp(min=0))
    middle = -((-room) // 2)  # of a volume that the patch encloses
    return torch.where(room < 0, middle, low), torch.where(room < 0, middle, high)


def _voxel(mask: Tensor, value: Tensor, voxel: Tensor) -> Tensor:
    """(n,) index of a voxel of the mask by two numbers in [0, 1), all -1 where it is empty; waits for no device."""
    flat = mask.flatten()
    highest = torch.iinfo(torch.int16).max
    there = torch.zeros(highest + 1, dtype=torch.int64, device=mask.device)
    there[flat.clamp(0, highest).long()] = 1
    there[0] = 0
    nth = (value * there.sum()).long() + 1
    label = torch.searchsorted(there.cumsum(0), nth.view(1)).clamp(max=highest)
    counted = (flat == label).cumsum(0, dtype=torch.int32)
    place = torch.searchsorted(counted, ((voxel * counted[-1]).int() + 1).view(1))[0]
    found = torch.stack(torch.unravel_index(place.clamp(max=len(flat) - 1), mask.shape))
    return torch.where(there.sum() > 0, found, torch.full_like(found, -1))


def _cut(
    images: Tensor, masks: Tensor, sizes_px: Tensor, starts: Tensor, sides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    axes, inside = len(sides), torch.ones((), dtype=torch.bool, device=images.device)
    index: list[Tensor] = [torch.arange(len(images), device=images.device).view(-1, *(1,) * axes)]
    for axis, side in enumerate(sides):
        place = starts[:, axis, None] + torch.arange(side, device=images.device)
        own = (place >= 0) & (place < sizes_px[:, axis, None])
        shape = (-1, *(side if each == axis else 1 for each in range(axes)))
        inside = inside & own.view(shape)
        index.append(place.clamp(min=0).clamp(max=images.shape[2 + axis] - 1).view(shape))
    first, *places = index
    bits = images.view(torch.int16) if images.dtype == torch.uint16 else images  # which little is written for
    patches = bits.movedim(1, -1)[(first, *places)].movedim(-1, 1)
    patches = torch.where(inside[:, None], patches, torch.zeros((), dtype=bits.dtype, device=bits.device))
    return patches.contiguous().view(images.dtype), torch.where(inside, masks[(first, *places)], NO_LABEL)
