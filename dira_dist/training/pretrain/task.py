"""Pretraining as a task; see :class:`dira_dist.training.task.Task`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from dira_dist.config import flatten
from dira_dist.data.batch import LocalBatch
from dira_dist.evaluation.evaluator import Evaluator
from dira_dist.models import feature_model, sent_images
from dira_dist.models.backbone import input_size
from dira_dist.models.model_files import UNET, ModelFacts, example_input, write_model_folder
from dira_dist.models.pretrained import starting_weights
from dira_dist.objectives import AdversarialConfig, RestorativeConfig
from dira_dist.objectives.parts import ActiveParts, LossWeights, Objective, active_parts
from dira_dist.training.execution import ExecutionConfig, prepare
from dira_dist.training.networks import Networks
from dira_dist.training.optimizer import (
    NamedOptimizer,
    OptimizerConfig,
    ScheduledOptimizer,
    build_optimizer,
    learning_rate,
)
from dira_dist.training.precision import Precision, resolve
from dira_dist.training.pretrain.losses import PretrainLosses
from dira_dist.training.pretrain.memory import estimate_memory
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.recipe import PretrainRecipe
from dira_dist.training.stages import Position, StageSpan
from dira_dist.training.step import MAIN, TrainStep
from dira_dist.training.task import About, Evaluation, Package, Start
from dira_dist.training.validation import NoValidation
from dira_dist.views import Views, center_view, make_views

PUBLISHED_WEIGHTS = LossWeights()
PUBLISHED_OPTIMIZER = OptimizerConfig()
PUBLISHED_ADVERSARIAL = AdversarialConfig()
PUBLISHED_RESTORATIVE = RestorativeConfig()
PLAIN_EXECUTION = ExecutionConfig()


class PretrainTask:
    """U-Net, method and discriminator, trained through the recipe's stages."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe

    def starting_weights(self) -> Start | None:
        """The U-Net's, where ``model.init`` names a file, whoever made it; what the file lacks is drawn as ever."""
        found = starting_weights(self.recipe.model, self.recipe.seed)
        return None if found is None else Start(found.weights, tuple(found.report.lines()))

    def build(self, weights: Mapping[str, Tensor] | None = None) -> PretrainNetworks:
        """The networks that any stage computes something with."""
        recipe = self.recipe
        model = recipe.model.model_copy(update={"init": None})
        return build_networks(
            model, recipe.method, recipe.adversarial, seed=recipe.seed, weights=weights, parts=recipe.parts()
        )

    def inputs(self, batch: LocalBatch, span: StageSpan) -> Views:
        """Two views of each image and, for a stage that restores, the target."""
        recipe, parts = self.recipe, self.recipe.stages[span.number].parts()
        needs = recipe.method.needs if parts.discriminates else frozenset()
        views = make_views(
            batch.images,
            batch.sizes_px,
            batch.sample_ids,
            batch.epochs,
            seed=recipe.seed,
            image_size=recipe.data.image_size,
            in_channels=recipe.model.in_channels,
            rgb=recipe.model.is_rgb,
            config=recipe.views,
            with_target=parts.restores,
            with_second="second_view" in needs,
        )
        return replace(views, labels=batch.labels) if "labels" in needs else views

    def step(self, networks: Networks, span: StageSpan, device: torch.device) -> TrainStep[Views]:
        """The step of a stage."""
        assert isinstance(networks, PretrainNetworks)
        recipe, stage = self.recipe, self.recipe.stages[span.number]
        return pretrain_step(
            networks,
            stage.objective,
            weights=stage.loss_weights,
            optimizer=stage.optimizer,
            adversarial=recipe.adversarial,
            restorative=recipe.restorative,
            execution=recipe.execution,
            precision=resolve(recipe.precision, device),
            device=device,
            global_batch=stage.global_batch,
            total_steps=span.steps,
            steps_per_epoch=span.steps_per_epoch,
        )

    def evaluate(self, networks: Networks, device: torch.device, position: Position, *, title: str = "") -> Evaluation:
        """Restoration, health of the representation and probes, of networks on ``device``."""
        from dira_dist.evaluation.pictures import evaluation_pictures  # workers need no matplotlib

        assert isinstance(networks, PretrainNetworks)
        recipe = self.recipe
        evaluator = Evaluator(
            recipe.data.val,
            recipe.probe,
            recipe.views,
            recipe.seed,
            recipe.data.image_size,
            recipe.data.storage_timeout_s,
            restores=recipe.parts().restores,
            dims=recipe.model.dims,
            conditional=recipe.adversarial.conditional,
        )
        opponent: nn.Module | None = networks.discriminator if recipe.trained_parts(position).plays else None
        found = evaluator.evaluate(networks.unet, device, opponent and opponent.eval())
        pictures = evaluation_pictures(found, recipe.adversarial.loss, title)
        return Evaluation(found.metrics, pictures, found.warnings)

    def package(self, tensors: Mapping[str, Any], position: Position, folder: Path, about: About) -> Package:
        """The encoder; the decoder and the discriminator only where they were trained."""
        parts = self.recipe.trained_parts(position)
        kept = ("encoder.", "decoder.", "segmentation_head.") if parts.restores else ("encoder.",)
        unet = {name: weight for name, weight in state_of(tensors, "unet").items() if name.startswith(kept)}
        discriminator = state_of(tensors, "discriminator") if parts.plays else None
        write_model_folder(
            folder,
            unet,
            self._facts(parts, about),
            job=about.job,
            discriminator_state=discriminator,
            pictures=about.pictures,
        )
        model = self.recipe.model
        return packaged(folder, example_input(model.in_channels, self.recipe.data.image_size, model.dims))

    def validator(self, networks: Networks, device: torch.device) -> NoValidation:
        """Nothing is chosen: the last networks are the ones to go on from."""
        return NoValidation()

    def memory(self, workers: int, gpus: bool) -> dict[str, int]:
        """See :func:`dira_dist.training.pretrain.memory.estimate_memory`."""
        return estimate_memory(self.recipe, workers, gpus)

    def notes(self) -> Mapping[str, str]:
        """Loss weights, method and encoder."""
        weights = {f"weight.{part}": str(value) for part, value in self.recipe.loss_weights.model_dump().items()}
        return weights | {"method": self.recipe.method.name, "encoder": self.recipe.model.label}

    def _facts(self, parts: ActiveParts, about: About) -> ModelFacts:
        recipe = self.recipe
        shown = recipe.model_dump(mode="json", include={"method", "loss_weights", "optimizer", "precision", "seed"})
        stages = " -> ".join(stage.objective for stage in recipe.stages)
        return ModelFacts(
            name=about.name,
            encoder=recipe.model.label,
            in_channels=recipe.model.in_channels,
            image_size=input_size(recipe.model, recipe.data.image_size),
            trained=parts.names,
            decoder=parts.restores,
            settings=flatten(shown) | {"stages": stages},
            data=about.data,
            quality=about.quality,
            origin=about.origin,
            network=recipe.model.model_dump(mode="json", exclude={"init", "gradient_checkpointing"}),
            fed=about.trained_on.fed,
        )


def pretrain_step(
    networks: PretrainNetworks,
    objective: Objective,
    *,
    weights: LossWeights = PUBLISHED_WEIGHTS,
    optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER,
    adversarial: AdversarialConfig = PUBLISHED_ADVERSARIAL,
    restorative: RestorativeConfig = PUBLISHED_RESTORATIVE,
    execution: ExecutionConfig = PLAIN_EXECUTION,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    global_batch: int | None = None,
    total_steps: int,
    steps_per_epoch: float = 1.0,
) -> TrainStep[Views]:
    """The step of one stage of DiRA.

    Args:
        networks: moved to ``device``, and set to learn what the stage needs.
        objective: what the stage computes.
        weights: of its losses.
        optimizer: of U-Net and method.
        adversarial: the discriminator's loss and optimiser.
        restorative: the loss of the restoration.
        execution: how the step is computed.
        precision: of the forward passes.
        device: of the networks.
        global_batch: samples of a step, which the rate is scaled to; left out, the rate is as it stands.
        total_steps: length of the stage, for the schedule.
        steps_per_epoch: for the warm-up, which is given in epochs.

    Raises:
        RequestError: nothing is left to learn, or the device cannot do what ``execution`` asks.
    """
    device, parts = torch.device(device), active_parts(objective, weights)
    optimizer = optimizer if global_batch is None else optimizer.for_batch(global_batch)
    prepare(networks, device, execution)
    networks.set_trainable(parts)
    losses = PretrainLosses(networks, parts, adversarial, execution, restorative)
    rate = partial(_rate, optimizer, total_steps, steps_per_epoch)
    optimizers = _optimizers(networks, optimizer, adversarial)
    scheduled = {
        MAIN: ScheduledOptimizer(optimizers[MAIN], rate, optimizer.lr),
        "discriminator": ScheduledOptimizer(optimizers["discriminator"], lambda step: adversarial.lr, adversarial.lr),
    }
    return TrainStep(networks, losses, scheduled, precision=precision, device=device)


def packaged(folder: Path, example: npt.NDArray[Any] | None = None) -> Package:
    """A folder of :func:`write_model_folder` with what runs it as an encoder: images in, features out.

    Args:
        example: see :class:`Package`.
    """
    return Package(
        folder,
        weights=UNET,
        code=[Path(str(module.__file__)) for module in (feature_model, center_view, sent_images)],
        model_type="dira-encoder",
        description="Encoders and decoders pretrained with DiRA by dira_dist.",
        example=example,
    )


def state_of(tensors: Mapping[str, Any], network: str) -> dict[str, Tensor]:
    """The weights of ``unet``, ``method`` or ``discriminator`` in a checkpoint, under their own names."""
    prefix = f"{network}."
    return {
        name.removeprefix(prefix): value.contiguous()
        for name, value in tensors["networks"].items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def _rate(config: OptimizerConfig, steps: int, steps_per_epoch: float, step: int) -> float:
    return learning_rate(config, step, steps=steps, steps_per_epoch=steps_per_epoch)


def _optimizers(
    networks: PretrainNetworks, config: OptimizerConfig, adversarial: AdversarialConfig
) -> dict[str, NamedOptimizer]:
    learned = {name: weight for name, weight in networks.named_parameters() if weight.requires_grad}
    played = {name: weight for name, weight in learned.items() if name.startswith("discriminator.")}
    own = {name: weight for name, weight in learned.items() if name not in played}
    steady = () if networks.method is None else networks.method.constant_rate_parts()
    constant = [weight for part in steady for weight in part.parameters()]
    adam = partial(torch.optim.Adam, lr=adversarial.lr, betas=adversarial.betas, fused=True)
    return {
        MAIN: NamedOptimizer(config.name, partial(build_optimizer, config, constant=constant), own),
        "discriminator": NamedOptimizer("adam", adam, played),
    }
