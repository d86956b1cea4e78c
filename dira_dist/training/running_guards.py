"""What watches a training from the figures that it reports and the evaluations of its checkpoints."""

from collections.abc import Mapping
from typing import Protocol


class RunningGuards(Protocol):
    """Watches one run. Figures go in, in the order in which they are made; each text comes out once."""

    def reported(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """What is to be told after a report of the training.

        Args:
            step: optimiser steps before it.
            figures: by the names of the tracker, such as ``train/loss/total``.
        """

    def evaluated(self, label: str, step: int, figures: Mapping[str, float]) -> list[str]:
        """What is to be told after an evaluation; that of the untrained networks is among those it is held against.

        It may come when the training has gone on: what counts is the step of its checkpoint.

        Args:
            label: of the checkpoint.
            step: optimiser steps before it.
            figures: by name, such as ``val/rankme``.
        """


class NoGuards(RunningGuards):
    """Tells nothing: of a task that knows no sign of a training that goes wrong."""

    def reported(self, step: int, figures: Mapping[str, float]) -> list[str]:
        return []

    def evaluated(self, label: str, step: int, figures: Mapping[str, float]) -> list[str]:
        return []
