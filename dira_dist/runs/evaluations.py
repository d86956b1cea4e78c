"""The figures of a run's evaluated checkpoints, ``evaluations.json``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dira_dist.data.store import Store
from dira_dist.formats import FileFormat
from dira_dist.metrics import RANKING, Mode
from dira_dist.metrics import better as catalogued
from dira_dist.runs.folder import EVALUATIONS, read_file


@dataclass(frozen=True)
class EvaluationEntry:
    """One evaluation of a checkpoint.

    Attributes:
        label: ``untrained``, the name of the stage that had ended, or the step it was made at.
        step: optimiser steps before it.
        checkpoint: name of the checkpoint that was evaluated.
        metrics: figures by name; empty where the evaluation failed.
        logged: whether they have reached the tracking server.
    """

    label: str
    step: int
    checkpoint: str
    metrics: dict[str, float] = field(default_factory=dict)
    logged: bool = True


@dataclass(frozen=True)
class EvaluationLog:
    """All evaluations of a run, in the order of their steps."""

    evaluations: list[EvaluationEntry]


FORMAT = FileFormat(EvaluationLog, version=1)


def read_evaluations(store: Store) -> list[EvaluationEntry]:
    """All evaluations of the run in a store, in the order of their steps; none where nothing was evaluated.

    Raises:
        FormatError: the file is damaged, or of another version.
    """
    found = read_file(store, EVALUATIONS, FORMAT)
    return found.evaluations if found else []


def add_evaluation(store: Store, evaluated: EvaluationEntry) -> list[EvaluationEntry]:
    """Write one more evaluation, in the place of an older one of the same label. For one writer at a time."""
    others = [each for each in read_evaluations(store) if each.label != evaluated.label]
    evaluations = sorted([*others, evaluated], key=lambda each: each.step)
    store.write_bytes(EVALUATIONS, FORMAT.dump(EvaluationLog(evaluations)))
    return evaluations


def by_label(evaluations: list[EvaluationEntry]) -> dict[str, dict[str, float]]:
    """Figures by label; evaluations that failed are left out."""
    return {each.label: each.metrics for each in evaluations if each.metrics}


def figures_of(evaluations: list[EvaluationEntry], checkpoint: str) -> dict[str, float]:
    """The figures of a checkpoint; empty where it was not evaluated."""
    return next((each.metrics for each in evaluations if each.checkpoint == checkpoint), {})


def best(
    evaluations: list[EvaluationEntry],
    ranking: Sequence[str] = RANKING,
    better: Callable[[str], Mode] = catalogued,
) -> EvaluationEntry | None:
    """The evaluation of a trained network with the best value, the latest of equal ones; none where none has it.

    Args:
        evaluations: of one run.
        ranking: figures by name; the first that was measured counts.
        better: whether more or less of a figure is better.
    """
    trained = [each for each in evaluations if each.step > 0]
    for name in ranking:
        measured = [each for each in trained if name in each.metrics]
        if measured:
            sign = 1 if better(name) == "max" else -1
            return max(measured, key=lambda each: (sign * each.metrics[name], each.step))
    return None


def ranked_by(metrics: Mapping[str, float], ranking: Sequence[str] = RANKING) -> str | None:
    """The name of the figure by which these are compared."""
    return next((name for name in ranking if name in metrics), None)
