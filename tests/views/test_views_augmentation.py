"""Frames and augmentation: masks and images stay together, and randomness belongs to the sample."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dira_dist.views.augmentation import AugmentationConfig, augment
from dira_dist.views.center_view import center_view
from dira_dist.views.frame_view import fit_mask, fit_view, fitted_size, unfit
from dira_dist.views.labelled import labelled_views

NOTHING: dict[str, Any] = {
    "rotation_degrees": 0,
    "scale": (1.0, 1.0),
    "translation": 0,
    "brightness": 0,
    "contrast": 0,
    "gamma": (1.0, 1.0),
    "noise": 0,
}
EACH: dict[str, dict[str, Any]] = {
    "flip": {"flip_probability": 1.0},
    "rotation": {"rotation_degrees": 40},
    "scale": {"scale": (0.5, 2.0)},
    "translation": {"translation": 0.3},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.5},
    "gamma": {"gamma": (0.5, 2.0)},
    "noise": {"noise": 0.2},
    "all": {"flip_probability": 0.5, "rotation_degrees": 30, "scale": (0.7, 1.4), "translation": 0.2},
}
MOVES = ("flip", "rotation", "scale", "translation", "all")


def only(name: str, **more: Any) -> AugmentationConfig:
    return AugmentationConfig(**{**NOTHING, **EACH[name], **more})


def changed(images: Tensor, masks: Tensor | None, config: AugmentationConfig, epoch: int = 0, first: int = 0) -> Any:
    ids = torch.arange(first, first + len(images))
    return augment(images, masks, ids, torch.full_like(ids, epoch), seed=7, config=config)


BLOCKS = 4


def grid(sides: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor]:
    """Images that tell where a pixel came from: a channel for each axis, from 0.1 to 0.9, and one that is 1 inside the
    frame; and a mask that tells the same, coarsely, by blocks of a quarter of each side."""
    places = torch.meshgrid(*(0.1 + 0.8 * (torch.arange(side) + 0.5) / side for side in sides), indexing="ij")
    image = torch.stack([*places, torch.ones(sides)])[None].expand(count, *[-1] * (len(sides) + 1)).contiguous()
    return image, blocks(image)


def blocks(image: Tensor) -> Tensor:
    """The number of the block that each pixel came from."""
    number = torch.zeros_like(image[:, 0], dtype=torch.long)
    for places in image[:, :-1].unbind(1):
        number = BLOCKS * number + ((places - 0.1) / 0.8 * BLOCKS).floor().clamp(0, BLOCKS - 1).long()
    return number.short()


@pytest.mark.parametrize("sides", [(48, 48), (40, 64), (24, 32, 32)])
@pytest.mark.parametrize("name", MOVES)
def test_a_mask_goes_where_its_image_goes(name: str, sides: tuple[int, ...]) -> None:
    """The image is sampled between pixels and the mask at the nearest, so that at most half a pixel lies between."""
    images, masks = grid(sides)
    moved, moved_masks = changed(images, masks, only(name))
    assert not torch.equal(moved, images)
    inside = moved[:, -1] > 1 - 1e-4
    for axis, places in enumerate(moved[:, :-1].unbind(1)):
        share = (places - 0.1) / 0.8 * BLOCKS
        half_a_pixel = 0.51 * BLOCKS / sides[axis]
        inside &= (share.frac() > half_a_pixel) & (share.frac() < 1 - half_a_pixel)
    assert inside.float().mean() > 0.15
    assert torch.equal(moved_masks[inside], blocks(moved)[inside])
    assert (moved_masks[moved[:, -1] == 0] == -1).all()


@pytest.mark.parametrize("name", EACH)
def test_it_belongs_to_sample_and_epoch_alone(name: str) -> None:
    images, masks = grid((32, 32), 4)
    config = only(name)
    whole, whole_masks = changed(images, masks, config)
    for place in range(4):
        one, one_mask = changed(images[place : place + 1], masks[place : place + 1], config, first=place)
        torch.testing.assert_close(one[0], whole[place], rtol=0, atol=1e-6)
        assert torch.equal(one_mask[0], whole_masks[place])
    assert not torch.equal(changed(images, masks, config, epoch=1)[0], whole) or name == "flip"
    assert not torch.equal(whole[0], whole[1]) or name == "flip"


@pytest.mark.parametrize("name", EACH)
def test_each_setting_changes_something_and_strength_turns_it_off(name: str) -> None:
    images, masks = grid((32, 32))
    assert not torch.equal(changed(images, masks, only(name))[0], images)
    if name not in ("flip", "all"):
        still, still_masks = changed(images, masks, only(name, strength=0))
        assert torch.equal(still, images) and torch.equal(still_masks, masks)
        weak, strong = (changed(images, masks, only(name, strength=each))[0] for each in (0.5, 1.0))
        assert (weak - images).abs().mean() < (strong - images).abs().mean()


def test_nothing_is_nothing() -> None:
    images, masks = grid((20, 24))
    found, found_masks = changed(images, masks, AugmentationConfig(**NOTHING))
    assert found is images and found_masks is masks


def test_a_flip_is_an_exact_mirror() -> None:
    images, masks = grid((16, 24))
    found, found_masks = changed(images, masks, only("flip"))
    torch.testing.assert_close(found, images.flip(-1), rtol=0, atol=1e-5)
    assert torch.equal(found_masks, masks.flip(-1))


def test_intensities_stay_in_range() -> None:
    images, _ = grid((32, 32))
    found, _ = changed(images, None, AugmentationConfig(strength=2, brightness=1, contrast=0.9, noise=1))
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()


def test_a_range_that_excludes_doing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the range holds 1"):
        AugmentationConfig(scale=(1.1, 1.2))


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([32, 48]))
def test_a_whole_image_fits_its_frame_and_comes_back(height: int, width: int, side: int) -> None:
    image = torch.zeros(1, 1, height, width)
    box = (slice(height // 4, 3 * height // 4 + 1), slice(width // 4, 3 * width // 4 + 1))
    image[(0, 0, *box)] = 1
    framed = fit_view(image, side)
    rows, columns = fitted_size((height, width), side)
    assert framed.shape == (1, 1, side, side) and max(rows, columns) == side
    assert framed[..., rows:, :].sum() == 0 and framed[..., columns:].sum() == 0
    back = unfit(framed, (height, width))
    assert back.shape == image.shape
    for axis, length in ((2, height), (3, width)):
        places = torch.arange(length, dtype=torch.float32)
        centre, found = (
            float((each.sum(dim=5 - axis)[0, 0] * places).sum() / each.sum()) for each in (image, back.clamp_min(0))
        )
        assert abs(centre - found) < 0.5 * max(1.0, max(height, width) / side)
    mask = fit_mask((image[:, 0] > 0).short(), side)
    assert (mask[:, rows:] == -1).all() and (mask[:, :, columns:] == -1).all()
    agree = ((mask[:, :rows, :columns] == 1) == (framed[:, 0, :rows, :columns] > 0.5)).float().mean()
    assert agree > 1 - 8 / min(rows, columns)


def test_frames_of_a_padded_batch_are_those_of_single_images() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 30), (24, 48), (48, 48)]
    images = [torch.randint(256, (1, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    batch = torch.zeros(3, 1, 48, 48, dtype=torch.uint8)
    masks = torch.full((3, 48, 48), -1, dtype=torch.int16)
    for place, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        batch[place, :, :height, :width] = image
        masks[place, :height, :width] = (image[0] > 99).short()
    ids = torch.arange(3)
    given_all: Any = (batch, torch.tensor(sizes), ids, torch.zeros_like(ids))
    for fit in ("crop", "fit"):
        found = labelled_views(
            *given_all, seed=0, image_size=32, in_channels=1, fit=fit, masks=masks if fit == "fit" else None
        )
        for place, image in enumerate(images):
            whole = center_view(image[None], sizes[place], 1)
            expected = center_view(image[None], 32, 1) if fit == "crop" else fit_view(whole, 32)
            assert torch.equal(found.images[place], expected[0])
    assert found.masks is not None and (found.masks[0, :, 24:] == -1).all() and (found.masks[1, 16:] == -1).all()
