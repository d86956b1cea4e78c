"""Where all that happens in a search comes together: its state, its parent run in MLflow, what is to be tried next."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

from rich.console import Console

from dira_dist.background import Background
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.store import Store, StoreError, open_store
from dira_dist.jobs.load import dump_job
from dira_dist.jobs.search_plan import SearchPlan
from dira_dist.metrics import BEST, TRIALS
from dira_dist.runs.folder import TABLE, WINNER
from dira_dist.runs.run import read_run
from dira_dist.runs.search import SearchState
from dira_dist.search.overview import describe, seconds_left
from dira_dist.search.pictures import search_pictures
from dira_dist.search.ranking import Ranking, conclude, ranked
from dira_dist.search.suggestions import Suggestions
from dira_dist.search.trial import REFUSED, Trial, of_search
from dira_dist.tracking.protocol import NullRun, Run
from dira_dist.tracking.run import TrackingRun, open_run
from dira_dist.version import __version__

CLOSE_S = 30.0


class SearchController:
    """The driver's side of a search, from its first write to its end; a context manager.

    Tune's loop calls it, and must not be held up: pictures and MLflow are a thread's work.

    Args:
        plan: of the search.
        store: of the search's folder.
        state: the search as it stood before.
        console: for warnings.
    """

    def __init__(self, plan: SearchPlan, store: Store, state: SearchState, console: Console) -> None:
        self.plan, self.planned, self.to_run = plan, plan.most_trials, 0
        self._store, self._state, self._console = store, state, console
        self._waiting: deque[Trial] = deque()
        self._handed_out: set[str] = set()
        self._suggestions: Suggestions | None = None
        self._lock = threading.RLock()
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._failing: set[str] = set()
        self._began_s, self._steps_before = time.monotonic(), {trial.name: trial.step for trial in state.trials}
        self._run: Run = NullRun()

    def __enter__(self) -> "SearchController":
        loaded = self.plan.loaded
        tags = {"dira.search": loaded.job.name, "dira.version": __version__}
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
                    self._beside(self._close_run, trial, "the search was interrupted")
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

    def begin(self, waiting: Sequence[Trial], new: int = 0, suggestions: Suggestions | None = None) -> None:
        """Lay out what is to be run next: these trials, then so many that are suggested."""
        self._waiting, self._suggestions = deque(waiting), suggestions
        if suggestions is not None:
            for trial in waiting:
                suggestions.ask(trial.name, trial.params)
        self.to_run = len(waiting) + new
        if suggestions is None:
            self.planned = len({trial.name for trial in (*self.trials, *waiting)})

    def next_trial(self) -> Trial | None:
        """The next one, taken down before it begins; none when all were begun. What is no valid job begins nothing."""
        while self.to_run:
            self.to_run -= 1
            trial = replace(
                self._waiting.popleft() if self._waiting else self._suggested(), status="waiting", reason=""
            )
            self._put(trial)
            try:
                job = self.plan.trial(trial.name, trial.params, trial.seed).job
            except RequestError as error:
                self.ended(trial.name, status="failed", reason=f"{REFUSED}{error}")
            else:
                self._handed_out.add(trial.name)
                return self._change(trial.name, total_steps=self.plan.steps(job))
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

    def _suggested(self) -> Trial:
        assert self._suggestions is not None
        number = len(of_search(self.trials))
        name = trial_name(self.plan, number)
        return Trial(name, number, self._suggestions.ask(name))

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
            self._console.print(f"trial {name}: {trial.reason}", markup=False, highlight=False)
        self._settle(trial)

    def stopped(self, name: str) -> None:
        """The scheduler stopped a trial; its process is about to end, and cannot close its own MLflow run."""
        self._handed_out.discard(name)
        trial = self._trial(name)
        score = self.plan.goal.metrics[0]
        others = [other for other in of_search(self.trials) if any(step == trial.step for step, _ in other.history)]
        reason = (
            f"stopped early at step {trial.step}: {score} {trial.metrics.get(score, float('nan')):.4g} is not among "
            f"the best 1/{self.plan.loaded.search.reduction_factor} of the {len(others)} trials seen there"
        )
        trial = self._change(name, status="stopped", reason=reason)
        self._beside(self._close_run, trial, reason)
        self._settle(trial)

    def conclude(self) -> Ranking:
        """The end: ranking, table, the winner's job file and the last pictures, in storage and in the parent run.

        Raises:
            JobFailedError: no trial was trained to its end and evaluated there.
        """
        ranking = conclude(self.trials, self.plan.goal)
        if ranking is None:
            reasons = "\n  ".join(f"{trial.name}: {trial.reason or trial.status}" for trial in self.trials)
            raise JobFailedError(
                f"{self.plan.loaded.job.name}: no trial was trained to its end and evaluated there:\n  {reasons}"
            )
        winner = self.plan.winner(ranking.winner.params)
        table = "\n".join([*ranking.table(), "", *ranking.notes(), ranking.verdict(), ""])
        for name, text in ((WINNER, dump_job(winner.public)), (TABLE, table)):
            self._store.write_bytes(name, text.encode())
            self._run.log_text(text, name)
        self._run.set_tags({"dira.verdict": ranking.verdict(), "dira.winner": ranking.winner.name})
        self._guarded(self._picture)
        return ranking

    def concluded(self, outcome: Mapping[str, Any]) -> None:
        """Write down that the search is over; a store that is away now ends it with an error."""
        self._state = replace(self._state, outcome=dict(outcome))
        self._state.write(self._store)

    def line(self) -> str:
        """The progress of the search, in one line."""
        trials, total = self.trials, self.plan.facts.plan.steps
        done = sum(max(0, trial.step - self._steps_before.get(trial.name, 0)) for trial in trials)
        left_s = seconds_left(time.monotonic() - self._began_s, done, trials, self.planned, total)
        return describe(trials, self.planned, self.plan.goal, left_s)

    def address(self, file: str) -> str:
        return self._store.join(file)

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
                self._console.print(f"warning: the search's state waits: {error}", markup=False, highlight=False)

    def _settle(self, trial: Trial) -> None:
        if self._suggestions is not None and trial.seed is None:
            self._suggestions.tell(trial)
        self._beside(self._picture)

    def _beside(self, work: Callable[..., None], *arguments: Any) -> None:
        self._aside.submit(self._guarded, work, *arguments)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """A failure of work done beside the search ends no search: it is reported, once for each kind of work."""
        try:
            work(*arguments)
        except Exception as error:  # whatever a plotting library or MLflow raises
            if work.__name__ not in self._failing:
                text = f"warning: the search's page in MLflow is not up to date: {error!r}"
                self._console.print(text, markup=False, highlight=False)
            self._failing.add(work.__name__)

    def _picture(self) -> None:
        """The state of the search in the parent run: figures and pictures by the number of trials that ended."""
        trials, goal = self.trials, self.plan.goal
        counts = Counter(trial.status for trial in trials)
        ended = len(trials) - counts["running"] - counts["waiting"]
        figures = {TRIALS.of(status): float(counts[status]) for status in ("finished", "stopped", "failed")}
        for best in ranked(trials, goal)[:1]:
            figures |= {BEST.of(metric): best.metrics[metric] for metric in goal.metrics}
        self._run.log_metrics(figures, ended)
        for name, picture in search_pictures(trials, goal, self.plan.loaded.search.space).items():
            self._run.log_picture(name, picture, ended)

    def _close_run(self, trial: Trial, reason: str) -> None:
        """End the MLflow run of a trial whose process is gone, with the reason why."""
        location = self.plan.loaded.job.resolve_paths().checkpoint.storage.rstrip("/")
        try:
            state = read_run(open_store(f"{location}/{trial.name}"))
            if state is None or not state.run_id:
                return
            TrackingRun.attach(self._tracking, state.run_id).finish("KILLED", reason, CLOSE_S)
            self._change(trial.name, run_id=state.run_id)
        except (StoreError, RequestError) as error:
            self._console.print(
                f"warning: {trial.name} is not closed in MLflow: {error}", markup=False, highlight=False
            )


def trial_name(plan: SearchPlan, number: int) -> str:
    """Of a trial's pretraining job, and of its folder beside the search's."""
    return f"{plan.loaded.job.name}-{number:03d}"


class SearchProgress(Background):
    """Shows the controller's line while a ``with`` block runs: live on a terminal, now and then elsewhere."""

    POLL_S = 1.0
    LINE_EVERY_S = 30.0

    def __init__(self, controller: SearchController, console: Console) -> None:
        super().__init__("progress", join_timeout_s=5.0)
        self._controller, self._console = controller, console

    def _run(self) -> None:
        if self._console.is_terminal:
            with self._console.status(self._controller.line()) as status:
                while not self._ended.wait(self.POLL_S):
                    status.update(self._controller.line())
            return
        shown, shown_at_s = "", 0.0
        while not self._ended.wait(self.POLL_S):
            line = self._controller.line()
            events = line.partition(";")[0]  # what is counted; the rest changes with every second
            if events != shown or time.monotonic() - shown_at_s >= self.LINE_EVERY_S:
                self._console.print(line, markup=False, highlight=False)
                shown, shown_at_s = events, time.monotonic()
