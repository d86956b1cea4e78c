"""Recipes that are allowed and not likely to work: queue, batch, views and epochs, against the size of the set.

Each guard is a function of the job and the training set's index alone, and yields texts that say what was found and
what to do. Where a bound is the literature's or a rule of thumb, and not measured here, it says so.
"""

import math
from collections.abc import Iterator

from dira_dist.data.shards import ShardSetIndex
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.training.pretrain.recipe import PretrainStage

STALE_QUEUE = 0.4
"""Steps that keys wait in the queue, as a share of the key encoder's memory of 1 / (1 - momentum) steps.

The published 65,536 keys at batch 256 and momentum 0.999 make 0.26, and work. 4,096 keys at batch 64 and momentum 0.99
make 0.64: the network learned to tell old keys from new ones. Measured on 3,600 radiographs, the loss fell to 5.6 and
rose to 7.7 as the rate, and with it what age makes of a key, went down; the probe ended below an untrained encoder's.
"""
PUBLISHED_QUEUE = 0.25
STALE_QUEUE_LATER = 5.0
"""The same for a stage that goes on from an earlier one, whose encoder changes slowly: the published third stage, at
batch 16, makes 4.1."""
SIGMA_AT_PX = 224
"""Side of the view that `views.blur.sigma_px` is given for."""
FULL_WIDTH_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian: what lies closer together is not seen apart."""
IMAGES_PER_EPOCH = 10
"""A rule of thumb: 800 epochs, the default and published length, ask for 8,000 images."""


def recipe_warnings(job: PretrainJob, train: ShardSetIndex) -> list[str]:
    """What a person should know of a recipe before the job starts; one text for each.

    Args:
        job: what is to run.
        train: index of its training set.
    """
    return [
        *stale_queue(job),
        *queue_of_own_images(job, train.samples),
        *small_batch(job),
        *small_crops(job, train),
        *strong_blur(job),
        *few_images(job, train.samples),
    ]


def stale_queue(job: PretrainJob) -> Iterator[str]:
    """Keys that wait for longer than the key encoder stays the same, in each stage that discriminates."""
    if not isinstance(job.method, MoCoV2Config):
        return
    size, rest = job.method.queue_size, 1 - job.method.momentum
    for place, (number, stage) in enumerate(_discriminating(job)):
        waiting = size / stage.global_batch
        if waiting * rest > (STALE_QUEUE_LATER if place else STALE_QUEUE):
            fitting = max(stage.global_batch, round(PUBLISHED_QUEUE * stage.global_batch / rest))
            momentum = math.ceil(1e4 * (1 - PUBLISHED_QUEUE / waiting)) / 1e4
            yield (
                f"method.queue_size: {size} keys at a batch of {stage.global_batch} (stages.{number}) wait "
                f"{waiting:.0f} steps, and the key encoder's momentum of {job.method.momentum:g} keeps it alike for "
                f"{1 / rest:.0f}: the network can tell old keys from new ones instead of images, so that the loss "
                f"falls and nothing is learned; lower method.queue_size to {fitting}, or raise method.momentum to "
                f"{momentum:g}"
            )


def queue_of_own_images(job: PretrainJob, images: int) -> Iterator[str]:
    """A queue that goes through the whole training set: each image's own earlier keys count as those of others."""
    if isinstance(job.method, MoCoV2Config) and any(_discriminating(job)) and job.method.queue_size >= images:
        yield (
            f"method.queue_size: {job.method.queue_size} keys of {images} training images hold earlier keys of the "
            f"very image that is told from them; lower it to {max(1, images // 2)} or less, or add images"
        )


def small_batch(job: PretrainJob) -> Iterator[str]:
    """Batches too small for the method to estimate its loss from."""
    least = job.method.least_batch
    for number, stage in _discriminating(job):
        if stage.global_batch < least:
            yield (
                f"stages.{number}.global_batch: {stage.global_batch} is too small for {job.method.name} with these "
                f"settings, {job.method.why_least_batch}; raise it to {least} or more, or take the method moco_v2, "
                "whose other images come from a queue"
            )


def small_crops(job: PretrainJob, train: ShardSetIndex) -> Iterator[str]:
    """Crops that show less of an image than an encoder's last feature map can place."""
    scale = job.views.crop.scale[0]
    side = min(_in_plane_px(job), train.image.height_px.median, train.image.width_px.median)
    shown, cell = scale ** (1 / train.image.axes) * side, job.model.cell_px
    if shown >= cell:
        return
    wanted = math.ceil(100 * (cell / side) ** train.image.axes) / 100
    raised = f"raise its low end to {wanted:g}, or take larger images" if wanted <= 1 else "take larger images"
    yield (
        f"views.crop.scale: from {scale:g} of the whole on, a crop shows {shown:.0f} px a side of images of {side} px, "
        f"fewer than the {cell} of one cell of the encoder's last feature map; {raised} (data.image_size, "
        "and --image-size of dira-dist shard)"
    )


def strong_blur(job: PretrainJob) -> Iterator[str]:
    """Blur, which scales with the view, that leaves fewer details of it than the last feature map can place."""
    sigma = job.views.blur.sigma_px[1]
    cells = job.model.cell_px  # as many details as one cell of the last feature map has pixels
    strongest = SIGMA_AT_PX / (FULL_WIDTH_PER_SIGMA * cells)
    if job.views.blur.probability > 0 and sigma > strongest:
        own, details = sigma * _in_plane_px(job) / SIGMA_AT_PX, cells * strongest / sigma
        yield (
            f"views.blur.sigma_px: up to {sigma:g} px at {SIGMA_AT_PX} px, {own:.2g} px here, leaves "
            f"{details:.0f} details along a side of the view; lower it to {math.floor(10 * strongest) / 10:g} or less "
            "(published: 2)"
        )


def few_images(job: PretrainJob, images: int) -> Iterator[str]:
    """More passes over the images than there are images for: they are learned by heart."""
    epochs = job.plan(images).samples / images
    most = images / IMAGES_PER_EPOCH
    if epochs > most:
        yield (
            f"stages: {epochs:.0f} epochs of {images:,} images; so few are learned by heart after about "
            f"{max(1, round(most))} (a rule of thumb: {IMAGES_PER_EPOCH} images for each epoch): shorten the stages, "
            "or add images, which need no labels"
        )


def _in_plane_px(job: PretrainJob) -> int:
    """The shorter side of a view, of a slice (x, y) where views are cubes, which may well have few slices."""
    size = job.data.image_size
    return size if isinstance(size, int) else min(size[:2])


def _discriminating(job: PretrainJob) -> Iterator[tuple[int, PretrainStage]]:
    """Number and settings of the stages that have the discriminative part."""
    for number, stage in enumerate(job.stages):
        if stage.parts().discriminates:
            yield number, stage
