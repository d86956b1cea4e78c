"""Where trials are compared, and how many run side by side."""

import pytest

from dira_dist.config import RequestError
from dira_dist.search.config import SearchConfig
from dira_dist.search.fitting import ResourceRequest, trials_that_fit
from dira_dist.search.rungs import Rungs, plan_rungs


def section(**values: object) -> SearchConfig:
    return SearchConfig.model_validate({"space": {"w": {"low": 1, "high": 2}}} | values)


def test_rungs_are_powers_of_the_factor_before_the_end() -> None:
    assert Rungs(10, 3, 10, 90).steps == (10, 30), "the end is no rung"
    assert Rungs(10, 3, 10, 91).steps == (10, 30, 90)
    assert Rungs(4, 2, 4, 40).steps == (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("values", "total", "every", "grace", "evaluated"),
    [
        ({}, 90, None, 10, 10),
        ({"reduction_factor": 2}, 90, None, 22, 22),
        ({"grace_steps": 7}, 90, None, 7, 7),
        ({}, 90, 4, 8, 4),
        ({"grace_steps": 12}, 90, 4, 12, 4),
        ({}, 3, None, 1, 1),
        ({}, 90, 40, 40, 40),
    ],
)  # fmt: skip
def test_evaluations_fall_on_rungs(
    values: dict[str, object], total: int, every: int | None, grace: int, evaluated: int
) -> None:
    rungs = plan_rungs(section(**values), total, every)
    assert rungs is not None
    assert (rungs.grace_steps, rungs.evaluate_every_steps) == (grace, evaluated)
    assert all(step % rungs.evaluate_every_steps == 0 for step in rungs.steps)


def test_rungs_that_cannot_be_are_refused() -> None:
    with pytest.raises(RequestError, match="a trial has 90 steps, and none would be stopped after 200"):
        plan_rungs(section(grace_steps=200), 90, None)
    with pytest.raises(RequestError, match=r"no multiple of base\.evaluation\.every_steps, 4"):
        plan_rungs(section(grace_steps=10), 90, 4)
    with pytest.raises(
        RequestError, match=r"base\.evaluation\.every_steps: a trial has 90 steps, .* evaluated every 500"
    ):
        plan_rungs(section(), 90, 500)
    assert plan_rungs(section(metric=["a", "b"]), 90, None) is None, "several figures: nothing is stopped"


@pytest.mark.parametrize(
    ("nodes", "trial", "fit"),
    [
        ([(2, 0)], [ResourceRequest(1)], 2),
        ([(2, 0)], [ResourceRequest(1), ResourceRequest(1)], 1),
        ([(2, 0)], [ResourceRequest(3)], 0),
        ([(2, 0), (2, 0)], [ResourceRequest(1.5)], 2),  # 4 CPUs, but no worker spans two nodes
        ([(2, 0), (2, 0)], [ResourceRequest(2), ResourceRequest(2)], 1),
        ([(8, 0)], [ResourceRequest(0.1)] * 10, 8),
        ([(16, 4)], [ResourceRequest(1, 1), ResourceRequest(1, 1)], 2),
        ([(16, 4)], [ResourceRequest(1, 0.5)], 8),
        ([(16, 2)], [ResourceRequest(1, 0.4)], 4),  # 2 of each GPU, not 5 of both
        ([(16, 2)], [ResourceRequest(1, 0.6)], 2),
        ([(16, 2)], [ResourceRequest(1, 0.5), ResourceRequest(1, 1)], 1),
        ([(16, 8)], [ResourceRequest(1, 2)], 4),
        ([(16, 3), (16, 3)], [ResourceRequest(1, 2)], 2),
        ([(4, 0), (16, 1)], [ResourceRequest(1, 0.25)], 4),
        ([(2, 8)], [ResourceRequest(1, 1)], 2),
        ([], [ResourceRequest(1)], 0),
    ],
)  # fmt: skip
def test_trials_are_counted_as_ray_places_them(
    nodes: list[tuple[float, int]], trial: list[ResourceRequest], fit: int
) -> None:
    assert trials_that_fit(nodes, trial) == fit
