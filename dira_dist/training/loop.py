"""The training loop: batches in, steps taken, figures and checkpoints out.

The loop knows neither Ray nor MLflow nor S3. It is handed what it needs: how to open the sample stream, who takes
figures, who keeps checkpoints, who may want it to stop. On all workers but the first some of these do nothing, so no
line of the loop asks which worker it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from pydantic import ConfigDict, Field

from dira_dist.config import MAY_CHANGE, Section
from dira_dist.metrics import SAMPLES, STAGE
from dira_dist.objectives.collectives import gather
from dira_dist.training.meter import Meter
from dira_dist.training.stages import Plan, Position, StageSpan
from dira_dist.training.task import Step
from dira_dist.training.validation import NoValidation, Validator, Verdict


class Samples(Protocol):
    """What the loop needs to know of this worker's part of a global batch."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def bad_samples(self) -> int: ...

    @property
    def withdrawn_samples(self) -> int: ...

    @property
    def fingerprint(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Samples)


class Tracker(Protocol):
    """Where figures go. Its calls neither block for long nor raise."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...


class Checkpointer(Protocol):
    """Keeps checkpoints. Its ``save`` takes a copy and returns.

    A ``label`` names a moment that people ask about, ``untrained`` or the stage that has ended: the networks of such a
    checkpoint are evaluated, elsewhere and later, unless their ``figures`` are known already.
    """

    def due(self, position: Position) -> bool: ...

    def save(
        self,
        position: Position,
        tensors: Mapping[str, Any],
        label: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> None: ...


class Interruption(Protocol):
    """Somebody wants this run to stop where it is: its machine is taken away, or its size changes."""

    def requested(self) -> bool:
        """The same answer on every worker; a collective."""


class GuardConfig(Section):
    """When a job gives up rather than go on."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    max_nonfinite_steps: int = Field(
        20, ge=1, description="steps in a row, skipped for a loss or gradient that is not finite, that end the job"
    )
    hang_timeout_s: float = Field(
        900,
        gt=0,
        description="seconds workers wait for one another; then the one that hangs is named, and all restart",
    )


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class InterruptedRunError(Exception):
    """The run stopped before its end because that was wanted; a checkpoint of its last step is on its way.

    Attributes:
        position: where it stands.
    """

    def __init__(self, position: Position) -> None:
        super().__init__(f"stopped after step {position.step}")
        self.position = position


@dataclass(frozen=True)
class Training(Generic[BatchT]):
    """What one worker trains with.

    Attributes:
        open_stream: this worker's parts of the global batches of a stage, from a position on, without end.
        make_inputs: such a part on the device, as the step works on it.
        make_step: the optimiser step of a stage, on the networks that all stages share.
        seed: of what a network draws in a step, such as dropout; of this worker's own.
        log_every_steps: optimiser steps between two reports; each checkpoint and each stage's end make one more.
        max_nonfinite_steps: steps skipped in a row after which the job ends.
        validator: of the networks, at the ends of epochs.
    """

    plan: Plan
    device: torch.device
    open_stream: Callable[[StageSpan, Position], AbstractContextManager[Iterator[BatchT]]]
    make_inputs: Callable[[BatchT, StageSpan], Any]
    make_step: Callable[[StageSpan], Step]
    tracker: Tracker
    checkpointer: Checkpointer
    interruption: Interruption
    seed: int
    log_every_steps: int
    max_nonfinite_steps: int
    validator: Validator = field(default_factory=NoValidation)


def train(training: Training[BatchT], position: Position, tensors: Mapping[str, Any] | None = None) -> Position:
    """Train from a position to the end of the plan.

    Args:
        training: what to train with.
        position: the start, or where the checkpoint stood.
        tensors: the checkpoint's tensors, or none at the start.

    Raises:
        NonFiniteError: after ``max_nonfinite_steps`` skipped steps in a row.
        InterruptedRunError: somebody wanted it to stop.
    """
    meter, guard, verdict = Meter(training.device), _NonFiniteGuard(training.max_nonfinite_steps), Verdict()
    training.validator.load_state_dict(tensors or {})
    for span in training.plan.remaining(position):
        step = training.make_step(span)
        if tensors is None:
            training.checkpointer.save(position, _state(training, step), "untrained")
        else:
            step.load_state_dict(tensors, optimizers=position.step_in_stage > 0 or span.config.keep_optimizer)
        with training.open_stream(span, position) as batches:
            meter.restart()
            while position.step_in_stage < span.steps and not verdict.ends:
                with meter.waiting():
                    batch = next(batches)
                torch.manual_seed(training.seed + position.step)  # dropout is the step's own, resumed or not
                result = step(training.make_inputs(batch, span), position.step_in_stage)
                position = position.after_step(span.config.global_batch)
                guard.watch(result.finite, position, batch.keys)
                meter.count(
                    result.figures,
                    images=len(batch.keys),
                    bad_samples=batch.bad_samples,
                    withdrawn_samples=batch.withdrawn_samples,
                    fingerprint=batch.fingerprint,
                    finite=result.finite,
                )
                with meter.paused():
                    verdict = _verdict(training, step, span, position)
                    pause = _pause(training, span, position, verdict)
                if pause.reports:
                    place = {STAGE.name: span.number + 1, SAMPLES.name: position.samples}
                    training.tracker.log_metrics({**meter.summary(), **place, **verdict.figures}, position.step)
                if pause.saves:
                    with meter.paused():
                        training.checkpointer.save(position, _state(training, step), *verdict.known)
                if pause.stops:
                    raise InterruptedRunError(position)
        tensors = _state(training, step)
        position = training.plan.end(position) if verdict.ends else position.after_stage()
        training.checkpointer.save(position, tensors, *(verdict.known or (span.name,)))
        if verdict.ends:
            break
    return position


def _state(training: Training[BatchT], step: Step) -> dict[str, Any]:
    return {**step.state_dict(), **training.validator.state_dict()}


def _verdict(training: Training[BatchT], step: Step, span: StageSpan, position: Position) -> Verdict:
    """What is found of the networks where an epoch has ended, with statistics that all workers share."""
    if not training.validator.due(span, position):
        return Verdict()
    step.agree()
    return training.validator.validate(position)


class _Pause(NamedTuple):
    """What is to be done between two steps; the same on every worker."""

    stops: bool
    saves: bool
    reports: bool


def _pause(training: Training[BatchT], span: StageSpan, position: Position, verdict: Verdict) -> _Pause:
    """A save closes the report: whoever goes on from it has not seen the steps before. A stage's end saves later."""
    ends = position.step_in_stage == span.steps or verdict.ends
    stops = not ends and training.interruption.requested()
    saves = not ends and (stops or verdict.label != "" or training.checkpointer.due(position))
    reports = ends or saves or bool(verdict.figures) or position.step % training.log_every_steps == 0
    return _Pause(stops, saves, reports)


class _NonFiniteGuard:
    """Ends the job when skipped steps follow one another: by then the weights are beyond recovery by waiting."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row: list[str] = []

    def watch(self, finite: bool, position: Position, keys: tuple[str, ...]) -> None:
        if finite:
            self._in_a_row.clear()
            return
        self._in_a_row.append(f"step {position.step}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}")
        if len(self._in_a_row) >= self._limit:
            raise NonFiniteError(
                f"{self._limit} steps in a row had a loss or gradient that was not finite; none of them reached the "
                "weights. Start under another name with a lower optimizer.lr or precision: fp32, or bear more of them "
                "with guards.max_nonfinite_steps. Samples in these steps:\n  "
                + "\n  ".join(line for lines in gather(self._in_a_row) for line in lines)
            )
