"""Patches of volumes: where they lie by a plain statement, image and mask aligned, whatever batch they are in."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dira_dist.views.augmentation import AugmentationConfig
from dira_dist.views.labelled import labelled_views
from dira_dist.views.patches import PatchConfig, draw_patches
from dira_dist.views.randomness import RandomPurpose, uniform, view_keys

SIDES = (12, 10, 8)
PATCH = (6, 6, 4)


def coordinate_volume() -> Tensor:
    """(1, *SIDES) uint16: each voxel holds its own place."""
    return torch.arange(12 * 10 * 8).view(1, *SIDES).to(torch.uint16)


def mask_of(*places: tuple[int, int, int, int]) -> Tensor:
    """All 0 but for voxels (x, y, z, value)."""
    mask = torch.zeros(SIDES, dtype=torch.int16)
    for x, y, z, value in places:
        mask[x, y, z] = value
    return mask


def drawn(
    images: Tensor, masks: Tensor, ids: range, *, foreground: float, sizes: Tensor | None = None, epoch: int = 0
) -> tuple[Tensor, Tensor]:
    numbers = torch.tensor(list(ids))
    sizes = torch.tensor([SIDES] * len(numbers)) if sizes is None else sizes
    epochs = torch.full_like(numbers, epoch)
    return draw_patches(images, masks, sizes, numbers, epochs, seed=3, image_size=PATCH, foreground=foreground)


def repeated(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return coordinate_volume().expand(count, 1, *SIDES), mask.expand(count, *SIDES)


def test_a_patch_is_what_a_loop_cuts() -> None:
    """Written once more for one sample: the value, its voxel, then a place among those that hold it."""
    mask = mask_of((1, 2, 3, 1), (11, 9, 7, 4), (5, 5, 5, 4))
    images, masks = repeated(mask, 40)
    patches, cut = drawn(images, masks, range(40), foreground=0.6, epoch=2)
    ids = torch.arange(40)
    numbers = uniform(view_keys(3, torch.full_like(ids, 2), ids, 1)[0], RandomPurpose.PATCH, 6).numpy()
    seen = set()
    for row, (asked, value, voxel, *places) in enumerate(numbers):
        low, high = [0, 0, 0], [side - patch for side, patch in zip(SIDES, PATCH, strict=True)]
        if asked < 0.6:
            label = sorted({int(each) for each in mask.unique()} - {0})[int(value * 2)]
            found = np.argwhere(mask.numpy() == label)
            x = found[int(voxel * len(found))]
            low = [max(0, int(x[axis]) - PATCH[axis] + 1) for axis in range(3)]
            high = [min(high[axis], int(x[axis])) for axis in range(3)]
            low = [min(each) for each in zip(low, high, strict=True)]
            seen.add((label, *x.tolist()))
            assert (cut[row] == label).any()
        start = [int(first + place * (last - first + 1)) for first, last, place in zip(low, high, places, strict=True)]
        own = tuple(slice(first, first + side) for first, side in zip(start, PATCH, strict=True))
        assert (patches[row, 0].int() == images[0, 0].int()[own]).all() and (cut[row] == mask[own]).all()
    assert len(seen) == 3, "each voxel of each value is drawn some time"


def test_the_share_of_the_foreground_is_that_of_the_setting() -> None:
    """A corner that few random patches hold."""
    images, masks = repeated(mask_of((0, 0, 0, 1)), 400)
    held = [float((drawn(images, masks, range(400), foreground=share)[1] == 1).flatten(1).any(1).float().mean())
            for share in (0.0, 0.5, 1.0)]  # fmt: skip
    assert held[0] < 0.05 and 0.42 < held[1] < 0.6 and held[2] == 1


def test_neither_batch_nor_padding_nor_neighbours_matter() -> None:
    images, masks = repeated(mask_of((4, 4, 4, 2)), 6)
    canvas = torch.zeros(6, 1, 20, 20, 20, dtype=torch.uint16)
    canvas.view(torch.int16)[:, :, :12, :10, :8] = images.view(torch.int16)
    padded = torch.full((6, 20, 20, 20), -1, dtype=torch.int16)
    padded[:, :12, :10, :8] = masks
    whole = drawn(canvas, padded, range(6), foreground=0.5)
    for number in range(6):
        alone = drawn(images[:1], masks[:1], range(number, number + 1), foreground=0.5)
        assert (alone[0][0].int() == whole[0][number].int()).all() and (alone[1][0] == whole[1][number]).all()
    assert any((drawn(images, masks, range(6), foreground=0.5, epoch=1)[0].int() != whole[0].int()).flatten())


def test_an_empty_mask_gives_any_patch_and_a_small_volume_lies_in_the_middle() -> None:
    images, masks = repeated(mask_of(), 2)
    assert (drawn(images, masks, range(2), foreground=1.0)[1] == 0).all()
    small = torch.tensor([[4, 3, 4]] * 2)
    patches, cut = drawn(images, masks, range(2), foreground=1.0, sizes=small)
    assert (patches[:, 0, 1:5, 1:4].int() == images[:, 0].int()[:, :4, :3, :4]).all()
    outside = torch.ones(PATCH, dtype=torch.bool)
    outside[1:5, 1:4] = False
    assert (cut[:, outside] == -1).all() and (cut[:, ~outside] == 0).all()
    assert (patches[:, 0].int()[:, outside] == 0).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_coordinate_volume_shows_that_mask_and_image_take_one_way(flip: float) -> None:
    """The image is a ramp along each axis in turn, the mask the same ramp in steps: after patch, turn, scale and flip
    each voxel's label is still that of its grey value."""
    steps = 8
    for axis in range(3):
        sides = (24, 24, 24)
        ramp = torch.arange(24).view([-1 if each == axis else 1 for each in range(3)]).expand(sides)
        images = (ramp * 2600 + 1300).to(torch.uint16).expand(4, 1, *sides)
        masks = (ramp * steps // 24).to(torch.int16).expand(4, *sides)
        ids = torch.arange(4)
        views = labelled_views(
            images, torch.tensor([sides] * 4), ids, torch.zeros_like(ids), seed=1, image_size=(16, 16, 16),
            in_channels=1, fit="slide", masks=masks, patches=PatchConfig(foreground=0.5),
            augmentation=AugmentationConfig(
                flip_probability=flip, rotation_degrees=12, scale=(0.9, 1.1), translation=0, brightness=0, contrast=0,
                gamma=(1, 1), noise=0,
            ),
        )  # fmt: skip
        assert views.masks is not None
        place = (views.images[:, 0] * 65535 - 1300) / 2600
        known = views.masks >= 0
        inner = known[:, 1:-1, 1:-1, 1:-1]
        label = (views.masks[:, 1:-1, 1:-1, 1:-1] + 0.5) * 24 / steps - 0.5
        away = (place[:, 1:-1, 1:-1, 1:-1] - label).abs()[inner]
        # half a step of the ramp and what the nearest voxel is off; the outermost voxels are mixed with black
        assert float(torch.quantile(away, 0.97)) < 24 / steps / 2 + 0.75 and inner.float().mean() > 0.7
