"""Figures of localisation against slow plain statements; baselines, tables, gates and thresholds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.evaluation.boxes import BoundingBox
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.localization import (
    BASELINES,
    CENTER,
    ENERGY,
    HIT,
    IOU,
    MEAN_BOX,
    MODEL,
    WITH_HEAT,
    LocalizationCase,
    Seen,
    TrueLesion,
    as_shares,
    baseline_figures,
    gated,
    ious_by_threshold,
    known_boxes,
    lesion_of_mask,
    map_figures,
    mean_boxes,
    tuned_thresholds,
)
from dira_dist.evaluation.report import localization_gains, localization_table
from dira_dist.evaluation.report_pictures import localization_pictures


def box(top: float, left: float, bottom: float, right: float) -> BoundingBox:
    return BoundingBox((top, left), (bottom, right))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.3]), st.booleans())
def test_hit_and_energy_are_those_of_loops_over_pixels(seed: int, tolerance: float, by_mask: bool) -> None:
    random = np.random.default_rng(seed)
    heat = random.random((7, 10)).astype(np.float32)
    mask = np.zeros((7, 10), dtype=np.uint8)
    for _ in range(2):
        top, left = random.integers(0, 5), random.integers(0, 8)
        mask[top : top + random.integers(1, 4), left : left + random.integers(1, 4)] = 1
    truth = lesion_of_mask(mask)
    assert truth is not None
    if not by_mask:
        truth = TrueLesion(truth.boxes)
        for each in truth.boxes:  # what a box takes in beside the mask
            mask[int(each.low[0]) : int(each.high[0]), int(each.low[1]) : int(each.high[1])] = 1
    hottest, inside, total, nearest = (-1.0, 0, 0), 0.0, 0.0, np.inf
    for row in range(7):
        for column in range(10):
            total += float(heat[row, column])
            inside += float(heat[row, column]) * bool(mask[row, column])
            hottest = max(hottest, (float(heat[row, column]), row, column))
    for row, column in np.argwhere(mask).tolist():
        away = [max(abs(at - to) - 0.5, 0) for at, to in zip(hottest[1:], (row, column), strict=True)]
        nearest = min(nearest, np.hypot(*away))
    found = map_figures(heat, [], truth, tolerance)
    assert found[ENERGY] == pytest.approx(inside / total, rel=1e-5)
    assert found[HIT] == float(nearest <= tolerance * 10)
    assert found[IOU] == 0 and found[WITH_HEAT] == 1


def test_no_heat_is_a_miss_and_no_division() -> None:
    found = map_figures(np.zeros((4, 4), np.float32), [], TrueLesion((box(0, 0, 4, 4),)), 0.5)
    assert found == {WITH_HEAT: 0, HIT: 0, IOU: 0, ENERGY: 0}


def test_which_boxes_are_a_class_s_own() -> None:
    shard = [{"label": name, "x": x, "y": 2, "width": 3, "height": 4} for x, name in enumerate(("mass", "", "nodule"))]
    classes = ["effusion", "mass", "nodule"]
    assert known_boxes(shard, "mass", classes, ["mass", "nodule"]) == [box(2, 0, 6, 3)]
    assert known_boxes(shard, "mass", classes, ["mass"]) == [box(2, 0, 6, 3), box(2, 1, 6, 4)]
    assert known_boxes(shard, "effusion", classes, ["effusion", "mass"]) == []
    assert len(known_boxes(shard, "tumour", ["tumour"], ["tumour"])) == 3


def test_baselines_know_the_set_and_nothing_of_the_image() -> None:
    truth = TrueLesion((box(4, 10, 8, 20),))
    assert as_shares(truth.boxes, (8, 40)) == (box(0.5, 0.25, 1, 0.5),)
    cases = [
        LocalizationCase("a", "a", "mass", 1, relative=(box(0.5, 0.25, 1, 0.5),)),
        LocalizationCase("b", "b", "mass", 1, relative=(box(0.3, 0.25, 0.6, 0.7),)),
        LocalizationCase("c", "c", "other", 1, relative=(box(0, 0, 1, 1),)),
    ]
    usual = mean_boxes(cases)["mass"]
    np.testing.assert_allclose((*usual.low, *usual.high), (0.4, 0.25, 0.8, 0.6))
    found = baseline_figures(usual, truth, (8, 40), 0.0)
    # The mean box is rows 3.2 to 6.4 and columns 10 to 24; the same around the centre rows 2.4 to 5.6 and 13 to 27.
    assert found[MEAN_BOX][IOU] == pytest.approx(2.4 * 10 / (3.2 * 14 + 40 - 24))
    assert found[CENTER][IOU] == pytest.approx(1.6 * 7 / (3.2 * 14 + 40 - 11.2))
    assert found[MEAN_BOX][HIT] == 1 and found[CENTER][HIT] == 1, "(4.8, 17) and, on the edge, (4, 20)"
    assert found[MEAN_BOX][ENERGY] == pytest.approx(2 * 10 / (3 * 14)), "rows 3 to 5 have their centres inside"
    unknown = baseline_figures(None, truth, (8, 40), 0.0)
    assert set(unknown) == {CENTER} and unknown[CENTER] == {WITH_HEAT: 1, HIT: 1}


def test_thresholds_are_those_of_the_highest_mean_iou() -> None:
    ious = [{0.2: 0.1, 0.3: 0.5, 0.4: 0.5, 0.5: 0.2, 0.6: 0.0, 0.7: 0.9}, {0.2: 0.2, 0.3: 0.5, 0.4: 0.5}]
    ious[1] |= {0.5: 0.2, 0.6: 0.0, 0.7: 0.0}
    cases = [LocalizationCase(str(place), "", "mass", 1, ious=each) for place, each in enumerate(ious)]
    assert tuned_thresholds(cases, ["mass", "none"]) == {"mass": 0.3, "none": 0.5}
    rows, columns = np.mgrid[:16, :16]
    heat = np.exp(-((rows - 8) ** 2 + (columns - 8) ** 2) / 30).astype(np.float32)
    found = ious_by_threshold(heat, TrueLesion((box(5, 5, 12, 12),)), LocalizationConfig())
    assert found[0.6] == 1.0 and max(found, key=lambda level: found[level]) == 0.6 and found[0.2] < found[0.5] < 1


CASES = [
    LocalizationCase(
        f"k{place}",
        f"p{place // 2}",
        "ab"[place % 3 == 0],
        1 + place % 2,
        {
            MODEL: {HIT: float(place % 4 > 0), IOU: place / 12, ENERGY: place / 24},
            CENTER: {HIT: float(place % 4 > 1), IOU: np.nan, ENERGY: np.nan},
        },
    )
    for place in range(12)
]


def test_a_table_counts_and_means_as_loops_do() -> None:
    table = localization_table(CASES, 200)
    assert list(table) == ["a", "b", "mean"]
    for label in "ab":
        own = [case for case in CASES if case.label == label]
        row = table[label]
        assert row["images"] == len(own) and row["boxes"] == sum(case.boxes for case in own)
        assert row["groups"] == len({case.group for case in own})
        assert row["hit_rate"]["value"] == pytest.approx(np.mean([case.figures[MODEL][HIT] for case in own]))
        assert row["mean_iou"]["value"] == pytest.approx(np.mean([case.figures[MODEL][IOU] for case in own]))
        for level in (0.1, 0.5, 0.7):
            above = sum(case.figures[MODEL][IOU] > level for case in own) / len(own)
            assert row[f"iou_{level}"]["value"] == pytest.approx(above)
        assert row["mean_iou"]["low"] < row["mean_iou"]["value"] < row["mean_iou"]["high"]
    for name in ("hit_rate", "mean_iou", "energy"):
        assert table["mean"][name]["value"] == pytest.approx(
            (table["a"][name]["value"] + table["b"][name]["value"]) / 2
        )
    of_center = localization_table(CASES, 200, CENTER)
    assert "hit_rate" in of_center["a"] and "mean_iou" not in of_center["a"] and "with_heat" not in of_center["a"]
    assert localization_table(CASES, 200, MEAN_BOX) == {}


def test_gains_are_of_the_same_images() -> None:
    gains = localization_gains(CASES, 200, BASELINES)
    assert list(gains) == [CENTER] and set(gains[CENTER]) == {"images", "hit_rate"}
    each = {
        label: [c.figures[MODEL][HIT] - c.figures[CENTER][HIT] for c in CASES if c.label == label] for label in "ab"
    }
    assert gains[CENTER]["hit_rate"]["value"] == pytest.approx(np.mean([np.mean(found) for found in each.values()]))


def test_a_share_of_all_or_none_is_not_sure() -> None:
    cases = [
        LocalizationCase(f"k{at}", f"p{at // 2}", "a", 1, {MODEL: {HIT: 1.0, IOU: 0.6, ENERGY: 0.5}}) for at in range(8)
    ]
    table = localization_table(cases, 200)
    assert list(table) == ["a"], "of a single class there is no mean"
    assert table["a"]["hit_rate"]["low"] == pytest.approx(0.025 ** (1 / 4)), "eight images of four patients"
    assert table["a"]["iou_0.7"]["high"] == pytest.approx(1 - 0.025 ** (1 / 4))


def test_a_gate_takes_boxes_and_leaves_maps() -> None:
    seen = Seen(np.zeros((4, 4), np.uint8), np.zeros((4, 4)), (box(0, 0, 2, 2),), (box(0, 0, 2, 3),))
    figures: dict[str, Any] = {MODEL: {HIT: 1.0, IOU: 0.5, ENERGY: 0.3}, CENTER: {HIT: 0.0, IOU: 0.2, ENERGY: 0.1}}
    cases = [LocalizationCase(key, key, "mass", 1, figures, seen=seen) for key in "xy"]
    found = gated(cases, {("x", "mass"): 0.8, ("y", "mass"): 0.7}, {"mass": 0.7})
    assert found[0] is cases[0]
    assert found[1].figures == {**figures, MODEL: {HIT: 1.0, IOU: 0.0, ENERGY: 0.3}}
    assert found[1].seen is not None and found[1].seen.found == () and found[1].seen.true == seen.true


def test_the_gallery_draws_both_boxes() -> None:
    heat = np.zeros((40, 40))
    heat[5:15, 5:15] = 1
    seen = Seen(np.zeros((40, 40), np.uint8), heat, (box(5, 5, 15, 15),), (box(20, 22, 35, 33),))
    figures = {MODEL: {HIT: 0.0, IOU: 0.0, ENERGY: 0.0}}
    picture = localization_pictures([LocalizationCase("k", "k", "mass", 1, figures, seen=seen)])["localization"]
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    drawn_green, drawn_red = (green - red > 80) & (green - blue > 60), (red > 220) & (green < 120) & (blue < 90)
    for drawn, wanted in ((drawn_green, (20, 22, 35, 33)), (drawn_red, (5, 5, 15, 15))):
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        tall, wide = rows[-1] - rows[0], columns[-1] - columns[0]
        assert tall / wide == pytest.approx((wanted[2] - wanted[0]) / (wanted[3] - wanted[1]), rel=0.08)
    assert np.flatnonzero(drawn_red.any(axis=1))[0] < np.flatnonzero(drawn_green.any(axis=1))[0]
    assert localization_pictures([LocalizationCase("k", "k", "mass", 1, figures)]) == {}
