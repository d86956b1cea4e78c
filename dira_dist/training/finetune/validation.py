"""The networks of a fine-tuning measured on its workers: on ``val`` after epochs, and on ``test`` at the end."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from dira_dist.evaluation.segmentation import val_figures
from dira_dist.objectives.collectives import my_place
from dira_dist.training.finetune.localization import locate_lesions
from dira_dist.training.finetune.masks import MaskCoding, SeenMasks
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.prediction import SetReader, predict_classes, predict_masks
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.finetune.report import classifier_report, segmenter_report
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.stages import Position, StageSpan
from dira_dist.training.validation import History, Report, Verdict

_HISTORY = "validations"


class FinetuneValidator:
    """See :class:`dira_dist.training.validation.Validator`.

    Args:
        recipe: settled.
        samples: what the run learns from and is judged on.
        networks: that are trained, on their device.
        device: of the networks.
        history: of this run's validations.
        seen: the masks that are learned from, of a segmenter.
    """

    def __init__(
        self,
        recipe: FinetuneRecipe,
        samples: FinetuneSamples,
        networks: FinetuneNetworks,
        device: torch.device,
        history: History,
        seen: SeenMasks | None = None,
    ) -> None:
        self._recipe, self._samples, self._history, self._seen = recipe, samples, history, seen
        self._reader = SetReader(recipe, samples, networks, device)

    @property
    def chosen(self) -> str:
        """Label of the best epoch's checkpoint."""
        return self._history.chosen

    def due(self, span: StageSpan, position: Position) -> bool:
        """Whether an epoch, or as many as lie between two validations, has ended with this step; or the run has."""
        every = self._recipe.early_stopping.every_epochs * self._samples.per_epoch
        before = position.samples - span.config.global_batch
        last = span.number == len(self._recipe.stage_configs()) - 1
        return position.samples // every > before // every or (last and position.step_in_stage == span.steps)

    def validate(self, position: Position) -> Verdict:
        """Measures ``val``, notes the figure that counts, and says whether it has not become better for too long.

        Raises:
            RequestError: masks that were learned from, or of ``val``, hold values that are no class's.
        """
        if self._seen is not None:
            self._seen.check("data.train")
        figures, stopping = self.figures("val"), self._recipe.early_stopping
        value = figures.get(self._recipe.main_metric(), math.nan)
        label = f"step-{position.step}"
        is_best = self._history.add(value, label)
        waited = self._history.waited() * stopping.every_epochs
        ends = stopping.patience_epochs is not None and waited >= stopping.patience_epochs
        return Verdict(figures, label if is_best else "", ends)

    def figures(self, name: str) -> dict[str, float]:
        """What the networks are worth on a set, on all workers alike; a collective."""
        if isinstance(self._recipe.task, Classify):
            return predict_classes(self._reader, name).figures()
        coding = MaskCoding.of(self._recipe.task)
        return val_figures(predict_masks(self._reader, name), coding.outputs[coding.measured])

    def report(self) -> Report | None:
        """What the chosen networks are worth on ``val`` and, looked at once, ``test``; a collective."""
        names = [name for name in ("val", "test") if self._recipe.data.address_of(name) is not None]
        if isinstance(self._recipe.task, Classify):
            classes = {name: predict_classes(self._reader, name) for name in names}
            localization = locate_lesions(self._reader, names[-1])
            return classifier_report(self._recipe, self._samples, classes, localization) if my_place()[0] == 0 else None
        masks = {name: predict_masks(self._reader, name, in_full=True) for name in names}
        return segmenter_report(self._recipe, self._samples, masks) if my_place()[0] == 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {_HISTORY: self._history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if _HISTORY in state:
            self._history.load_state_dict(state[_HISTORY])
