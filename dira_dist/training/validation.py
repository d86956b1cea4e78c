"""Validation at the ends of epochs: which networks of a run are chosen, and when it has gone on for long enough.

The workers wait for it. So whether an epoch was the last is decided from the figures of the epochs up to it alone, and
the same networks are chosen however fast the machine is. Pretraining chooses nothing: its checkpoints are evaluated
beside the training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dira_dist.metrics import Mode
from dira_dist.training.stages import Position, StageSpan

PLATEAU_EPOCHS, PLATEAU_THRESHOLD = 5, 1e-4


@dataclass(frozen=True)
class Verdict:
    """What a validation found.

    Attributes:
        figures: by the catalogue's names.
        label: of the checkpoint that is to be kept for being the best so far; empty where it is none.
        ends: whether the training is over.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    ends: bool = False

    @property
    def known(self) -> tuple[str, Mapping[str, float]] | tuple[()]:
        """Label and figures of a checkpoint that is to be kept; nothing where it is none."""
        return (self.label, self.figures) if self.label else ()


@dataclass(frozen=True)
class Report:
    """What the chosen networks are worth, at the end of a run.

    Attributes:
        metrics: figures for a tracker.
        files: by name, relative to the report's folder; ``report.json`` and ``report.md`` among them.
        pictures: (H, W, 3) uint8 by name.
    """

    metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    pictures: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)


class Validator(Protocol):
    """Measures the networks that a run trains while its workers wait, each its part of the samples."""

    @property
    def chosen(self) -> str:
        """Label of the checkpoint with the best networks so far; empty where nothing is chosen."""

    def due(self, span: StageSpan, position: Position) -> bool:
        """Whether an epoch has ended with this step."""

    def validate(self, position: Position) -> Verdict:
        """Measures the networks as they are; a collective."""

    def report(self) -> Report | None:
        """What the networks, which are the chosen ones by now, are worth in the end; a collective.

        None on all workers but the first.
        """

    def state_dict(self) -> dict[str, Any]:
        """What has been found so far, as numbers and text."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""


class NoValidation:
    """Of a task that chooses nothing."""

    chosen = ""

    def due(self, span: StageSpan, position: Position) -> bool:
        return False

    def validate(self, position: Position) -> Verdict:
        raise AssertionError("never due")

    def report(self) -> Report | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class History:
    """The watched figure after each validation of a run, and what follows from it.

    Attributes:
        mode: whether more or less of it is better.
        values: in the order of the epochs; NaN where it could not be measured.
        labels: of the checkpoints of those epochs.
    """

    mode: Mode
    values: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, value: float, label: str) -> bool:
        """Notes the figure of one more epoch; whether it is the best so far. The first always is."""
        self.values.append(value)
        self.labels.append(label)
        return self.best == len(self.values) - 1

    @property
    def best(self) -> int:
        """Number of the epoch with the best figure, the first of equal ones; 0 where none was measured."""
        scores = [-np.inf if np.isnan(each) else self._sign * each for each in self.values]
        return int(np.argmax(scores)) if scores else 0

    @property
    def chosen(self) -> str:
        """Label of the best epoch's checkpoint; empty before the first validation."""
        return self.labels[self.best] if self.labels else ""

    def waited(self) -> int:
        """Validations since the best one."""
        return len(self.values) - 1 - self.best

    def reductions(self, epochs: int = PLATEAU_EPOCHS, threshold: float = PLATEAU_THRESHOLD) -> int:
        """How often a rate that falls on plateaus has fallen: after more than ``epochs`` validations in a row
        that were not better than the best before them by a share of ``threshold``, as torch's
        ``ReduceLROnPlateau`` counts."""
        fallen, waited, best = 0, 0, -np.inf
        for value in self.values:
            score = -np.inf if np.isnan(value) else self._sign * value
            if best == -np.inf or score > best + threshold * abs(best):
                best, waited = max(best, score), 0
            else:
                waited += 1
            if waited > epochs:
                fallen, waited = fallen + 1, 0
        return fallen

    @property
    def _sign(self) -> int:
        return 1 if self.mode == "max" else -1

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.values), "labels": list(self.labels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values, self.labels = list(state["values"]), list(state["labels"])
