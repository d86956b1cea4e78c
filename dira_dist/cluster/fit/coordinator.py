"""Where the processes of one job meet: an actor beside the driver that holds figures, requests and heartbeats.

The first worker posts figures, every worker posts where it is, Ray Train's controller and the driver say when the run
is to stop, and the driver reads what a person wants to see.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SILENT_AFTER_S = 10.0

StopRequest = Literal["", "move", "stop"]


class EvaluationRequest(NamedTuple):
    """A checkpoint that wants to be evaluated."""

    label: str
    step: int
    checkpoint: str


class Snapshot(NamedTuple):
    """What the driver shows; warnings are those since the last reading."""

    step: int
    figures: dict[str, float]
    warnings: list[str]


class Setbacks(NamedTuple):
    """How often the workers started anew since the driver did, and the steps that they did again for it."""

    restarts: int = 0
    steps_done_again: int = 0


@dataclass(frozen=True)
class WorkerStatus:
    """Where a worker was when it last said so.

    Attributes:
        node: its host.
        phase: what it was doing.
        step: optimiser steps it had done.
        phase_s: seconds it had been doing that.
        heard_s: when, on the coordinator's clock.
    """

    node: str
    phase: str
    step: int
    phase_s: float
    heard_s: float


class Coordinator:
    """State of one job. Methods are called from many processes, one at a time.

    Args:
        stall_s: seconds without a step on any worker after which a person is warned.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._step, self._step_since_s = 0, time.monotonic()
        self._furthest = 0
        self._setbacks = Setbacks()
        self._without_workers_since_s: float | None = time.monotonic()
        self._figures: dict[str, float] = {}
        self._warnings: list[str] = []
        self._fatal = ""
        self._request: StopRequest = ""
        self._left_at: int | None = None
        self._workers: dict[int, WorkerStatus] = {}
        self._requests: list[EvaluationRequest] = []

    def post(self, step: int, figures: Mapping[str, float]) -> None:
        self._step, self._furthest = step, max(self._furthest, step)
        self._figures.update(figures)

    def warn(self, warning: str) -> None:
        self._warnings.append(warning)

    def read(self) -> Snapshot:
        warnings, self._warnings = self._warnings, []
        return Snapshot(self._step, dict(self._figures), warnings)

    def give_up(self, reason: str) -> None:
        """The first reason stays: what follows on other workers follows from it."""
        self._fatal = self._fatal or reason

    def fatal(self) -> str:
        return self._fatal

    def new_attempt(self) -> None:
        """Workers are about to be started: those of before are gone, and so is the request that they move."""
        self._workers.clear()
        self.wait_for_workers()
        self._left_at = None
        self._step_since_s = time.monotonic()
        if self._request == "move":
            self._request = ""

    def wait_for_workers(self) -> None:
        """There is no whole set of workers, from now on until :meth:`workers_are_there`."""
        if self._without_workers_since_s is None:
            self._without_workers_since_s = time.monotonic()

    def workers_are_there(self) -> None:
        self._without_workers_since_s = None

    def without_workers_s(self) -> float:
        """How long workers have been waited for; 0 while there are some."""
        since_s = self._without_workers_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def request_stop(self, request: StopRequest) -> None:
        """``move``: save and let Ray Train start workers anew. ``stop``: save and end; it is not taken back."""
        if self._request != "stop":
            self._request = request

    def requested(self) -> StopRequest:
        return self._request

    def resumed(self, step: int) -> Setbacks:
        """The workers go on from a checkpoint of this step; what it cost that they did not go on from the furthest."""
        if self._furthest:
            again = max(0, self._furthest - step)
            self._warnings.append(f"the workers started anew and go on from step {step}; steps done again: {again}")
            self._setbacks = Setbacks(self._setbacks.restarts + 1, self._setbacks.steps_done_again + again)
        self._furthest = step
        return self._setbacks

    def left(self, step: int) -> None:
        """The workers have saved this step and are leaving."""
        self._left_at = step

    def left_at(self) -> int | None:
        return self._left_at

    def sign(self, rank: int, node: str, phase: str, step: int, phase_s: float) -> StopRequest:
        """A worker is alive, doing ``phase`` for ``phase_s`` seconds. It hears what is requested."""
        now_s, before = time.monotonic(), self._workers.get(rank)
        self._furthest = max(self._furthest, step)
        if before is None or before.step != step:
            self._step_since_s = now_s
        self._workers[rank] = WorkerStatus(node, phase, step, phase_s, now_s)
        if now_s - self._step_since_s > self._stall_s and (straggler := self.straggler()):
            self._warnings.append(f"no step for {now_s - self._step_since_s:.0f} s: {straggler}")
            self._step_since_s = now_s
        return self._request

    def anybody_there(self) -> bool:
        """Whether a worker has been heard of lately."""
        now_s = time.monotonic()
        return any(now_s - each.heard_s < SILENT_AFTER_S for each in self._workers.values())

    def straggler(self) -> str:
        """The worker that the others wait for, or the only one, in words; empty where that cannot be told."""
        if not self._workers:
            return ""
        now_s = time.monotonic()

        def lag(rank: int) -> tuple[float, int, bool]:
            """Longest unheard first, then fewest steps, then whoever is not in a step, where one waits for others."""
            each = self._workers[rank]
            unheard_s = now_s - each.heard_s
            return (-unheard_s if unheard_s > SILENT_AFTER_S else 0.0, each.step, each.phase == "computing")

        ranks = sorted(self._workers, key=lag)
        if len(ranks) > 1 and lag(ranks[0]) == lag(ranks[1]):
            return ""
        worst = self._workers[ranks[0]]
        unheard_s = now_s - worst.heard_s
        tail = f"; not heard of for {unheard_s:.0f} s" if unheard_s > SILENT_AFTER_S else ""
        return (
            f"worker {ranks[0]} on {worst.node} is {worst.phase} after step {worst.step}, "
            f"for {worst.phase_s + unheard_s:.0f} s{tail}"
        )

    def request_evaluation(self, request: EvaluationRequest) -> None:
        self._requests.append(request)

    def take_requests(self) -> list[EvaluationRequest]:
        requests, self._requests = self._requests, []
        return requests


def start_coordinator(stall_s: float) -> Any:
    """A handle of a new coordinator on this process' node, which no spot machine should be."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote(stall_s)
