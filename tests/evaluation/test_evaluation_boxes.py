"""Boxes of a map, and what two sets of them have in common, against slow plain statements."""

import itertools
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.evaluation.boxes import (
    BoundingBox,
    ScoredBox,
    boxes_around,
    boxes_of,
    covered,
    iou,
    level_of,
    otsu,
    peak_of,
)

SIDE = 7


@st.composite
def boxes(draw: st.DrawFn, axes: int) -> BoundingBox:
    ends = [sorted(draw(st.tuples(st.integers(0, SIDE * 2), st.integers(0, SIDE * 2)))) for _ in range(axes)]
    return BoundingBox(tuple(low / 2 for low, _ in ends), tuple(high / 2 for _, high in ends))


def plain_iou(one: list[BoundingBox], other: list[BoundingBox], axes: int) -> float:
    """All halves of pixels, one after the other: boxes of the test end at those."""
    both = either = 0
    for place in itertools.product(range(SIDE * 2), repeat=axes):
        point = [at / 2 + 0.25 for at in place]
        here, there = (
            any(all(low < at < high for low, at, high in zip(box.low, point, box.high, strict=True)) for box in each)
            for each in (one, other)
        )
        both, either = both + (here and there), either + (here or there)
    return both / either if either else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes(2), max_size=3), st.lists(boxes(2), max_size=3))
def test_iou_is_that_of_the_pixels(one: list[BoundingBox], other: list[BoundingBox]) -> None:
    assert iou(one, other) == pytest.approx(plain_iou(one, other, 2))
    assert iou(one, other) == iou(other, one)


@settings(max_examples=15, deadline=None)
@given(st.lists(boxes(3), max_size=2), st.lists(boxes(3), max_size=2))
def test_iou_in_three_dimensions(one: list[BoundingBox], other: list[BoundingBox]) -> None:
    assert iou(one, other) == pytest.approx(plain_iou(one, other, 3))


def plain_boxes(heat: np.ndarray, level: float, components: str, least_peak: float) -> list[ScoredBox]:
    """A flood from each pixel that no flood has reached, in the order of the pixels."""
    left = {place for place in np.ndindex(heat.shape) if heat[place] >= level}
    parts = []
    for start in np.ndindex(heat.shape):
        if start not in left:
            continue
        part, coming = [], deque([start])
        left.discard(start)
        while coming:
            place = coming.popleft()
            part.append(place)
            for step in itertools.product((-1, 0, 1), repeat=heat.ndim):
                beside = tuple(at + each for at, each in zip(place, step, strict=True))
                if beside in left:
                    left.discard(beside)
                    coming.append(beside)
        parts.append(part)
    if components == "largest":
        parts = [max(parts, key=len)]
    found = []
    for part in parts:
        peak = max(heat[place] for place in part) / heat.max()
        if components == "largest" or peak >= least_peak:
            low = tuple(float(min(place[axis] for place in part)) for axis in range(heat.ndim))
            high = tuple(float(max(place[axis] for place in part) + 1) for axis in range(heat.ndim))
            found.append(ScoredBox(BoundingBox(low, high), peak))
    return sorted(found, key=lambda each: -each.score)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(9, 6), (4, 5, 3)]),
    st.sampled_from([0.2, 0.5, 0.8, "otsu"]),
    st.sampled_from(["largest", "all"]),
    st.sampled_from([0.0, 0.7, 1.0]),
)
def test_boxes_are_those_of_a_flood(
    seed: int, shape: tuple[int, ...], threshold: Any, components: Any, least_peak: float
) -> None:
    random = np.random.default_rng(seed)
    heat = np.where(random.random(shape) < 0.5, random.random(shape), 0).astype(np.float32)
    if heat.max() == 0:
        return
    found = boxes_of(heat, threshold, components, least_peak)
    wanted = plain_boxes(heat, level_of(heat, threshold), components, least_peak)
    assert {(each.box, round(each.score, 5)) for each in found} == {
        (each.box, round(float(each.score), 5)) for each in wanted
    }
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    hot = heat >= level_of(heat, threshold)
    whole = plain_boxes(hot.astype(float), 0.5, "all", 0.0)
    assert sorted(boxes_around(hot), key=str) == sorted((each.box for each in whole), key=str)


def test_no_heat_has_no_box_and_no_peak() -> None:
    nothing = np.zeros((5, 5), dtype=np.float32)
    assert boxes_of(nothing, 0.5) == [] and boxes_of(nothing, "otsu", "all") == [] and peak_of(nothing) is None


def test_a_peak_is_a_pixel_s_centre_and_of_a_plateau_its_middle() -> None:
    heat = np.zeros((6, 8))
    heat[2, 5] = 1
    assert peak_of(heat) == (2.5, 5.5)
    heat[0:3, 0:5] = 2  # as a map has it in its corner after up-sampling
    assert peak_of(heat) == (1.5, 2.5)


def test_otsu_parts_two_heaps_and_maximises_the_variance_between() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.2, 0.03, 900), random.normal(0.8, 0.03, 100)]).clip(0, 1)
    level = otsu(values)
    assert 0.35 < level < 0.65
    values[0] = 1.0  # so that the largest is known

    def between(at: float) -> float:
        low, high = values[values < at], values[values >= at]
        return len(low) * len(high) / len(values) ** 2 * (low.mean() - high.mean()) ** 2

    best = max(between(at) for at in np.linspace(0.15, 0.85, 71))
    assert between(otsu(values)) == pytest.approx(best, rel=1e-3)


def test_points_near_a_box_and_pixels_inside() -> None:
    box = BoundingBox((2.0, 3.0), (4.0, 6.5))
    assert box.holds((2.0, 6.5)) and not box.holds((1.5, 3.5))
    assert box.holds((1.5, 3.5), 0.5) and not box.holds((1.6, 6.9), 0.5), "away from a corner is away in a line"
    inside = covered([box], (5, 8))
    assert inside.sum() == 2 * 3 and inside[2:4, 3:6].all(), "a pixel whose centre is on the edge is outside"
    assert covered([BoundingBox((-5.0, -5.0), (99.0, 0.4))], (5, 8)).sum() == 0
