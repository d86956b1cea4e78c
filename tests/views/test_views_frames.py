"""Frames: an image, its mask and what is predicted of it share one geometry, whatever batch the image is in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dira_dist.views import AugmentationConfig, LabelledViews, labelled_views
from dira_dist.views import center_view as center_view_file
from dira_dist.views import frame_view as frame_view_file
from dira_dist.views.center_view import center_view
from dira_dist.views.frame_view import fit_mask, fit_view, fitted_size, unfit

SIZES: dict[str, list[tuple[int, ...]]] = {
    "of one size": [(40, 30)] * 3,
    "of several sizes": [(40, 30), (24, 48), (48, 48)],
    "volumes": [(20, 40, 30), (24, 24, 36), (24, 40, 36)],
}


def batch_of(sizes: list[tuple[int, ...]], channels: int = 1) -> tuple[list[Tensor], Tensor, Tensor]:
    """Images alone; the same padded at their ends by what must not be seen, with masks of three values."""
    generator = torch.Generator().manual_seed(0)
    canvas = [max(lengths) + 3 for lengths in zip(*sizes, strict=True)]
    images = [torch.randint(256, (channels, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    padded = torch.full((len(sizes), channels, *canvas), 255, dtype=torch.uint8)
    masks = torch.full((len(sizes), *canvas), 9, dtype=torch.int16)
    for place, (image, size) in enumerate(zip(images, sizes, strict=True)):
        own = tuple(map(slice, size))
        padded[place][(slice(None), *own)] = image
        masks[place][own] = (image[0] // 86).short()
    return images, padded, masks


def views_of(padded: Tensor, sizes: list[tuple[int, ...]], **more: Any) -> LabelledViews:
    ids = torch.arange(len(padded))
    settings_of: dict[str, Any] = {"seed": 0, "image_size": 32, "in_channels": 1, "fit": "fit"} | more
    return labelled_views(padded, torch.tensor(sizes), ids, torch.zeros_like(ids), **settings_of)


@pytest.mark.parametrize("kind", SIZES)
def test_a_frame_is_that_of_the_image_alone(kind: str) -> None:
    sizes = SIZES[kind]
    images, padded, masks = batch_of(sizes)
    cropped, whole = views_of(padded, sizes, fit="crop"), views_of(padded, sizes, masks=masks)
    assert cropped.masks is None and whole.masks is not None and len(whole) == len(sizes)
    for place, image in enumerate(images):
        assert torch.equal(cropped.images[place], center_view(image[None], 32, 1)[0])
        assert torch.equal(whole.images[place], fit_view(image[None] / 255, 32)[0])
        assert torch.equal(whole.masks[place], fit_mask((image // 86).short(), 32)[0])


@pytest.mark.parametrize(("channels", "wanted"), [(1, 3), (3, 1), (3, 3), (4, 4)])
def test_channels_are_those_of_the_centre_view(channels: int, wanted: int) -> None:
    sizes = SIZES["of several sizes"]
    images, padded, _ = batch_of(sizes, channels)
    for fit in ("crop", "fit"):
        found = views_of(padded, sizes, in_channels=wanted, fit=fit).images
        assert found.shape == (3, wanted, 32, 32) and found.dtype == torch.float32
        for place, (image, size) in enumerate(zip(images, sizes, strict=True)):
            view = center_view(image[None], 32 if fit == "crop" else size, wanted)
            torch.testing.assert_close(found[place], fit_view(view, 32)[0], rtol=0, atol=1e-6)


def test_channels_that_nobody_can_turn_into_the_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="with C 1"):
        views_of(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), [(8, 8)] * 2, in_channels=4)


def test_grey_images_stay_grey_under_augmentation() -> None:
    """Repeated to three channels they are noisy the same way in each."""
    sizes = SIZES["of several sizes"]
    _, padded, masks = batch_of(sizes)
    strong = AugmentationConfig(noise=0.2, strength=2)
    three = views_of(padded, sizes, in_channels=3, augmentation=strong, masks=masks)
    one = views_of(padded, sizes, in_channels=1, augmentation=strong, masks=masks)
    assert torch.equal(three.images, one.images.expand(-1, 3, -1, -1))
    plain = views_of(padded, sizes, masks=masks)
    assert not torch.equal(one.images, plain.images)
    assert one.masks is not None and plain.masks is not None and not torch.equal(one.masks, plain.masks)


def test_targets_and_numbers_of_samples_pass_through() -> None:
    _, padded, _ = batch_of(SIZES["of one size"])
    targets = torch.tensor([[1.0], [float("nan")], [0.0]])
    found = views_of(padded, SIZES["of one size"], fit="crop", targets=targets, augmentation=AugmentationConfig())
    assert found.targets is targets and found.sample_ids.tolist() == [0, 1, 2]


side_px = st.integers(8, 90)
lengths_px = st.one_of(st.tuples(side_px, side_px), st.tuples(*[st.integers(8, 40)] * 3))


@settings(deadline=None, max_examples=60)
@given(lengths_px, st.sampled_from([16, 32, 48]))
@example((86, 8), 16)  # a single column
@example((8, 86), 16)
def test_a_whole_image_fits_its_frame_and_comes_back(size: tuple[int, ...], side: int) -> None:
    axes, image = len(size), torch.zeros(1, 1, *size)
    box = tuple(slice(length // 8, length // 2 + 1) for length in size)
    image[0, 0][box] = 1
    framed, mask = fit_view(image, side), fit_mask((image[:, 0] > 0).short(), side)
    taken = fitted_size(size, side)
    own = tuple(map(slice, taken))
    assert framed.shape == (1, 1, *(side,) * axes) and max(taken) == side
    padding = torch.ones((side,) * axes, dtype=torch.bool)
    padding[own] = False
    assert (framed[0, 0][padding] == 0).all() and (mask[0][padding] == -1).all()
    assert (mask[0][own] >= 0).all()
    back = unfit(framed, size)
    assert back.shape == image.shape
    pixel_px = max(1.0, max(size) / side)
    for found, expected in zip(centre_of_mass(back[0, 0]), centre_of_mass(image[0, 0]), strict=True):
        assert abs(found - expected) < 0.5 * pixel_px


@settings(deadline=None, max_examples=40)
@given(lengths_px, st.sampled_from([16, 32, 48]))
def test_what_comes_back_lies_where_it_lay(size: tuple[int, ...], side: int) -> None:
    """A map of where the frame's pixels stand in the image tells each pixel its own place, but for the edges."""
    taken = fitted_size(size, side)
    for axis, (length, each) in enumerate(zip(size, taken, strict=True)):
        stands_at = (torch.arange(side) + 0.5) * length / each
        framed = stands_at.view(-1, *(1,) * (len(size) - 1 - axis)).expand((side,) * len(size))
        back = unfit(framed[None, None].contiguous(), size)[0, 0].movedim(axis, 0).flatten(1)
        places = torch.arange(length) + 0.5
        inner = (places >= stands_at[0]) & (places <= stands_at[each - 1])
        torch.testing.assert_close(back[inner], places[inner, None].expand_as(back[inner]), rtol=0, atol=1e-3)


def centre_of_mass(image: Tensor) -> list[float]:
    places = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in image.shape), indexing="ij")
    return [float((image * each).sum() / image.sum()) for each in places]


@settings(deadline=None, max_examples=40)
@given(lengths_px, st.sampled_from([16, 32, 48]))
def test_a_mask_is_that_of_the_pixel_under_the_centre(size: tuple[int, ...], side: int) -> None:
    """Written once more: pixel i of the frame stands at (i + 1/2) * length / taken of the image."""
    taken = fitted_size(size, side)
    scale = min(side / length for length in size)
    assert all(abs(each - length * scale) <= 0.5 or each == 1 for each, length in zip(taken, size, strict=True))
    for axis, (length, each) in enumerate(zip(size, taken, strict=True)):
        line = torch.arange(length, dtype=torch.int16).view(-1, *(1,) * (len(size) - 1 - axis)).expand(size)
        found = fit_mask(line[None].contiguous(), side)[0].movedim(axis, 0).flatten(1)[:, 0]
        exact = (torch.arange(each, dtype=torch.float64) + 0.5) * length / each
        assert ((found[:each] + 0.5 - exact).abs() <= 0.5 + 1e-4).all() and (found[each:] == -1).all()


@pytest.mark.parametrize("image_size", [(24, 48), (48, 24)])
def test_a_frame_may_have_a_side_for_each_axis(image_size: tuple[int, int]) -> None:
    image = torch.ones(1, 1, 30, 30)
    framed = fit_view(image, image_size)
    assert framed.shape[2:] == image_size and framed.sum() == 24 * 24
    torch.testing.assert_close(unfit(framed, (30, 30)), image)


LOOSE = """
import sys
import torch, center_view, frame_view
view = center_view.center_view(torch.zeros(1, 1, 20, 30, dtype=torch.uint8), (20, 30), 1)
assert frame_view.unfit(frame_view.fit_view(view, 16), (20, 30)).shape == (1, 1, 20, 30)
assert "dira_dist" not in sys.modules
"""


def test_the_files_work_without_the_package(tmp_path: Path) -> None:
    """Copies of them travel with models."""
    for module in (center_view_file, frame_view_file):
        source = Path(str(module.__file__))
        (tmp_path / source.name).write_text(source.read_text())
    command = [sys.executable, "-c", LOOSE]
    ran = subprocess.run(command, cwd=tmp_path, timeout=120, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
