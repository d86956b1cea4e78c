"""What a run's networks were judged to be, kept beside its checkpoints in ``quality.json``."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from dira_dist.data.store import MissingObjectError, Store

FILE_NAME = "quality.json"
# By which checkpoints and models are compared: the first of these that was measured.
RANKING = ("probe/auroc", "val/rankme")


@dataclass(frozen=True)
class Judged:
    """One judgement.

    Attributes:
        label: ``untrained``, the name of the stage that had ended, or the step it was made at.
        step: optimiser steps before it.
        checkpoint: name of the checkpoint that was judged.
        metrics: figures by name; empty where judging failed.
        told: whether they have reached the tracking server.
    """

    label: str
    step: int
    checkpoint: str
    metrics: dict[str, float] = field(default_factory=dict)
    told: bool = True


def read_judgements(store: Store) -> list[Judged]:
    """All judgements of the run in a store, in the order of their steps; none where there is no record."""
    try:
        found = json.loads(store.read_bytes(FILE_NAME))
    except MissingObjectError:
        return []
    return [Judged(**each) for each in found]


def add_judgement(store: Store, judged: Judged) -> list[Judged]:
    """Write one more into the record, in the place of an older one of the same label. For one writer at a time."""
    others = [each for each in read_judgements(store) if each.label != judged.label]
    record = sorted([*others, judged], key=lambda each: each.step)
    store.write_bytes(FILE_NAME, json.dumps([asdict(each) for each in record], indent=1).encode())
    return record


def by_label(judgements: list[Judged]) -> dict[str, dict[str, float]]:
    """Figures by label; judgements that failed are left out."""
    return {each.label: each.metrics for each in judgements if each.metrics}


def figures_of(judgements: list[Judged], checkpoint: str) -> dict[str, float]:
    """What the networks of a checkpoint were judged to be; empty where they were not."""
    return next((each.metrics for each in judgements if each.checkpoint == checkpoint), {})


def best(judgements: list[Judged], metric: str | None = None) -> Judged | None:
    """The judgement of a trained network with the highest value, the latest of equal ones; none where nobody has it.

    Args:
        judgements: of one run.
        metric: a figure's name; the first of :data:`RANKING` that was measured if none.
    """
    trained = [each for each in judgements if each.step > 0]
    for name in (metric,) if metric else RANKING:
        measured = [each for each in trained if name in each.metrics]
        if measured:
            return max(measured, key=lambda each: (each.metrics[name], each.step))
    return None


def ranked_by(metrics: Mapping[str, float]) -> str | None:
    """The name of the figure by which these are compared."""
    return next((name for name in RANKING if name in metrics), None)
