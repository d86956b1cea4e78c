"""The stages of a job as arithmetic: where in the sample stream each begins, and where a run stands in them.

DiRA is trained in stages that each go on from the last (Haghighi et al. 2022, section 3): ``di``, then ``dir``, then
``dira``. All stages read one endless sample stream; the number of samples consumed so far says where in it a run is,
whatever the batch size of the stages before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from dira_dist.config import Section
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.step import LossWeights, Objective


class StageConfig(Section):
    """One stage. What it leaves out, it takes from the job's own ``data``, ``optimizer`` and ``loss_weights``; of an
    optimiser of another name it takes nothing."""

    objective: Objective = Field(description="di: discriminative; dir: and restorative; dira: and adversarial")
    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="length in passes over the training set")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="length in optimiser steps, instead of epochs")
    global_batch: Annotated[int, Field(ge=1)] = Field(256, description="samples per optimiser step over all workers")
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_weights: LossWeights = LossWeights()
    keep_optimizer: bool = Field(True, description="go on with the optimisers' state of the stage before")

    @model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        if (self.epochs is None) == (self.steps is None):
            found = f"epochs={self.epochs}, steps={self.steps}"
            raise ValueError(f"found {found}; a stage has exactly one of epochs and steps: give one")
        return self


@dataclass(frozen=True)
class StageSpan:
    """A stage's place in the job.

    Attributes:
        number: position among the stages, from 0.
        first_step: optimiser steps of the job before this stage.
        first_sample: samples consumed before this stage.
        steps: optimiser steps in this stage.
        steps_per_epoch: optimiser steps in one pass over the training set, a fraction included.
    """

    number: int
    config: StageConfig
    first_step: int
    first_sample: int
    steps: int
    steps_per_epoch: float

    @property
    def name(self) -> str:
        """What metrics and pictures of this stage are filed under, for example ``2-dir``."""
        return f"{self.number + 1}-{self.config.objective}"

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.steps * self.config.global_batch


@dataclass(frozen=True)
class Position:
    """Where a run stands: the whole of what resuming needs besides tensors.

    Attributes:
        stage: number of the current stage; the number of stages when all is done.
        step_in_stage: optimiser steps done in it.
        step: optimiser steps done in the job, skipped ones included.
        samples: samples consumed from the stream.
    """

    stage: int = 0
    step_in_stage: int = 0
    step: int = 0
    samples: int = 0

    def after_step(self, global_batch: int) -> "Position":
        return Position(self.stage, self.step_in_stage + 1, self.step + 1, self.samples + global_batch)

    def after_stage(self) -> "Position":
        return Position(self.stage + 1, 0, self.step, self.samples)


@dataclass(frozen=True)
class Plan:
    """All stages of a job over a training set of ``epoch_samples`` samples per epoch."""

    spans: tuple[StageSpan, ...]
    epoch_samples: int

    @property
    def steps(self) -> int:
        return sum(span.steps for span in self.spans)

    @property
    def samples(self) -> int:
        return self.spans[-1].end_sample

    def remaining(self, position: Position) -> Iterator[StageSpan]:
        """The stages from ``position`` on, the current one first."""
        yield from self.spans[position.stage :]


def plan_stages(stages: Sequence[StageConfig], epoch_samples: int) -> Plan:
    """Lay the stages one after the other along the sample stream.

    An epoch need not be a whole number of batches: a batch may span two epochs, and a stage of E epochs has
    ``round(E * epoch_samples / global_batch)`` steps, at least one.
    """
    spans: list[StageSpan] = []
    step = sample = 0
    for number, stage in enumerate(stages):
        per_epoch = epoch_samples / stage.global_batch
        steps = stage.steps if stage.steps is not None else max(1, round((stage.epochs or 0) * per_epoch))
        spans.append(StageSpan(number, stage, step, sample, steps, per_epoch))
        step += steps
        sample += steps * stage.global_batch
    return Plan(tuple(spans), epoch_samples)
