"""How much device memory a worker of a pretraining takes, from shapes alone."""

import torch
from torch import Tensor

from dira_dist.config import per_axis
from dira_dist.objectives import AdversarialConfig, GlobalBatch
from dira_dist.objectives.parts import ActiveParts
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.memory import activation_bytes
from dira_dist.training.pretrain.losses import PretrainLosses
from dira_dist.training.pretrain.networks import PretrainNetworks, networks_on_meta
from dira_dist.training.pretrain.recipe import PretrainRecipe, PretrainStage
from dira_dist.views import Views


def estimate_memory(recipe: PretrainRecipe, workers: int, gpus: bool) -> dict[str, int]:
    """Bytes of one worker's device memory by purpose, for the stage that needs most.

    Counted on a step of the largest local batch, gradient checkpointing included. Under bf16 what passes is halved,
    which is a little too much; the discriminator's own step and the allocator's slack come on top.

    Args:
        recipe: of the job.
        workers: the fewest that share a global batch.
        gpus: whether they have GPUs, which compute in bf16 unless told otherwise.
    """
    networks = networks_on_meta(recipe.model, recipe.method, recipe.adversarial, recipe.parts())
    stages = (_stage_memory(recipe, networks, stage, workers, gpus) for stage in recipe.stages)
    return max(stages, key=lambda purposes: sum(purposes.values()))


def stage_activation_bytes(
    networks: PretrainNetworks, parts: ActiveParts, adversarial: AdversarialConfig, samples: int, size: tuple[int, ...]
) -> int:
    """The most that the U-Net's step takes in float32 beside what lasts: views, activations, gradients.

    Args:
        networks: on the meta device; gradient checkpointing is as it is set.
        parts: of the stage.
        adversarial: the adversarial part's settings.
        samples: of one worker.
        size: of the views in pixels, along each axis.
    """
    networks.train().set_trainable(parts)
    losses = PretrainLosses(networks, parts, adversarial, ExecutionConfig(channels_last=False))

    def loss() -> Tensor:
        shape = (samples, networks.unet.config.in_channels, *size)
        first, second = (torch.empty(shape, device="meta") for _ in range(2))
        views = Views(first, second, first[:, : networks.unet.restored_channels], torch.arange(samples))
        autocast = torch.autocast("cpu", enabled=False)
        terms, _ = losses.terms(views, GlobalBatch((samples,)), autocast)
        return torch.stack(list(terms.values())).sum()

    taken = activation_bytes([*networks.parameters(), *networks.buffers()], loss)
    networks.zero_grad()
    return taken


def _stage_memory(
    recipe: PretrainRecipe, networks: PretrainNetworks, stage: PretrainStage, workers: int, gpus: bool
) -> dict[str, int]:
    samples = -(-stage.global_batch // workers)
    size = per_axis(recipe.data.image_size, recipe.model.dims)
    passing = stage_activation_bytes(networks, stage.parts(), recipe.adversarial, samples, size)
    memory = [] if networks.method is None else [*networks.method.parameters(), *networks.method.buffers()]
    beside = [each for each in memory if not each.requires_grad]
    learned = {
        name: sum(each.nbytes for each in part.parameters() if each.requires_grad)
        for name, part in networks.named_children()
    }
    halved = recipe.precision == "bf16" or (recipe.precision is None and gpus)
    adam = 2 * learned.pop("discriminator", 0)
    weights = {id(each) for each in beside}
    return {
        "weights": sum(each.nbytes for each in networks.parameters() if id(each) not in weights),
        "optimisers": adam + (2 if stage.optimizer.name == "adamw" else 1) * sum(learned.values()),
        "key encoder and queue": sum(each.nbytes for each in beside),
        "activations and gradients": passing // 2 if halved else passing,
    }
