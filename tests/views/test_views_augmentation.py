"""Augmentation: masks and images stay together, and randomness belongs to the sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dira_dist.views import AugmentationConfig, augment

NOTHING: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
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
    "crop": {"crop_scale": (0.2, 0.7)},
    "rotation": {"rotation_degrees": 40},
    "scale": {"scale": (0.5, 2.0)},
    "translation": {"translation": 0.3},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.5},
    "gamma": {"gamma": (0.5, 2.0)},
    "noise": {"noise": 0.2},
    "all": {"flip_probability": 0.5, "rotation_degrees": 30, "scale": (0.7, 1.4), "translation": 0.2},
}
EACH["all"] |= EACH["crop"]
MOVES = ("flip", "crop", "rotation", "scale", "translation", "all")
PINNED: dict[tuple[int, ...], list[list[float]]] = {
    (32, 48): [[0.5257, 0.4112, 1.0], [0.2994, 0.2433, 0.9787], [0.2741, 0.7312, 0.998]],
    (16, 24, 32): [[0.4324, 0.5755, 0.4013, 1.0], [0.339, 0.2817, 0.3377, 0.9461], [0.0, 0.3572, 0.4758, 1.0]],
}


def only(name: str, **more: Any) -> AugmentationConfig:
    return AugmentationConfig(**{**NOTHING, **EACH[name], **more})


def changed(images: Tensor, masks: Tensor | None, config: AugmentationConfig, epoch: int = 0, first: int = 0) -> Any:
    ids = torch.arange(first, first + len(images))
    return augment(images, masks, ids, torch.full_like(ids, epoch), seed=7, config=config)


BLOCKS = 4


def grid(sides: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor]:
    """Coordinates and the blocks in which they are.

    The images have a channel for each axis, from 0.1 to 0.9 along it, and one that is 1 inside the frame; the masks
    tell the same coarsely, by blocks of a quarter of each side.
    """
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


def test_neither_order_nor_company_matter() -> None:
    images, masks = grid((32, 32), 4)
    images = images * torch.tensor([1.0, 0.9, 0.8, 0.7]).view(4, 1, 1, 1)
    ids, epochs, order = torch.tensor([5, 900, 2, 7]), torch.tensor([0, 3, 3, 1]), torch.tensor([2, 0, 3, 1])
    config = AugmentationConfig(flip_probability=0.5, crop_scale=(0.5, 1))
    found = augment(images, masks, ids, epochs, seed=7, config=config)
    turned = augment(images[order], masks[order], ids[order], epochs[order], seed=7, config=config)
    torch.testing.assert_close(turned[0], found[0][order], rtol=0, atol=1e-6)
    assert found[1] is not None and turned[1] is not None and torch.equal(turned[1], found[1][order])
    assert not torch.equal(augment(images, masks, ids, epochs, seed=8, config=config)[0], found[0])


@pytest.mark.parametrize(("sides", "expected"), PINNED.items())
def test_every_process_on_every_machine_draws_the_same(sides: tuple[int, ...], expected: list[list[float]]) -> None:
    """Numbers that were drawn once: they stay, or what was trained could not be trained again."""
    images, _ = grid(sides)
    found = changed(images, None, AugmentationConfig(**{**NOTHING, **EACH["all"], **EACH["gamma"], **EACH["noise"]}))[0]
    centre = found[(slice(None), slice(None), *(side // 2 for side in sides))]
    torch.testing.assert_close(centre, torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_each_setting_changes_something_and_strength_turns_it_off(name: str) -> None:
    images, masks = grid((32, 32))
    assert not torch.equal(changed(images, masks, only(name))[0], images)
    still, still_masks = changed(images, masks, only(name, strength=0))
    assert torch.equal(still, images) and torch.equal(still_masks, masks)
    if name not in ("flip", "all"):
        weak, plain, strong = (
            (changed(images, masks, only(name, strength=each))[0] - images).abs().mean() for each in (0.4, 1.0, 2.0)
        )
        assert weak < plain < strong


def test_a_low_strength_mirrors_less_and_a_high_one_no_more_than_asked_for() -> None:
    images = torch.arange(4.0).div(3).expand(2000, 1, 2, 4)
    for strength, share in ((0.5, 0.25), (1.0, 0.5), (2.0, 0.5)):
        found, _ = changed(images, None, only("flip", flip_probability=0.5, strength=strength))
        assert ((found[:, 0, 0, 0] > 0.5).float().mean() - share).abs() < 0.04


@pytest.mark.parametrize("sides", [(40, 60), (24, 32, 32)])
def test_a_crop_is_a_part_of_the_frame_of_the_size_asked_for(sides: tuple[int, ...]) -> None:
    images, _ = grid(sides, 200)
    found, _ = changed(images, None, only("crop", crop_scale=(0.25, 0.64)))
    spans = torch.stack([each.flatten(1).amax(1) - each.flatten(1).amin(1) for each in found[:, :-1].unbind(1)], 1)
    assert (found[:, -1] > 1 - 1e-4).float().mean() > 0.95, "but for the half pixel of the frame's edge"
    parts = (spans / 0.8 * torch.tensor(sides) / (torch.tensor(sides) - 1)).prod(1)
    assert parts.min() > 0.2 and parts.max() < 0.7 and parts.max() - parts.min() > 0.3
    centres = torch.stack([each.flatten(1).mean(1) for each in found[:, :-1].unbind(1)], 1)
    assert (centres.mean(0) - 0.5).abs().max() < 0.03 and centres.std(0).min() > 0.05


@pytest.mark.parametrize("name", EACH)
def test_autocast_changes_nothing(name: str) -> None:
    images, masks = grid((64, 64))
    config = only(name)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_masks = changed(images, masks, config)
    plain, plain_masks = changed(images, masks, config)
    assert torch.equal(found, plain) and torch.equal(found_masks, plain_masks)


def test_noise_is_normal_and_independent() -> None:
    images = torch.full((64, 2, 33, 31), 0.5)
    found, _ = changed(images, None, only("noise", noise=0.1, strength=0.5))
    one = found - 0.5
    deviations = one.flatten(1).std(1)
    assert deviations.max() < 0.053 and deviations.min() < 0.005, "of each image its own, the largest as asked for"
    standard = one / deviations.view(-1, 1, 1, 1)
    assert standard.mean().abs() < 0.01 and (standard.pow(4).mean() - 3).abs() < 0.1
    for other in (standard.roll(1, -1), standard.roll(1, -2), standard.roll(1, 1), standard.roll(1, 0)):
        assert (standard * other).mean().abs() < 0.01


def test_nothing_is_nothing() -> None:
    images, masks = grid((20, 24))
    found, found_masks = changed(images, masks, AugmentationConfig(**NOTHING))
    assert found is images and found_masks is masks


@pytest.mark.parametrize("sides", [(64, 96), (96, 64), (64, 96, 8)])
def test_a_turned_image_is_not_sheared(sides: tuple[int, ...]) -> None:
    """From a pixel to the next in the result is as far as in the frame, along both axes, and they stay at right angles;
    whatever the frame's sides. A cube (x, y, z) is turned about z, its last axis."""
    images, _ = grid(sides, 20)
    moved, _ = changed(images, None, only("rotation"))
    inside = moved[:, -1:] > 1 - 1e-4
    pixels = moved[:, :-1] / 0.8 * torch.tensor(sides).view(1, -1, *(1,) * len(sides))
    rows, columns = (2, 3)
    steps = [pixels.diff(dim=a).narrow(b, 0, pixels.shape[b] - 1) for a, b in ((rows, columns), (columns, rows))]
    kept = (inside[:, :, :-1, :-1] & inside[:, :, 1:, :-1] & inside[:, :, :-1, 1:]).squeeze(1)
    for one, other, expected in ((0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.0)):
        product = (steps[one] * steps[other]).sum(1)[kept]
        torch.testing.assert_close(product, torch.full_like(product, expected), rtol=0, atol=1e-2)
    assert len(sides) == 2 or max(step[:, 2][kept].abs().max() for step in steps) < 1e-3


@pytest.mark.parametrize(("sides", "left_right"), [((16, 24), 1), ((16, 24, 10), 0)])
def test_a_flip_is_an_exact_mirror(sides: tuple[int, ...], left_right: int) -> None:
    """Of left and right: the columns of an image (H, W), the first axis of a cube (x, y, z)."""
    images, masks = grid(sides)
    found, found_masks = changed(images, masks, only("flip"))
    torch.testing.assert_close(found, images.flip(2 + left_right), rtol=0, atol=1e-5)
    assert torch.equal(found_masks, masks.flip(1 + left_right))


def test_intensities_stay_in_range() -> None:
    images, _ = grid((32, 32))
    found, _ = changed(images, None, AugmentationConfig(strength=2, brightness=1, contrast=0.9, noise=1))
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()


def test_a_range_that_excludes_doing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the range holds 1"):
        AugmentationConfig(scale=(1.1, 1.2))


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1, the whole frame"):
        AugmentationConfig(crop_scale=(0.5, 1.2))
