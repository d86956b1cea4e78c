"""The board without its actor: wishes, signs of life, and who holds up the others."""

import time

import pytest

from dira_dist.cluster.fit import coordinator as board_module
from dira_dist.cluster.fit.coordinator import Board, JudgementRequest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now[0])
    return now


def test_a_wish_to_move_ends_with_the_attempt_and_a_wish_to_stop_never(clock: list[float]) -> None:
    board = Board(stall_s=60)
    board.wish("move")
    assert board.sign(0, "a", "computing", 1, 0.1) == "move"
    board.left(1)
    assert board.left_at() == 1
    board.new_attempt()
    assert (board.wished(), board.left_at()) == ("", None)
    board.wish("stop")
    board.wish("move")
    board.new_attempt()
    assert board.wished() == "stop"


@pytest.mark.parametrize(
    ("signs", "laggard"),
    [
        ({0: ("computing", 7, 0), 1: ("waiting for data", 7, 0)}, "worker 1 on host1 is waiting for data after step 7"),
        ({0: ("computing", 7, 0), 1: ("computing", 6, 0)}, "worker 1 on host1 is computing after step 6"),
        ({0: ("computing", 7, 0), 1: ("computing", 7, 30)}, "worker 1 on host1 is computing after step 7"),
        ({0: ("computing", 7, 0), 1: ("computing", 7, 0)}, ""),
        ({0: ("computing", 7, 0)}, "worker 0 on host0 is computing after step 7"),
    ],
)
def test_who_holds_up_the_others(clock: list[float], signs: dict[int, tuple[str, int, int]], laggard: str) -> None:
    board = Board(stall_s=60)
    for rank, (phase, step, silent_s) in signs.items():
        clock[0] = 1000.0 - silent_s
        board.sign(rank, f"host{rank}", phase, step, 2.0)
    clock[0] = 1000.0
    found = board.laggard()
    assert found.startswith(laggard) and bool(found) == bool(laggard)
    assert ("not heard of for 30 s" in found) == any(silent for _, _, silent in signs.values())


def test_a_stall_is_told_once_in_a_while(clock: list[float]) -> None:
    board = Board(stall_s=60)
    for second in range(0, 150, 10):
        clock[0] = 1000.0 + second
        board.sign(0, "a", "computing", 3, second)
        board.sign(1, "b", "waiting for data", 3, second)
    warnings = board.read().warnings
    assert len(warnings) == 2
    assert "no step for 70 s: worker 1 on b is waiting for data after step 3" in warnings[0]


def test_steps_done_again_are_those_after_the_checkpoint(clock: list[float]) -> None:
    board = Board(stall_s=60)
    assert board.resumed(20) == (0, 0), "what another session had done beyond it is not known"
    assert board.read().warnings == []
    board.post(24, {})
    board.sign(0, "a", "computing", 27, 0.1)
    assert board.resumed(25) == (1, 2), "steps that were done and not reported yet count too"
    board.sign(0, "a", "computing", 26, 0.1)
    assert board.resumed(25) == (2, 3), "a second loss before the next checkpoint"
    assert board.resumed(25) == (3, 3)
    assert "go on from step 25; steps done again: 2" in board.read().warnings[0]


def test_how_long_workers_are_waited_for(clock: list[float]) -> None:
    board = Board(stall_s=60)
    clock[0] += 30
    assert board.without_workers_s() == 30
    board.workers_are_there()
    assert board.without_workers_s() == 0
    clock[0] += 10
    board.wait_for_workers()
    clock[0] += 5
    board.new_attempt()
    board.sign(1, "b", "computing", 3, 0.1)
    clock[0] += 5
    assert board.without_workers_s() == 10, "neither another try nor one of several workers begins it anew"


def test_requests_are_taken_once(clock: list[float]) -> None:
    board = Board(stall_s=60)
    board.request_judgement(JudgementRequest("1-di", 5, "step-5"))
    assert board.take_requests() == [JudgementRequest("1-di", 5, "step-5")]
    assert board.take_requests() == []
    assert time.monotonic() == clock[0]
