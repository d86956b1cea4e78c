"""Ranking, fronts and how sure a difference is, against independent statements."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel

from dira_dist.data.store import open_store
from dira_dist.runs.search import SearchState, read_search
from dira_dist.search.config import Dimension
from dira_dist.search.overview import describe, seconds_left
from dira_dist.search.pictures import search_pictures
from dira_dist.search.ranking import Goal, candidates, compare, conclude, fronts, ranked
from dira_dist.search.trial import Trial

AUROC = Goal(("auroc",), ("max",))
BOTH = Goal(("auroc", "uniformity"), ("max", "min"))


def trial(number: int, auroc: float, uniformity: float = 0.0, **changes: Any) -> Trial:
    history = [(5, {"auroc": 0.99, "uniformity": -9.0}), (9, {"auroc": auroc, "uniformity": uniformity})]
    made = Trial(
        f"t{number}", number, {"loss_weights.restorative": 10.0 * number + 1}, status="finished", history=history
    )
    return replace(made, **changes)


def test_the_last_evaluation_ranks_and_only_of_trials_that_were_trained_to_the_end() -> None:
    trials = [trial(0, 0.6), trial(1, 0.8), trial(2, 0.7), trial(3, 0.9, status="stopped"), trial(4, math.nan)]
    assert [each.number for each in ranked(trials, AUROC)] == [1, 2, 0]
    assert [each.number for each in ranked(trials, Goal(("auroc",), ("min",)))] == [0, 2, 1]


def test_a_trial_that_was_not_evaluated_at_its_end_is_not_ranked_by_an_earlier_figure() -> None:
    early = trial(1, 0.9, history=[(5, {"auroc": 0.9})], total_steps=9)
    never = trial(2, 0.9, history=[], total_steps=9)
    trials = [trial(0, 0.6, total_steps=9), early, never, trial(3, 0.7)]
    assert [each.number for each in ranked(trials, AUROC)] == [3, 0], "one of an older record is taken as it is"
    ranking = conclude(trials, AUROC)
    assert ranking is not None
    assert list(ranking.notes()) == [
        "trial 1: trained for 9 steps and not evaluated at its end (its last evaluation is of step 5); "
        "it is not ranked",
        "trial 2: trained for 9 steps and not evaluated at its end (it has no evaluation); it is not ranked",
    ]
    repeated = [*trials, *repeats(3, 0.7), trial(0, 0.99, name="late", seed=1, total_steps=10)]
    found = conclude(repeated, AUROC)
    assert found is not None
    assert found.winner.number == 3, "nor does a repetition count that was not evaluated at its end"
    assert conclude([early, never], AUROC) is None


def test_the_front_is_what_nothing_dominates() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(size=(40, 2))
    trials = [trial(number, auroc, uniformity) for number, (auroc, uniformity) in enumerate(points)]
    expected = {
        number
        for number, (auroc, uniformity) in enumerate(points)
        if not any(a > auroc and u < uniformity for a, u in points)
    }
    layers = list(fronts(trials, BOTH))
    assert {each.number for each in layers[0]} == expected
    assert sum(map(len, layers)) == 40
    assert [each.metrics["auroc"] for each in layers[0]] == sorted((points[n][0] for n in expected), reverse=True)


def test_the_interval_is_that_of_a_paired_t_test_and_leaves_the_searchs_own_seed_out() -> None:
    generator = np.random.default_rng(1)
    ours, published = generator.normal(0.8, 0.02, 5), generator.normal(0.7, 0.02, 5)
    found = compare(dict(enumerate(ours)), dict(enumerate(published)), "max")
    assert found is not None
    test = ttest_rel(ours, published)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.difference == pytest.approx(float(np.mean(ours - published)))
    assert (found.better, found.seeds, found.sure) == (5, 5, True)
    turned = compare(dict(enumerate(published)), dict(enumerate(ours)), "min")
    assert turned is not None
    assert turned.sure, "less is better"
    alone = compare({1: 0.8}, {1: 0.7, 2: 0.6}, "max")
    assert alone is not None
    assert math.isnan(alone.low)
    assert not alone.sure, "one seed proves nothing"
    assert compare({1: 0.8}, {2: 0.6}, "max") is None


def repeats(number: int, *values: float) -> list[Trial]:
    return [trial(number, value, name=f"t{number}-seed{seed}", seed=seed) for seed, value in enumerate(values, start=1)]


def test_the_best_three_and_the_published_weights_are_repeated_and_the_mean_wins() -> None:
    trials = [trial(0, 0.6), trial(1, 0.9), trial(2, 0.8), trial(3, 0.7), trial(4, 0.65)]
    assert [each.number for each in candidates(trials, AUROC)] == [0, 1, 2, 3]
    unconfirmed = conclude(trials, AUROC)
    assert unconfirmed is not None
    assert unconfirmed.winner.number == 1
    assert "not confirmed" in unconfirmed.verdict()
    trials += [*repeats(0, 0.60, 0.62), *repeats(1, 0.61, 0.62), *repeats(2, 0.80, 0.83), *repeats(3, 0.7, 0.7)]
    ranking = conclude(trials, AUROC)
    assert ranking is not None
    assert ranking.winner.number == 2, "the luckiest on the search's seed is not the best"
    assert "better on 2 of 2 seeds" in ranking.verdict()
    table = list(ranking.table())
    assert len(table) == 2 + 5, "repetitions are no rows"
    assert "**winner**" in next(row for row in table if row.startswith("| 2 |"))
    assert "published weights" in next(row for row in table if row.startswith("| 0 |"))


def test_further_seeds_decide_also_where_the_published_weights_failed() -> None:
    failed = trial(0, math.nan, status="failed", history=[])
    trials = [failed, trial(1, 0.9), trial(2, 0.8), *repeats(1, 0.1, 0.1, 0.1), *repeats(2, 0.85, 0.85, 0.85)]
    ranking = conclude(trials, AUROC)
    assert ranking is not None
    assert ranking.winner.number == 2
    assert ranking.verdict() == (
        "trial 2 is the best by auroc: mean 0.8500 over 3 further seeds; the published weights were not evaluated at "
        "their end, so that nothing is compared with them"
    )
    once = conclude([failed, trial(1, 0.9)], AUROC)
    assert once is not None
    assert "0.9000 on one seed, not confirmed (search.confirm_seeds); the published weights were not" in once.verdict()
    unrepeated = conclude([trial(0, 0.6), *trials[1:]], AUROC)
    assert unrepeated is not None
    assert "no repetition of the published weights was evaluated at its end" in unrepeated.verdict()


def test_means_are_over_the_seeds_that_all_leaders_have() -> None:
    trials = [trial(0, 0.6), trial(1, 0.9), trial(2, 0.8), *repeats(0, 0.5, 0.5), *repeats(2, 0.7, 0.7)]
    lucky = [trial(1, value, name=f"t1-seed{seed}", seed=seed) for seed, value in ((2, 0.6), (3, 0.99))]
    ranking = conclude([*trials, *lucky], AUROC)
    assert ranking is not None
    assert (ranking.winner.number, ranking.shared_seeds) == (2, 1), "an easy seed that the others lack decides nothing"
    apart = conclude([trial(1, 0.9), trial(2, 0.8), repeats(1, 0.1)[0], repeats(2, 0.5, 0.6)[1]], AUROC)
    assert apart is not None
    assert (apart.winner.number, apart.means) == (1, {})


def test_where_nothing_beats_them_the_published_weights_win() -> None:
    ranking = conclude([trial(0, 0.9), trial(1, 0.8), *repeats(0, 0.9, 0.9), *repeats(1, 0.8, 0.8)], AUROC)
    assert ranking is not None
    assert ranking.winner.number == 0
    assert "nothing that was tried beats the published weights" in ranking.verdict()
    assert conclude([trial(0, 0.9, status="failed")], AUROC) is None


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert read_search(store) is None
    record = SearchState({"name": "s"}, "digest", "run", (trial(0, 0.5), *repeats(1, 0.2)))
    record.write(store)
    assert read_search(store) == record
    again = record.with_trial(record.trials[0].evaluated(9, {"auroc": 0.7}).evaluated(12, {"auroc": 0.8}))
    assert [step for step, _ in again.trials[0].history] == [5, 9, 12]
    assert again.trials[0].metrics == {"auroc": 0.8}
    assert len(again.trials) == 2


def test_progress_is_told_in_one_line() -> None:
    running = trial(2, 0.9, status="running", history=[(3, {"auroc": 0.9})])
    trials = [trial(0, 0.6), trial(1, 0.7, status="stopped"), running, trial(3, 0.1, status="failed")]
    line = describe(trials, 12, AUROC, 3725)
    for words in (
        "1 running",
        "1 done",
        "1 stopped early",
        "1 failed of 12",
        "best auroc 0.6 (trial 0)",
        "1:02:05 left",
    ):
        assert words in line, line
    assert "best so far auroc 0.9 (trial 2, step 3)" in describe([running], 12, AUROC, None)
    failed = replace(running, status="failed")
    assert "best so far" not in describe([failed], 12, AUROC, None)


def test_time_left_is_steps_left_at_the_pace_of_all_trials() -> None:
    done = [trial(0, 0.6, history=[(100, {})]), trial(1, 0.6, status="stopped", history=[(20, {})])]
    running = trial(2, 0.6, status="running", history=[(30, {})])
    # ended after 60 steps on average: 30 of the running one and 60 of each of 2 to come, at 2 steps/s
    assert seconds_left(75.0, 150, [*done, running], 5, 100) == pytest.approx((30 + 120) / 2)
    assert seconds_left(1.0, 0, [], 5, 100) is None


def test_pictures_show_what_was_judged() -> None:
    space = {"loss_weights.restorative": Dimension(low=1, high=100), "method.name": Dimension(choices=("a", "b"))}
    trials = [
        replace(each, params={**each.params, "method.name": "ab"[each.number % 2]})
        for each in (
            trial(0, 0.6, 1.0),
            trial(1, 0.7, 2.0),
            trial(2, 0.65, 0.5, status="stopped"),
            trial(3, 0.1, history=[]),
        )
    ]
    assert search_pictures([], AUROC, space) == {}
    pictures = search_pictures(trials, BOTH, space)
    assert set(pictures) == {
        "parallel coordinates",
        "auroc against each key",
        "uniformity against each key",
        "pareto front",
    }
    assert "pareto front" not in search_pictures(trials, AUROC, space)
    for name, picture in pictures.items():
        assert picture.ndim == 3, name
        assert picture.std() > 10, f"{name} is not blank"
    other = [replace(trials[0], history=[(9, {"auroc": 0.2, "uniformity": 3.0})]), *trials[1:]]
    assert all((search_pictures(other, BOTH, space)[name] != picture).any() for name, picture in pictures.items())


def test_the_tables_words_are_yaml_safe() -> None:
    ranking = conclude([trial(0, 0.9), trial(1, 0.95)], AUROC)
    assert ranking is not None
    assert yaml.safe_load(yaml.safe_dump(list(ranking.table()))) == list(ranking.table())
