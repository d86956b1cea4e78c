"""Distortions by name: each against loops on random input, in its rates, and as no more than the sample's own."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.views import Views, ViewsConfig, make_views
from dira_dist.views.distortions import DISTORTIONS, DistortionSection, ModelsGenesis, Rubik, TransVW
from dira_dist.views.distortions.curves import SAMPLES, bend
from dira_dist.views.distortions.orders import far_orders
from dira_dist.views.distortions.painting import Blocks, border_px, draw_blocks, paint, side_bounds
from dira_dist.views.distortions.shuffling import (
    draw_windows,
    largest_px,
    permutations,
    shuffle_locally,
    shuffled_sources,
)
from dira_dist.views.distortions.warp import DEVIATION, SIGMA, smoothed, strength, warp
from dira_dist.views.randomness import RandomPurpose, noise, view_keys

SHAPES = [(40, 32), (24, 20, 16)]
OFF: dict[str, dict[str, Any]] = {
    "dira": {"shuffle_probability": 0, "inner_probability": 0, "outer_probability": 0},
    "models_genesis": {
        "flip_probability": 0,
        "shuffle_probability": 0,
        "curve_probability": 0,
        "paint_probability": 0,
    },
    "transvw": {
        "warp_probability": 0,
        "shuffle_probability": 0,
        "curve_probability": 0,
        "inner_probability": 0,
        "outer_probability": 0,
    },
    "rubik": {"order_probability": 0, "turn_probability": 0, "gap": 0},
}


def keys(count: int, seed: int = 0, views: int = 1) -> Tensor:
    found = view_keys(seed, torch.zeros(count, dtype=torch.long), torch.arange(count), views)
    return found[0] if views == 1 else found


def random_views(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def block(first: Tensor, side: Tensor) -> tuple[slice, ...]:
    return (slice(None), *(slice(f, f + s) for f, s in zip(first.tolist(), side.tolist(), strict=True)))


def make(images: Tensor, distortion: dict[str, Any], **changes: Any) -> Views:
    """Views with nothing but the whole image and its distortion."""
    config = ViewsConfig.model_validate(
        {
            "crop": {"scale": (1, 1), "ratio": (1, 1), "flip_probability": 0},
            "jitter": {"probability": 0},
            "blur": {"probability": 0},
            "distortion": distortion,
        }
    )
    count = len(images)
    arguments: dict[str, Any] = {
        "sizes_px": torch.tensor(images.shape[2:]).expand(count, -1),
        "sample_ids": torch.arange(count),
        "epochs": torch.zeros(count, dtype=torch.long),
        "seed": 0,
        "image_size": tuple(images.shape[2:]),
        "in_channels": images.shape[1],
        "config": config,
    }
    return make_views(images, **(arguments | changes))


def random_images(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 65536, (count, *shape), generator=generator).to(torch.uint16)


@pytest.mark.parametrize("shape", SHAPES)
def test_local_shuffling_equals_the_loop(shape: tuple[int, ...]) -> None:
    """Window after window: content is read from the view as it was, and written over what earlier ones wrote."""
    count, share = 60, 0.2
    views = random_views(5, 2, *shape)
    windows = draw_windows(keys(5), count, shape, share)
    most = largest_px(shape, share)
    table = permutations(most)
    shuffled = shuffle_locally(views.clone(), keys(5), count, share)
    for n, view in enumerate(views):
        wanted = view.clone()
        for k in range(count):
            here = block(windows.first_px[n, k], windows.side_px[n, k])
            content = view[here].flatten(1)
            volume = content.shape[1]
            start = int(table.starts[volume]) + 2 * volume * int(windows.permutation[n, k])
            order = [int(table.table[start + int(windows.begin[n, k]) + place]) for place in range(volume)]
            assert sorted(order) == list(range(volume))
            wanted[here] = content[:, order].view(view[here].shape)
        assert torch.equal(shuffled[n], wanted)


def test_windows_are_uniform_in_sides_and_places_and_each_voxel_goes_everywhere_alike() -> None:
    windows = draw_windows(keys(20), 2000, (64, 64, 32), 0.1)
    for axis, (length, most) in enumerate(((64, 6), (64, 6), (32, 3))):
        side, first = windows.side_px[..., axis].flatten(), windows.first_px[..., axis].flatten()
        shares = torch.bincount(side, minlength=most + 1)[1:] / len(side)
        assert (shares - 1 / most).abs().max() < 0.01
        assert (first + side <= length).all() and (first >= 0).all()
        assert ((first / (length - side)).double().mean() - 0.5).abs() < 0.01
    table = permutations((3, 2))
    volume, goes = 6, torch.zeros(6, 6)
    for number, begin in itertools.product(range(table.count), range(volume)):
        start = int(table.starts[volume]) + 2 * volume * number + begin
        goes[torch.arange(volume), table.table[start : start + volume]] += 1
    assert torch.equal(goes, torch.full((6, 6), float(table.count)))


def test_a_shuffled_window_holds_what_it_held() -> None:
    sources = shuffled_sources(draw_windows(keys(50), 1, (20, 20), 0.3), (20, 20), 0.3)
    assert torch.equal(sources.sort(1).values, torch.arange(400).expand(50, -1))
    assert (sources != torch.arange(400)).any(1).sum() > 40


def test_curves_equal_the_published_sampling() -> None:
    """100,000 samples of the curve, x alone or both sorted, and interpolation between them."""
    drawn = torch.rand(40, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    falling = torch.arange(40) % 2 == 1
    views = random_views(40, 1, 12, 10)
    found = bend(views, drawn, falling)
    t = np.linspace(0, 1, 100_000)
    terms = np.stack([math.comb(3, k) * t ** (3 - k) * (1 - t) ** k for k in range(4)])
    for n, view in enumerate(views):
        points = np.array([[0, 0], *drawn[n].tolist(), [1, 1]])
        x, y = points.T @ terms
        x = np.sort(x)
        y = y if falling[n] else np.sort(y)
        low, high = (np.interp(np.clip(view.numpy() + step / SAMPLES, 0, 1), x, y) for step in (-1, 1))
        slack = np.abs(high - low) + 1e-3  # what a straight piece may be beside a curve that is not
        assert (np.abs(found[n].numpy() - np.interp(view.numpy(), x, y)) <= slack).all()
        rises = np.diff(found[n].flatten().numpy()[np.argsort(view.flatten().numpy())])
        assert (rises <= 1e-6).all() if falling[n] else (rises >= -1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_painting_equals_the_loop(shape: tuple[int, ...]) -> None:
    views, own = random_views(30, 2, *shape), keys(30)
    outer = torch.arange(30) % 3 == 0
    blocks = draw_blocks(own, outer, 4, 0.7, shape)
    fresh = noise(own, RandomPurpose.PAINTED_NOISE, views[0].numel()).view(views.shape)
    assert fresh.min() >= 0 and fresh.max() < 1 and abs(fresh.mean() - 0.5) < 0.01
    painted = paint(views, own, blocks, outer)
    for n, view in enumerate(views):
        wanted = fresh[n].clone() if outer[n] else view.clone()
        for first, side in zip(blocks.first_px[n], blocks.side_px[n], strict=True):
            here = block(first, side)
            wanted[here] = view[here] if outer[n] else fresh[n][here]
        assert torch.equal(painted[n], wanted)


@pytest.mark.parametrize("shape", [(64, 64, 32), (224, 224), (16, 20, 16)])
def test_blocks_and_windows_keep_their_sizes_and_the_border(shape: tuple[int, ...]) -> None:
    outer = torch.arange(4000) % 2 == 0
    blocks = draw_blocks(keys(4000), outer, 5, 0.95, shape)
    assert isinstance(blocks, Blocks)
    there = (blocks.side_px > 0).all(-1)
    for axis, length in enumerate(shape):
        side, first = blocks.side_px[..., axis], blocks.first_px[..., axis]
        border = border_px(length)
        assert (first[there] >= border).all() and ((first + side)[there] <= length - border).all()
        for which, (low, high) in zip((~outer, outer), side_bounds(length), strict=True):
            found = side[which][there[which]]
            assert (int(found.min()), int(found.max())) == (low, high)
    share = torch.bincount(there.sum(1), minlength=6) / 4000
    wanted = torch.tensor([0, 0.05, 0.05 * 0.95, 0.05 * 0.95**2, 0.05 * 0.95**3, 0.95**4])
    assert (share - wanted).abs().max() < 0.02


def test_published_sides_of_a_cube() -> None:
    assert [side_bounds(length)[0] for length in (64, 32)] == [(10, 20), (5, 9)]
    assert [side_bounds(length)[1] for length in (64, 32)] == [(64 - 35, 64 - 27), (32 - 17, 32 - 13)]


def test_the_warp_is_the_published_one_in_a_published_cube() -> None:
    """SciPy's Gaussian times 991 and its linear interpolation, mirrored at the border; z stays."""
    shape = (64, 64, 32)
    drawn = np.random.default_rng(0)
    white = drawn.uniform(-1, 1, (2, *shape))
    wanted_moves = np.stack([gaussian_filter(each, 8, mode="constant") * 991 for each in white])
    moves = smoothed(torch.from_numpy(white).float()[None], SIGMA * 64) * strength(shape, SIGMA, DEVIATION)
    np.testing.assert_allclose(moves[0].numpy(), wanted_moves, atol=0.02)
    view = drawn.random(shape)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
    places[:2] += wanted_moves
    wanted = map_coordinates(view, places, order=1, mode="reflect")
    found = warp(torch.from_numpy(view).float()[None, None], torch.from_numpy(wanted_moves).float()[None])
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=2e-4)


def test_a_warp_in_the_plane_equals_the_loop() -> None:
    view, moves = random_views(1, 2, 9, 7), 3 * random_views(1, 2, 9, 7, seed=1) - 1.5
    found = warp(view, moves)
    for channel in range(2):
        places = np.stack(np.meshgrid(np.arange(9), np.arange(7), indexing="ij")) + moves[0].numpy()
        wanted = map_coordinates(view[0, channel].numpy(), places, order=1, mode="reflect")
        np.testing.assert_allclose(found[0, channel].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 16), (8, 12, 16)])
@pytest.mark.parametrize("grid", [2, 4])
def test_pieces_are_moved_and_turned_as_in_the_loop(shape: tuple[int, ...], grid: int) -> None:
    config = Rubik(grid=grid, orders=20, gap=0)
    drawn = config.draw(keys(6, views=2), shape).of(slice(None))
    views = random_views(12, 2, *shape)
    found = config.distort(views.clone(), drawn)
    piece_px = [side // grid for side in shape]
    places = list(itertools.product(range(grid), repeat=len(shape)))
    planes = [(), *itertools.combinations(range(1, len(shape) + 1), 2)]
    for n, view in enumerate(views):
        wanted = torch.zeros_like(view)
        for number, place in enumerate(places):
            source = places[int(drawn.source[n, number])]
            here, there = (
                (slice(None), *(slice(p * px, (p + 1) * px) for p, px in zip(at, piece_px, strict=True)))
                for at in (place, source)
            )
            wanted[here] = view[there].flip(planes[int(drawn.turn[n, number])])
        assert torch.equal(found[n], wanted)


def test_gaps_are_empty_around_inner_borders_alone_and_as_wide_as_published() -> None:
    config = Rubik(order_probability=0, turn_probability=0)
    view = torch.ones(1, 1, 64, 64, 64)
    found = config.distort(view, config.draw(keys(1, views=2)[:1], (64, 64, 64)).of(slice(None)))
    kept = torch.tensor([not 27 <= number <= 36 for number in range(64)])
    assert torch.equal(found[0, 0] > 0, kept[:, None, None] & kept[:, None] & kept)


def test_labels_of_rubik_say_what_was_done() -> None:
    config, shape = Rubik(orders=100), (16, 16, 16)
    drawn = config.draw(keys(500, views=2), shape)
    labels, orders = config.labels(drawn), far_orders(8, 100)
    assert torch.equal(drawn.source[0], torch.from_numpy(orders)[labels["order"]])
    assert torch.equal(labels["turned"], (drawn.turn[0] > 0).long())
    assert abs(labels["turned"].double().mean() - 0.75) < 0.03
    planes = torch.bincount(drawn.turn[drawn.turn > 0], minlength=4)[1:] / (drawn.turn > 0).sum()
    assert (planes - 1 / 3).abs().max() < 0.02
    assert len(labels["order"].unique()) > 95


@pytest.mark.parametrize(("pieces", "most", "least"), [(4, 24, 2), (8, 8, 8), (8, 56, 7), (27, 40, 25)])
def test_orders_lie_far_apart(pieces: int, most: int, least: int) -> None:
    """Against all pairs: Latin squares have 8 orders of 8 pieces without a common place, and none has more."""
    orders = far_orders(pieces, most)
    assert orders.shape == (most, pieces) and (orders[0] == np.arange(pieces)).all()
    assert (np.sort(orders, 1) == np.arange(pieces)).all()
    distances = [(one != other).sum() for one, other in itertools.combinations(orders, 2)]
    assert min(distances) >= (least if pieces != 8 or most == 8 else 6)


def test_few_pieces_have_no_more_orders_than_there_are() -> None:
    assert len(far_orders(4, 1000)) == Rubik().order_count(2) == 24 and Rubik().order_count(3) == 1000


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16)])
def test_with_all_probabilities_0_nothing_happens(name: str, shape: tuple[int, ...]) -> None:
    images = random_images(4, 1, *shape)
    views = make(images, {"name": name, **OFF[name]})
    assert views.target is not None and torch.equal(views.view_1, views.target)
    torch.testing.assert_close(views.target, images.double().div(65535).float())


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(32, 48), (16, 24, 16)])
def test_a_sample_has_the_same_view_in_any_company(name: str, shape: tuple[int, ...]) -> None:
    images, changes = random_images(6, 1, *shape), {"sample_ids": torch.arange(6) * 31}
    whole = make(images, {"name": name}, **changes)
    for row in (4, 1):
        alone = make(images[[row]], {"name": name}, sample_ids=torch.tensor([row * 31]), sizes_px=torch.tensor([shape]))
        for one, other in zip(tensors(whole), tensors(alone), strict=True):
            torch.testing.assert_close(one[[row]], other, atol=1e-6, rtol=0)


def tensors(views: Views) -> Iterator[Tensor]:
    assert views.view_2 is not None and views.target is not None
    yield from (views.view_1, views.view_2, views.target, *views.distortion.values())


@pytest.mark.parametrize("axes", [2, 3])
def test_models_genesis_flips_target_and_input_alike(axes: int) -> None:
    """Where a voxel came from is read off a volume of coordinates: every voxel of input and target is the same one."""
    side, count = 16, 200
    numbers = torch.arange(side**axes).view(1, 1, *(side,) * axes).expand(count, -1, *(side,) * axes)
    images = (numbers * (65535 // side**axes)).to(torch.uint16)
    off = {**OFF["models_genesis"], "flip_probability": 0.4}
    views = make(images, {"name": "models_genesis", **off})
    assert views.target is not None and torch.equal(views.view_1, views.target)
    plain = images.double().div(65535).float()
    flipped = torch.zeros(count, axes, dtype=torch.bool)
    for chosen in itertools.product((False, True), repeat=axes):
        about = [2 + axis for axis, wanted in enumerate(chosen) if wanted]
        same = torch.isclose(views.target, plain.flip(about)).flatten(1).all(1)
        flipped[same] = torch.tensor(chosen)
    rebuilt = torch.stack([plain[n].flip([1 + a for a in range(axes) if flipped[n, a]]) for n in range(count)])
    torch.testing.assert_close(views.target, rebuilt)
    assert 0.25 < flipped.any(1).double().mean() < 0.55


@pytest.mark.parametrize("name", ["models_genesis", "transvw", "rubik"])
def test_the_target_is_the_view_before_all_of_it(name: str) -> None:
    images = random_images(8, 1, 16, 16, 16)
    off = {"flip_probability": 0} if name == "models_genesis" else {}
    views = make(images, {"name": name, **off})
    assert views.target is not None and views.view_2 is not None
    torch.testing.assert_close(views.target, images.double().div(65535).float())
    assert not torch.equal(views.view_1, views.target) and not torch.equal(views.view_1, views.view_2)
    assert views.view_1.min() >= 0 and views.view_1.max() <= 1 + 1e-6


def test_rates_of_models_genesis() -> None:
    drawn = ModelsGenesis().draw(keys(10_000, views=2), (64, 64, 32))
    assert abs(drawn.shuffled.double().mean() - 0.5) < 0.015
    assert abs(drawn.bent.double().mean() - 0.9) < 0.01
    assert abs(drawn.falling.double().mean() - 0.5) < 0.015
    assert abs(drawn.painted.double().mean() - 0.9) < 0.01
    assert abs(drawn.outer.double().mean() - 0.8) < 0.015
    # flips at most three, 0.4 each time, about one axis of three: an axis flipped twice is as it was
    plain = np.random.default_rng(0)
    flips = [plain.integers(3, size=next((k for k in range(3) if plain.random() >= 0.4), 3)) for _ in range(40_000)]
    wanted = np.mean([[np.sum(each == axis) % 2 for axis in range(3)] for each in flips])
    assert abs(drawn.flipped.double().mean() - wanted) < 0.01
    untouched = ~(drawn.flipped.any(-1) | drawn.shuffled | drawn.bent | drawn.painted)
    assert 0.0015 < untouched.double().mean() < 0.0055


def test_rates_of_transvw() -> None:
    drawn = TransVW().draw(keys(10_000, views=2), (64, 64, 32))
    shares = torch.bincount(drawn.kind.flatten(), minlength=5) / drawn.kind.numel()
    assert (shares - torch.tensor([0.25, 0.25, 0.25, 0.25, 0])).abs().max() < 0.01
    assert drawn.warped.all() and (drawn.side_px > 0).all()


CHANGES: dict[str, dict[str, Any]] = {
    "models_genesis": {
        "flip_probability": 1.0,
        "shuffle_probability": 0.0,
        "shuffle_windows": 5,
        "shuffle_share": 0.3,
        "curve_probability": 0.0,
        "falling_probability": 0.0,
        "paint_probability": 0.0,
        "outer_probability": 0.0,
        "paint_blocks": 1,
        "further_probability": 0.1,
    },
    "transvw": {
        "warp_probability": 0.0,
        "warp_sigma": 0.05,
        "warp_deviation": 0.01,
        "shuffle_probability": 0.0,
        "shuffle_windows": 50,
        "shuffle_share": 0.3,
        "curve_probability": 0.0,
        "falling_probability": 0.0,
        "inner_probability": 0.0,
        "outer_probability": 0.0,
        "paint_blocks": 3,
        "further_probability": 0.0,
    },
    "rubik": {
        "grid": 4,
        "orders": 8,
        "order_probability": 0.1,
        "turn_probability": 0.1,
        "gap": 0.0,
    },
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in CHANGES.items() for key in keys])
def test_every_setting_changes_something(name: str, key: str) -> None:
    assert set(DISTORTIONS[name].model_fields) - {"name"} == set(CHANGES[name])
    images = random_images(24, 1, 20, 20, 20)
    base = {"name": name, "paint_blocks": 3} if name == "transvw" and key == "further_probability" else {"name": name}
    one, other = (make(images, each) for each in (base, {**base, key: CHANGES[name][key]}))
    assert any(not torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "jigsaw"}, "a name among dira, models_genesis, transvw, rubik"),
        ({"name": "transvw", "inner_probability": 0.8}, "the four add up to 1.55"),
        ({"name": "rubik", "shuffle_windows": 5}, "Extra inputs"),
        ({"name": "models_genesis", "shuffle_windows": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_distortions_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewsConfig.model_validate({"distortion": wrong})


def test_without_a_name_it_is_diras_own() -> None:
    assert ViewsConfig.model_validate({"distortion": {"shuffle_swaps": 3}}).distortion.name == "dira"


def test_editors_take_a_distortion_without_a_name_for_diras_own() -> None:
    schema = ViewsConfig.model_json_schema()
    jsonschema.validate({"distortion": {"outer_probability": 0.1}}, schema)
    jsonschema.validate({"distortion": {"name": "transvw", "outer_probability": 0.1}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"distortion": {"shuffle_windows": 5}}, schema)


def test_pieces_have_to_be_equal() -> None:
    with pytest.raises(RequestError, match=r"found 3 and views of \[32, 32, 16\].*another grid"):
        Rubik(grid=3).check_size((32, 32, 16))
    some: DistortionSection[Any] = Rubik(grid=4)
    some.check_size((32, 32, 16))
