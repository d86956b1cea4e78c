"""The stages of a job as arithmetic: where in the sample stream each begins, and where a run stands in them.

Stages go on from one another, as DiRA's do (Haghighi et al. 2022, section 3). All stages read one endless sample
stream; the number of samples consumed so far says where in it a run is, whatever the batch size of the stages before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from dira_dist.config import Section


class StageConfig(Section):
    """The length of a stage, and how it goes on from the one before. What a stage computes, its task adds."""

    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="length in passes over the training set")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="length in optimiser steps, instead of epochs")
    global_batch: int = Field(256, ge=1, description="samples per optimiser step over all workers")
    keep_optimizer: bool = Field(True, description="go on with the optimisers' state of the stage before")

    @model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        if (self.epochs is None) == (self.steps is None):
            found = f"epochs={self.epochs}, steps={self.steps}"
            raise ValueError(f"found {found}; a stage has exactly one of epochs and steps: give one")
        return self

    @property
    def label(self) -> str:
        """What the stage is called after its number."""
        return "train"

    def described(self) -> str:
        """What a person wants to know of the stage beside its length, as the end of a line."""
        return ""

    def effect(self) -> dict[str, Any]:
        """The settings that change what the stage computes."""
        return self.model_dump()


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
        return f"{self.number + 1}-{self.config.label}"

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

    def end(self, position: Position) -> Position:
        """Where a run stands that has ended, be it before its last stage or epoch."""
        return Position(len(self.spans), 0, position.step, position.samples)

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
