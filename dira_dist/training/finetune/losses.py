"""What a fine-tuning minimises."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dira_dist.objectives import GlobalBatch
from dira_dist.objectives.supervised import classification_loss, mask_targets, segmentation_loss
from dira_dist.training.execution import ExecutionConfig, distribute, laid_out
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.recipe import Classify, Segment
from dira_dist.views.labelled import LabelledViews

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
        """Gradients of the network; its loss and its logits, detached."""
        with autocast:
            logits: Tensor = self._forward(laid_out(views.images, self._execution))
        loss = self._loss(logits, views, batch)
        torch.autograd.backward(loss)
        return {SUPERVISED: loss.detach()}, logits.detach()

    def after_optimizer_step(self) -> None: ...

    def _loss(self, logits: Tensor, views: LabelledViews, batch: GlobalBatch) -> Tensor:
        if isinstance(self._task, Classify):
            assert views.targets is not None
            return classification_loss(
                logits,
                views.targets,
                kind=LabelCoding.of(self._task).kind,
                weights=self._class_weights,
                focal_gamma=self._task.focal_gamma if self._task.imbalance == "focal" else 0.0,
                batch=batch,
            )
        assert views.masks is not None
        coding = MaskCoding.of(self._task)
        targets, valid = mask_targets(views.masks, coding.kind, coding.values)
        return segmentation_loss(logits, targets, valid, loss=self._task.loss, kind=coding.kind, batch=batch)
