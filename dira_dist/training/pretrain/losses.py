"""What a stage of a pretraining minimises: the U-Net's three parts, and the discriminator's own loss beside them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.objectives import (
    AdversarialConfig,
    GlobalBatch,
    Opponent,
    RestorativeConfig,
    adversarial_loss,
    discriminator_input,
    restorative_loss,
)
from dira_dist.objectives.method import Encode, MethodInputs
from dira_dist.objectives.parts import ADVERSARIAL, DISCRIMINATIVE, OPPONENT, RESTORATIVE, ActiveParts
from dira_dist.training.execution import ExecutionConfig, distribute, laid_out, synchronised
from dira_dist.training.pretrain.feature_cache import FeatureCache
from dira_dist.training.pretrain.networks import PretrainNetworks
from dira_dist.views import Views, take_rows


class Forward(nn.Module):
    """What DDP wraps: everything that learns in the U-Net's step, run in one forward pass."""

    def __init__(self, networks: PretrainNetworks, parts: ActiveParts) -> None:
        super().__init__()
        self.unet = networks.unet
        self.method = networks.method if parts.discriminates else None
        self._needs, self._restores = networks.needs, parts.restores

    def forward(
        self, views: Views, batch: GlobalBatch, cache: FeatureCache | None = None, part: int = 0
    ) -> tuple[Tensor | None, Tensor | None]:
        """The method's loss and the restoration, None where the stage has no such part.

        Args:
            views: of all of this worker's samples, or of a part of them.
            batch: how they lie on the workers.
            cache: of :meth:`whole_loss`: in the loss's place stands then what has its gradient through the part.
            part: which.
        """
        if cache is not None:
            cache.rewind(part)
        pooled, restoration, maps = self._first_view(views.view_1)
        if self.method is None:
            return None, restoration
        if cache is not None:
            return cache.pull(part, pooled) + _nothing_of(self.method), restoration
        return self._method_loss(self._encode, pooled, maps, views, batch), restoration

    def whole_loss(self, views: Views, batch: GlobalBatch, parts: Sequence[slice]) -> tuple[Tensor, FeatureCache]:
        """The method's loss of all of this worker's samples, which pass the encoder part by part.

        Returns:
            The loss, with a graph back to the features, and the cache that holds them.
        """
        cache = FeatureCache(self.unet, self._encode, parts)
        pooled = cache.encode(views.view_1)
        return self._method_loss(cache.encode, pooled, None, views, batch, len(parts)), cache

    def _method_loss(
        self,
        encode: Encode,
        pooled: Tensor,
        maps: list[Tensor] | None,
        views: Views,
        batch: GlobalBatch,
        passes: int = 1,
    ) -> Tensor:
        assert self.method is not None
        inputs = MethodInputs(
            encode,
            pooled=pooled if "pooled" in self._needs else None,
            maps=maps,
            second_view=views.view_2,
            labels=views.labels,
            distortion=views.distortion if "distortion" in self._needs else None,
            passes=passes,
        )
        loss: Tensor = self.method(inputs, batch)
        return loss

    def _first_view(self, view: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Pooled features, restoration and, where the method wants them, feature maps."""
        if self.method is None or "maps" not in self._needs:
            return *self.unet(view, self._restores), None
        maps = self.unet.encode(view)
        return self.unet.pooled(maps), self.unet.decode(maps) if self._restores else None, maps

    def _encode(self, view: Tensor) -> Tensor:
        features: Tensor = self.unet(view, False)[0]
        return features


def _nothing_of(method: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for each weight that learns: DDP averages what takes part in a pass."""
    return 0.0 * torch.stack([weight.sum() for weight in method.parameters() if weight.requires_grad]).sum()


@dataclass(frozen=True)
class _Passing:
    """Which samples pass: all of a worker's, or a part of them, with the cache of what the method makes of all.

    Attributes:
        cache: none where there is no method, or where all samples pass at once.
        part: which.
        is_last: whether the gradients are whole after it.
    """

    cache: FeatureCache | None = None
    part: int = 0
    is_last: bool = True


WHOLE = _Passing()


class PretrainLosses:
    """DiRA's losses of one stage; see :class:`dira_dist.training.step.Losses`.

    The published order updates the U-Net first, then the discriminator on the same, detached restoration. Neither
    gradient depends on the other's update, so both are computed before either is applied.

    With ``execution.micro_batch`` restoration and discriminator, whose losses are means over samples, take a worker's
    samples part by part, and what they find adds up. The method's loss is one of all features, by the
    :class:`~dira_dist.training.pretrain.feature_cache.FeatureCache`: so Barlow Twins correlates and MoCo-v2 enqueues
    the whole batch, and the batch norms of SimSiam's heads see it. The encoder's batch norms see a part.

    Args:
        networks: on their device.
        parts: of the stage.
        adversarial: the adversarial part's settings.
        execution: how the step is computed.
        restorative: the restorative part's settings.

    Raises:
        RequestError: a method of feature maps is to see a part of the batch at once.
    """

    def __init__(
        self,
        networks: PretrainNetworks,
        parts: ActiveParts,
        adversarial: AdversarialConfig,
        execution: ExecutionConfig,
        restorative: RestorativeConfig = RestorativeConfig(),  # noqa: B008 (sections are immutable)
    ) -> None:
        self.weights: Mapping[str, float] = {str(part): weight for part, weight in parts.weights.items()}
        self.min_local_batch = networks.min_local_batch if parts.discriminates else 1
        self._networks, self._parts, self._execution = networks, parts, execution
        self._adversarial, self._restorative = adversarial, restorative
        self._plain = Forward(networks, parts)
        self._forward = distribute(self._plain, execution)
        self._discriminator = networks.discriminator if parts.plays else None
        self._opponent: nn.Module | None = None
        if self._discriminator is not None:
            self._opponent = distribute(Opponent(self._discriminator, adversarial), execution)
        if execution.micro_batch is not None and parts.discriminates and "maps" in networks.needs:
            raise RequestError(
                "execution.micro_batch: the method works on the feature maps of the whole batch, which are as large as "
                "what it would save; leave it out, and set model.gradient_checkpointing to true"
            )

    def backward(
        self, views: Views, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of both networks; the losses and the restoration, detached."""
        views = self._laid_out(views)
        parts = batch.parts(self._execution.micro_batch)
        if len(parts) == 1:
            return self._backward(views, batch, autocast, WHOLE)
        return self._backward_by_parts(views, batch, parts, autocast)

    def _backward_by_parts(
        self, views: Views, batch: GlobalBatch, parts: list[tuple[slice, GlobalBatch]], autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The same of parts, one after the other; the gradients are averaged over the workers with the last one's."""
        whole, cache = self._method_part(views, batch, [rows for rows, _ in parts], autocast)
        found, restored = [], []
        for number, (rows, part) in enumerate(parts):
            passing = _Passing(cache, number, is_last=number == len(parts) - 1)
            losses, restoration = self._backward(take_rows(views, rows), part, autocast, passing)
            found.append(losses)
            restored += [] if restoration is None else [restoration]
        summed = {name: torch.stack([each[name] for each in found]).sum() for name in found[0]}
        return whole | summed, torch.cat(restored) if restored else None

    def _method_part(
        self, views: Views, batch: GlobalBatch, parts: list[slice], autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], FeatureCache | None]:
        """The method's loss, where the stage has one; leaves gradients in its heads and in the features."""
        if not self._parts.discriminates:
            return {}, None
        with autocast:  # left before the parts pass, for it keeps weights that were cast without a graph
            loss, cache = self._plain.whole_loss(views, batch, parts)
        with synchronised(self._forward, when=False):
            torch.autograd.backward(self.weights[DISCRIMINATIVE] * loss)
        return {str(DISCRIMINATIVE): loss.detach()}, cache

    def _backward(
        self, views: Views, batch: GlobalBatch, autocast: torch.autocast, passing: _Passing
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of what passes at once; its losses and its restoration, detached."""
        with synchronised(self._forward, when=passing.is_last), _frozen(self._discriminator):
            pulled, losses, restoration = self._terms(views, batch, autocast, passing)
            weighted = [self.weights[name] * loss for name, loss in losses.items()]
            torch.autograd.backward(torch.stack([*pulled, *weighted]).sum())
        restored = None if restoration is None else restoration.detach()
        if self._opponent is not None:
            assert restored is not None
            with synchronised(self._opponent, when=passing.is_last):
                losses[OPPONENT] = self._discriminator_loss(views, restored, batch, autocast)
                torch.autograd.backward(losses[OPPONENT])
        return {name: loss.detach() for name, loss in losses.items()}, restored

    def after_optimizer_step(self) -> None:
        """What the method remembers of the step."""
        if self._parts.discriminates:
            assert self._networks.method is not None
            self._networks.method.after_optimizer_step(self._networks.unet.encoder)

    def _terms(
        self, views: Views, batch: GlobalBatch, autocast: torch.autocast, passing: _Passing
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor | None]:
        """What the cache of a part is pulled by, what U-Net and method minimise, unweighted, and the restoration."""
        with autocast:
            method, restoration = self._forward(views, batch, passing.cache, passing.part)
            seen = None if self._discriminator is None else discriminator_input(restoration, self._condition(views))
            scores = None if self._discriminator is None else self._discriminator(seen)
        whole = method is not None and passing.cache is None
        losses = {str(DISCRIMINATIVE): method} if whole else {}
        if RESTORATIVE in self._parts.weights:
            losses[RESTORATIVE] = batch.local_weight * restorative_loss(
                restoration, _target(views), self._restorative.loss
            )
        if scores is not None:
            losses[ADVERSARIAL] = batch.local_weight * adversarial_loss(scores, self._adversarial.loss)
        return [] if whole or method is None else [method], losses, restoration

    def _laid_out(self, views: Views) -> Views:
        second = None if views.view_2 is None else laid_out(views.view_2, self._execution)
        return replace(views, view_1=laid_out(views.view_1, self._execution), view_2=second)

    def _discriminator_loss(
        self, views: Views, restoration: Tensor, batch: GlobalBatch, autocast: torch.autocast
    ) -> Tensor:
        """One forward pass for real and restored: instance norms keep samples apart."""
        assert self._opponent is not None
        with autocast:
            loss: Tensor = self._opponent(_target(views), restoration, self._condition(views), views.mix)
        return batch.local_weight * loss

    def _condition(self, views: Views) -> Tensor | None:
        return views.view_1 if self._adversarial.conditional else None


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
