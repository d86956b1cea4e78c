"""The coordinator, first without its actor: requests, heartbeats, stragglers; then through its client."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray

from dira_dist.cluster.fit import coordinator as coordinator_module
from dira_dist.cluster.fit.coordinator import (
    Coordinator,
    CoordinatorClient,
    EvaluationRequest,
    Snapshot,
    start_coordinator,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(coordinator_module.time, "monotonic", lambda: now[0])
    return now


def test_a_request_to_move_ends_with_the_attempt_and_one_to_stop_never(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    coordinator.request_stop("move")
    assert coordinator.beat(0, "a", "computing", 1, 0.1) == "move"
    coordinator.saved(1)
    assert coordinator.saved_at() == 1
    coordinator.new_attempt()
    assert (coordinator.requested(), coordinator.saved_at()) == ("", None)
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
        coordinator.beat(rank, f"host{rank}", phase, step, 2.0)
    clock[0] = 1000.0
    found = coordinator.straggler()
    assert found.startswith(straggler) and bool(found) == bool(straggler)
    assert ("no heartbeat for 30 s" in found) == any(silent for _, _, silent in signs.values())


def test_a_stall_is_told_once_in_a_while(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    for second in range(0, 150, 10):
        clock[0] = 1000.0 + second
        coordinator.beat(0, "a", "computing", 3, second)
        coordinator.beat(1, "b", "waiting for data", 3, second)
    warnings = coordinator.read().warnings
    assert len(warnings) == 2
    assert "no step for 70 s: worker 1 on b is waiting for data after step 3" in warnings[0]


def test_data_that_all_wait_for_is_told_after_a_minute_and_once(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=900)
    for second in range(0, 300, 10):
        clock[0] = 1000.0 + second
        for rank in range(2):
            coordinator.beat(rank, "a", "waiting for data", 3, second)
    (warning,) = coordinator.read().warnings
    assert warning.startswith("no step for 70 s: all workers are waiting for data after step 3. The storage of the")
    clock[0] += 10
    coordinator.beat(0, "a", "computing", 3, 1)
    clock[0] += 100
    coordinator.beat(0, "a", "computing", 3, 100)
    assert coordinator.read().warnings == []


def test_steps_done_again_are_those_after_the_checkpoint(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    assert coordinator.resumed(20, "a") == (0, 0), "what another session had done beyond it is not known"
    assert coordinator.read().warnings == []
    coordinator.post(24, {})
    coordinator.beat(0, "a", "computing", 27, 0.1)
    assert coordinator.resumed(25, "b") == (1, 2), "steps that were done and not reported yet count too"
    coordinator.beat(0, "a", "computing", 26, 0.1)
    assert coordinator.resumed(25, "c") == (2, 3), "a second loss before the next checkpoint"
    assert coordinator.resumed(25, "d") == (3, 3)
    assert coordinator.resumed(25, "d") == (3, 3), "a call that arrives twice"
    assert "go on from step 25; steps done again: 2" in coordinator.read().warnings[0]


def test_a_loss_of_an_earlier_stage_is_forgotten() -> None:
    coordinator = Coordinator(stall_s=60)
    coordinator.post(9, {"train/loss/discriminator": 0.1, "train/loss/total": 2.0})
    coordinator.post(10, {"train/loss/total": 1.5})
    assert coordinator.read().figures == {"train/loss/total": 1.5}


def test_how_long_workers_are_waited_for(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    clock[0] += 30
    assert coordinator.without_workers_s() == 30
    coordinator.workers_started()
    assert coordinator.without_workers_s() == 0
    clock[0] += 10
    coordinator.wait_for_workers()
    clock[0] += 5
    coordinator.new_attempt()
    coordinator.beat(1, "b", "computing", 3, 0.1)
    clock[0] += 5
    assert coordinator.without_workers_s() == 10, "neither another try nor one of several workers begins it anew"


def test_requests_are_kept_and_a_repeated_one_counts_once(clock: list[float]) -> None:
    coordinator = Coordinator(stall_s=60)
    first, second = EvaluationRequest("1-di", 5, "step-5"), EvaluationRequest("2-dir", 9, "step-9")
    for request in (first, first, second):
        coordinator.request_evaluation(request)
    assert coordinator.evaluation_requests(0) == [first, second]
    assert coordinator.evaluation_requests(1) == [second], "an answer that was lost can be asked for again"
    assert coordinator.evaluation_requests(2) == []


class _LosesFirstCalls:
    """A coordinator's handle whose connection fails for the first few calls."""

    def __init__(self, actor: Any, failures: int) -> None:
        self._actor, self.failures = actor, failures

    def __getattr__(self, method: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise ray.exceptions.ActorUnavailableError("the connection is lost", None)
        return getattr(self._actor, method)


@pytest.fixture(scope="module")
def client() -> Iterator[CoordinatorClient]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield start_coordinator(stall_s=60)
    ray.shutdown()


def test_a_client_calls_sends_and_travels(client: CoordinatorClient) -> None:
    @ray.remote(num_cpus=0)
    def elsewhere(travelled: CoordinatorClient) -> str:
        travelled.send(Coordinator.post, 7, {"train/loss/total": 2.0})
        return travelled.call(Coordinator.beat, 0, "a", "computing", 7, phase_s=0.1)

    client.call(Coordinator.request_stop, "move")
    assert ray.get(elsewhere.remote(client)) == "move"
    assert client.call(Coordinator.read) == Snapshot(7, {"train/loss/total": 2.0}, [])


def test_a_connection_that_is_lost_for_a_moment_ends_no_run(client: CoordinatorClient) -> None:
    flaky = _LosesFirstCalls(client.actor, 2)
    assert replace(client, actor=flaky).call(Coordinator.fatal) == ""
    assert flaky.failures == 0
    lost = replace(client, actor=_LosesFirstCalls(client.actor, 99))
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        lost.within(0.2).call(Coordinator.fatal)


def test_a_coordinator_that_is_gone_is_not_waited_for(client: CoordinatorClient) -> None:
    gone = start_coordinator(stall_s=60)
    ray.kill(gone.actor)
    with pytest.raises(ray.exceptions.RayActorError):
        gone.call(Coordinator.fatal)
