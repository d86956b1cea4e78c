"""What is likely to go wrong with a job that is allowed all the same, each with its remedy. Reads, never refuses."""

from collections.abc import Iterator

from torch import nn

from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.objectives import GlobalBatch
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.networks import PretrainNetworks, networks_on_meta
from dira_dist.training.pretrain.recipe import PretrainStage
from dira_dist.training.torch_internals import BatchNorm

FEW_PER_NORM = 2
"""Images of one batch norm whose statistics are mostly chance: the spread of a mean over two is 0.7 of the images'."""

RATE_TOLERANCE = 2
"""Factor by which a rate may be beside the published ones: searches go as far."""

FEW_LANES = 8
"""Places of the set that a batch is drawn from where its samples are still much like any others."""


def warnings(job: PretrainJob) -> list[str]:
    """What a person should know before the job starts; one text for each, with what was found and what to do."""
    return [*few_per_batch_norm(job), *rate_of_another_batch(job), *all_warm_up(job), *few_lanes(job)]


def few_per_batch_norm(job: PretrainJob) -> Iterator[str]:
    """Stages that leave one or two images to a batch norm, at the most workers that the job may have."""
    workers = job.resources.max_workers
    if all(min(_passing(stage, workers, job.execution)) > FEW_PER_NORM for stage in job.stages):
        return  # whatever norms there are, and to build the networks takes seconds
    networks = networks_on_meta(job.model, job.method, job.adversarial, job.parts())
    for number, stage in enumerate(job.stages):
        images = images_per_norm(networks, stage, workers, job.execution)
        if images is not None and images <= FEW_PER_NORM:
            count = "one image" if images == 1 else f"{images} images"
            micro_batch = job.execution.micro_batch
            by_parts = "" if micro_batch is None else f" in micro-batches of {micro_batch}"
            yield (
                f"stages.{number}.global_batch: {stage.global_batch} on {workers} workers{by_parts} leaves {count} to "
                "a batch norm, whose statistics are then mostly chance; "
                + ", or ".join(_against_few(networks, stage, workers, job.execution))
            )


def _against_few(
    networks: PretrainNetworks, stage: PretrainStage, workers: int, execution: ExecutionConfig
) -> Iterator[str]:
    """What gives a batch norm more images."""
    whole = execution.model_copy(update={"micro_batch": None})
    if _enough(images_per_norm(networks, stage, workers, whole)):
        yield "raise execution.micro_batch"
        return
    yield "raise the batch or lower resources.workers"
    if _enough(images_per_norm(networks, stage, workers, execution.model_copy(update={"sync_batchnorm": True}))):
        yield "on GPUs, set execution.sync_batchnorm to true"


def _enough(images: int | None) -> bool:
    return images is not None and images > FEW_PER_NORM


def images_per_norm(
    networks: PretrainNetworks, stage: PretrainStage, workers: int, execution: ExecutionConfig
) -> int | None:
    """Fewest images that a batch norm of this stage sees; none where it has no batch norms.

    A key encoder's norms are its worker's own, also where all others are synchronised. A method's heads see all images
    of a worker, also where its encoder sees a part of them at once.
    """
    parts = stage.parts()
    heads = [networks.method] if parts.discriminates and networks.method is not None else []
    learning = {norm for part in networks.trainable_parts() for norm in _batch_norms(part)}
    by_parts = {norm for part in networks.passed_by_parts(parts) for norm in _batch_norms(part)}
    norms = by_parts.union(*(_batch_norms(head) for head in heads))
    passing, local = _passing(stage, workers, execution)
    return min(
        (
            (passing if norm in by_parts else local) * (workers if execution.sync_batchnorm and norm in learning else 1)
            for norm in norms
        ),
        default=None,
    )


def _passing(stage: PretrainStage, workers: int, execution: ExecutionConfig) -> tuple[int, int]:
    """Fewest images of a worker that pass its networks at once, and all of its images."""
    batch = GlobalBatch((stage.global_batch // workers,) * workers)
    return batch.parts(execution.micro_batch)[-1][1].passing or 0, batch.local_size


def _batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    return (each for each in module.modules() if isinstance(each, BatchNorm))


def rate_of_another_batch(job: PretrainJob) -> Iterator[str]:
    """Stages with their method's optimiser at a rate that is published for other batches, and is not scaled to theirs.

    What is compared is the rate for each image of the batch, which the linear rule keeps (Goyal et al. 2017, 2.1).
    """
    own = OptimizerConfig.model_validate(dict(job.method.own_optimizer))
    smallest, largest = job.method.published_batches
    for number, stage in enumerate(job.stages):
        optimizer, batch = stage.optimizer, stage.global_batch
        lowest, highest = own.lr / largest / RATE_TOLERANCE, own.lr / smallest * RATE_TOLERANCE
        concerned = optimizer.name == own.name and optimizer.lr_batch is None and stage.parts().discriminates
        if concerned and not lowest <= optimizer.lr / batch <= highest:
            batches = f"batches of {smallest}" + (f" to {largest}" if largest != smallest else "")
            nearest = min(max(batch, smallest), largest)
            scaled = f", or lr: {own.lr:g} and lr_batch: {nearest}" if nearest != batch else ""
            yield (
                f"stages.{number}.optimizer.lr: {optimizer.lr:g} with a batch of {batch}; {job.method.name} has a rate "
                f"of {own.lr:g} for {batches}, which is {own.lr * batch / nearest:.2g} here: set lr so{scaled}"
            )


def all_warm_up(job: PretrainJob) -> Iterator[str]:
    """Stages whose rate is still rising when they end."""
    for number, stage in enumerate(job.stages):
        if stage.epochs is not None and 0 < stage.epochs <= stage.optimizer.warmup_epochs:
            yield (
                f"stages.{number}.optimizer.warmup_epochs: {stage.optimizer.warmup_epochs:g}, and the stage has "
                f"{stage.epochs:g} epochs, so that its rate never gets to {stage.optimizer.lr:g}; set it to a tenth of "
                "the stage, or train for longer"
            )


def few_lanes(job: TrainingJob) -> Iterator[str]:
    """Batches that a few places of the set make up: neighbours in it, which may be of one patient or class."""
    batches = sorted({stage.global_batch for stage in job.stage_configs()})
    if job.lanes < min(FEW_LANES, *batches):
        yield (
            f"data.global_batch: batches of {', '.join(map(str, batches))} "
            f"are read in {job.lanes} lanes, each shuffled over {job.data.shuffle_window} neighbours, so that one "
            f"batch sees few places of the set; take batches with a common divisor of {FEW_LANES} at least (and leave "
            "data.lanes out), or raise data.shuffle_window"
        )
