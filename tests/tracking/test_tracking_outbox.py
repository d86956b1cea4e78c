"""The queue behind the tracker, against a receiver that fails in every way it may."""

import threading
from collections.abc import Sequence

import pytest

from dira_dist.tracking import outbox as outbox_module
from dira_dist.tracking.outbox import Outbox, ReceiverGoneError, RefusedError


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_WAIT_S", 0.01)


class Receiver:
    """Takes numbers; is away while ``away`` is set; refuses negative ones; is gone for ever after 1000."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.attempts = 0
        self.away = threading.Event()

    def __call__(self, batch: Sequence[int]) -> None:
        self.attempts += 1
        if self.away.is_set():
            raise ConnectionError("away")
        if any(number > 1000 for number in batch):
            raise ReceiverGoneError("gone")
        if any(number < 0 for number in batch):
            raise RefusedError("negative")
        self.taken.extend(batch)


def test_everything_arrives_once_and_in_order_after_an_outage() -> None:
    receiver = Receiver()
    box = Outbox("numbers", receiver, batch=7, capacity=1000)
    for number in range(20):
        box.put(number)
    assert box.flush(10)
    receiver.away.set()
    for number in range(20, 60):
        box.put(number)
    assert not box.flush(0.1)
    assert box.pending() == list(range(20, 60))
    receiver.away.clear()
    assert box.flush(10)
    assert receiver.taken == list(range(60))
    assert box.pending() == []
    assert box.lost == 0


def test_a_refused_item_is_left_out_and_holds_up_no_other() -> None:
    receiver = Receiver()
    receiver.away.set()
    box = Outbox("numbers", receiver, batch=10, capacity=1000)
    for number in [1, 2, -3, 4, -5, 6]:
        box.put(number)
    receiver.away.clear()
    assert box.flush(10)
    assert receiver.taken == [1, 2, 4, 6]
    assert box.lost == 2


def test_a_receiver_that_is_gone_is_not_asked_for_every_item() -> None:
    receiver = Receiver()
    receiver.away.set()
    box = Outbox("numbers", receiver, batch=100, capacity=1000)
    for number in range(2000, 2050):
        box.put(number)
    assert not box.flush(0.05)
    before = receiver.attempts
    receiver.away.clear()
    assert box.flush(10)
    assert box.lost == 50
    assert receiver.attempts <= before + 3  # what was in flight, and one for the rest


def test_a_full_queue_loses_its_oldest_and_counts_them() -> None:
    receiver = Receiver()
    receiver.away.set()
    box = Outbox("numbers", receiver, batch=2, capacity=10)
    for number in range(30):
        box.put(number)
    assert len(box.pending()) == 10
    assert box.lost == 20
    assert box.pending()[-1] == 29
    receiver.away.clear()
    assert box.flush(10)
    assert receiver.taken == sorted(receiver.taken)
    assert len(receiver.taken) == 10


def test_a_flush_does_not_wait_for_company() -> None:
    receiver = Receiver()
    box = Outbox("numbers", receiver, batch=100, capacity=1000, linger_s=3600)
    box.put(1)
    assert box.flush(10)
    assert receiver.taken == [1]


def test_a_flush_tries_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_WAIT_S", 3600)
    monkeypatch.setattr(outbox_module, "LONGEST_WAIT_S", 3600)
    receiver = Receiver()
    receiver.away.set()
    box = Outbox("numbers", receiver, batch=10, capacity=100)
    box.put(1)
    assert not box.flush(0.2)
    receiver.away.clear()
    assert box.flush(10)
    assert receiver.taken == [1]


def test_puts_from_many_threads_all_arrive() -> None:
    receiver = Receiver()
    box = Outbox("numbers", receiver, batch=16, capacity=10_000)
    threads = [threading.Thread(target=lambda base=base: [box.put(base + i) for i in range(100)]) for base in (0, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert box.flush(10)
    assert sorted(receiver.taken) == [*range(100), *range(500, 600)]
    assert [number for number in receiver.taken if number < 500] == list(range(100))
