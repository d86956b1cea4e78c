"""What a stage of a pretraining minimises: the U-Net's three parts, and the discriminator's own loss beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from dira_dist.objectives import (
    AdversarialConfig,
    GlobalBatch,
    adversarial_loss,
    discriminator_loss,
    restorative_loss,
)
from dira_dist.objectives.method import MethodInputs
from dira_dist.objectives.parts import ADVERSARIAL, DISCRIMINATIVE, OPPONENT, RESTORATIVE, ActiveParts
from dira_dist.training.execution import ExecutionConfig, distribute, laid_out
from dira_dist.training.pretrain.networks import PretrainNetworks
from dira_dist.views import Views


class Forward(nn.Module):
    """What DDP wraps: everything that learns in the U-Net's step, run in one forward pass."""

    def __init__(self, networks: PretrainNetworks, parts: ActiveParts) -> None:
        super().__init__()
        self.unet = networks.unet
        self.method = networks.method if parts.discriminates else None
        self._needs, self._restores = networks.needs, parts.restores

    def forward(self, views: Views, batch: GlobalBatch) -> tuple[Tensor | None, Tensor | None]:
        """The method's loss and the restoration, None where the stage has no such part."""
        pooled, restoration, maps = self._first_view(views.view_1)
        if self.method is None:
            return None, restoration
        inputs = MethodInputs(
            self._encode,
            pooled=pooled if "pooled" in self._needs else None,
            maps=maps,
            second_view=views.view_2,
            labels=views.labels,
            distortion=views.distortion if "distortion" in self._needs else None,
        )
        return self.method(inputs, batch), restoration

    def _first_view(self, view: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Pooled features, restoration and, where the method wants them, feature maps."""
        if self.method is None or "maps" not in self._needs:
            return *self.unet(view, self._restores), None
        maps = self.unet.encode(view)
        return self.unet.pooled(maps), self.unet.decode(maps) if self._restores else None, maps

    def _encode(self, view: Tensor) -> Tensor:
        features: Tensor = self.unet(view, False)[0]
        return features


class PretrainLosses:
    """DiRA's losses of one stage; see :class:`dira_dist.training.step.Losses`.

    The published order updates the U-Net first, then the discriminator on the same, detached restoration. Neither
    gradient depends on the other's update, so both are computed before either is applied.

    Args:
        networks: on their device.
        parts: of the stage.
        adversarial: the adversarial part's settings.
        execution: how the step is computed.
    """

    def __init__(
        self, networks: PretrainNetworks, parts: ActiveParts, adversarial: AdversarialConfig, execution: ExecutionConfig
    ) -> None:
        self.weights: Mapping[str, float] = {str(part): weight for part, weight in parts.weights.items()}
        self.min_local_batch = networks.min_local_batch if parts.discriminates else 1
        self._networks, self._parts, self._kind, self._execution = networks, parts, adversarial.loss, execution
        self._forward = distribute(Forward(networks, parts), execution)
        self._discriminator = networks.discriminator if parts.plays else None
        self._opponent = distribute(self._discriminator, execution) if self._discriminator is not None else None

    def backward(
        self, views: Views, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of both networks; the losses and the restoration, detached."""
        with _frozen(self._discriminator):
            losses, restoration = self.terms(views, batch, autocast)
            weighted = [self.weights[name] * loss for name, loss in losses.items()]
            torch.autograd.backward(torch.stack(weighted).sum())
        restored = None if restoration is None else restoration.detach()
        if self._opponent is not None:
            assert restored is not None
            losses[OPPONENT] = self._discriminator_loss(views, restored, batch, autocast)
            torch.autograd.backward(losses[OPPONENT])
        return {name: loss.detach() for name, loss in losses.items()}, restored

    def after_optimizer_step(self) -> None:
        """What the method remembers of the step."""
        if self._parts.discriminates:
            assert self._networks.method is not None
            self._networks.method.after_optimizer_step(self._networks.unet.encoder)

    def terms(
        self, views: Views, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What U-Net and method minimise, unweighted, and the restoration (B, C, *S)."""
        with autocast:
            method_loss, restoration = self._forward(self._laid_out(views), batch)
            scores = self._discriminator(restoration) if self._discriminator is not None else None
        losses = {} if method_loss is None else {str(DISCRIMINATIVE): method_loss}
        if RESTORATIVE in self._parts.weights:
            losses[RESTORATIVE] = batch.local_weight * restorative_loss(restoration, _target(views))
        if scores is not None:
            losses[ADVERSARIAL] = batch.local_weight * adversarial_loss(scores, self._kind)
        return losses, restoration

    def _laid_out(self, views: Views) -> Views:
        second = None if views.view_2 is None else laid_out(views.view_2, self._execution)
        return replace(views, view_1=laid_out(views.view_1, self._execution), view_2=second)

    def _discriminator_loss(
        self, views: Views, restoration: Tensor, batch: GlobalBatch, autocast: torch.autocast
    ) -> Tensor:
        """One forward pass for real and restored: instance norms keep samples apart."""
        assert self._opponent is not None
        with autocast:
            real, restored = self._opponent(torch.cat([_target(views), restoration])).chunk(2)
        return batch.local_weight * discriminator_loss(real, restored, self._kind)


def _target(views: Views) -> Tensor:
    assert views.target is not None, "a stage that restores asks for views with a target"
    return views.target


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """Gradients pass through ``module`` and none is made for its own weights, where the backward pass is inside too."""
    learned = [] if module is None else [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learned:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)
