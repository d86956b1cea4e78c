"""Jitter and blur: against loops and torchvision, and by what they must leave alone."""

import itertools
import math

import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from dira_dist.views.colour import to_grey
from dira_dist.views.intensity import (
    Blur,
    BlurConfig,
    Jitter,
    JitterConfig,
    blur,
    draw_blur,
    draw_jitter,
    gaussian,
    jitter,
)
from dira_dist.views.randomness import view_keys


def keys(count: int, seed: int = 0) -> Tensor:
    return view_keys(seed, torch.zeros(count, dtype=torch.long), torch.arange(count), views=2)


def random_jitter(count: int) -> Jitter:
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(count)])
    factors = 0.4 + 1.2 * torch.rand(count, 3, generator=generator)
    return Jitter(factors, torch.rand(count, generator=generator) - 0.5, order)


def plain_jitter_grey(image: Tensor, brightness: float, contrast: float, order: list[int]) -> Tensor:
    values = image.double().flatten().tolist()
    for operation in order:
        if operation == 0:
            values = [v * brightness for v in values]
        elif operation == 1:
            mean = sum(values) / len(values)
            values = [contrast * v + (1 - contrast) * mean for v in values]
        values = [min(1.0, max(0.0, v)) for v in values]
    return torch.tensor(values, dtype=torch.float64).view(image.shape)


@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
def test_grey_jitter_equals_the_loop(shape: tuple[int, ...]) -> None:
    images = torch.rand(16, 1, *shape, generator=torch.Generator().manual_seed(1))
    drawn = random_jitter(16)
    wanted = [
        plain_jitter_grey(image, *drawn.factors[n, :2].tolist(), drawn.order[n].tolist())
        for n, image in enumerate(images)
    ]
    torch.testing.assert_close(jitter(images, drawn).double(), torch.stack(wanted), atol=1e-6, rtol=0)


def test_grey_jitter_works_on_memory_in_any_order() -> None:
    images = torch.rand(4, 1, 6, 7)
    turned = images.mT.contiguous().mT
    assert not turned.is_contiguous()
    drawn = random_jitter(4)
    torch.testing.assert_close(jitter(turned, drawn), jitter(images, drawn))


def test_rgb_jitter_equals_torchvisions_steps() -> None:
    images = torch.rand(16, 3, 8, 9, generator=torch.Generator().manual_seed(2))
    drawn = random_jitter(16)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    wanted = []
    for n, image in enumerate(images):
        strengths = [*drawn.factors[n].tolist(), float(drawn.hue[n])]
        for operation in drawn.order[n].tolist():
            image = steps[operation](image, strengths[operation])
        wanted.append(image)
    # torchvision's luma has four digits (0.2989, 0.587, 0.114), which do not add up to 1.
    torch.testing.assert_close(jitter(images, drawn), torch.stack(wanted), atol=5e-4, rtol=0)


def hue_only(turns: Tensor) -> Jitter:
    count = len(turns)
    return Jitter(torch.ones(count, 3), turns, torch.arange(4).expand(count, -1))


@pytest.mark.parametrize("shape", [(8, 9), (3, 4, 5)])
def test_hue_turns_as_torchvisions_and_stays_among_the_colours(shape: tuple[int, ...]) -> None:
    images = torch.rand(21, 3, *shape, generator=torch.Generator().manual_seed(4))
    images[0, :, 0] = torch.tensor([1.0, 0, 0]).view(3, *(1,) * (len(shape) - 1))  # saturated, black, white, grey
    images[1:4, :, 0] = torch.tensor([0.0, 1.0, 0.5]).view(3, *(1,) * len(shape))
    images[4] = (images[4] * 3).round() / 3  # ties between the parts of a colour
    turns = torch.linspace(-0.5, 0.5, 21)
    found = jitter(images.clone(), hue_only(turns))
    wanted = [tv.adjust_hue(image.flatten(1)[:, None], float(turn)) for image, turn in zip(images, turns, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted).view(images.shape), atol=2e-6, rtol=0)
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found.amax(1), images.amax(1))
    torch.testing.assert_close(jitter(found, hue_only(-turns)), images, atol=2e-6, rtol=0)


def test_a_third_of_a_turn_takes_red_to_green() -> None:
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1)
    turned = jitter(red.clone(), hue_only(torch.tensor([1 / 3])))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.4, 0.6, 0.4]))


def test_grey_in_three_channels_stays_grey() -> None:
    images = torch.rand(4, 1, 5, 5).expand(-1, 3, -1, -1).clone()
    found = jitter(images, random_jitter(4))
    torch.testing.assert_close(found[:, 0], found[:, 1])
    torch.testing.assert_close(found[:, 0], found[:, 2])


@given(strength=st.floats(0, 2), hue=st.floats(0, 0.5), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_jitter_is_drawn_within_its_bounds(strength: float, hue: float, seed: int) -> None:
    config = JitterConfig(brightness=strength, contrast=strength, saturation=strength, hue=hue)
    drawn = draw_jitter(keys(16, seed), config)
    assert (drawn.factors >= max(0.0, 1 - strength) - 1e-6).all()
    assert (drawn.factors <= 1 + strength + 1e-6).all()
    assert (drawn.hue.abs() <= hue + 1e-6).all()
    assert torch.equal(drawn.order.sort(-1).values, torch.arange(4).expand(2, 16, -1))


def test_jitter_happens_as_often_as_asked_in_every_order() -> None:
    drawn = draw_jitter(keys(12_000), JitterConfig())
    jittered = (drawn.factors != 1).any(-1).double().mean().item()
    assert abs(jittered - 0.8) < 0.01
    orders = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in drawn.order[0].tolist():
        orders[tuple(order)] += 1
    assert all(abs(count - 500) < 120 for count in orders.values())


def plain_blur(image: Tensor, kernel: list[float]) -> Tensor:
    """(C, *S), every pixel the weighted sum of its neighbourhood, the edge continued outwards."""
    radius = len(kernel) // 2
    out = torch.zeros_like(image, dtype=torch.float64)
    shape = image.shape[1:]
    for pixel in itertools.product(*map(range, shape)):
        for shift in itertools.product(range(-radius, radius + 1), repeat=len(shape)):
            place = tuple(min(max(p + s, 0), side - 1) for p, s, side in zip(pixel, shift, shape, strict=True))
            weight = math.prod(kernel[s + radius] for s in shift)
            out[(slice(None), *pixel)] += weight * image[(slice(None), *place)].double()
    return out


@pytest.mark.parametrize(("channels", "shape"), [(1, (9, 9)), (3, (7, 7)), (1, (5, 5, 5))])
def test_blur_equals_the_loop(channels: int, shape: tuple[int, ...]) -> None:
    images = torch.rand(3, channels, *shape, generator=torch.Generator().manual_seed(3))
    kernels = gaussian(torch.tensor([0.0, 0.7, 1.5]), radius=2)
    wanted = [plain_blur(image, kernel.tolist()) for image, kernel in zip(images, kernels, strict=True)]
    torch.testing.assert_close(blur(images, Blur(kernels)).double(), torch.stack(wanted), atol=1e-6, rtol=0)


def test_kernels_are_gaussian() -> None:
    kernel = gaussian(torch.tensor([1.3]), radius=4)[0].tolist()
    wanted = [math.exp(-(x**2) / (2 * 1.3**2)) for x in range(-4, 5)]
    assert kernel == pytest.approx([w / sum(wanted) for w in wanted], abs=1e-6)


def test_blur_happens_as_often_as_asked_and_scales_with_the_view() -> None:
    for view_px in (224, 448):
        kernels = draw_blur(keys(12_000), BlurConfig(), view_px).kernels
        side = kernels.shape[-1] // 2
        blurred = kernels[..., side] < 1 - 1e-6
        # Below 0.19 px a Gaussian's neighbours have less than 1e-6 of its weight: 0.5 * (2 - 0.19) / 1.9 are seen.
        assert abs(blurred.double().mean() - 0.5) < 0.04
        offset = torch.arange(-side, side + 1)
        sigma = (kernels * offset**2).sum(-1).sqrt()
        assert sigma.max() <= 2.0 * view_px / 224
        assert sigma.max() > 1.9 * view_px / 224


def test_grey_of_grey_is_itself_and_of_rgb_is_the_luma() -> None:
    images = torch.randint(0, 65536, (2, 3, 4, 5)).to(torch.uint16)
    assert torch.equal(to_grey(images[:, :1]), images[:, :1])
    wanted = (images.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(
        1, keepdim=True
    )
    torch.testing.assert_close(to_grey(images).double(), wanted, rtol=1e-6, atol=0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        BlurConfig(sigma_px=(2.0, 1.0))
    with pytest.raises(ValidationError):
        JitterConfig(brightness=-0.1)
    with pytest.raises(ValidationError):
        JitterConfig(probability=1.1)
