"""Crop, resize and flip: against loops, against torchvision, and by what must hold of every box."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.functional import resized_crop

from dira_dist.views.geometry import CropConfig, Crops, draw_crops, resample
from dira_dist.views.randomness import view_keys


def plain_resample(image: Tensor, start: list[int], size: list[int], flipped: bool, out_px: tuple[int, ...]) -> Tensor:
    """(C, *S) to (C, *out_px), one output pixel after another."""
    axes = len(start)
    out = torch.zeros(image.shape[0], *out_px, dtype=torch.float64)
    for pixel in itertools.product(*map(range, out_px)):
        taps = []
        for axis, position in enumerate(pixel):
            if flipped and axis == (0 if axes == 3 else 1):
                position = out_px[axis] - 1 - position
            scale = size[axis] / out_px[axis]
            centre = start[axis] + (position + 0.5) * scale
            weights = {
                j: max(0.0, 1 - abs(j + 0.5 - centre) / max(scale, 1))
                for j in range(start[axis], start[axis] + size[axis])
            }
            total = sum(weights.values())
            taps.append([(j, weight / total) for j, weight in weights.items() if weight])
        for combination in itertools.product(*taps):
            place = tuple(j for j, _ in combination)
            out[(slice(None), *pixel)] += math.prod(w for _, w in combination) * image[(slice(None), *place)].double()
    return out


def random_crops(sizes: Tensor, views: int, seed: int) -> Crops:
    generator = torch.Generator().manual_seed(seed)
    shape = (views, *sizes.shape)
    size = 1 + (torch.rand(shape, generator=generator) * sizes).long()
    start = (torch.rand(shape, generator=generator) * (sizes - size + 1)).long()
    return Crops(start, size, torch.rand(shape[:2], generator=generator) < 0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("canvas", "channels", "out_px"),
    [
        *(((29, 23), 1, 7), ((29, 40), 3, 8), ((9, 6), 1, 16), ((9, 14, 11), 1, 5), ((4, 5, 3), 3, 6)),
        *(((29, 23), 1, (7, 9)), ((9, 6), 3, (5, 16)), ((9, 14, 11), 1, (3, 5, 4)), ((4, 5, 3), 4, (6, 2, 3))),
    ],
)
def test_equals_the_loop(
    dtype: torch.dtype, canvas: tuple[int, ...], channels: int, out_px: int | tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    top = torch.iinfo(dtype).max
    images = torch.randint(0, top + 1, (3, channels, *canvas), generator=generator).to(dtype)
    sizes = torch.tensor([canvas, [s - 1 for s in canvas], [max(1, s // 2) for s in canvas]])
    crops = random_crops(sizes, views=2, seed=1)
    sides = (out_px,) * len(canvas) if isinstance(out_px, int) else out_px
    found = resample(images, crops.of(slice(None)), out_px, channels).view(2, 3, channels, *sides)
    for view, sample in itertools.product(range(2), range(3)):
        start, size = crops.start_px[view, sample].tolist(), crops.size_px[view, sample].tolist()
        flipped = bool(crops.flipped[view, sample])
        wanted = plain_resample(images[sample].to(torch.int64), start, size, flipped, sides)
        torch.testing.assert_close(found[view, sample].double() / top, wanted / top, atol=1e-6, rtol=0)


@pytest.mark.parametrize("box", [(0, 0, 120, 100), (7, 11, 64, 64), (30, 2, 17, 90), (5, 5, 9, 9)])
def test_equals_torchvisions_crop_and_antialiased_resize(box: tuple[int, int, int, int]) -> None:
    image = torch.rand(1, 1, 120, 100, generator=torch.Generator().manual_seed(0))
    top, left, height, width = box
    crops = Crops(torch.tensor([[top, left]]), torch.tensor([[height, width]]), torch.tensor([True]))
    wanted = resized_crop(image, top, left, height, width, [32, 32], antialias=True).flip(-1)
    torch.testing.assert_close(resample(image, crops, 32, 1), wanted, atol=1e-5, rtol=0)


def test_whole_image_at_its_own_size_is_itself() -> None:
    image = torch.randint(0, 256, (1, 1, 24, 24), dtype=torch.uint8)
    crops = Crops(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[24, 24]]), torch.tensor([False]))
    torch.testing.assert_close(resample(image, crops, 24, 1), image.float())


@given(
    sizes=st.lists(st.integers(1, 300), min_size=2, max_size=3),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_boxes_lie_inside_the_true_size_and_within_the_settings(
    sizes: list[int], scale: tuple[float, float], seed: int
) -> None:
    samples = torch.arange(8)
    keys = view_keys(seed, torch.zeros_like(samples), samples, views=2)
    true = torch.tensor(sizes)
    config = CropConfig(scale=scale)
    crops = draw_crops(keys, true.expand(8, -1), config)
    assert (crops.start_px >= 0).all()
    assert (crops.size_px >= 1).all()
    assert (crops.start_px + crops.size_px <= true).all()
    # A side is rounded to whole pixels: by half a pixel each way.
    smallest, largest = (crops.size_px - 0.5).double().prod(-1), (crops.size_px + 0.5).double().prod(-1)
    central = (crops.start_px == (true - crops.size_px) // 2).all(-1)
    assert ((smallest <= scale[1] * true.prod()) | central).all()
    assert ((largest >= scale[0] * true.prod()) | central).all()
    low = (crops.size_px[..., 1:] - 0.5) / (crops.size_px[..., :1] + 0.5)
    high = (crops.size_px[..., 1:] + 0.5) / (crops.size_px[..., :1] - 0.5)
    assert ((low <= config.ratio[1]) & (high >= config.ratio[0])).all()


@pytest.mark.parametrize(("size", "wanted"), [((400, 30), (40, 30)), ((30, 400), (30, 40))])
def test_an_image_no_box_fits_gives_its_largest_central_one(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    keys = view_keys(0, torch.tensor([0]), torch.tensor([0]), views=1)
    crops = draw_crops(keys, torch.tensor([size]), CropConfig(scale=(0.9, 1.0)))
    assert crops.size_px[0, 0].tolist() == list(wanted)
    assert crops.start_px[0, 0].tolist() == [(s - w) // 2 for s, w in zip(size, wanted, strict=True)]


def test_areas_and_ratios_are_spread_over_their_whole_ranges() -> None:
    samples = torch.arange(20_000)
    keys = view_keys(1, torch.zeros_like(samples), samples, views=1)
    crops = draw_crops(keys, torch.full((20_000, 2), 1000), CropConfig(scale=(0.2, 0.5)))
    area = crops.size_px[0].double().prod(-1) / 1e6
    ratio = (crops.size_px[0, :, 1] / crops.size_px[0, :, 0]).log()
    assert abs(area.mean() - 0.35) < 0.005  # uniform in the area
    assert abs(area.std() - 0.3 / 12**0.5) < 0.005
    assert abs(ratio.mean()) < 0.01  # uniform in the logarithm
    assert abs(ratio.std() - 2 * math.log(4 / 3) / 12**0.5) < 0.01
    assert abs(crops.flipped.double().mean() - 0.5) < 0.02
    place = crops.start_px[0] / (1000 - crops.size_px[0]).clamp_min(1)
    assert (abs(place.mean(0) - 0.5) < 0.02).all()


def test_what_stands_in_the_padding_is_never_read() -> None:
    image = torch.randint(0, 256, (4, 1, 50, 70), dtype=torch.uint8)
    sizes = torch.tensor([[20, 33], [50, 10], [1, 1], [49, 70]])
    crops = random_crops(sizes, views=2, seed=3).of(slice(None))
    inside = (torch.arange(50)[:, None] < sizes[:, 0, None, None]) & (torch.arange(70) < sizes[:, 1, None, None])
    dark, bright = (torch.where(inside[:, None], image, value) for value in (0, 255))
    assert torch.equal(resample(dark, crops, 16, 1), resample(bright, crops, 16, 1))


@pytest.mark.parametrize(
    "wrong", [{"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}]
)
def test_impossible_settings_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError):
        CropConfig(**wrong)
