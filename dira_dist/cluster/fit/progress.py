"""Live progress of a job, read from its coordinator: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping

import ray
from rich.console import Console

from dira_dist.background import Background
from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient
from dira_dist.metrics import DATA_WAIT_SHARE, IMAGES_PER_S, LOSS
from dira_dist.objectives.parts import SHORT_NAMES
from dira_dist.progress import LINE_EVERY_S, Pace, in_words, live_bar
from dira_dist.training.stages import Plan, StageSpan

OnReport = Callable[[int, Mapping[str, float]], None]

_POLL_S = 0.5
_READ_TIMEOUT_S = 5.0
_BEFORE_THE_FIRST_STEP = "starting workers"
_TOTAL = "total"


def describe(plan: Plan, step: int, figures: Mapping[str, float]) -> str:
    """Stage, step of steps, losses, images/s and share of time waiting for data, in one line."""
    span = _span_at(plan, step)
    parts = [f"{span.name} ({span.number + 1}/{len(plan.spans)})", f"step {step}/{plan.steps}"]
    found = {LOSS.member(name): loss for name, loss in figures.items() if LOSS.covers(name)}
    order = [*(name for name in SHORT_NAMES if name in found), *sorted(found.keys() - SHORT_NAMES.keys() - {_TOTAL})]
    parts += [f"{SHORT_NAMES.get(name, name)} {found[name]:.4g}" for name in order]
    if (rate := figures.get(IMAGES_PER_S.name)) is not None:
        parts.append(f"{rate:.3g} images/s")
    if (wait := figures.get(DATA_WAIT_SHARE.name)) is not None:
        parts.append(f"waiting for data {wait:.0%}")
    return ", ".join(parts)


def _span_at(plan: Plan, step: int) -> StageSpan:
    """The stage that a step of the job belongs to; the last one's end belongs to it."""
    return next((span for span in plan.spans if step <= span.first_step + span.steps), plan.spans[-1])


class ProgressView(Background):
    """Shows a job's progress while a ``with`` block runs: a live bar on a terminal, a line now and then elsewhere.

    Args:
        coordinator: the job's.
        plan: of the job.
        console: where to show it; standard error by default.
        reported: called in a thread with step and figures, again and again, also where they are the same as before.
    """

    def __init__(
        self,
        coordinator: CoordinatorClient,
        plan: Plan,
        console: Console | None = None,
        reported: OnReport | None = None,
    ) -> None:
        super().__init__("progress", join_timeout_s=_READ_TIMEOUT_S)
        self._coordinator, self._plan = coordinator.within(_READ_TIMEOUT_S), plan
        self._reported = reported
        self._console = console or Console(file=sys.stderr, soft_wrap=True)
        self._pace = Pace()

    def stop(self) -> None:
        super().stop()
        self._read()  # the last figures, of which the guards may warn
        self._read()  # the last warnings

    def _run(self) -> None:
        if self._console.is_terminal:
            self._run_bar()
        else:
            self._run_lines()

    def _read(self) -> tuple[int, dict[str, float]] | None:
        try:
            step, figures, warnings = self._coordinator.call(Coordinator.read)
            for warning in warnings:
                self._console.print(f"warning: {warning}", markup=False, highlight=False)
            if self._reported is not None:
                self._reported(step, figures)
            return step, figures
        except ray.exceptions.RayError:
            return None  # the next reading succeeds, or the job ends for this reason

    def _run_bar(self) -> None:
        with live_bar(self._console) as progress:
            task = progress.add_task(_BEFORE_THE_FIRST_STEP, total=self._plan.steps, left_s=None)
            while not self._ended.wait(_POLL_S):
                if (answer := self._read()) is not None:
                    step, figures = answer
                    text = describe(self._plan, step, figures) if step else _BEFORE_THE_FIRST_STEP
                    left_s = self._pace.left_s(step, self._plan.steps)
                    progress.update(task, completed=step, description=text, left_s=left_s)

    def _run_lines(self) -> None:
        shown_step, shown_stage, shown_at = -1, "", 0.0
        while not self._ended.wait(_POLL_S):
            if (answer := self._read()) is None:
                continue
            step, figures = answer
            stage = _span_at(self._plan, step).name
            due = stage != shown_stage or time.monotonic() - shown_at >= LINE_EVERY_S
            if step != shown_step and due:
                left = in_words(self._pace.left_s(step, self._plan.steps))
                line = describe(self._plan, step, figures) if step else _BEFORE_THE_FIRST_STEP
                line = ", ".join(filter(None, (line, left)))
                self._console.print(line, highlight=False)
                shown_step, shown_stage, shown_at = step, stage, time.monotonic()
