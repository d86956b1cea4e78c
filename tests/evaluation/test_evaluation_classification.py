"""Figures of classifiers against scikit-learn and plain statements, and intervals against a truth that is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk

from dira_dist.evaluation import classification as figures
from dira_dist.evaluation.calibration import Calibration, choose_thresholds, fit_calibration
from dira_dist.evaluation.classification import ClassPredictions, plain_chances, pooled
from dira_dist.evaluation.intervals import Resamples, weighted_mean
from dira_dist.evaluation.report import class_table, class_tables, markdown_table, metrics_of
from dira_dist.metrics import TEST_FIGURE


def predictions(
    count: int = 60, kind: str = "multilabel", classes: int = 3, seed: int = 0, unknown: float = 0.0, **more: Any
) -> ClassPredictions:
    random = np.random.default_rng(seed)
    if kind == "multiclass":
        targets = np.eye(classes, dtype=np.float32)[random.integers(classes, size=count)]
    else:
        targets = random.integers(2, size=(count, classes)).astype(np.float32)
    logits = 1.5 * targets + random.normal(size=targets.shape).round(1)  # rounded, so that there are ties
    targets[random.random(targets.shape) < unknown] = np.nan
    names = [f"c{place}" for place in range(classes)]
    keys = [f"k{place}" for place in range(count)]
    groups = [f"p{place // 2}" for place in range(count)]
    return ClassPredictions(keys, groups, logits, targets, names, kind, **more)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(4, 40))
def test_weighted_figures_are_those_of_scikit_learn(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(2, size=count).astype(bool)
    truth[:2] = True, False
    chances = random.integers(0, 12, size=count) / 11
    weights = random.integers(0, 4, size=(3, count)).astype(float)
    weights[:, :2] += 1
    said = chances > 0.5
    for row in range(3):
        given_weights = {"sample_weight": weights[row]}
        pairs = [
            (figures.auroc(chances, truth, weights), sk.roc_auc_score(truth, chances, **given_weights)),
            (
                figures.average_precision(chances, truth, weights),
                sk.average_precision_score(truth, chances, **given_weights),
            ),
            (figures.sensitivity(said, truth, weights), sk.recall_score(truth, said, **given_weights)),
            (figures.specificity(said, truth, weights), sk.recall_score(~truth, ~said, **given_weights)),
            (figures.f1(said, truth, weights), sk.f1_score(truth, said, **given_weights)),
            (figures.brier(chances, truth, weights), sk.brier_score_loss(truth, chances, **given_weights)),
        ]
        for found, expected in pairs:
            assert found[row] == pytest.approx(expected, abs=1e-9)


def test_calibration_error_as_a_loop_over_bins() -> None:
    random = np.random.default_rng(2)
    chances, weights = random.random(200), random.integers(0, 3, size=(1, 200)).astype(float)
    truth = random.random(200) < chances**2
    total = 0.0
    for low in np.arange(10) / 10:
        inside = (chances >= low) & (chances < low + 0.1)
        if (mass := weights[0, inside].sum()) > 0:
            gap = np.average(chances[inside], weights=weights[0, inside]) - np.average(
                truth[inside], weights=weights[0, inside]
            )
            total += mass / weights.sum() * abs(gap)
    assert figures.calibration_error(chances, truth, weights)[0] == pytest.approx(total)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_figures_of_an_epoch(kind: str) -> None:
    made = predictions(kind=kind, classes=1 if kind == "binary" else 3)
    found, chances = made.figures(), plain_chances(made.logits, made.kind)
    areas = [sk.roc_auc_score(made.targets[:, place], chances[:, place]) for place in range(chances.shape[1])]
    assert found["val/auroc"] == pytest.approx(np.mean(areas))
    assert found["val/loss"] == pytest.approx(
        sk.log_loss(made.targets.argmax(1), chances)
        if kind == "multiclass"
        else np.mean([sk.log_loss(made.targets[:, k], chances[:, k], labels=[0, 1]) for k in range(chances.shape[1])])
    )
    order = np.random.default_rng(0).permutation(len(made))
    assert made.take(order).figures() == pytest.approx(found)
    if kind == "multiclass":
        said = chances.argmax(1)
        assert found["val/balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(made.targets.argmax(1), said))


def test_what_is_unknown_or_has_one_value_counts_nowhere() -> None:
    made = predictions(unknown=0.3)
    made.targets[:, 2] = np.where(np.isnan(made.targets[:, 2]), np.nan, 1)
    found = made.figures()
    known, chances = ~np.isnan(made.targets[:, 0]), plain_chances(made.logits, made.kind)
    assert found["val/auroc/c0"] == pytest.approx(sk.roc_auc_score(made.targets[known, 0], chances[known, 0]))
    assert "val/auroc/c2" not in found
    assert found["val/auroc"] == pytest.approx((found["val/auroc/c0"] + found["val/auroc/c1"]) / 2)
    table = class_table(made, plain_chances(made.logits, made.kind), [0.5] * 3, 50)
    assert table["c2"]["auroc"] == {"value": None, "low": None, "high": None}
    assert table["c0"]["images"] == known.sum() and table["c0"]["positives"] == (made.targets[:, 0] == 1).sum()
    assert "n/a" in "\n".join(markdown_table(table, ("images",)))


def test_patients_are_pooled() -> None:
    made = predictions(count=4, classes=1, kind="binary")
    chances = np.array([[0.2], [0.6], [0.9], [0.1]])
    for how, expected in (("mean", [0.4, 0.5]), ("max", [0.6, 0.9])):
        merged, truth = pooled(chances, made, how)  # type: ignore[arg-type]
        assert merged[:, 0].tolist() == pytest.approx(expected)
        assert truth.targets[:, 0].tolist() == [made.targets[:2].max(), made.targets[2:].max()]


def test_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3))
    chances = plain_chances(logits, "multiclass")
    classes = (random.random((4000, 1)) > chances.cumsum(1)).sum(1)
    names = [str(place) for place in range(4000)]
    made = ClassPredictions(names, names, 3 * logits, np.eye(3, dtype=np.float32)[classes], list("abc"), "multiclass")
    assert fit_calibration(made).slopes[0] == pytest.approx(1 / 3, rel=0.1)


def test_what_nobody_knows_gives_no_figure() -> None:
    for kind in ("multiclass", "multilabel"):
        made = predictions(kind=kind)
        made.targets[:] = np.nan
        assert made.figures() == {}


def test_calibration_never_turns_the_order_of_the_samples_around() -> None:
    made = predictions(count=200, classes=1, kind="binary")
    logits = -made.logits  # worse than chance on val
    found = fit_calibration(replace(made, logits=logits))
    chances = found.chances(logits)[:, 0]
    assert found.slopes[0] > 0
    truth = made.targets[:, 0]
    assert sk.roc_auc_score(truth, chances) == pytest.approx(sk.roc_auc_score(truth, logits[:, 0]), abs=2e-3)
    assert chances.mean() == pytest.approx(truth.mean(), abs=0.02), "nor does it say more than how common the class is"


def test_platt_is_found_again_and_few_samples_are_left_alone() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 2))
    targets = (random.random((4000, 2)) < plain_chances(0.5 * logits - 1, "multilabel")).astype(np.float32)
    targets[:, 1] = 0
    targets[:3, 1] = 1
    names = [str(place) for place in range(4000)]
    found = fit_calibration(ClassPredictions(names, names, logits, targets, ["a", "b"], "multilabel"))
    assert (found.slopes[0], found.intercepts[0]) == pytest.approx((0.5, -1), abs=0.15)
    assert (found.slopes[1], found.intercepts[1]) == (1, 0)
    assert Calibration("multilabel", [1, 1], [0, 0]).chances(logits) == pytest.approx(plain_chances(logits, "binary"))


@pytest.mark.parametrize("point", ["youden", "sensitivity=0.9", "specificity=0.8"])
def test_a_threshold_is_the_best_of_all(point: str) -> None:
    made = predictions(count=50, classes=1, kind="binary")
    chances = plain_chances(made.logits, made.kind)
    (level,) = choose_thresholds(chances, made, point)
    truth = made.targets[:, 0] == 1

    def rates(threshold: float) -> tuple[float, float]:
        said = chances[:, 0] > threshold
        return float(said[truth].mean()), float((~said)[~truth].mean())

    every = [rates(each) for each in (-1.0, *np.unique(chances))]
    found = rates(level)
    if point == "youden":
        assert sum(found) == pytest.approx(max(map(sum, every)))
    else:
        held = 0 if point.startswith("sens") else 1
        least = float(point.partition("=")[2])
        assert found[held] >= least
        assert found[1 - held] == pytest.approx(max(each[1 - held] for each in every if each[held] >= least))


def test_subgroups_by_what_was_kept() -> None:
    columns = [{"sex": "F" if place % 3 else "M", "age": "90+" if place > 40 else place} for place in range(60)]
    made = predictions(columns=columns)
    tables = class_tables(
        made, plain_chances(made.logits, made.kind), [0.5] * 3, draws=20, subgroups=("sex", "age", "view")
    )
    assert {name: list(parts) for name, parts in tables["subgroups"].items()} == {
        "sex": ["F", "M"],
        "age": ["0-17", "18-39", "90+"],
        "view": [],
    }
    assert tables["subgroups"]["sex"]["M"]["c0"]["images"] == 20
    assert set(tables) == {"per_image", "per_group_mean", "per_group_max", "subgroups"}
    metrics = metrics_of(tables["per_image"], TEST_FIGURE)
    assert metrics["test/auroc"] == pytest.approx(np.mean([metrics[f"test/auroc/c{place}"] for place in range(3)]))
    assert metrics["test/auroc_low"] < metrics["test/auroc"] < metrics["test/auroc_high"]


def test_intervals_cover_a_known_truth() -> None:
    """A thousand sets of patients with three alike images each: the area under the curve of two normal distributions
    is known. Drawing images and not patients would be surer than it may."""
    patients, each, shift, sets = 80, 3, 1.0, 1000
    truth_area = norm.cdf(shift / np.sqrt(2))
    covered = by_image = 0
    groups = np.repeat(np.arange(patients), each).astype(str)
    for seed in range(sets):
        random = np.random.default_rng(seed)
        has = np.repeat(random.random(patients) < 0.5, each)
        common = np.repeat(random.normal(size=patients), each) * np.sqrt(0.8)
        scores = shift * has + common + random.normal(size=has.size) * np.sqrt(0.2)
        found = Resamples(groups, 400, seed).measure(lambda w, s=scores, t=has: figures.auroc(s, t, w))
        covered += found.low <= truth_area <= found.high
        if seed < 200:
            single = Resamples(np.arange(has.size).astype(str), 200, seed)
            found = single.measure(lambda w, s=scores, t=has: figures.auroc(s, t, w))
            by_image += found.low <= truth_area <= found.high
    assert 0.93 <= covered / sets <= 0.97
    assert by_image / 200 < 0.9


def test_a_mean_and_its_interval() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0])
    found = Resamples(list("abcd"), 500).measure(weighted_mean(values))
    assert found.value == pytest.approx(7 / 3) and found.low < found.value < found.high
    assert Resamples(list("abcd"), 500).measure(weighted_mean(values)) == found
