"""The training loop: batches in, steps taken, figures and checkpoints out.

The loop knows neither Ray nor MLflow nor S3. It is handed what it needs: how to open the sample stream, who records
(:class:`Tracker`), who keeps checkpoints (:class:`Checkpointer`), who judges (:class:`Judge`). On all workers but the
first these are objects that do nothing, so no line of the loop asks which worker it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dira_dist.training.meter import Meter
from dira_dist.training.stages import Plan, Position, StageSpan
from dira_dist.training.step import Networks, TrainStep
from dira_dist.views import Views


class Tracker(Protocol):
    """Where figures go; none of its calls may block for long or raise."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...


class Samples(Protocol):
    """What the loop needs of a batch: this worker's share of one global batch."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def bad_samples(self) -> int: ...
