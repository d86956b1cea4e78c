"""The coordinator without its actor: requests, heartbeats, and who holds up the others."""

import time

import pytest

from dira_dist.cluster.fit import coordinator as coordinator_module
from dira_dist.cluster.fit.coordinator import Coordinator, EvaluationRequest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(coordinator_module.time, "monotonic", lambda: now[0])
    return now


def test_a_wish_to_move_ends_with_the_attempt_and_a_wish_to_stop_never(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    coordinator.request_stop("move")
    assert coordinator.sign(0, "a", "computing", 1, 0.1) == "move"
    coordinator.left(1)
    assert coordinator.left_at() == 1
    coordinator.new_attempt()
    assert (coordinator.requested(), coordinator.left_at()) == ("", None)
    coordinator.request_stop("stop")
    coordinator.request_stop("move")
    coordinator.new_attempt()
    assert coordinator.requested() == "stop"


@pytest.mark.parametrize(
    ("signs", "straggler"),
    [
        ({0: ("computing", 7, 0), 1: ("waiting for data", 7, 0)}, "worker 1 on host1 is waiting for data after step 7"),
        ({0: ("computing", 7, 0), 1: ("computing", 6, 0)}, "worker 1 on host1 is computing after step 6"),
        ({0: ("computing", 7, 0), 1: ("computing", 7, 30)}, "worker 1 on host1 is computing after step 7"),
        ({0: ("computing", 7, 0), 1: ("computing", 7, 0)}, ""),
        ({0: ("computing", 7, 0)}, "worker 0 on host0 is computing after step 7"),
    ],
)
def test_who_holds_up_the_others(clock: list[float], signs: dict[int, tuple[str, int, int]], straggler: str) -> None:
    coordinator = Coordinator(stall_s=60)
    for rank, (phase, step, silent_s) in signs.items():
        clock[0] = 1000.0 - silent_s
        coordinator.sign(rank, f"host{rank}", phase, step, 2.0)
    clock[0] = 1000.0
    found = coordinator.straggler()
    assert found.startswith(straggler) and bool(found) == bool(straggler)
    assert ("not heard of for 30 s" in found) == any(silent for _, _, silent in signs.values())


def test_a_stall_is_told_once_in_a_while(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    for second in range(0, 150, 10):
        clock[0] = 1000.0 + second
        coordinator.sign(0, "a", "computing", 3, second)
        coordinator.sign(1, "b", "waiting for data", 3, second)
    warnings = coordinator.read().warnings
    assert len(warnings) == 2
    assert "no step for 70 s: worker 1 on b is waiting for data after step 3" in warnings[0]


def test_steps_done_again_are_those_after_the_checkpoint(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    assert coordinator.resumed(20) == (0, 0), "what another session had done beyond it is not known"
    assert coordinator.read().warnings == []
    coordinator.post(24, {})
    coordinator.sign(0, "a", "computing", 27, 0.1)
    assert coordinator.resumed(25) == (1, 2), "steps that were done and not reported yet count too"
    coordinator.sign(0, "a", "computing", 26, 0.1)
    assert coordinator.resumed(25) == (2, 3), "a second loss before the next checkpoint"
    assert coordinator.resumed(25) == (3, 3)
    assert "go on from step 25; steps done again: 2" in coordinator.read().warnings[0]


def test_how_long_workers_are_waited_for(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    clock[0] += 30
    assert coordinator.without_workers_s() == 30
    coordinator.workers_are_there()
    assert coordinator.without_workers_s() == 0
    clock[0] += 10
    coordinator.wait_for_workers()
    clock[0] += 5
    coordinator.new_attempt()
    coordinator.sign(1, "b", "computing", 3, 0.1)
    clock[0] += 5
    assert coordinator.without_workers_s() == 10, "neither another try nor one of several workers begins it anew"


def test_requests_are_taken_once(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    coordinator.request_evaluation(EvaluationRequest("1-di", 5, "step-5"))
    assert coordinator.take_requests() == [EvaluationRequest("1-di", 5, "step-5")]
    assert coordinator.take_requests() == []
    assert time.monotonic() == clock[0]
