"""What the sampler is told and what it answers."""

import math
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dira_dist.search.config import Dimension, SearchConfig
from dira_dist.search.suggestions import Suggestions, distributions
from dira_dist.search.trial import Status, Trial

SPACE = {"w": Dimension(low=0.01, high=100)}


def section(**values: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": {"w": {"low": 0.01, "high": 100}}} | values)


def suggestions(known: list[Trial] | None = None, metrics: tuple[str, ...] = ("m",), **values: Any) -> Suggestions:
    space = distributions(SPACE, {"w": 1.0})
    return Suggestions(section(**values), space, metrics, ("max",) * len(metrics), known or [])


def drawn(source: Suggestions, count: int, good_at: float | None = None, first: int = 0) -> list[float]:
    """Values that are suggested where the figure is best at ``good_at``."""
    values = []
    for number in range(first, first + count):
        trial = Trial(f"t{number}", number, source.ask(f"t{number}"))
        values.append(trial.params["w"])
        figure = -abs(math.log(values[-1] / good_at)) if good_at else 0.0
        source.tell(replace(trial, status="finished", history=[(9, {"m": figure})]))
    return values


def test_bounds_scales_and_choices_become_distributions() -> None:
    space = {
        "a": Dimension(low=0.1, high=10),
        "b": Dimension(low=0, high=1, scale="linear"),
        "c": Dimension(low=2, high=64),
        "d": Dimension(choices=("x", "y")),
    }
    found = distributions(space, {"a": 1.0, "b": 0.5, "c": 8, "d": "x"})
    assert found == {
        "a": FloatDistribution(0.1, 10, log=True),
        "b": FloatDistribution(0, 1),
        "c": IntDistribution(2, 64, log=True),
        "d": CategoricalDistribution(("x", "y")),
    }


def test_draws_are_log_uniform_and_the_seeds() -> None:
    values = drawn(suggestions(sampler="random", trials=400), 400)
    assert all(0.01 <= value <= 100 for value in values)
    assert sum(value < 1 for value in values) == pytest.approx(200, abs=40), "half of the decades, half of the draws"
    assert drawn(suggestions(sampler="random"), 5) == drawn(suggestions(sampler="random"), 5)
    assert drawn(suggestions(sampler="random", seed=1), 5) != drawn(suggestions(sampler="random"), 5)


def test_optuna_learns_where_it_is_good_and_random_does_not() -> None:
    near = {
        sampler: sum(
            abs(math.log10(value / 30)) < 0.5 for value in drawn(suggestions(sampler=sampler), 60, good_at=30)[20:]
        )
        for sampler in ("optuna", "random")
    }
    assert near["optuna"] > 25
    assert near["optuna"] > near["random"] + 10


def test_what_was_tried_before_an_interruption_is_known_and_not_drawn_again() -> None:
    values = drawn(suggestions(), 20, good_at=30)
    known = [
        Trial(f"t{number}", number, {"w": value}, status="finished", history=[(9, {"m": -abs(math.log(value / 30))})])
        for number, value in enumerate(values)
    ]
    again = drawn(suggestions(known), 20, good_at=30, first=20)
    assert not set(values) & set(again)
    assert sum(abs(math.log10(value / 30)) < 0.5 for value in again) > 12, "it goes on where it had come to"


def test_given_values_are_taken_even_outside_the_space() -> None:
    source = suggestions()
    assert source.ask("t0", {"w": 1.0}) == {"w": 1.0}
    assert source.ask("t1", {"w": 1e6}) == {"w": 1e6}
    assert source.ask("t2", {"w": 1.0, "other": 2}) == {"w": 1.0, "other": 2}
    source.tell(Trial("t1", 1, {"w": 1e6}, status="finished", history=[(9, {"m": 1.0})]))
    assert 0.01 <= source.ask("t3")["w"] <= 100


@pytest.mark.parametrize(
    ("choices", "now", "published"),
    [((1, 5, 20), 10.0, 10.0), (("barlow_twins", "simsiam"), "moco_v2", "moco_v2"), (("fp32", "bf16"), "fp32", None)],
)
def test_published_values_that_are_no_choice_are_taken_and_known_later(
    choices: tuple[Any, ...], now: Any, published: Any
) -> None:
    config = SearchConfig.model_validate({"space": {"w": {"choices": choices}}})
    space = distributions(config.space, {"w": now})
    source = Suggestions(config, space, ("m",), ("max",))
    assert source.ask("t0", {"w": published}) == {"w": published}
    outside = Trial("t0", 0, {"w": published}, status="finished", history=[(9, {"m": 1.0})])
    source.tell(outside)
    inside = Trial("t1", 1, source.ask("t1"), status="finished", history=[(9, {"m": 0.5})])
    assert inside.params["w"] in choices
    resumed = Suggestions(config, space, ("m",), ("max",), [outside, inside])
    assert [trial.params for trial in resumed._study.trials] == [inside.params]


def test_stopped_and_failed_trials_are_told_as_what_they_are() -> None:
    source = suggestions()
    ended: list[tuple[str, Status, list[tuple[int, dict[str, float]]]]] = [
        ("a", "finished", [(3, {"m": 0.1}), (9, {"m": 0.9})]),
        ("b", "stopped", [(3, {"m": 0.2})]),
        ("c", "failed", []),
        ("d", "finished", [(9, {})]),
        ("e", "stopped", []),
        ("f", "finished", [(3, {"m": 0.3})]),
    ]
    for name, status, history in ended:
        params = source.ask(name)
        source.tell(Trial(name, 0, params, status=status, history=history, total_steps=9))
    told = [(trial.state.name, trial.value, trial.intermediate_values) for trial in source._study.trials]
    assert told[0] == ("COMPLETE", 0.9, {})
    assert told[1] == ("PRUNED", 0.2, {3: 0.2})
    assert [state for state, _, _ in told[2:5]] == ["FAIL", "FAIL", "FAIL"]
    assert told[5] == ("PRUNED", 0.3, {3: 0.3}), "it was not evaluated at its end"


def test_several_figures_are_several_goals() -> None:
    source = suggestions(metrics=("m", "n"))
    params = source.ask("a")
    source.tell(Trial("a", 0, params, status="finished", history=[(9, {"m": 1.0, "n": 2.0})]))
    assert source._study.trials[0].values == [1.0, 2.0]
    assert [direction.name for direction in source._study.directions] == ["MAXIMIZE", "MAXIMIZE"]
