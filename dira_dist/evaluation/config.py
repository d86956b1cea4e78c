"""The sections of a job that say when and on what networks are evaluated; what does it is imported where it is done."""

from typing import Annotated

from pydantic import Field

from dira_dist.config import MAY_CHANGE, MAY_CHANGE_IN_RUN, Section

Fraction = Annotated[float, Field(gt=0, le=1)]


class EvaluationConfig(Section):
    """When and how checkpoints are evaluated on ``data.val`` and ``probe``, in a task beside the training."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="optimiser steps between two evaluations; left out, only before and after each stage",
        json_schema_extra=MAY_CHANGE_IN_RUN,  # trials of a search are evaluated at the same steps
    )
    threads: int = Field(
        2,
        ge=1,
        description="CPU threads of the evaluating task, beside what resources gives to workers",
        json_schema_extra=MAY_CHANGE,
    )


class ProbeConfig(Section):
    """Labelled shard sets on which the frozen encoder is evaluated."""

    train: str = Field(
        description="address of the labelled shard set the probes learn from", json_schema_extra=MAY_CHANGE
    )
    val: str = Field(
        description="address of the labelled shard set they are evaluated on", json_schema_extra=MAY_CHANGE
    )
    label: str = Field(description="name of the label; a value like `a|b` or a list means several at once")
    k: int = Field(20, ge=1, description="neighbours of the k-NN probe")
    temperature: float = Field(0.07, gt=0, description="of the k-NN votes")
    label_fractions: tuple[Fraction, ...] = Field(
        (0.01, 0.1, 0.25, 1.0), description="shares of the labels with which the linear probe is repeated"
    )
    bootstrap: int = Field(1000, ge=0, description="resamples for the AUROC's 95 % interval; 0: none")
