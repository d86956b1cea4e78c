"""Which networks are chosen and when it is enough, held against plain statements of both."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.training.validation import PLATEAU_EPOCHS, History

VALUES = st.lists(st.one_of(st.floats(0.01, 1), st.just(math.nan)), min_size=1, max_size=40)


def history(values: list[float], mode: str = "max") -> tuple[History, list[bool]]:
    found = History(mode)  # type: ignore[arg-type]
    return found, [found.add(value, f"step-{place}") for place, value in enumerate(values)]


@given(VALUES, st.sampled_from(["max", "min"]))
def test_the_first_of_the_best_is_chosen_by_what_was_known_then(values: list[float], mode: str) -> None:
    found, was_best = history(values, mode)
    measured = [value for value in values if not math.isnan(value)]
    best = (max if mode == "max" else min)(measured) if measured else values[0]
    first = values.index(best) if measured else 0
    assert found.chosen == f"step-{first}"
    assert found.waited() == len(values) - 1 - first
    for place in range(len(values)):
        assert was_best[place] == (history(values[: place + 1], mode)[0].best == place)


@given(VALUES)
def test_its_state_is_all_of_it(values: list[float]) -> None:
    found, _ = history(values)
    again = History("max")
    again.load_state_dict(found.state_dict())
    assert (again.chosen, again.waited(), again.reductions()) == (found.chosen, found.waited(), found.reductions())


@settings(deadline=None)  # torch's optimisers take a second to import
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=60), st.sampled_from(["max", "min"]))
def test_the_rate_falls_when_that_of_torch_does(values: list[float], mode: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, PLATEAU_EPOCHS, 1e-4)  # type: ignore[arg-type]
    for value in values:
        schedule.step(value)
    fallen = history(values, mode)[0].reductions()
    assert 0.5**fallen == pytest.approx(optimizer.param_groups[0]["lr"])


def test_nothing_is_chosen_before_anything_is_measured() -> None:
    assert History("max").chosen == ""
