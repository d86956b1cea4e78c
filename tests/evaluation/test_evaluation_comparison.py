"""Comparisons of starts against slow plain statements, and against truths that are known because they were planted."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from dira_dist.evaluation.classification import auroc
from dira_dist.evaluation.comparison import (
    ComparedStarts,
    aligned,
    compare_starts,
    draw_seeds,
    estimate_means,
    holm,
    labels_to_reach,
    resample_cells,
)
from dira_dist.evaluation.comparison_pictures import learning_curves
from dira_dist.evaluation.comparison_report import ComparisonWords, comparison_table, sentences
from dira_dist.evaluation.intervals import Figure, Resamples, weighted_mean

SEEDS = 3


def mean_figures(values: np.ndarray) -> list[Figure]:
    """Of (S, N) values of N samples, the mean of each seed's."""
    return [weighted_mean(row) for row in values]


def test_an_estimate_equals_a_plain_statement() -> None:
    """Means, variances over draws of patients and of seeds, and Cochran's multiple, written down once more in loops."""
    generator = np.random.default_rng(0)
    groups = [f"p{number // 2}" for number in range(20)]
    values = generator.normal(size=(2, SEEDS, 20))
    draws = 50
    found = resample_cells([mean_figures(cell) for cell in values], groups, draws=draws)
    estimate = found.estimate(lambda means: means[:, 0] - means[:, 1])

    patients = 10
    often = np.random.default_rng(0).multinomial(patients, np.full(patients, 1 / patients), size=draws)
    by_patients, by_seeds = [], []
    for draw in range(draws):
        counts = [often[draw][int(group[1:])] for group in groups]
        difference = 0.0
        for seed in range(SEEDS):
            for cell, sign in ((0, 1), (1, -1)):
                total = sum(count * value for count, value in zip(counts, values[cell, seed], strict=True))
                difference += sign * total / sum(counts) / SEEDS
        by_patients.append(difference)
        weights = draw_seeds(SEEDS, draws)[draw]
        means = values.mean(axis=2)
        by_seeds.append(sum(weights[seed] * (means[0, seed] - means[1, seed]) for seed in range(SEEDS)))
    of_patients, of_seeds = np.var(by_patients, ddof=1), np.var(by_seeds, ddof=1)
    total = of_patients + of_seeds
    multiple = (of_patients * student.ppf(0.975, patients - 1) + of_seeds * student.ppf(0.975, SEEDS - 1)) / total
    value = values[0].mean() - values[1].mean()
    assert estimate.value == pytest.approx(value)
    assert estimate.low == pytest.approx(value - multiple * math.sqrt(total))
    assert estimate.high == pytest.approx(value + multiple * math.sqrt(total))


@given(st.integers(0, 10_000), st.floats(-0.8, 0.8))
def test_a_p_value_and_an_interval_say_the_same(seed: int, shift: float) -> None:
    values = np.random.default_rng(seed).normal(size=(2, SEEDS, 12))
    values[0] += shift
    found = resample_cells([mean_figures(cell) for cell in values], [str(number) for number in range(12)], draws=40)
    estimate = found.estimate(lambda means: means[:, 0] - means[:, 1])
    assert 0 <= estimate.p <= 1
    assert (estimate.p < 0.05) == (not estimate.low <= 0 <= estimate.high)


@given(st.integers(2, 6))
def test_of_each_draw_of_seeds_one_is_left_out(seeds: int) -> None:
    weights = draw_seeds(seeds, 500)
    assert weights.sum(axis=1) == pytest.approx(np.ones(500))
    values = np.arange(seeds, dtype=np.float64)
    right = values.var(ddof=1) / seeds  # of a mean of that many
    assert (weights @ values).var() == pytest.approx(right, rel=0.35)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_a_plain_statement(chances: list[float]) -> None:
    found = holm(chances)
    ranked, before = sorted(range(len(chances)), key=lambda place: chances[place]), 0.0
    for rank, place in enumerate(ranked):
        before = max(before, min(1.0, (len(chances) - rank) * chances[place]))
        assert found[place] == pytest.approx(before)


def test_what_is_not_defined_stays_so_and_counts_as_a_test() -> None:
    found = holm([0.02, math.nan])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])


@given(st.lists(st.floats(0.5, 1), min_size=2, max_size=5), st.floats(0.5, 1))
def test_labels_to_reach_equal_a_plain_statement(curve: list[float], level: float) -> None:
    labels = [10.0 * 3**place for place in range(len(curve))]
    found = labels_to_reach(np.array([curve]), np.array(labels), level)[0]
    plain = math.nan
    for place in range(len(curve)):
        if curve[place] >= level:
            if place:
                part = (level - curve[place - 1]) / (curve[place] - curve[place - 1])
                plain = math.log(labels[place - 1]) + part * math.log(3)
            break
    assert (math.isnan(found) and math.isnan(plain)) or found == pytest.approx(plain)


def test_tables_in_another_order_are_aligned() -> None:
    common, places = aligned([["b", "a", "x"], ["a", "b"]])
    assert common == ["a", "b"]
    assert [place.tolist() for place in places] == [[1, 0], [0, 1]]


def simulated(
    generator: np.random.Generator,
    better: float,
    fractions: dict[float, float],
    *,
    spread: float = 0.3,
    patients: int = 120,
) -> ComparedStarts:
    """Two starts: scores of samples by skill, which grows with the labels and differs from fit to fit."""
    truth, hard = generator.random(patients) < 0.35, generator.normal(size=patients)
    figures = {
        start: {
            fraction: [
                partial(auroc, (skill + gain + spread * generator.normal()) * truth + hard + noise, truth)
                for noise in generator.normal(size=(SEEDS, patients)) * 0.5
            ]
            for fraction, skill in fractions.items()
        }
        for start, gain in (("random", 0.0), ("dira", better))
    }
    return compare_starts(
        figures, [str(number) for number in range(patients)], {each: 1000 * each for each in fractions}, draws=100
    )


WORDS = ComparisonWords(
    figure="AUROC",
    images={0.01: 10, 0.1: 100, 1.0: 1000},
    rates={(start, share): 1e-3 for start in ("random", "dira") for share in (0.01, 0.1, 1.0)},
)


def test_equal_starts_are_rarely_told_apart() -> None:
    """In at most 7 % of 200 comparisons, though fits of one start differ much from seed to seed."""
    generator = np.random.default_rng(3)
    apart = 0
    for _ in range(200):
        found = simulated(generator, 0.0, {1.0: 1.0})
        apart += any(cell.differs for cell in found.cells)
        no_difference = "no difference could be shown" in sentences(found, WORDS)["dira"]
        assert no_difference == (not any(cell.differs for cell in found.cells)), "a sentence claims no more"
    assert apart <= 0.07 * 200


def test_a_planted_better_start_is_found_better_and_needs_fewer_labels() -> None:
    found = simulated(np.random.default_rng(5), 1.0, {0.01: 0.2, 0.1: 1.2, 1.0: 2.2}, spread=0.03, patients=600)
    cells = found.of("dira")
    assert all(cell.differs for cell in cells)
    assert all(cell.difference is not None and cell.difference.low > 0 for cell in cells)
    efficiency = found.efficiency["dira"]
    assert efficiency.times.low < 10 < efficiency.times.high, "a skill of 1 more is worth ten times the labels"
    sentence = sentences(found, WORDS)["dira"]
    assert sentence.startswith("this model (dira) needs ")
    assert f"times fewer labels than random for an AUROC of {efficiency.level:g}; it is better than random" in sentence


def test_a_planted_worse_start_is_said_to_need_more() -> None:
    found = simulated(np.random.default_rng(5), -1.0, {0.01: 1.2, 0.1: 2.2, 1.0: 3.2}, spread=0.03)
    sentence = sentences(found, WORDS)["dira"]
    assert "is worse than random" in sentence
    assert "fewer labels" not in sentence


def test_only_several_pretrainings_let_it_name_the_method() -> None:
    found = simulated(np.random.default_rng(5), 1.0, {0.01: 0.2, 1.0: 2.2}, spread=0.03)
    of_method = ComparisonWords("AUROC", WORDS.images, WORDS.rates, frozenset({"dira"}))
    assert sentences(found, WORDS)["dira"].startswith("this model (dira)")
    assert sentences(found, of_method)["dira"].startswith("the method dira")


def test_the_table_has_a_row_for_each_fraction_and_start() -> None:
    found = simulated(np.random.default_rng(5), 1.0, {0.01: 0.2, 1.0: 2.2})
    head, _, *rows = comparison_table(found, WORDS)
    assert "against random" in head
    assert [row.split(" | ")[2] for row in rows] == ["random", "dira", "random", "dira"]
    assert found.cells[0].mean.text in rows[0]


def test_an_interval_is_that_of_patients_where_all_seeds_are_alike() -> None:
    """Then the seeds bring no variance, and what is left is known from one fit."""
    values = np.random.default_rng(1).normal(size=60)
    groups = [str(number) for number in range(60)]
    found = estimate_means({("a", 1.0): mean_figures(np.stack([values] * SEEDS))}, groups, draws=4000)
    alone = Resamples(groups, 4000).measure(weighted_mean(values))
    estimate = found["a", 1.0]
    assert (estimate.low, estimate.high) == pytest.approx((alone.low, alone.high), abs=0.02)


@pytest.mark.parametrize("fractions", [{1.0: 1.0}, {0.01: 0.2, 0.1: 1.2, 1.0: 2.2}])
def test_the_curves_are_drawn(fractions: dict[float, float]) -> None:
    picture = learning_curves(simulated(np.random.default_rng(5), 1.0, fractions), "AUROC", WORDS.images)
    assert picture.std() > 10
