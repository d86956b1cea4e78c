"""Optimiser, learning-rate schedule, and optimiser state by parameter name.

State by name, not by position, goes on where another stage learns more or fewer parameters.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dira_dist.config import Section

NamedState = dict[str, dict[str, Any]]
RATE_FACTOR = "rate_factor"
"""Key of a parameter group whose rate is the schedule's times a factor."""
CONSTANT_RATE = "constant_rate"
"""Key of a parameter group whose rate stays at the schedule's highest."""

OWN_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "adamw": {"lr": 5e-4, "lr_batch": 256, "weight_decay": 0.04, "warmup_epochs": 10},
    "lars": {"lr": 0.2, "lr_batch": 256, "weight_decay": 1.5e-6, "warmup_epochs": 10},
}
"""What an optimiser has in place of the defaults, which are of sgd: a rate is good for one optimiser alone.

adamw as in DINO (Caron et al. 2021, section 3.2, the decay where it begins), lars as in BYOL (Grill et al. 2020, 3.3).
"""


class OptimizerConfig(Section):
    """How the U-Net and the discriminative method learn. The defaults are the published MoCo-v2 run's.

    That run states its rate for no batch: 0.03 with batches of 256 and of 16 alike.
    """

    name: Literal["sgd", "adamw", "lars"] = Field(
        "sgd", description="sgd with momentum, adamw, or lars (each layer's rate follows its weights' norm)"
    )
    lr: float = Field(0.03, gt=0, description="learning rate at its highest; of adamw and lars another default")
    lr_batch: int | None = Field(
        None,
        ge=1,
        description="global batch that lr is stated for: a stage's rate is lr x its batch / this; null: lr as it is",
    )
    bias_lr_factor: float = Field(1.0, gt=0, description="rate of biases and norms, as a factor of the others'")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars; the first beta of adamw")
    weight_decay: float = Field(1e-4, ge=0, description="on all weights; of lars on matrices and kernels alone")
    schedule: Literal["cosine", "constant", "step"] = Field(
        "cosine", description="of the rate, over the stage; step: halved again and again"
    )
    halve_every_epochs: float = Field(40, gt=0, description="epochs after which the schedule step halves the rate")
    warmup_epochs: float = Field(0, ge=0, description="epochs in which the rate rises from 0, in each stage")

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, given: Any) -> Any:
        return {**OWN_SETTINGS.get(str(given.get("name")), {}), **given} if isinstance(given, Mapping) else given

    def for_batch(self, global_batch: int) -> "OptimizerConfig":
        """The same with the rate that this batch has, by the linear rule of Goyal et al. (2017), section 2.1."""
        if self.lr_batch is None:
            return self
        return self.model_copy(update={"lr": self.lr * global_batch / self.lr_batch, "lr_batch": None})


def build_optimizer(
    config: OptimizerConfig,
    parameters: list[nn.Parameter],
    constant: Collection[nn.Parameter] = (),
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser, in its fused form where it has one: one kernel for all weights of a group.

    Args:
        parameters: what it learns.
        constant: those of them whose rate follows no schedule.
        factors: rates of some as factors of the schedule's; 1 of the others.
    """
    groups = _groups(config, parameters, {id(weight) for weight in constant}, factors or {})
    if config.name == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(groups, config.lr, betas, weight_decay=config.weight_decay, fused=True)
    if config.name == "lars":
        from timm.optim.lars import Lars

        return Lars(groups, config.lr, config.momentum, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def _groups(
    config: OptimizerConfig,
    parameters: list[nn.Parameter],
    constant: set[int],
    factors: Mapping[nn.Parameter, float],
) -> list[dict[str, Any]]:
    """Weights that learn alike. Under LARS biases and norms are neither adapted nor decayed (You et al., *Large Batch
    Training of Convolutional Networks*, 2017)."""
    apart = config.name == "lars" or config.bias_lr_factor != 1
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for weight in parameters:
        alike = (apart and weight.ndim <= 1, id(weight) in constant, factors.get(weight, 1.0))
        groups.setdefault(alike, []).append(weight)
    settings: list[dict[str, Any]] = []
    for (vectors, still, own), weights in groups.items():
        factor = own * (config.bias_lr_factor if vectors else 1.0)
        settings.append({"params": weights, RATE_FACTOR: factor, CONSTANT_RATE: still})
        if config.name == "lars":
            settings[-1] |= {"weight_decay": 0.0} if vectors else {"always_adapt": True}
    return settings


def learning_rate(config: OptimizerConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    r"""The rate at ``step`` of a stage of ``steps``: a linear rise, then the schedule over what is left.

    .. math:: \eta_t = \tfrac{1}{2} \eta \Big(1 + \cos \frac{\pi (t - w)}{T - w}\Big)

    Loshchilov & Hutter, *SGDR* (ICLR 2017), equation 5, without restarts, by step.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return float(config.lr * 0.5 ** ((step - warmup) // max(1, round(config.halve_every_epochs * steps_per_epoch))))
    if config.schedule != "cosine":
        return config.lr
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class NamedOptimizer:
    """An optimiser whose state is kept by parameter name, so that another stage can go on from it.

    Args:
        name: kind of optimiser; state of another kind is not taken over.
        build: makes it for a list of parameters.
        parameters: what it learns; there may be none.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self._optimizer = build(list(self.parameters.values())) if self.parameters else None
        self._carried: NamedState = {}

    def step(self, rate: float, highest: float | None = None) -> None:
        """Updates the parameters at learning rate ``rate``; those whose rate is constant, at the schedule's highest."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            still = highest is not None and group.get(CONSTANT_RATE, False)
            group["lr"] = (highest if still else rate) * group.get(RATE_FACTOR, 1.0)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """State by parameter name, that of parameters which only another stage learns included; not copies."""
        state = dict(self._carried)
        if self._optimizer is not None:
            known = self._optimizer.state
            state |= {name: dict(known[weight]) for name, weight in self.parameters.items() if weight in known}
        return {"name": self.name, "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over copies of a saved state in place of its own; of another kind of optimiser, or of none, nothing."""
        state: NamedState = saved["state"] if saved.get("name") == self.name else {}
        self._carried = {name: _copy(state[name]) for name in state.keys() - self.parameters.keys()}
        if self._optimizer is not None:
            self._optimizer.state.clear()
            for name in self.parameters.keys() & state.keys():
                weight = self.parameters[name]
                self._optimizer.state[weight] = _copy(state[name], weight)
            self._give_new_weights_momentum()

    def _give_new_weights_momentum(self) -> None:
        """torch's fused SGD takes momentum for all of its weights or for none; that of a new one is zero."""
        assert self._optimizer is not None
        if self.name == "sgd" and self._optimizer.state:
            for weight in self.parameters.values():
                if "momentum_buffer" not in self._optimizer.state[weight]:
                    self._optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


@dataclass(frozen=True)
class ScheduledOptimizer:
    """An optimiser and its rate at each step of a stage.

    Attributes:
        rate: of the step number in the stage, from 0.
        highest: of all steps: what weights learn at whose rate is constant.
    """

    optimizer: NamedOptimizer
    rate: Callable[[int], float]
    highest: float

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What it learns, by name; there may be none."""
        return self.optimizer.parameters

    def step(self, step_in_stage: int) -> None:
        """Updates the parameters at the rate of this step."""
        self.optimizer.step(self.rate(step_in_stage), self.highest)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`NamedOptimizer.state_dict`; the rate is the job's and no state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """See :meth:`NamedOptimizer.load_state_dict`."""
        self.optimizer.load_state_dict(saved)


def _copy(state: Mapping[str, Any], weight: nn.Parameter | None = None) -> dict[str, Any]:
    """A copy, tensors that accompany ``weight`` in its memory layout; Adam's count of steps is a scalar of its own."""
    copied = {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    if weight is None:
        return copied
    return {key: _beside(weight, value) if isinstance(value, Tensor) else value for key, value in copied.items()}


def _beside(weight: nn.Parameter, value: Tensor) -> Tensor:
    if value.shape != weight.shape:
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
