"""A thread beside a ``with`` block."""

import threading

import pytest

from dira_dist.background import Background


class Counting(Background):
    """Counts until it is asked to end, and then says so if it may."""

    def __init__(self, join_timeout_s: float | None, may_end: threading.Event) -> None:
        super().__init__("counting", join_timeout_s)
        self.rounds, self.over, self._may_end = 0, False, may_end

    def _run(self) -> None:
        while not self._ended.wait(0.001):
            self.rounds += 1
        self._may_end.wait()
        self.over = True


def test_the_thread_works_inside_the_block_and_is_waited_for_at_its_end() -> None:
    may_end = threading.Event()
    may_end.set()
    with Counting(None, may_end) as counting:
        while not counting.rounds:
            pass
        assert not counting.over
    assert counting.over


def test_an_error_inside_ends_the_thread_too() -> None:
    may_end = threading.Event()
    may_end.set()
    counting = Counting(None, may_end)
    with pytest.raises(KeyError), counting:
        raise KeyError
    assert counting.over


def test_a_thread_that_hangs_is_left_behind_after_its_time() -> None:
    may_end = threading.Event()
    with Counting(0.01, may_end) as counting:
        pass
    assert not counting.over
    may_end.set()


def test_one_that_was_never_started_may_be_stopped() -> None:
    Counting(None, threading.Event()).stop()
