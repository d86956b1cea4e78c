"""The job file's ``search`` section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dira_dist.config import Section
from dira_dist.metrics import LOSS, TRAIN, WEIGHTED, Mode

Choice = str | int | float | bool

# Figures of a training step. A search that minimises the weighted total is won by the smallest weights, and an
# unweighted loss by the weights that leave all others alone.
OF_TRAINING = (TRAIN, LOSS.name.removeprefix(TRAIN), WEIGHTED.name.removeprefix(TRAIN), "total", "loss")


class Dimension(Section):
    """What one key of the job may be: a number between two bounds, or one of some values."""

    low: float | None = Field(None, description="smallest value; whole where the key's own value is")
    high: float | None = Field(None, description="largest value")
    scale: Literal["log", "linear"] = Field("log", description="how values are spread between low and high")
    choices: tuple[Choice, ...] | None = Field(None, description="values to choose from, instead of low and high")

    @model_validator(mode="after")
    def _bounds_or_choices(self) -> "Dimension":
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if (self.choices is None) == (not bounds) or len(bounds) == 1:
            raise ValueError("give either low and high, or choices")
        if self.choices is not None and len(set(map(repr, self.choices))) < 2:
            raise ValueError(f"found choices {list(self.choices)}; give two different values or more")
        if self.low is not None and self.high is not None:
            _check_bounds(self.low, self.high, self.scale)
        return self


def _check_bounds(low: float, high: float, scale: str) -> None:
    if low >= high:
        swap = "swap them" if low > high else "a single value is no search: set the key in base"
        raise ValueError(f"found low {low:g} and high {high:g}; low must be below high: {swap}")
    if scale == "log" and low <= 0:
        raise ValueError(f"found low {low:g} on a log scale, which begins above 0; raise it, or give scale: linear")


class SearchConfig(Section):
    """How a search goes through its space and by what it evaluates."""

    space: dict[str, Dimension] = Field(
        min_length=1, description="dotted keys of base, such as loss_weights.restorative, and what each may be"
    )
    metric: str | tuple[str, ...] | None = Field(
        None,
        description="what compares trials; probe/auroc where base has a probe, else val/rankme. Several: a front",
    )
    mode: Mode | tuple[Mode, ...] | None = Field(
        None, description="max or min for each metric; left out, what is better of a figure that the project knows"
    )
    trials: int = Field(20, ge=2, description="trials of different configurations, the published weights among them")
    sampler: Literal["optuna", "random"] = Field("optuna", description="optuna: tree-structured Parzen estimators")
    seed: int = Field(0, ge=0, lt=2**31, description="of what the sampler draws")
    scheduler: Literal["asha", "fifo"] | None = Field(
        None, description="asha stops trials that are behind; fifo stops none. asha for one metric, fifo for several"
    )
    grace_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimiser steps before a trial may be stopped; a ninth of a trial where left out"
    )
    reduction_factor: int = Field(3, ge=2, description="of the trials at a rung one in so many goes on")
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="trials side by side; left out, as many as the cluster holds"
    )
    confirm_seeds: int = Field(
        3, ge=0, description="further seeds with which the best three and the published weights are repeated"
    )

    @model_validator(mode="after")
    def _metrics_and_modes_agree(self) -> "SearchConfig":
        for metric in self.metrics or ():
            if metric.startswith(OF_TRAINING):
                raise ValueError(
                    f"found metric {metric!r}; a training loss is no measure of a search over its weights: the weights "
                    "rescale the total, so that the smallest would win, and each loss is lowest where the others weigh "
                    "nothing. Evaluator by the representation: probe/auroc or val/rankme"
                )
        if self.metrics is not None and (not self.metrics or len(set(self.metrics)) < len(self.metrics)):
            raise ValueError(f"found metric {list(self.metrics)}; give one metric, or several different ones")
        if self.modes is not None and len(self.modes) != len(self.metrics or ("",)):
            raise ValueError(f"found {len(self.modes)} modes for {len(self.metrics or ('',))} metrics; give one each")
        return self

    @model_validator(mode="after")
    def _asha_compares_one_figure(self) -> "SearchConfig":
        if self.scheduler == "asha" and len(self.metrics or ("",)) > 1:
            raise ValueError(
                "found scheduler asha with several metrics; it stops trials by one figure, and would cut off what is "
                "good by another: give one metric, or scheduler: fifo"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...] | None:
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def modes(self) -> tuple[Mode, ...] | None:
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    @property
    def stops_early(self) -> bool:
        return self.scheduler == "asha" or (self.scheduler is None and len(self.metrics or ("",)) == 1)
