"""Fine-tuning as a task; see :class:`dira_dist.training.task.Task`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dira_dist.config import per_axis
from dira_dist.data.batch import LocalBatch
from dira_dist.models.backbone import built_on_meta
from dira_dist.objectives.collectives import alone
from dira_dist.objectives.supervised import resolve_uncertain
from dira_dist.training.execution import prepare
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.losses import FinetuneLosses
from dira_dist.training.finetune.masks import MaskCoding, SeenMasks
from dira_dist.training.finetune.model import write_model
from dira_dist.training.finetune.networks import FinetuneNetworks, build_networks
from dira_dist.training.finetune.recipe import Classify, FinetuneOptimizer, FinetuneRecipe, FinetuneStage
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.finetune.validation import FinetuneValidator
from dira_dist.training.memory import activation_bytes
from dira_dist.training.networks import Networks
from dira_dist.training.optimizer import NamedOptimizer, ScheduledOptimizer, build_optimizer, learning_rate
from dira_dist.training.precision import resolve
from dira_dist.training.stages import Position, StageSpan
from dira_dist.training.step import MAIN, TrainStep
from dira_dist.training.task import About, Evaluation, Package, Start
from dira_dist.training.validation import History
from dira_dist.views.labelled import LabelledViews, labelled_views
from dira_dist.views.randomness import RandomPurpose, uniform, view_keys

ALONE = FinetuneSamples(per_epoch=1)
PLATEAU_FACTOR = 0.5
STATES = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers that an optimiser keeps for each weight."""


class FinetuneTask:
    """A classifier or a segmenter on what was pretrained.

    Args:
        recipe: settled.
        samples: what it learns from; none where nothing is to be trained.
    """

    def __init__(self, recipe: FinetuneRecipe, samples: FinetuneSamples | None = None) -> None:
        self.recipe, self.samples = recipe, samples or ALONE
        self._history = History(recipe.better(recipe.main_metric()))
        self._seen = None if isinstance(recipe.task, Classify) else SeenMasks(MaskCoding.of(recipe.task))

    def starting_weights(self) -> Start | None:
        """They are brought to the workers."""
        return None

    def build(self, weights: Mapping[str, Tensor] | None = None) -> FinetuneNetworks:
        """The network, its last layer always drawn anew."""
        return build_networks(self.recipe, weights)

    def inputs(self, batch: LocalBatch, span: StageSpan) -> LabelledViews:
        """The images in their frames, augmented, with targets or masks."""
        recipe = self.recipe
        assert recipe.model is not None
        if self._seen is not None:
            assert batch.masks is not None
            self._seen.note(batch.masks)
        return labelled_views(
            batch.images,
            batch.sizes_px,
            batch.sample_ids,
            batch.epochs,
            seed=recipe.seed,
            image_size=recipe.data.image_size,
            in_channels=recipe.model.in_channels,
            fit=recipe.fit,
            masks=batch.masks,
            targets=self._targets(batch),
            augmentation=recipe.augmentation,
            patches=recipe.patches,
        )

    def step(self, networks: Networks, span: StageSpan, device: torch.device) -> TrainStep[LabelledViews]:
        """The step of a stage: the last layer alone, or all of them."""
        assert isinstance(networks, FinetuneNetworks) and isinstance(span.config, FinetuneStage)
        recipe, optimizer = self.recipe, span.config.optimizer.for_batch(span.config.global_batch)
        assert isinstance(optimizer, FinetuneOptimizer)
        prepare(networks, device, recipe.execution)
        networks.set_trainable(span.config.learns)
        weights = self.samples.class_weights
        losses = FinetuneLosses(
            networks, recipe.task, None if weights is None else torch.tensor(weights, device=device), recipe.execution
        )
        learned = {name: weight for name, weight in networks.named_parameters() if weight.requires_grad}
        build = partial(build_optimizer, optimizer, factors=networks.rate_factors(optimizer))
        named = NamedOptimizer(optimizer.name, build, learned)
        scheduled = {MAIN: ScheduledOptimizer(named, partial(self._rate, optimizer, span), optimizer.lr)}
        return TrainStep(networks, losses, scheduled, precision=resolve(recipe.precision, device), device=device)

    def validator(self, networks: Networks, device: torch.device) -> FinetuneValidator:
        """Measures on ``val`` at the ends of epochs, and on ``test`` at the end."""
        assert isinstance(networks, FinetuneNetworks)
        return FinetuneValidator(self.recipe, self.samples, networks, device, self._history, self._seen)

    def evaluate(self, networks: Networks, device: torch.device, position: Position, *, title: str = "") -> Evaluation:
        """The figures on ``val``."""
        return Evaluation(dict(self.validator(networks, device).figures("val")))

    def package(self, tensors: Mapping[str, Any], position: Position, folder: Path, about: About) -> Package:
        """The network with what its report found: calibration, thresholds, figures."""
        return write_model(self.recipe, tensors["networks"], folder, about)

    def memory(self, workers: int, gpus: bool) -> dict[str, int]:
        """Weights, gradients, what the optimiser keeps, the largest local batch, and what passes of it at once."""
        recipe, model = self.recipe, self.recipe.model
        assert model is not None
        networks = built_on_meta(partial(build_networks, recipe))
        networks.train()
        samples = -(-recipe.data.global_batch // workers)
        size = per_axis(recipe.data.image_size, model.dims)

        def step() -> None:
            images = torch.empty((samples, model.in_channels, *size), device="meta")
            networks.network(images[: recipe.execution.micro_batch]).float().sum().backward()

        with alone():
            passing = activation_bytes([*networks.parameters(), *networks.buffers()], step)
        weights = sum(4 * weight.numel() for weight in networks.parameters())
        half = gpus and recipe.precision != "fp32"
        return {
            "weights": weights,
            "gradients": weights,
            "optimiser": STATES[recipe.optimizer.name] * weights,
            "activations": passing // 2 if half else passing,
        }

    def notes(self) -> Mapping[str, str]:
        """Task, start, encoder and share of the labels."""
        recipe = self.recipe
        assert recipe.model is not None
        return {
            "task": recipe.task.name,
            "start": recipe.start.pinned or recipe.start.address,
            "encoder": recipe.model.label,
            "label_fraction": f"{recipe.data.label_fraction:g}",
        }

    def _targets(self, batch: LocalBatch) -> Tensor | None:
        task = self.recipe.task
        if not isinstance(task, Classify):
            return None
        device = batch.images.device
        targets = torch.from_numpy(LabelCoding.of(task).encode(batch.labels)).to(device, non_blocking=True)
        keys = view_keys(self.recipe.seed, batch.epochs, batch.sample_ids, views=1)
        drawn = uniform(keys, RandomPurpose.UNCERTAIN, targets.shape[1])[0]
        return resolve_uncertain(targets, task.uncertain, drawn)

    def _rate(self, optimizer: FinetuneOptimizer, span: StageSpan, step: int) -> float:
        """At a step of a stage, by the figures of the epochs before it where the rate falls on plateaus."""
        fallen = self._history.reductions() if optimizer.schedule == "plateau" else 0
        rate = learning_rate(optimizer, step, steps=span.steps, steps_per_epoch=span.steps_per_epoch)
        return rate * PLATEAU_FACTOR**fallen
