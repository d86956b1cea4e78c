"""Fractions, folds and weights: nested, by patient, with each class where it can be, the same for everybody."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.config import RequestError
from dira_dist.data.selection import balanced_weights, common_groups, draw_folds, draw_fraction

seeds = st.integers(0, 2**31 - 1)
Labelled = tuple[list[str], np.ndarray]


@st.composite
def labelled(draw: st.DrawFn, least: int = 1) -> Labelled:
    """Groups and classes of some samples."""
    samples, classes = draw(st.integers(least, 80)), draw(st.integers(1, 5))
    patients = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    groups = [f"p{number}" for number in rng.integers(0, patients, samples)]
    return groups, rng.random((samples, classes)) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.8]))


@settings(max_examples=150, deadline=None)
@given(labelled(), seeds, st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5), st.sampled_from(["group", "image"]))
def test_fractions_of_a_seed_lie_within_each_other(
    given_: Labelled, seed: int, fractions: list[float], by: str
) -> None:
    groups, classes = given_
    draws = [set(draw_fraction(groups, classes, each, seed, by=by).ids.tolist()) for each in sorted(fractions)]
    assert all(smaller <= larger for smaller, larger in pairwise(draws))


@settings(max_examples=150, deadline=None)
@given(labelled(), seeds, st.floats(0.001, 1.0), st.sampled_from(["group", "image"]))
def test_a_fraction_has_whole_groups_and_each_class_that_there_is(
    given_: Labelled, seed: int, fraction: float, by: str
) -> None:
    groups, classes = given_
    draw = draw_fraction(groups, classes, fraction, seed, by=by)
    ids = draw.ids.tolist()
    assert ids == sorted(set(ids)) and ids
    assert draw.missing == tuple(np.flatnonzero(classes.sum(0) == 0))
    assert draw.positives.tolist() == classes[ids].sum(0).tolist()
    assert all(classes[ids].any(0) == classes.any(0))
    if by == "group":
        chosen = {groups[number] for number in ids}
        assert ids == [number for number, group in enumerate(groups) if group in chosen]
        assert (draw.units, draw.all_units) == (len(chosen), len(set(groups)))
    else:
        assert (draw.units, draw.all_units) == (len(ids), len(groups))
    asked = max(1, int(fraction * draw.all_units + 0.5))
    assert asked <= draw.units <= max(asked, classes.shape[1])


def test_all_of_it_is_all_of_it_and_seeds_differ() -> None:
    groups, classes = [f"p{number // 2}" for number in range(200)], np.arange(200)[:, None] % 3 == np.arange(3)
    assert draw_fraction(groups, classes, 1.0, 0).ids.tolist() == list(range(200))
    draws = [tuple(draw_fraction(groups, classes, 0.1, seed).ids) for seed in range(50)]
    assert len(set(draws)) == 50 and {len(draw) for draw in draws} == {20}
    often = np.bincount(np.concatenate(draws), minlength=200)
    assert often.max() < 20, "no patient is in every draw"


def test_images_are_drawn_in_proportion_to_their_labels() -> None:
    label = np.repeat([0, 1, 2], [600, 300, 100])
    for seed in range(20):
        draw = draw_fraction(["block"] * 1000, label[:, None] == np.arange(3), 0.1, seed, by="image")
        assert abs(draw.positives - [60, 30, 10]).max() <= 3
        assert draw.units == 100


def test_the_draw_is_the_same_for_ever() -> None:
    groups = [f"p{number // 3}" for number in range(24)]
    classes = np.arange(24)[:, None] % 4 == np.arange(3)
    assert draw_fraction(groups, classes, 0.25, 7).ids.tolist() == [12, 13, 14, 18, 19, 20]
    assert draw_fraction(groups, classes, 0.25, 7, by="image").ids.tolist() == [6, 8, 18, 19, 20, 21]
    assert draw_folds(groups, classes, 3, 7)[::3].tolist() == [0, 0, 1, 2, 2, 1, 2, 1]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_what_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(RequestError, match="is no share of the samples; choose one above 0 and up to 1"):
        draw_fraction(["a"], np.ones((1, 1)), fraction, 0)


@settings(max_examples=150, deadline=None)
@given(labelled(least=2), seeds, st.integers(2, 6))
def test_folds_hold_whole_groups_and_none_is_empty(given_: Labelled, seed: int, folds: int) -> None:
    groups, classes = given_
    if len(set(groups)) < folds:
        with pytest.raises(RequestError, match=rf"{len(set(groups))} groups \(patients\) cannot fill {folds} folds"):
            draw_folds(groups, classes, folds, seed)
        return
    fold = draw_folds(groups, classes, folds, seed)
    assert set(fold) == set(range(folds)) and fold.shape == (len(groups),)
    of_group = {group: {int(f) for f, g in zip(fold, groups, strict=True) if g == group} for group in groups}
    assert all(len(found) == 1 for found in of_group.values())
    assert fold.tolist() == draw_folds(groups, classes, folds, seed).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_folds_have_like_shares_of_each_class_and_like_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"p{number}" for number in rng.integers(0, 300, 1000)]
    classes = rng.random((1000, 4)) < [0.5, 0.2, 0.05, 0.02]
    fold = draw_folds(groups, classes, 5, seed)
    assert abs(np.bincount(fold) - 200).max() <= 20
    for column in range(4):
        counts = np.bincount(fold[classes[:, column]], minlength=5)
        assert abs(counts - counts.mean()).max() <= max(1, 0.15 * counts.mean())


def test_one_fold_is_none() -> None:
    with pytest.raises(RequestError, match="nothing to validate on; choose 2 or more"):
        draw_folds(["a", "b"], np.ones((2, 1)), 1, 0)


def test_common_groups_are_counted_and_the_first_named() -> None:
    assert common_groups(["c", "a", "a", "b"], ["a", "d", "c"]) == (2, ("a", "c"))
    assert common_groups([f"p{n:02d}" for n in range(20)], [f"p{n:02d}" for n in range(5, 99)], most=2) == (
        15,
        ("p05", "p06"),
    )
    assert common_groups(["a"], ["b"]) == (0, ())


def test_weights_balance_the_classes_up_to_a_ratio() -> None:
    one_hot = np.repeat(np.eye(3), [80, 15, 5], axis=0)
    weights = balanced_weights(one_hot)
    assert weights.mean() == pytest.approx(1)
    assert one_hot.T @ weights == pytest.approx([100 / 3] * 3)
    capped = balanced_weights(one_hot, most_ratio=4)
    assert capped.max() / capped.min() == pytest.approx(4)
    assert len(set(balanced_weights(one_hot, most_ratio=1))) == 1


def test_the_rarest_class_of_a_sample_counts_and_none_is_a_class() -> None:
    findings = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0], [0, 0]], dtype=bool)
    weights = balanced_weights(findings)
    assert weights / weights[0] == pytest.approx([1, 1, 3, 1, 1, 1])
    assert balanced_weights(np.zeros((4, 2))) == pytest.approx([1] * 4)
