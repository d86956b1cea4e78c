"""What a fine-tuning minimises."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dira_dist.objectives import GlobalBatch
from dira_dist.objectives.supervised import classification_loss, count_known, mask_targets, segmentation_loss
from dira_dist.training.execution import ExecutionConfig, distribute, laid_out, synchronised
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.recipe import Classify, Segment
from dira_dist.views import LabelledViews, take_rows

SUPERVISED = "supervised"


class FinetuneLosses:
    """The one loss of a fine-tuning; see :class:`dira_dist.training.step.Losses`.

    Args:
        networks: on their device.
        task: the section, settled.
        class_weights: (K,) how much the positives of each class count; none: all alike.
        execution: how the step is computed.
    """

    weights: Mapping[str, float] = {SUPERVISED: 1.0}
    min_local_batch = 1

    def __init__(
        self,
        networks: FinetuneNetworks,
        task: Classify | Segment,
        class_weights: Tensor | None,
        execution: ExecutionConfig,
    ) -> None:
        self._task, self._class_weights, self._execution = task, class_weights, execution
        self._forward = distribute(networks.network, execution)

    def backward(
        self, views: LabelledViews, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of the network; its loss and its logits, detached.

        The loss is a sum over samples, so with ``execution.micro_batch`` the gradients of parts add up.
        """
        parts, known = batch.parts(self._execution.micro_batch), self._known_entries(views)
        found = []
        for number, (rows, part) in enumerate(parts):
            with synchronised(self._forward, when=number == len(parts) - 1):
                found.append(self._backward(take_rows(views, rows), part, known, autocast))
        losses, logits = zip(*found, strict=True)
        return {SUPERVISED: torch.stack(losses).sum()}, torch.cat(logits)

    def after_optimizer_step(self) -> None: ...

    def _backward(
        self, views: LabelledViews, batch: GlobalBatch, known: Tensor | None, autocast: torch.autocast
    ) -> tuple[Tensor, Tensor]:
        with autocast:
            logits: Tensor = self._forward(laid_out(views.images, self._execution))
        loss = self._loss(logits, views, batch, known)
        torch.autograd.backward(loss)
        return loss.detach(), logits.detach()

    def _known_entries(self, views: LabelledViews) -> Tensor | None:
        """Of a classifier: what its loss is averaged over, in the global batch and not in a part of it."""
        if not isinstance(self._task, Classify):
            return None
        assert views.targets is not None
        return count_known(views.targets, LabelCoding.of(self._task).kind)

    def _loss(self, logits: Tensor, views: LabelledViews, batch: GlobalBatch, known: Tensor | None) -> Tensor:
        if isinstance(self._task, Classify):
            assert views.targets is not None
            return classification_loss(
                logits,
                views.targets,
                kind=LabelCoding.of(self._task).kind,
                weights=self._class_weights,
                focal_gamma=self._task.focal_gamma if self._task.imbalance == "focal" else 0.0,
                batch=batch,
                known_entries=known,
            )
        assert views.masks is not None
        coding = MaskCoding.of(self._task)
        targets, valid = mask_targets(views.masks, coding.kind, coding.values)
        return segmentation_loss(logits, targets, valid, loss=self._task.loss, kind=coding.kind, batch=batch)
