"""How much device memory a worker of a pretraining takes, from shapes alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dira_dist.config import per_axis
from dira_dist.objectives import AdversarialConfig, GlobalBatch, Method
from dira_dist.objectives.collectives import alone
from dira_dist.objectives.method import MethodInputs, Need
from dira_dist.objectives.parts import ActiveParts
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.memory import activation_bytes
from dira_dist.training.pretrain.losses import PretrainLosses
from dira_dist.training.pretrain.networks import PretrainNetworks, networks_on_meta
from dira_dist.training.pretrain.recipe import PretrainRecipe, PretrainStage
from dira_dist.views import Views

KIND: Mapping[str, tuple[int, ...]] = {"kind": ()}


def estimate_memory(recipe: PretrainRecipe, workers: int, gpus: bool) -> dict[str, int]:
    """Bytes of one worker's device memory by purpose, for the stage that needs most.

    Counted on a step of the largest local batch, gradient checkpointing and micro-batches included. Under bf16 what
    passes is halved, which is a little too much, but never below the gradients: they stay in float32 until the
    optimiser's step, which micro-batches do not make smaller. The allocator's slack comes on top. Other workers are not
    spoken to, so one of them may ask by itself.

    Args:
        recipe: of the job.
        workers: the fewest that share a global batch.
        gpus: whether they have GPUs, which compute in bf16 unless told otherwise.
    """
    networks = networks_on_meta(recipe.model, recipe.method, recipe.adversarial, recipe.parts())
    with alone():
        stages = [_stage_memory(recipe, networks, stage, workers, gpus) for stage in recipe.stages]
    return max(stages, key=lambda purposes: sum(purposes.values()))


def stage_activation_bytes(
    networks: PretrainNetworks,
    parts: ActiveParts,
    adversarial: AdversarialConfig,
    samples: int,
    size: tuple[int, ...],
    labels: Mapping[str, Any] | None = None,
    micro_batch: int | None = None,
    distortion: Mapping[str, tuple[int, ...]] = KIND,
) -> int:
    """The most that a step's passes take in float32 beside what lasts: views, activations, gradients.

    Args:
        networks: on the meta device; gradient checkpointing is as it is set.
        parts: of the stage.
        adversarial: the adversarial part's settings.
        samples: of one worker.
        size: of the views in pixels, along each axis.
        labels: of each sample, for a method that needs them; without them its own part is not counted.
        micro_batch: samples that pass at once; none: all of them.
        distortion: labels of the distortion by name, with the shape of a sample's.
    """
    networks.train().set_trainable(parts)
    if "labels" in networks.needs and labels is None:
        networks = _without_method(networks)
    needs = networks.needs if parts.discriminates else frozenset[Need]()
    execution = ExecutionConfig(channels_last=False, micro_batch=micro_batch)
    losses = PretrainLosses(networks, parts, adversarial, execution)

    def step() -> None:
        shape = (samples, networks.unet.config.in_channels, *size)
        first = torch.empty(shape, device="meta")
        views = Views(
            first,
            torch.empty(shape, device="meta") if "second_view" in needs else None,
            first[:, : networks.unet.restored_channels] if parts.restores else None,
            torch.arange(samples),
            {
                name: torch.empty((samples, *each), dtype=torch.int64, device="meta")
                for name, each in distortion.items()
            },
            (labels,) * samples if labels is not None and "labels" in needs else None,
            torch.empty(samples, device="meta"),
        )
        autocast = torch.autocast("cpu", enabled=False)
        losses.backward(views, GlobalBatch((samples,)), autocast)

    taken = activation_bytes([*networks.parameters(), *networks.buffers()], step)
    networks.zero_grad()
    return taken


class _EncodedAlone(Method):
    """In place of a method whose labels nobody can make up: its views pass the encoder, and no more is computed."""

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.pooled is not None
        loss = inputs.pooled.mean()
        return loss if inputs.second_view is None else loss + inputs.encode(inputs.second_view).mean()


def _without_method(networks: PretrainNetworks) -> PretrainNetworks:
    """The same U-Net and discriminator, set to learn what they were, and what the method asks for beside labels."""
    pooled: frozenset[Need] = frozenset({"pooled"})
    needs = (networks.needs - {"labels"}) | pooled
    return PretrainNetworks(networks.unet, _EncodedAlone(), networks.discriminator, needs=needs)


def _stage_memory(
    recipe: PretrainRecipe, networks: PretrainNetworks, stage: PretrainStage, workers: int, gpus: bool
) -> dict[str, int]:
    samples = -(-stage.global_batch // workers)
    size = per_axis(recipe.data.image_size, recipe.model.dims)
    labels = recipe.method.example_labels
    micro_batch = recipe.execution.micro_batch
    asked = recipe.method.distortion_labels
    passing = stage_activation_bytes(
        networks, stage.parts(), recipe.adversarial, samples, size, labels, micro_batch, asked
    )
    memory = [] if networks.method is None else [*networks.method.parameters(), *networks.method.buffers()]
    beside = [each for each in memory if not each.requires_grad]
    learned = {
        name: sum(each.nbytes for each in part.parameters() if each.requires_grad)
        for name, part in networks.named_children()
    }
    halved = recipe.precision == "bf16" or (recipe.precision in (None, "auto") and gpus)
    gradients = sum(learned.values())
    adam = 2 * learned.pop("discriminator", 0)
    weights = {id(each) for each in beside}
    return {
        "weights": sum(each.nbytes for each in networks.parameters() if id(each) not in weights),
        "optimisers": adam + (2 if stage.optimizer.name == "adamw" else 1) * sum(learned.values()),
        "key encoder and queue": sum(each.nbytes for each in beside),
        "activations and gradients": max(passing // 2, gradients) if halved else passing,
    }
