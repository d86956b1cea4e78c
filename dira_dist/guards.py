"""What is likely to go wrong with a job that is allowed all the same, each with its remedy. Reads, never refuses."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dira_dist.job import PretrainJob
from dira_dist.training.networks import Networks, networks_on_meta
from dira_dist.training.stages import StageConfig
from dira_dist.training.step import active_weights

FEW_PER_NORM = 2
"""Images of one batch norm whose statistics are mostly chance: the spread of a mean over two is 0.7 of the images'."""


def warnings(job: PretrainJob) -> list[str]:
    """What a person should know before the job starts; one text for each, with what was found and what to do."""
    return [*few_per_batch_norm(job)]


def few_per_batch_norm(job: PretrainJob) -> Iterator[str]:
    """Stages that leave one or two images to a batch norm, at the most workers that the job may have."""
    networks, workers = networks_on_meta(job.model, job.method, job.adversarial), job.resources.max_workers
    for number, stage in enumerate(job.stages):
        images = images_per_norm(networks, stage, workers, job.execution.sync_batchnorm)
        if images is not None and images <= FEW_PER_NORM:
            count = "one image" if images == 1 else f"{images} images"
            synchronised = images_per_norm(networks, stage, workers, synchronised=True)
            helps = synchronised is not None and synchronised > FEW_PER_NORM
            yield (
                f"stages.{number}.global_batch: {stage.global_batch} on {workers} workers leaves {count} to a batch "
                "norm, whose statistics are then mostly chance; raise the batch or lower resources.workers"
                + (", or, on GPUs, set execution.sync_batchnorm to true" if helps else "")
            )


def images_per_norm(networks: Networks, stage: StageConfig, workers: int, synchronised: bool) -> int | None:
    """Fewest images that a batch norm of this stage sees; none where it has no batch norms.

    A key encoder's norms are its worker's own, also where all others are synchronised.
    """
    weights = active_weights(stage.objective, stage.loss_weights)
    restores, discriminates = weights.restorative > 0 or weights.adversarial > 0, weights.discriminative > 0
    running = [networks.unet.encoder, *([networks.unet.decoder] if restores else [])]
    running += [networks.method] if discriminates else []
    learning = {norm for part in networks.learning_parts() for norm in _batch_norms(part)}
    shares = {synchronised and norm in learning for part in running for norm in _batch_norms(part)}
    return min((stage.global_batch if shared else stage.global_batch // workers for shared in shares), default=None)


def _batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    return (each for each in module.modules() if isinstance(each, _BatchNorm))
