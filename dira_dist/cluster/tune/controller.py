"""Where all that happens in a search comes together: its state, its parent run in MLflow, what is to be tried next."""

import time
from collections.abc import Sequence

from rich.console import Console

from dira_dist.cluster.tune.trials import TrialController
from dira_dist.config import JobFailedError
from dira_dist.data.store import Store
from dira_dist.jobs.load import dump_job
from dira_dist.jobs.search_plan import SearchPlan
from dira_dist.metrics import BEST
from dira_dist.runs.folder import TABLE, WINNER
from dira_dist.runs.search import SearchState
from dira_dist.search.overview import describe, seconds_left
from dira_dist.search.pictures import search_pictures
from dira_dist.search.ranking import Ranking, conclude, ranked
from dira_dist.search.suggestions import Suggestions
from dira_dist.search.trial import Trial, of_search


class SearchController(TrialController[SearchPlan]):
    """The driver's side of a search."""

    def __init__(self, plan: SearchPlan, store: Store, state: SearchState, console: Console) -> None:
        super().__init__(plan, store, state, console)
        self._suggestions: Suggestions | None = None

    def begin(self, waiting: Sequence[Trial], new: int = 0, suggestions: Suggestions | None = None) -> None:
        """Lay out what is to be run next: these trials, then so many that are suggested."""
        self._suggestions = suggestions
        self.lay_out(waiting, new)
        if suggestions is not None:
            for trial in waiting:
                suggestions.ask(trial.name, trial.params)
        if suggestions is None:
            self.planned = len({trial.name for trial in (*self.trials, *waiting)})

    def _new(self) -> Trial:
        assert self._suggestions is not None
        number = len(of_search(self.trials))
        name = trial_name(self.plan, number)
        return Trial(name, number, self._suggestions.ask(name))

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

    def line(self) -> str:
        """The progress of the search, in one line."""
        trials, total = self.trials, self.plan.facts.plan.steps
        done = sum(max(0, trial.step - self._steps_before.get(trial.name, 0)) for trial in trials)
        left_s = seconds_left(time.monotonic() - self._began_s, done, trials, self.planned, total)
        return describe(trials, self.planned, self.plan.goal, left_s)

    def _settle(self, trial: Trial) -> None:
        if self._suggestions is not None and trial.seed is None:
            self._suggestions.tell(trial)
        super()._settle(trial)

    def _picture(self) -> None:
        """The state of the search in the parent run: figures and pictures by the number of trials that ended."""
        trials, goal = self.trials, self.plan.goal
        ended, figures = self._ended(), self._counted()
        for best in ranked(trials, goal)[:1]:
            figures |= {BEST.of(metric): best.metrics[metric] for metric in goal.metrics}
        self._run.log_metrics(figures, ended)
        for name, picture in search_pictures(trials, goal, self.plan.loaded.search.space).items():
            self._run.log_picture(name, picture, ended)


def trial_name(plan: SearchPlan, number: int) -> str:
    """Of a trial's pretraining job, and of its folder beside the search's."""
    return f"{plan.loaded.job.name}-{number:03d}"
