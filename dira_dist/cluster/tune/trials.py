"""Where all that happens to many trials comes together: their state, their parent run in MLflow, what comes next."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from rich.console import Console

from dira_dist.background import Background
from dira_dist.cluster.tune.trial import TrialPlan
from dira_dist.config import RequestError
from dira_dist.data.store import Store, StoreError, open_store
from dira_dist.jobs.load import dump_job
from dira_dist.metrics import TRIALS
from dira_dist.progress import live_bar
from dira_dist.runs.run import read_run
from dira_dist.runs.search import SearchState
from dira_dist.search.trial import REFUSED, Trial
from dira_dist.tracking.protocol import NullRun, Run
from dira_dist.tracking.run import TrackingRun, open_run
from dira_dist.version import __version__

CLOSE_S = 30.0
PlanT = TypeVar("PlanT", bound=TrialPlan)


class TrialController(Generic[PlanT]):
    """The driver's side of many trials, from its first write to its end; a context manager.

    Tune's loop calls it, and must not be held up: pictures and MLflow are a thread's work. A subclass says what is
    tried, and what is made of it.

    Args:
        plan: of the trials.
        store: of the folder where their state is kept.
        state: as it stood before.
        console: for warnings.
    """

    kind, member = "search", "trial"

    def __init__(self, plan: PlanT, store: Store, state: SearchState, console: Console) -> None:
        self.plan, self.planned, self.to_run = plan, plan.most_trials, 0
        self._store, self._state, self._console = store, state, console
        self._waiting: deque[Trial] = deque()
        self._handed_out: set[str] = set()
        self._lock = threading.RLock()
        self._aside = ThreadPoolExecutor(1, thread_name_prefix=self.kind)
        self._failing: set[str] = set()
        self._began_s, self._steps_before = time.monotonic(), {trial.name: trial.step for trial in state.trials}
        self._run: Run = NullRun()

    def __enter__(self) -> Self:
        loaded = self.plan.loaded
        tags = {**self.plan.tags(), "dira.version": __version__}
        name, known = loaded.job.name, self._state.run_id or None
        self._run = open_run(self._tracking, name, loaded.public, tags, known, folder=self._store.address)
        if not self._state.run_id:
            self._run.log_text(dump_job(loaded.public), "job.yaml")
        self._keep(replace(self._state, run_id=self._run.run_id))
        self._run.claimed()
        for trial in self.trials:
            if trial.status == "running":  # for a driver that is gone
                self._change(trial.name, status="waiting")
        for trial in self._state.trials:
            if trial.status == "stopped" and not trial.run_id:  # a driver was lost between the two
                self._beside(self._close_run, trial, trial.reason)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for trial in self.trials:
                if trial.status == "running":
                    self._beside(self._close_run, trial, f"the {self.kind} was interrupted")
        self._aside.shutdown(wait=True)
        if error is None:
            self._run.finish("FINISHED")
        else:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._run.finish("KILLED" if interrupted else "FAILED", f"{type(error).__name__}: {error}")

    @property
    def _tracking(self) -> Any:
        """Tracking without measuring the machine: the trials' workers do."""
        return self.plan.loaded.job.tracking.resolve_paths().model_copy(update={"system_metrics_every_s": 0.0})

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self._state.trials

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def page(self) -> str:
        return self._run.page

    def lay_out(self, waiting: Sequence[Trial], new: int = 0) -> None:
        """Lay out what is to be run next: these trials, then so many new ones."""
        self._waiting, self.to_run = deque(waiting), len(waiting) + new

    def next_trial(self) -> Trial | None:
        """The next one, taken down before it begins; none when all were begun. What is no valid job begins nothing."""
        while self.to_run:
            self.to_run -= 1
            trial = replace(self._waiting.popleft() if self._waiting else self._new(), status="waiting", reason="")
            self._put(trial)
            try:
                job = self.plan.trial(trial.name, trial.params, trial.seed).job
            except RequestError as error:
                self.ended(trial.name, status="failed", reason=f"{REFUSED}{error}")
            else:
                self._handed_out.add(trial.name)
                # what chooses among its checkpoints may end early, and was evaluated where it ended
                steps = None if job.publishes_best else self.plan.steps(job)
                return self._change(trial.name, total_steps=steps)
        return None

    def take_back(self, reason: str) -> None:
        """What was handed out and did not end is to be run again."""
        self._console.print(f"warning: Ray Tune gave up, and is begun again: {reason}", markup=False, highlight=False)
        lost = [trial for trial in self.trials if trial.name in self._handed_out]
        self._handed_out.clear()
        self._waiting.extendleft(reversed(lost))
        self.to_run += len(lost)
        for trial in lost:
            self._change(trial.name, status="waiting")

    def _new(self) -> Trial:
        """One more than were laid out; only where new ones are asked for."""
        raise AssertionError("all trials are laid out")

    def started(self, name: str) -> None:
        self._change(name, status="running")

    def evaluated(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation came in, perhaps one that is known."""
        with self._lock:
            self._put(self._trial(name).evaluated(step, dict(metrics)))

    def ended(self, name: str, **how: Any) -> None:
        """A trial came to its end by itself, well or badly."""
        self._handed_out.discard(name)
        trial = self._change(name, **how)
        if trial.status == "finished":
            trial = self._change(name, reason=trial.not_evaluated_at_end)
        if trial.reason:
            self._console.print(f"{self.member} {name}: {trial.reason}", markup=False, highlight=False)
        self._settle(trial)

    def stopped(self, name: str) -> None:
        """The scheduler stopped a trial; only where it does such a thing."""
        raise AssertionError(f"nothing stops {name}")

    def line(self) -> str:
        """The progress, in one line."""
        counts, most = Counter(trial.status for trial in self.trials), self.plan.most_trials
        parts = [f"{counts['running']} running", f"{counts['finished']} done"]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        line = f"{self.member}s: {', '.join(parts)} of {most}"
        new = sum(trial.status == "finished" and not self._steps_before.get(trial.name) for trial in self.trials)
        if not new:
            return line
        left_s = (time.monotonic() - self._began_s) / new * (most - self._ended())
        return f"{line}; about {timedelta(seconds=int(left_s))} left"

    def _settle(self, trial: Trial) -> None:
        self._beside(self._picture)

    def _picture(self) -> None:
        """How many trials ended in which way, in the parent run."""
        self._run.log_metrics(self._counted(), self._ended())

    def _counted(self) -> dict[str, float]:
        counts = Counter(trial.status for trial in self.trials)
        return {TRIALS.of(status): float(counts[status]) for status in ("finished", "stopped", "failed")}

    def _ended(self) -> int:
        return sum(trial.status not in ("running", "waiting") for trial in self.trials)

    def concluded(self, outcome: Mapping[str, Any]) -> None:
        """Write down that it is over; a store that is away now ends it with an error."""
        self._state = replace(self._state, outcome=dict(outcome))
        self._state.write(self._store)

    def address(self, file: str) -> str:
        return self._store.join(file)

    def _folder(self, name: str) -> Store:
        """Of a trial's run, beside the controller's own."""
        return open_store(f"{self.plan.loaded.job.resolve_paths().checkpoint.storage.rstrip('/')}/{name}")

    def _trial(self, name: str) -> Trial:
        return next(trial for trial in self.trials if trial.name == name)

    def _change(self, name: str, **changes: Any) -> Trial:
        with self._lock:
            trial = replace(self._trial(name), **changes)
            self._put(trial)
            return trial

    def _put(self, trial: Trial) -> None:
        self._keep(self._state.with_trial(trial))

    def _keep(self, state: SearchState) -> None:
        """Trouble with the storage loses nothing as long as this process lives: the next event is written with all."""
        with self._lock:
            self._state = state
            try:
                state.write(self._store)
            except StoreError as error:
                self._console.print(f"warning: the {self.kind}'s state waits: {error}", markup=False, highlight=False)

    def _beside(self, work: Callable[..., None], *arguments: Any) -> None:
        self._aside.submit(self._guarded, work, *arguments)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """A failure of work done beside the trials ends nothing: it is reported, once for each kind of work."""
        try:
            work(*arguments)
        except Exception as error:  # whatever a plotting library or MLflow raises
            if work.__name__ not in self._failing:
                text = f"warning: the {self.kind}'s page in MLflow is not up to date: {error!r}"
                self._console.print(text, markup=False, highlight=False)
            self._failing.add(work.__name__)

    def _close_run(self, trial: Trial, reason: str) -> None:
        """End the MLflow run of a trial whose process is gone, with the reason why."""
        folder = self._folder(trial.name)
        try:
            state = read_run(folder)
            if state is None or not state.run_id:
                return
            run = TrackingRun.attach(self._tracking, state.run_id, folder=folder.address, drives=True)
            run.finish("KILLED", reason, CLOSE_S)
            self._change(trial.name, run_id=state.run_id)
        except (StoreError, RequestError) as error:
            self._console.print(
                f"warning: {trial.name} is not closed in MLflow: {error}", markup=False, highlight=False
            )


def worth_another_try(trials: Iterable[Trial]) -> list[Trial]:
    """Failed trials, but for those that were refused: a machine may have been short of something for a while."""
    return [trial for trial in trials if trial.status == "failed" and not trial.reason.startswith(REFUSED)]


def left_over(trials: Iterable[Trial]) -> list[Trial]:
    """Those that are not settled."""
    return [trial for trial in trials if not trial.settled]


class TrialProgress(Background):
    """Shows the controller's line while a ``with`` block runs: live on a terminal, now and then elsewhere."""

    POLL_S = 1.0
    LINE_EVERY_S = 30.0

    def __init__(self, controller: TrialController[Any], console: Console) -> None:
        super().__init__("progress", join_timeout_s=5.0)
        self._controller, self._console = controller, console

    def _run_bar(self) -> None:
        with live_bar(self._console) as bar:
            task = bar.add_task(self._controller.line(), total=self._controller.plan.most_trials)
            while not self._ended.wait(self.POLL_S):
                settled = sum(trial.settled for trial in self._controller.trials)
                bar.update(task, completed=settled, description=self._controller.line())

    def _run(self) -> None:
        if self._console.is_terminal:
            self._run_bar()
            return
        shown, shown_at_s = "", 0.0
        while not self._ended.wait(self.POLL_S):
            line = self._controller.line()
            events = line.partition(";")[0]  # what is counted; the rest changes with every second
            if events != shown or time.monotonic() - shown_at_s >= self.LINE_EVERY_S:
                self._console.print(line, markup=False, highlight=False)
                shown, shown_at_s = events, time.monotonic()
