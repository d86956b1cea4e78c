"""Where the processes of one job meet: an actor on the driver's node that holds figures, requests and heartbeats.

The first worker posts figures, every worker posts heartbeats, Ray Train's controller and the driver request that the
workers stop, and the driver reads what its progress display shows. All of them reach the actor through a
:class:`CoordinatorClient`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SILENT_AFTER_S = 10.0
CALL_TIMEOUT_S = 300.0
_RETRY_EVERY_S = 0.5
WAITING_FOR_DATA = "waiting for data"
_DATA_SAID_AFTER_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")

StopRequest = Literal["", "move", "stop"]


class EvaluationRequest(NamedTuple):
    """A checkpoint to be evaluated: under which label its figures are kept, its optimiser step and its name; and the
    figures, where its own workers have measured them."""

    label: str
    step: int
    checkpoint: str
    figures: dict[str, float] | None = None


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
    """The content of a worker's last heartbeat.

    Attributes:
        node: its host.
        phase: what it was doing.
        step: optimiser steps it had done.
        phase_s: seconds it had been doing that.
        heard_s: when the heartbeat came, on the coordinator's clock.
    """

    node: str
    phase: str
    step: int
    phase_s: float
    heard_s: float


class Coordinator:
    """State of one job. Methods are called from many processes, one at a time.

    A call may arrive twice, for the client repeats it where the answer was lost: no method may count it twice.

    Args:
        stall_s: seconds without a step on any worker after which a warning is shown.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._step, self._step_since_s = 0, time.monotonic()
        self._data_said_at: int | None = None
        self._furthest = 0
        self._setbacks = Setbacks()
        self._without_workers_since_s: float | None = time.monotonic()
        self._figures: dict[str, float] = {}
        self._warnings: list[str] = []
        self._fatal = ""
        self._request: StopRequest = ""
        self._saved_at: int | None = None
        self._resumed: set[str] = set()
        self._workers: dict[int, WorkerStatus] = {}
        self._requests: list[EvaluationRequest] = []

    def post(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the newest figures of the run, and only those, for :meth:`read`."""
        self._step, self._furthest = step, max(self._furthest, step)
        self._figures = dict(figures)

    def warn(self, warning: str) -> None:
        """Have the driver show a line."""
        self._warnings.append(warning)

    def read(self) -> Snapshot:
        """Step, figures, and the warnings since the last call, which are forgotten here."""
        warnings, self._warnings = self._warnings, []
        return Snapshot(self._step, dict(self._figures), warnings)

    def give_up(self, reason: str) -> None:
        """End the job for this reason; the first one is kept, for what fails on other workers follows from it."""
        self._fatal = self._fatal or reason

    def fatal(self) -> str:
        """Why the job was given up; empty while it was not."""
        return self._fatal

    def new_attempt(self) -> None:
        """New workers are about to be started: forget the earlier ones, and the request that they move."""
        self._workers.clear()
        self.wait_for_workers()
        self._saved_at = None
        self._step_since_s = time.monotonic()
        if self._request == "move":
            self._request = ""

    def wait_for_workers(self) -> None:
        """Workers are missing, from now on until :meth:`workers_started`."""
        if self._without_workers_since_s is None:
            self._without_workers_since_s = time.monotonic()

    def workers_started(self) -> None:
        """All workers run."""
        self._without_workers_since_s = None

    def without_workers_s(self) -> float:
        """For how long workers have been missing; 0 while all of them run."""
        since_s = self._without_workers_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def request_stop(self, request: StopRequest) -> None:
        """``move``: save, then let Ray Train start new workers. ``stop``: save and end, which nothing revokes."""
        if self._request != "stop":
            self._request = request

    def requested(self) -> StopRequest:
        """What is requested of the workers now; empty where nothing is."""
        return self._request

    def resumed(self, step: int, attempt: str) -> Setbacks:
        """The workers go on from a checkpoint of this step.

        Args:
            step: of the checkpoint.
            attempt: drawn by these workers, so that a call that arrives twice counts once.

        Returns:
            The setbacks since the driver started, this one included.
        """
        if self._furthest and attempt not in self._resumed:
            again = max(0, self._furthest - step)
            self._warnings.append(f"the workers started anew and go on from step {step}; steps done again: {again}")
            self._setbacks = Setbacks(self._setbacks.restarts + 1, self._setbacks.steps_done_again + again)
        self._resumed.add(attempt)
        self._furthest = step
        return self._setbacks

    def saved(self, step: int) -> None:
        """The workers have saved this step because they were asked to stop, and are leaving."""
        self._saved_at = step

    def saved_at(self) -> int | None:
        """The step that leaving workers have saved, or none."""
        return self._saved_at

    def beat(self, rank: int, node: str, phase: str, step: int, phase_s: float) -> StopRequest:
        """Take a worker's heartbeat; the answer is what is requested of it.

        Args:
            rank: of the worker.
            node: its host.
            phase: what it is doing.
            step: optimiser steps it has done.
            phase_s: seconds it has been doing that.
        """
        now_s, before = time.monotonic(), self._workers.get(rank)
        self._furthest = max(self._furthest, step)
        if before is None or before.step != step:
            self._step_since_s = now_s
        self._workers[rank] = WorkerStatus(node, phase, step, phase_s, now_s)
        self._tell_of_a_stall(step, now_s)
        return self._request

    def _tell_of_a_stall(self, step: int, now_s: float) -> None:
        """Once in a while; of data that all wait for sooner, but once."""
        still_s, straggler = now_s - self._step_since_s, self.straggler()
        no_data = all(each.phase == WAITING_FOR_DATA for each in self._workers.values())
        if no_data and self._data_said_at != step and still_s > min(_DATA_SAID_AFTER_S, self._stall_s):
            who = straggler or f"all workers are {WAITING_FOR_DATA} after step {step}"
            self._warnings.append(
                f"no step for {still_s:.0f} s: {who}. The storage of the images is slow or away, and is waited for "
                "(data.storage_timeout_s)"
            )
            self._data_said_at, self._step_since_s = step, now_s
        elif still_s > self._stall_s and straggler:
            self._warnings.append(f"no step for {still_s:.0f} s: {straggler}")
            self._step_since_s = now_s

    def any_alive(self) -> bool:
        """Whether a heartbeat of any worker came in the last 10 s."""
        now_s = time.monotonic()
        return any(now_s - each.heard_s < SILENT_AFTER_S for each in self._workers.values())

    def straggler(self) -> str:
        """The worker that the others wait for, or the only one, as a sentence; empty where it cannot be known."""
        if not self._workers:
            return ""
        now_s = time.monotonic()

        def lag(rank: int) -> tuple[float, int, bool]:
            """Longest without heartbeat first, then fewest steps, then who is not computing, which waits for peers."""
            each = self._workers[rank]
            unheard_s = now_s - each.heard_s
            return (-unheard_s if unheard_s > SILENT_AFTER_S else 0.0, each.step, each.phase == "computing")

        ranks = sorted(self._workers, key=lag)
        if len(ranks) > 1 and lag(ranks[0]) == lag(ranks[1]):
            return ""
        worst = self._workers[ranks[0]]
        unheard_s = now_s - worst.heard_s
        tail = f"; no heartbeat for {unheard_s:.0f} s" if unheard_s > SILENT_AFTER_S else ""
        return (
            f"worker {ranks[0]} on {worst.node} is {worst.phase} after step {worst.step}, "
            f"for {worst.phase_s + unheard_s:.0f} s{tail}"
        )

    def request_evaluation(self, request: EvaluationRequest) -> None:
        """Have a checkpoint evaluated."""
        if request not in self._requests:
            self._requests.append(request)

    def evaluation_requests(self, known: int) -> list[EvaluationRequest]:
        """All requests but the first ``known`` ones, which the caller has already."""
        return self._requests[known:]


@dataclass(frozen=True)
class CoordinatorClient:
    """Typed access to a job's coordinator, for any process of the job; it may be pickled.

    Attributes:
        actor: Ray's handle.
        timeout_s: how long a call is repeated and waited for.
    """

    actor: Any
    timeout_s: float = CALL_TIMEOUT_S

    def within(self, timeout_s: float) -> "CoordinatorClient":
        """The same with another time limit."""
        return replace(self, timeout_s=timeout_s)

    def call(self, method: Callable[Concatenate[Coordinator, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the coordinator and wait for its answer: ``client.call(Coordinator.beat, rank, ...)``.

        A connection that is lost for a moment is waited for, and the call repeated.

        Raises:
            RayActorError: the coordinator is gone, or could not be reached within ``timeout_s``.
            GetTimeoutError: it did not answer within ``timeout_s``.
        """
        until_s = time.monotonic() + self.timeout_s
        while True:
            try:
                left_s = max(0.0, until_s - time.monotonic())
                answer: T = ray.get(self._submit(method, *args, **kwargs), timeout=left_s)
                return answer
            except ray.exceptions.ActorUnavailableError:
                if time.monotonic() + _RETRY_EVERY_S > until_s:
                    raise
                time.sleep(_RETRY_EVERY_S)

    def send(self, method: Callable[Concatenate[Coordinator, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a method without waiting; whether it arrives is not known."""
        self._submit(method, *args, **kwargs)

    def _submit(self, method: Callable[..., object], *args: object, **kwargs: object) -> Any:
        return getattr(self.actor, method.__name__).remote(*args, **kwargs)


def start_coordinator(stall_s: float) -> CoordinatorClient:
    """A new coordinator on this process' node, which should not be a spot machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return CoordinatorClient(ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote(stall_s))
