"""One optimiser step of any task: losses and gradients, one decision whether they count, then the update."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.metrics import GRAD_NORM, LEARNING_RATE, LOSS, WEIGHTED
from dira_dist.objectives import GlobalBatch
from dira_dist.objectives.collectives import is_distributed, mean_over_workers
from dira_dist.training.networks import Networks
from dira_dist.training.optimizer import ScheduledOptimizer
from dira_dist.training.precision import Precision
from dira_dist.training.torch_internals import NormBase, copy_each

MAIN = "unet"
"""The optimiser whose gradients' norm and rate a step reports."""


@dataclass(frozen=True)
class StepResult:
    """What a step found. Tensors stay on the device.

    Attributes:
        losses: unweighted losses over the global batch by name, and the weighted ``total``.
        weights: of those losses that the total adds up.
        grad_norm: Euclidean norm of the gradients of the main optimiser's weights, before its step.
        finite: whether the step reached the weights; if not, it has left no trace.
        output: what the networks made of the inputs, detached, such as the restoration (B, C, *S); None where nothing.
        learning_rate: the rate of this step.
    """

    losses: dict[str, Tensor]
    weights: Mapping[str, float]
    grad_norm: Tensor
    finite: bool
    output: Tensor | None
    learning_rate: float

    @cached_property
    def figures(self) -> dict[str, Tensor]:
        """Losses as they are and as they weigh, gradient norm and learning rate, by the catalogue's names."""
        return {
            **{LOSS.of(name): loss for name, loss in self.losses.items()},
            **{WEIGHTED.of(name): weight * self.losses[name] for name, weight in self.weights.items()},
            GRAD_NORM.name: self.grad_norm,
            LEARNING_RATE.name: torch.tensor(self.learning_rate),
        }


InputsT = TypeVar("InputsT", bound=Sized)
InputsT_contra = TypeVar("InputsT_contra", bound=Sized, contravariant=True)


class Losses(Protocol[InputsT_contra]):
    """What a stage of a task minimises, on networks that are on their device and set to learn.

    Attributes:
        weights: of the losses that the total adds up.
        min_local_batch: samples that each worker must have.
    """

    weights: Mapping[str, float]
    min_local_batch: int

    def backward(
        self, inputs: InputsT_contra, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Leaves a gradient in every weight that learns; returns the losses and the output, detached.

        A loss is this worker's term, see :mod:`dira_dist.objectives.collectives`. Forward passes run in ``autocast``.
        """

    def after_optimizer_step(self) -> None:
        """Called after a step that reached the weights."""


class TrainStep(Generic[InputsT]):
    """The step of one stage. It works on networks that outlive it: stages follow one another on the same ones.

    Args:
        networks: prepared for the device, see :func:`dira_dist.training.execution.prepare`.
        losses: what is minimised.
        optimizers: by name, with :data:`MAIN` among them; one may have no weights in this stage.
        precision: of the forward passes.
        device: of networks and inputs.
    """

    def __init__(
        self,
        networks: Networks,
        losses: Losses[InputsT],
        optimizers: Mapping[str, ScheduledOptimizer],
        *,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.networks = networks
        self.device = torch.device(device)
        self._losses, self._optimizers, self._precision = losses, dict(optimizers), precision
        self._statistics = _Statistics(networks)
        self._batch: GlobalBatch | None = None
        networks.train()

    def __call__(self, inputs: InputsT, step_in_stage: int) -> StepResult:
        """One step on this worker's part of a global batch, as large at every step; a collective of all workers.

        All gradients are computed before any is applied, and one decision holds for all: a loss or gradient that is not
        finite on any worker leaves everything on all workers as it was.

        Raises:
            RequestError: a worker has fewer samples than the losses need.
        """
        batch = self._local_batch(len(inputs))
        self._statistics.keep()
        losses, output = self._losses.backward(inputs, batch, self._autocast())
        found, grad_norm, finite = self._decide(losses)
        if finite:
            for optimizer in self._optimizers.values():
                optimizer.step(step_in_stage)
            self._losses.after_optimizer_step()
        else:
            self._statistics.put_back()
        self.networks.zero_grad()
        rate = self._optimizers[MAIN].rate(step_in_stage)
        return StepResult(found, self._losses.weights, grad_norm, finite, output, rate)

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers, as tensors, numbers and text; not copies. Independent of the number of workers.

        A collective, for batch-norm statistics are each worker's own until they are asked for, and averaged here.
        """
        self.agree()
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"networks": self.networks.state_dict(), "optimizers": optimizers}

    def agree(self) -> None:
        """Averages the statistics of batch norms over the workers; a collective."""
        self._statistics.agree()

    def load_state_dict(self, state: Mapping[str, Any], *, optimizers: bool = True) -> None:
        """Goes on from a state of this or another stage.

        Args:
            state: from :meth:`state_dict`.
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
            optimizer.load_state_dict(state["optimizers"].get(name, {}) if optimizers else {})

    def _local_batch(self, samples: int) -> GlobalBatch:
        """Workers are asked for their sizes at the stage's first step alone, for the answer is waited for."""
        if self._batch is not None:
            assert samples == self._batch.local_size, "a stage's local batch is the same at every step"
            return self._batch
        batch = GlobalBatch.of(samples, self.device)
        smallest = self._losses.min_local_batch
        if min(batch.sizes) < smallest:
            raise RequestError(
                f"found a global batch of {batch.samples} on {batch.world_size} workers, {batch.sizes} on each: the "
                f"method needs at least {smallest} samples on each; take a larger global batch or fewer workers"
            )
        self._batch = batch
        return batch

    def _decide(self, losses: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, bool]:
        """Losses over the global batch, the gradient's norm, and whether all is finite: the same on every worker."""
        found = self._over_the_global_batch(losses)
        norms = {name: _gradient_norm(each.parameters.values()) for name, each in self._optimizers.items()}
        everything = [*found.values(), *(norm for norm in norms.values() if norm is not None)]
        finite = bool(torch.isfinite(torch.stack(everything)).all())  # here the host waits for the device
        norm = norms[MAIN]
        assert norm is not None, "a stage learns something"
        return found, norm, finite

    def _over_the_global_batch(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses over the global batch, unweighted, and the weighted ``total``."""
        means = mean_over_workers(torch.stack([loss.float() for loss in losses.values()]))
        found = dict(zip(losses, means, strict=True))
        terms = (weight * found[name] for name, weight in self._losses.weights.items())
        found["total"] = sum(terms, torch.zeros_like(means[0]))
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")


class _Statistics:
    """The running statistics of all norms, kept aside so that a step can be undone."""

    def __init__(self, networks: Networks) -> None:
        norms = [module for module in networks.modules() if isinstance(module, NormBase)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        # Apart by kind of number, for a GPU copies a list in one kernel only where all of it is of one kind.
        self._pairs = [(same, [buffer.clone() for buffer in same]) for same in (self._floating, counters) if same]

    @torch.no_grad()
    def keep(self) -> None:
        """Remembers the statistics as they are."""
        for buffers, kept in self._pairs:
            copy_each(kept, buffers)

    def agree(self) -> None:
        """Averages them over the workers, whose batches each saw only a share of the samples."""
        if self._floating and is_distributed():
            mean = mean_over_workers(torch.cat(self._floating))
            copy_each(self._floating, list(torch.split(mean, [len(each) for each in self._floating])))

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes them what they were when last kept."""
        for buffers, kept in self._pairs:
            copy_each(buffers, kept)


def _gradient_norm(weights: Iterable[nn.Parameter]) -> Tensor | None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
