"""What stands in a report: counts, bands, units, and curves that do not depend on the order of the samples."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from dira_dist.evaluation.classification import ClassPredictions, plain_chances
from dira_dist.evaluation.report import case_table, class_table, class_tables, markdown_table
from dira_dist.evaluation.report_pictures import chances_side_by_side, class_pictures, curve
from dira_dist.evaluation.segmentation import SegmentationCase


def predictions(targets: np.ndarray, kind: str = "multilabel", **more: object) -> ClassPredictions:
    random = np.random.default_rng(0)
    logits = 1.5 * np.nan_to_num(targets) + random.normal(size=targets.shape).round(1)
    names = [f"c{place}" for place in range(targets.shape[1])]
    keys = [f"k{place}" for place in range(len(targets))]
    groups = [f"p{place // 2}" for place in range(len(targets))]
    fields = {"keys": keys, "groups": groups, "logits": logits, "classes": names, "kind": kind} | more
    return ClassPredictions(targets=targets.astype(np.float32), **fields)


@pytest.mark.parametrize("oldest", [411, 1e6, "90+"])
def test_numbers_of_any_size_have_a_band(oldest: object) -> None:
    ages = [*range(14), *([oldest] * 12), *([float("nan"), -1, None] * 4)]
    made = predictions(np.tile([[0], [1]], (19, 1)), "binary", columns=[{"age": age} for age in ages])
    found = class_tables(made, plain_chances(made.logits, made.kind), [0.5], draws=20, subgroups=("age",))
    assert list(found["subgroups"]["age"]) == ["0-17", "90+"]
    assert found["subgroups"]["age"]["90+"]["c0"]["images"] == 12


def test_a_class_of_few_is_not_sure() -> None:
    targets = np.zeros((60, 1))
    targets[:6] = 1
    made = predictions(targets, "binary")
    chances = np.where(targets == 1, 0.9, 0.1) + np.random.default_rng(0).normal(size=targets.shape) * 0.01
    row = class_table(made, chances, [0.5], 200)["c0"]
    assert row["sensitivity"]["value"] == 1 and row["sensitivity"]["high"] == 1
    assert row["sensitivity"]["low"] == pytest.approx(0.025 ** (1 / 3)), "six images of three patients"
    targets[2:] = 0
    row = class_table(predictions(targets, "binary"), chances, [0.5], 200)["c0"]
    assert row["auroc"]["value"] is not None and row["auroc"]["low"] is None, "one patient tells nothing of others"
    assert row["brier"]["low"] is not None


def test_markdown_says_of_how_many_and_in_which_unit() -> None:
    base = {"iou": [0.5], "surface_dice": [0.5], "volume_error": [0.1], "said": [1.0], "in_mm": [1.0], "chance": [0.9]}
    cases = [
        SegmentationCase("a", "a", figures=base | {"dice": [0.5], "hd95": [12.3456], "there": [1.0]}),
        SegmentationCase("b", "b", figures=base | {"dice": [0.7], "hd95": [np.nan], "there": [1.0]}),
    ]
    head, line, row = markdown_table(case_table(cases, ("lung",), 100), ("images", "with"))
    assert head.startswith("| | images | with | Dice | IoU | HD95 (mm) | surface Dice | volume error |")
    assert head.count("|") == line.count("|") == row.count("|")
    assert "12.35 (n = 1)" in row and row.startswith("| lung | 2 | 2 | 0.600 (0.500 to 0.700) |")
    assert row.endswith("| n/a |"), "no case is empty, so that nothing could be let go"


def test_a_curve_is_that_of_scikit_learn_whatever_the_order() -> None:
    random = np.random.default_rng(0)
    truth, chances = random.random(80) < 0.4, random.random(80).round(1)
    hits, misses = curve(chances, truth)
    rate, recall, _ = sk.roc_curve(truth, chances, drop_intermediate=False)
    assert misses / misses[-1] == pytest.approx(rate) and hits / hits[-1] == pytest.approx(recall)
    order = random.permutation(80)
    for found, other in zip(curve(chances[order], truth[order]), (hits, misses), strict=True):
        assert np.array_equal(found, other)
    alike = curve(np.full(80, 0.5), truth)
    assert [each.tolist() for each in alike] == [[0, truth.sum()], [0, (~truth).sum()]], "a straight line"


@pytest.mark.parametrize(("kind", "classes"), [("binary", 1), ("multiclass", 3), ("multilabel", 14)])
def test_curves_are_drawn(kind: str, classes: int) -> None:
    random = np.random.default_rng(0)
    chosen = random.integers(classes, size=80)
    targets = np.eye(classes)[chosen] if kind == "multiclass" else random.integers(2, size=(80, classes))
    made = predictions(targets.astype(float), kind)
    found = class_pictures(made, plain_chances(made.logits, made.kind))
    assert set(found) == ({"curves", "confusion"} if kind == "multiclass" else {"curves"})
    for picture in found.values():
        assert picture.ndim == 3 and picture.dtype == np.uint8 and picture.std() > 10


def test_a_class_that_nobody_has_is_not_drawn() -> None:
    made = predictions(np.zeros((20, 1)), "binary")
    assert class_pictures(made, plain_chances(made.logits, made.kind))["curves"].ndim == 3


def test_models_side_by_side_show_the_quartiles_of_the_gain_and_no_other_image() -> None:
    """Of gains 0, 0.1 ... 0.8 these are 0.2, 0.4 and 0.6; the picture of those three alone is the same."""
    gains = np.array([3, 0, 7, 5, 8, 1, 2, 6, 4])
    images = [np.full((16, 16), 20 * gain, np.uint8) for gain in gains]
    truth = gains % 2

    def of_truth(chance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(np.arange(2) == truth[:, None], chance[:, None], 1 - chance[:, None])

    models = {"first": of_truth(np.full(9, 0.1)), "last": of_truth(0.1 + 0.1 * gains)}

    def shown(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        of_rows = {name: chances[rows] for name, chances in models.items()}
        return chances_side_by_side([images[row] for row in rows], truth[rows], of_rows, ("no", "yes"))

    every = shown(np.arange(9))
    assert np.array_equal(every, shown(np.flatnonzero(np.isin(gains, (2, 4, 6)))))
    assert not np.array_equal(every, shown(np.arange(3)))
