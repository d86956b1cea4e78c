"""What a search has tried: its trials as they stand, written down after each event so that nothing is done twice."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from dira_dist.data.store import Store

FILE_NAME = "search.json"
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
        total_steps: optimiser steps of the whole training; None in records of versions that did not write them down.
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


@dataclass(frozen=True)
class SearchState:
    """A search as it is kept in its folder.

    Attributes:
        job: the recorded job file (no secrets).
        train_digest: digest of the training shard set.
        run_id: parent run in MLflow; empty without tracking.
        trials: those of the search and the repetitions of the best, in the order in which they were begun.
        outcome: what the finished search reported; empty while it is not.
        evaluated_on: digests of the sets that trials are evaluated on, by the names that a job's ``shard_sets`` gives
            them; empty in the records of versions that did not write them down.
    """

    job: dict[str, Any]
    train_digest: str
    run_id: str = ""
    trials: tuple[Trial, ...] = ()
    outcome: dict[str, Any] = field(default_factory=dict)
    evaluated_on: dict[str, str] = field(default_factory=dict)

    def write(self, store: Store) -> None:
        store.write_bytes(FILE_NAME, json.dumps(asdict(self), indent=1).encode())

    def with_trial(self, trial: Trial) -> "SearchState":
        """With this trial in the place of the one of its name, or at the end."""
        known = {each.name: each for each in self.trials} | {trial.name: trial}
        return replace(self, trials=tuple(known.values()))


def read_search(store: Store) -> SearchState | None:
    """The search in a store, or none where none was started."""
    if store.stat(FILE_NAME) is None:
        return None
    found = json.loads(store.read_bytes(FILE_NAME))
    return SearchState(**{**found, "trials": tuple(_trial(**each) for each in found["trials"])})


def of_search(trials: Iterable[Trial]) -> list[Trial]:
    """The trials of different configurations, without repetitions."""
    return [trial for trial in trials if trial.seed is None]


def _trial(history: list[Any], **values: Any) -> Trial:
    return Trial(**values, history=[(step, metrics) for step, metrics in history])
