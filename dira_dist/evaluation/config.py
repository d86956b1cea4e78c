"""The sections of a job that say when and on what networks are evaluated; what does it is imported where it is done."""

import posixpath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dira_dist.config import MAY_CHANGE, MAY_CHANGE_IN_RUN, Probability, Section

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


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
    device: Literal["auto", "cpu", "cuda"] = Field(
        "cpu",
        description="where checkpoints are evaluated. cuda: on a GPU beside those of the workers, or on the CPU where "
        "there is none to spare; auto: so where the workers have GPUs",
        json_schema_extra=MAY_CHANGE,
    )

    def gpus(self, of_a_worker: float | None) -> int:
        """GPUs that evaluations take beside the workers', one of which has so many."""
        return int(self.device == "cuda" or (self.device == "auto" and bool(of_a_worker)))


class ProbeConfig(Section):
    """Labelled shard sets on which the frozen encoder is evaluated."""

    train: str = Field(
        description="address of the labelled shard set the probes learn from", json_schema_extra=MAY_CHANGE
    )
    val: str = Field(
        description="address of the labelled shard set they are evaluated on", json_schema_extra=MAY_CHANGE
    )
    label: str = Field(description="name of the label; a value like `a|b` or a list means several at once")
    k: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (5, 20, 100), description="neighbours of the k-NN probe; of several, the number that is best within probe.train"
    )
    temperature: float = Field(0.07, gt=0, description="of the k-NN votes")
    label_fractions: tuple[Fraction, ...] = Field(
        (0.01, 0.1, 0.25, 1.0), description="shares of the labelled patients with which the linear probe is repeated"
    )
    label_draws: Count = Field(5, description="draws of each share below 1; their mean and spread are reported")
    bootstrap: int = Field(1000, ge=0, description="resamples of the patients for the AUROC's 95 % interval; 0: none")

    @model_validator(mode="after")
    def _two_sets(self) -> "ProbeConfig":
        if _normal(self.train) == _normal(self.val):
            raise ValueError(
                f"train and val are both {self.val}, so that a probe would be judged on what it has learned from; give "
                "two parts of a set that is split by patient: dira-dist shard ... --split train=0.8,val=0.2 "
                "--group-by patient"
            )
        return self

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The numbers that ``k`` names."""
        return (self.k,) if isinstance(self.k, int) else self.k


def _normal(address: str) -> str:
    scheme, mark, path = address.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(path)}"


class LocalizationConfig(Section):
    """Where a classifier looks (Grad-CAM), what boxes are made of that, and how they are compared with true ones."""

    truth: Literal["boxes", "masks"] = Field(
        "boxes",
        description="what lesions are known by: boxes of the shards, or masks: what is not 0 is the lesion of the "
        "image's class",
    )
    stages: Literal["last", "before_last", "both"] = Field(
        "last", description="feature maps of the encoder that are looked at; both: the geometric mean of their maps"
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["otsu", "tuned"] = Field(
        0.5,
        description="least heat inside a lesion: a share of the map's largest; otsu; or tuned: the share among 0.2 ... "
        "0.7 that gives each class the highest mean IoU on val",
    )
    components: Literal["largest", "all"] = Field(
        "largest", description="which connected parts of what is hot get a box: the largest, or all"
    )
    least_peak: Probability = Field(
        0.5, description="with components: all, the parts whose own peak is at least this share of the map's"
    )
    gate: Annotated[float, Field(ge=0, lt=1)] | Literal["decision"] = Field(
        0.0,
        description="calibrated probability of the class up to which no box is given; decision: the class's threshold",
    )
    tolerance: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0,
        description="how far outside a lesion the peak still counts as a hit, as a share of the image's longer side",
    )
