"""A trial of a search: its values, its evaluations, and how it ended."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
REFUSED = "refused: "  # how the reason begins of a trial whose values make no valid job
SETTLED: tuple[Status, ...] = ("finished", "stopped")


@dataclass(frozen=True)
class Trial:
    """One configuration, trained once.

    Attributes:
        name: of its pretraining job.
        number: position among the search's configurations; 0 are the published weights.
        params: values by dotted key.
        seed: of the job where it repeats the configuration with another one; None in the search itself.
        reason: why it stopped or failed, in words.
        history: step and figures of each evaluation, in the order of their steps.
        run_id: MLflow run; empty without tracking.
        total_steps: optimiser steps of the whole training; None before it begins.
    """

    name: str
    number: int
    params: dict[str, Any]
    seed: int | None = None
    status: Status = "waiting"
    reason: str = ""
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    run_id: str = ""
    total_steps: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last evaluation; the last, not the best of many, which would flatter the noisiest."""
        return self.history[-1][1] if self.history else {}

    @property
    def step(self) -> int:
        return self.history[-1][0] if self.history else 0

    @property
    def evaluated_at_end(self) -> bool:
        """Trained to its end and evaluated there: figures of an earlier step are not comparable with the others'."""
        return self.status == "finished" and self.total_steps in (None, self.step)

    @property
    def not_evaluated_at_end(self) -> str:
        """That it was trained to its end and not evaluated there, in words; empty where that is not so."""
        if self.status != "finished" or self.evaluated_at_end:
            return ""
        last = f"its last evaluation is of step {self.step}" if self.history else "it has no evaluation"
        return f"trained for {self.total_steps} steps and not evaluated at its end ({last})"

    @property
    def settled(self) -> bool:
        """Nothing more is to be done: a failed trial is tried again when the search is started again."""
        return self.status in SETTLED

    def evaluated(self, step: int, metrics: dict[str, float]) -> "Trial":
        """With one more evaluation, in the place of one of the same step."""
        others = [each for each in self.history if each[0] != step]
        return replace(self, history=sorted([*others, (step, dict(metrics))], key=lambda each: each[0]))


def of_search(trials: Iterable[Trial]) -> list[Trial]:
    """The trials of different configurations, without repetitions."""
    return [trial for trial in trials if trial.seed is None]
