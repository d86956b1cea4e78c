"""One optimiser step of DiRA: both networks, one decision whether it counts.

Haghighi et al., *DiRA* (CVPR 2022), equation 4: ``L = w_dis * L_dis + w_res * L_res + w_adv * L_adv``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dira_dist.config import RequestError, Section
from dira_dist.objectives import AdversarialConfig, GlobalBatch, adversarial_loss, discriminator_loss, restorative_loss
from dira_dist.objectives.collectives import is_distributed, mean_over_workers
from dira_dist.training.execution import ExecutionConfig, distribute, laid_out, prepare
from dira_dist.training.networks import Networks, build_networks
from dira_dist.training.optimizer import NamedOptimizer, OptimizerConfig, build_optimizer, learning_rate
from dira_dist.training.precision import Precision
from dira_dist.views import Views

__all__ = [
    "ExecutionConfig",
    "LossWeights",
    "Networks",
    "Objective",
    "StepResult",
    "TrainStep",
    "build_networks",
]

Objective = Literal["di", "dir", "dira"]


class LossWeights(Section):
    """Weights of the three objectives, as published. What weighs 0 is not computed."""

    discriminative: float = Field(default=1.0, ge=0, description="of the discriminative method's loss")
    restorative: float = Field(default=10.0, ge=0, description="of the restoration's mean squared error")
    adversarial: float = Field(default=0.001, ge=0, description="of the adversarial loss")


PUBLISHED_WEIGHTS = LossWeights()
PUBLISHED_OPTIMIZER = OptimizerConfig()
PUBLISHED_ADVERSARIAL = AdversarialConfig()
PLAIN_EXECUTION = ExecutionConfig()

_PARTS: dict[Objective, tuple[str, ...]] = {
    "di": ("discriminative",),
    "dir": ("discriminative", "restorative"),
    "dira": ("discriminative", "restorative", "adversarial"),
}


@dataclass(frozen=True)
class StepResult:
    """What a step found. Tensors stay on the device.

    Attributes:
        losses: unweighted losses over the global batch by part (``discriminative``, ``restorative``, ``adversarial``,
            ``discriminator``; those that are computed) and the weighted ``total``.
        grad_norm: Euclidean norm of the gradients of U-Net and method, before the optimiser's step.
        finite: whether the step reached the weights; if not, it has left no trace.
        restoration: (B, 1, *S), detached; None where the decoder does not run.
        learning_rate: the rate of this step.
    """

    losses: dict[str, Tensor]
    grad_norm: Tensor
    finite: bool
    restoration: Tensor | None
    learning_rate: float


class TrainStep:
    """The step of one stage. It works on networks that outlive it: stages follow one another on the same ones.

    Args:
        networks: moved to ``device``, and set to learn what the stage needs.
        objective: ``di``, ``dir`` or ``dira``.
        total_steps: length of the stage, for the schedule.
        steps_per_epoch: for the warm-up, which is given in epochs.

    Raises:
        RequestError: nothing is left to learn, or the device cannot do what ``execution`` asks.
    """

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        *,
        weights: LossWeights = PUBLISHED_WEIGHTS,
        optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER,
        adversarial: AdversarialConfig = PUBLISHED_ADVERSARIAL,
        execution: ExecutionConfig = PLAIN_EXECUTION,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        total_steps: int,
        steps_per_epoch: float = 1.0,
    ) -> None:
        self.networks = networks
        self.weights = active_weights(objective, weights)
        self.device = torch.device(device)
        self._adversarial, self._execution, self._precision = adversarial, execution, precision
        self._rate = partial(learning_rate, optimizer, steps=total_steps, steps_per_epoch=steps_per_epoch)
        prepare(networks, self.device, execution)
        set_learning(networks, self.weights)
        networks.train()
        self._objectives = distribute(Objectives(networks, self.weights), execution)
        self._player = distribute(networks.discriminator, execution) if self._plays else networks.discriminator
        self._optimizers = self._build_optimizers(optimizer)
        self._statistics = _Statistics(networks)
        self._batch: GlobalBatch | None = None

    def __call__(self, views: Views, step_in_stage: int) -> StepResult:
        """One step on this worker's share of a global batch, as large at every step; a collective of all workers.

        The published order updates the U-Net first, then the discriminator on the same, detached restoration. Neither
        gradient depends on the other's update, so both are computed before either is applied, and one decision holds
        for both: a loss or gradient that is not finite on any worker leaves everything on all workers as it was.

        Raises:
            RequestError: a worker has fewer samples than the method needs.
        """
        batch, rate = self._share(len(views.view_1)), self._rate(step_in_stage)
        self._statistics.keep()
        losses, restoration = self._backward(views, batch)
        figures, grad_norm, finite = self._judge(losses)
        if finite:
            self._apply(rate)
        else:
            self._statistics.put_back()
        self.networks.zero_grad()
        return StepResult(figures, grad_norm, finite, restoration, rate)

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers, as tensors, numbers and text; not copies. Independent of the number of workers.

        A collective, for batch-norm statistics are each worker's own until they are asked for, and averaged here.
        """
        self._statistics.agree()
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"networks": self.networks.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: Mapping[str, Any], *, optimizers: bool = True) -> None:
        """Goes on from a state of this or another stage.

        Args:
            optimizers: take over the optimisers' state too, parameter by parameter: what this stage does not learn is
                kept for a later one, and an optimiser of another name starts anew.

        Raises:
            RequestError: the state is of other networks.
        """
        try:
            self.networks.load_state_dict(state["networks"])
        except RuntimeError as error:
            raise RequestError(
                "the saved state is of other networks: keep model, method and discriminator as they were, or start "
                f"anew under another name ({error})"
            ) from error
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name] if optimizers else {})

    @property
    def _plays(self) -> bool:
        """Whether a discriminator is played against."""
        return self.weights.adversarial > 0

    def _build_optimizers(self, config: OptimizerConfig) -> dict[str, NamedOptimizer]:
        learned = {name: weight for name, weight in self.networks.named_parameters() if weight.requires_grad}
        played = {name: weight for name, weight in learned.items() if name.startswith("discriminator.")}
        own = {name: weight for name, weight in learned.items() if name not in played}
        adam = partial(torch.optim.Adam, lr=self._adversarial.lr, betas=self._adversarial.betas, fused=True)
        return {
            "unet": NamedOptimizer(config.name, partial(build_optimizer, config), own),
            "discriminator": NamedOptimizer("adam", adam, played),
        }

    def _share(self, samples: int) -> GlobalBatch:
        """Workers are asked for their sizes at the stage's first step alone, for the answer is waited for."""
        if self._batch is not None:
            assert samples == self._batch.local_size, "a stage's share is the same at every step"
            return self._batch
        batch = GlobalBatch.of(samples, self.device)
        smallest = self.networks.smallest_share if self.weights.discriminative > 0 else 1
        if min(batch.sizes) < smallest:
            raise RequestError(
                f"found a global batch of {batch.samples} on {batch.world_size} workers, shares of {batch.sizes}: the "
                f"method needs at least {smallest} samples on each; take a larger global batch or fewer workers"
            )
        self._batch = batch
        return batch

    def _backward(self, views: Views, batch: GlobalBatch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of both networks; losses as this worker's terms, see :mod:`dira_dist.objectives.collectives`."""
        with _frozen(self.networks.discriminator):
            losses, restoration = self._unet_losses(views, batch)
            weighted = [getattr(self.weights, name) * loss for name, loss in losses.items()]
            torch.autograd.backward(torch.stack(weighted).sum())
        if self._plays:
            assert restoration is not None
            losses["discriminator"] = self._discriminator_loss(views, restoration.detach(), batch)
            torch.autograd.backward(losses["discriminator"])
        return {name: loss.detach() for name, loss in losses.items()}, _detached(restoration)

    def _unet_losses(self, views: Views, batch: GlobalBatch) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the U-Net and the method minimise, unweighted, and the restoration."""
        with self._autocast():
            view_1, view_2 = (laid_out(view, self._execution) for view in (views.view_1, views.view_2))
            discriminative, restoration = self._objectives(view_1, view_2, batch)
            scores = self.networks.discriminator(restoration) if self._plays else None
        losses = {} if discriminative is None else {"discriminative": discriminative}
        if self.weights.restorative > 0:
            losses["restorative"] = batch.share_weight * restorative_loss(restoration, _target(views))
        if scores is not None:
            losses["adversarial"] = batch.share_weight * adversarial_loss(scores, self._adversarial.loss)
        return losses, restoration

    def _discriminator_loss(self, views: Views, restoration: Tensor, batch: GlobalBatch) -> Tensor:
        """One forward pass for real and restored: instance norms keep samples apart."""
        with self._autocast():
            real, restored = self._player(torch.cat([_target(views), restoration])).chunk(2)
        return batch.share_weight * discriminator_loss(real, restored, self._adversarial.loss)

    def _judge(self, losses: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, bool]:
        """Losses over the global batch, the gradient's norm, and whether all is finite: the same on every worker."""
        figures = self._figures(losses)
        norms = {name: _gradient_norm(each.parameters.values()) for name, each in self._optimizers.items()}
        everything = [*figures.values(), *(norm for norm in norms.values() if norm is not None)]
        finite = bool(torch.isfinite(torch.stack(everything)).all())  # here the host waits for the device
        norm = norms["unet"]
        assert norm is not None, "a stage learns something"
        return figures, norm, finite

    def _figures(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses over the global batch, unweighted, and the weighted ``total`` of the U-Net's."""
        means = mean_over_workers(torch.stack([loss.float() for loss in losses.values()]))
        figures = dict(zip(losses, means, strict=True))
        weights = self.weights.model_dump()
        figures["total"] = sum(
            (weights[name] * loss for name, loss in figures.items() if name in weights), torch.zeros_like(means[0])
        )
        return figures

    def _apply(self, rate: float) -> None:
        self._optimizers["unet"].step(rate)
        self._optimizers["discriminator"].step(self._adversarial.lr)
        if self.weights.discriminative > 0:
            self.networks.method.commit(self.networks.unet.encoder)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")


def active_weights(objective: Objective, weights: LossWeights) -> LossWeights:
    """The weights of a stage: those of the parts it has, and 0 for the others.

    Raises:
        RequestError: nothing is left to learn.
    """
    parts = _PARTS[objective]
    active = weights.model_copy(update={name: 0.0 for name in LossWeights.model_fields if name not in parts})
    if not any(getattr(active, name) for name in parts):
        raise RequestError(
            f"stage {objective} has only the parts {', '.join(parts)} and each weighs 0: give one a weight above 0"
        )
    return active


def set_learning(networks: Networks, weights: LossWeights) -> None:
    """Has those parts learn that a stage of these weights asks for."""
    restores = weights.restorative > 0 or weights.adversarial > 0
    networks.learn(discriminate=weights.discriminative > 0, restore=restores, fool=weights.adversarial > 0)


class Objectives(nn.Module):
    """What DDP wraps: everything that learns in the U-Net's step, run in one forward pass."""

    def __init__(self, networks: Networks, weights: LossWeights) -> None:
        super().__init__()
        self.unet = networks.unet
        self.method = networks.method
        self._discriminates = weights.discriminative > 0
        self._restores = weights.restorative > 0 or weights.adversarial > 0

    def forward(self, view_1: Tensor, view_2: Tensor, batch: GlobalBatch) -> tuple[Tensor | None, Tensor | None]:
        features, restoration = self.unet(view_1, self._restores)
        loss = self.method(features, view_2, self._encode, batch) if self._discriminates else None
        return loss, restoration

    def _encode(self, view: Tensor) -> Tensor:
        features: Tensor = self.unet(view, False)[0]
        return features


class _Statistics:
    """The running statistics of all norms, kept aside so that a step can be undone."""

    def __init__(self, networks: Networks) -> None:
        norms = [module for module in networks.modules() if isinstance(module, _NormBase)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        # Apart by kind of number, for a GPU copies a list in one kernel only where all of it is of one kind.
        self._pairs = [(same, [buffer.clone() for buffer in same]) for same in (self._floating, counters) if same]

    @torch.no_grad()
    def keep(self) -> None:
        """Remembers the statistics as they are."""
        for buffers, kept in self._pairs:
            torch._foreach_copy_(kept, buffers)

    def agree(self) -> None:
        """Averages them over the workers, whose batches each saw only a share of the samples."""
        if self._floating and is_distributed():
            mean = mean_over_workers(torch.cat(self._floating))
            torch._foreach_copy_(self._floating, list(torch.split(mean, [len(each) for each in self._floating])))

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes them what they were when last kept."""
        for buffers, kept in self._pairs:
            torch._foreach_copy_(buffers, kept)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through ``module`` and none is made for its own weights, where the backward pass is inside too."""
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learned:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)


def _target(views: Views) -> Tensor:
    assert views.target is not None, "a stage that restores asks for views with a target"
    return views.target


def _detached(restoration: Tensor | None) -> Tensor | None:
    return None if restoration is None else restoration.detach()


def _gradient_norm(weights: Iterable[nn.Parameter]) -> Tensor | None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
