"""Intervals: against a loop over draws, against truths that are known, and where they would be surer than they may."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm, t

from dira_dist.evaluation.classification import auroc, average_precision
from dira_dist.evaluation.intervals import Measured, Resamples, all_or_none, weighted_mean


def test_draws_are_those_of_a_loop_over_whole_groups() -> None:
    """Means of resampled patients, each with all its images, have the spread of the draws that are weights."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), random.integers(1, 6, size=30)).astype(str)
    values = random.normal(size=30)[groups.astype(int)] + 0.1 * random.normal(size=groups.size)
    found = Resamples(groups.tolist(), 4000).measure(weighted_mean(values))
    rows = [np.flatnonzero(groups == str(place)) for place in range(30)]
    loop = [values[np.concatenate([rows[place] for place in random.integers(30, size=30)])].mean() for _ in range(4000)]
    reach = (found.high - found.low) / 2
    sizes = np.array([len(row) for row in rows])
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    assert 20 < effective < 30
    wider = t.ppf(0.975, effective - 1) * np.sqrt(effective / (effective - 1))
    assert reach == pytest.approx(wider * np.std(loop), rel=0.06)


def test_the_same_draws_serve_all_figures_and_those_of_a_seed_stay() -> None:
    groups, values = [str(place // 2) for place in range(40)], np.arange(40.0)
    figures = {"mean": weighted_mean(values), "doubled": weighted_mean(2 * values)}
    found = Resamples(groups, 300, seed=3).measure_all(figures)
    assert found["mean"] == Resamples(groups, 300, seed=3).measure(figures["mean"])
    assert found["doubled"].low == pytest.approx(2 * found["mean"].low)
    assert found["mean"] != Resamples(groups, 300, seed=4).measure(figures["mean"])


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, figure = [str(place // 3) for place in range(30)], weighted_mean(np.arange(30.0) ** 2)
    whole = Resamples(groups, 100).measure(figure)
    monkeypatch.setattr("dira_dist.evaluation.intervals._BLOCK_NUMBERS", 30 * 7)
    assert Resamples(groups, 100).measure(figure) == whole


def test_the_order_of_the_samples_does_not_matter() -> None:
    random = np.random.default_rng(1)
    groups = np.array([f"p{place // 3}" for place in range(60)])
    truth, chances = random.random(60) < 0.4, random.random(60).round(1)
    order = random.permutation(60)
    for function in (auroc, average_precision):
        found = Resamples(groups.tolist(), 200).measure(lambda w, f=function: f(chances, truth, w))
        other = Resamples(groups[order].tolist(), 200).measure(lambda w, f=function: f(chances[order], truth[order], w))
        assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high))


def test_one_group_alone_tells_nothing_of_others() -> None:
    found = Resamples(["only"] * 20, 100).measure(weighted_mean(np.arange(20.0)))
    assert found.value == 9.5 and np.isnan(found.low) and np.isnan(found.high)
    one_tells = Resamples(list("abcd"), 100).measure_all({"x": weighted_mean(np.arange(4.0))}, {"x": 1})["x"]
    assert one_tells.value == 1.5 and np.isnan(one_tells.low)
    nobody = Resamples([], 100).measure(weighted_mean(np.zeros(0)))
    assert np.isnan(nobody.value) and np.isnan(nobody.low)


@pytest.mark.parametrize("groups", [1, 5, 80])
def test_a_share_of_all_or_none_has_the_ends_of_scipy(groups: int) -> None:
    for value, hits in ((1.0, groups), (0.0, 0)):
        theirs = binomtest(hits, groups).proportion_ci(0.95, method="exact")
        found = all_or_none(Measured(value, value, value), groups)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    some = Measured(0.8, 0.6, 0.9)
    assert all_or_none(some, groups) is some


def test_two_models_on_the_same_patients_differ_more_surely_than_each_is_known() -> None:
    random = np.random.default_rng(0)
    truth = random.random(300) < 0.5
    common = truth + random.normal(size=300)
    better, worse = common + 0.3 * truth, common + 0.5 * random.normal(size=300)
    resamples = Resamples([str(place) for place in range(300)], 500)
    paired = resamples.measure(lambda w: auroc(better, truth, w) - auroc(worse, truth, w))
    single = resamples.measure(lambda w: auroc(better, truth, w))
    assert paired.low > 0
    assert paired.high - paired.low < single.high - single.low


def test_intervals_of_means_cover_a_known_truth() -> None:
    """A thousand sets of 60 patients with one to six cases each, which are alike."""
    covered = by_case = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), random.integers(1, 7, size=60))
        values = 0.8 + 0.1 * random.normal(size=60)[groups] + 0.03 * random.normal(size=groups.size)
        found = Resamples(groups.astype(str).tolist(), 400, seed).measure(weighted_mean(values))
        covered += found.low <= 0.8 <= found.high
        if seed < 200:
            single = Resamples(np.arange(groups.size).astype(str).tolist(), 200, seed).measure(weighted_mean(values))
            by_case += single.low <= 0.8 <= single.high
    assert 0.93 <= covered / 1000 <= 0.97
    assert by_case / 200 < 0.85


@pytest.mark.parametrize("patients", [30, 120])
@pytest.mark.parametrize("kind", ["symmetric", "skewed", "share"])
def test_few_patients_have_intervals_that_cover_as_well(patients: int, kind: str) -> None:
    """A thousand sets of patients with one to six cases, which are alike: of a mean, of one as Dice is, of a share."""
    covered, truth = 0, {"symmetric": 0.8, "skewed": float(beta.mean(6, 1.2)), "share": 0.85}[kind]
    for seed in range(1000):
        random = np.random.default_rng(seed)
        groups = np.repeat(np.arange(patients), random.integers(1, 7, size=patients))
        noise = 0.03 * random.normal(size=groups.size)
        if kind == "symmetric":
            values = (0.8 + 0.1 * random.normal(size=patients))[groups] + noise
        elif kind == "skewed":
            values = random.beta(6, 1.2, size=patients)[groups] + noise
        else:
            values = (random.random(groups.size) < random.beta(8.5, 1.5, size=patients)[groups]).astype(np.float64)
        found = Resamples(groups.astype(str).tolist(), 400, seed).measure(weighted_mean(values))
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 1000 <= 0.97, covered


def test_one_patient_with_nearly_all_images_tells_little_of_others() -> None:
    groups = ["a"] * 100 + list("bcdef")
    even = Resamples(list("abcdef"), 500).measure(weighted_mean(np.arange(6.0)))
    values = np.concatenate([np.zeros(100), np.arange(1.0, 6.0)])
    uneven = Resamples(groups, 500).measure(weighted_mean(values))
    assert uneven.value < 0.2 and uneven.low < 0.01 and uneven.high > 4, "all that was drawn is inside"
    assert even.low > 0.1


def test_an_area_of_few_positives_is_no_surer_than_they_allow() -> None:
    """Ten positive patients among 60: an interval that reckons with all 60 is too narrow."""
    shift = 1.2
    truth_area = norm.cdf(shift / np.sqrt(2))
    truth, covered = np.arange(60) < 10, {"telling": 0, "all": 0}
    for seed in range(1000):
        scores = np.random.default_rng(seed).normal(size=60) + shift * truth
        figures = {name: lambda w, s=scores: auroc(s, truth, w) for name in covered}
        resamples = Resamples([str(place) for place in range(60)], 400, seed)
        for name, found in resamples.measure_all(figures, {"telling": 10}).items():
            covered[name] += found.low <= truth_area <= found.high
    assert 0.93 <= covered["telling"] / 1000 <= 0.97, covered
    assert covered["all"] < covered["telling"], covered
