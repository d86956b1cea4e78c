"""The four distortions: against loops, in their frequencies and in their bounds."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from dira_dist.views.distortions.dira import (
    INNER,
    NONE,
    OUTER,
    SHUFFLE,
    DiraDistortion,
    Distortion,
    distort,
    draw_distortion,
)
from dira_dist.views.randomness import view_keys

EVERYTHING = DiraDistortion(shuffle_probability=0.4, inner_probability=0.3, outer_probability=0.2)


def keys(count: int, seed: int = 0) -> Tensor:
    return view_keys(seed, torch.zeros(count, dtype=torch.long), torch.arange(count), views=2)


def block(first: Tensor, side: Tensor) -> tuple[slice, ...]:
    return (slice(None), *(slice(f, f + s) for f, s in zip(first.tolist(), side.tolist(), strict=True)))


def plain_distort(view: Tensor, drawn: Distortion, n: int) -> Tensor:
    """(C, *S), block after block."""
    kind = int(drawn.kind[n])
    view = view.clone()
    if kind == SHUFFLE:
        pairs = zip(drawn.swap_first_px[n], drawn.swap_second_px[n], drawn.swap_side_px[n], strict=True)
        for first, second, side in pairs:
            here, there = block(first, side), block(second, side)
            held_here, held_there = view[here].clone(), view[there].clone()
            view[here] = held_there
            view[there] = held_here
    if kind in (INNER, OUTER):
        out = torch.zeros_like(view) if kind == OUTER else view.clone()
        for first, side in zip(drawn.cut_first_px[n], drawn.cut_side_px[n], strict=True):
            out[block(first, side)] = view[block(first, side)] if kind == OUTER else 0
        return out
    return view


@pytest.mark.parametrize(("channels", "side", "axes"), [(1, 56, 2), (3, 48, 2), (1, 30, 3)])
def test_equals_the_loop(channels: int, side: int, axes: int) -> None:
    views = torch.rand(48, channels, *(side,) * axes, generator=torch.Generator().manual_seed(0))
    config = EVERYTHING.model_copy(update={"shuffle_sides_px": (30, 90)})  # large enough for blocks to overlap
    drawn = draw_distortion(keys(24), config, side, axes).of(slice(None))
    assert drawn.kind.unique().tolist() == [NONE, SHUFFLE, INNER, OUTER]
    wanted = torch.stack([plain_distort(view, drawn, n) for n, view in enumerate(views)])
    assert torch.equal(distort(views, drawn, config), wanted)


def test_local_shuffling_moves_pixels_and_makes_none() -> None:
    config = DiraDistortion(shuffle_probability=1, inner_probability=0, outer_probability=0, shuffle_swaps=1)
    views = torch.rand(32, 1, 56, 56)
    drawn = draw_distortion(keys(16), config, 56, 2).of(slice(None))
    apart = ((drawn.swap_first_px - drawn.swap_second_px).abs() >= drawn.swap_side_px).any(-1).squeeze(1)
    before, after = views.flatten(1).clone(), distort(views, drawn, config).flatten(1)
    assert (before != after).any(1).all()
    assert apart.sum() > 20
    assert torch.equal(before[apart].sort(1).values, after[apart].sort(1).values)


def test_frequencies_are_the_configured_ones() -> None:
    count = 40_000
    kind = draw_distortion(keys(count // 2), DiraDistortion(shuffle_swaps=1), 32, 2).kind
    for which, probability in ((SHUFFLE, 0.30), (INNER, 0.30), (OUTER, 0.05), (NONE, 0.35)):
        share = (kind == which).double().mean().item()
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(share - probability) < 4 * deviation


def test_cut_outs_stop_with_the_configured_probability() -> None:
    config = DiraDistortion(inner_probability=1, shuffle_probability=0, outer_probability=0, shuffle_swaps=1)
    blocks = (draw_distortion(keys(10_000), config, 224, 2).cut_side_px > 0).all(-1).sum(-1).flatten()
    for number in range(1, 11):
        wanted = 0.9 ** (number - 1) * (0.1 if number < 10 else 1)
        assert abs((blocks == number).double().mean().item() - wanted) < 0.015


@given(
    view_px=st.integers(8, 256),
    axes=st.integers(2, 3),
    low=st.integers(1, 224),
    more=st.integers(0, 100),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_blocks_lie_inside_the_view_with_sides_that_scale(
    view_px: int, axes: int, low: int, more: int, seed: int
) -> None:
    sides = (low, low + more)
    config = EVERYTHING.model_copy(update={"shuffle_sides_px": sides, "inner_sides_px": sides, "outer_sides_px": sides})
    drawn = draw_distortion(keys(8, seed), config, view_px, axes)
    smallest, largest = (min(view_px, max(1, round(side * view_px / 224))) for side in sides)
    there = (drawn.cut_side_px > 0).all(-1)
    blocks = (
        (drawn.cut_first_px[there], drawn.cut_side_px[there]),
        (drawn.swap_first_px, drawn.swap_side_px),
        (drawn.swap_second_px, drawn.swap_side_px),
    )
    for first, side in blocks:
        assert (first >= 0).all()
        assert (first + side <= view_px).all()
        assert ((side >= smallest) & (side <= largest)).all()
    cut = (drawn.kind == INNER) | (drawn.kind == OUTER)
    assert torch.equal(there.any(-1), cut)


@pytest.mark.parametrize("shape", [(32, 48), (24, 32, 16)])
def test_views_with_unlike_sides_are_distorted_inside_and_in_proportion(shape: tuple[int, ...]) -> None:
    drawn = draw_distortion(keys(200), EVERYTHING, shape, len(shape))
    for first, side in ((drawn.cut_first_px, drawn.cut_side_px), (drawn.swap_second_px, drawn.swap_side_px)):
        assert (first >= 0).all() and (first + side <= torch.tensor(shape)).all()
        assert (side.amax((0, 1, 2)) <= torch.tensor(shape) * 174 / 224 + 1).all()
    views = torch.rand(200, 1, *shape, generator=torch.Generator().manual_seed(0))
    chosen = drawn.of(slice(0, 200))
    distorted = distort(views.clone(), Distortion(**{k: v[:200] for k, v in vars(chosen).items()}), EVERYTHING)
    for view, before, kind, first, side in zip(
        distorted, views, chosen.kind, chosen.cut_first_px, chosen.cut_side_px, strict=False
    ):
        inside = torch.zeros(shape, dtype=torch.bool)
        for start, length in zip(first.tolist(), side.tolist(), strict=True):
            inside[tuple(slice(s, s + n) for s, n in zip(start, length, strict=True))] = True
        if kind == SHUFFLE:
            assert torch.isin(view, before).all() and not torch.equal(view, before)
        else:
            assert torch.equal(view[0], before[0] * (inside if kind == OUTER else ~inside))


def test_published_sides_at_224_pixels() -> None:
    drawn = draw_distortion(keys(4000), EVERYTHING, 224, 2)
    there = (drawn.cut_side_px > 0).all(-1)
    for kind, bounds in ((INNER, (10, 70)), (OUTER, (154, 174))):
        side = drawn.cut_side_px[there & (drawn.kind == kind)[..., None]]
        assert (side.min().item(), side.max().item()) == bounds
    assert (drawn.swap_side_px.min().item(), drawn.swap_side_px.max().item()) == (10, 15)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shuffle_probability": 0.7, "inner_probability": 0.4},
        {"inner_sides_px": (70, 10)},
        {"shuffle_sides_px": (0, 10)},
        {"outer_windows": 0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DiraDistortion(**wrong)


def test_probabilities_may_add_up_to_one() -> None:
    kinds = itertools.chain.from_iterable(
        draw_distortion(
            keys(50),
            DiraDistortion(shuffle_probability=0.7, inner_probability=0.2, outer_probability=0.1),
            32,
            2,
        ).kind.tolist()
    )
    assert NONE not in set(kinds)
