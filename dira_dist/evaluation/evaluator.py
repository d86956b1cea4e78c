"""What the networks are worth at a moment: restoration, health of the representation, and a probe."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dira_dist.config import per_axis
from dira_dist.data.batch import LocalBatch
from dira_dist.data.lanes import ReadOptions
from dira_dist.data.order import draw_spread
from dira_dist.data.shards import read_index
from dira_dist.data.validation import ValidationStream
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.features import extract_features, frozen
from dira_dist.evaluation.probes import LabelledSet, class_names, probe_metric_names, probe_metrics
from dira_dist.evaluation.rank import representation_health, view_distances
from dira_dist.evaluation.restoration import psnr, ssim
from dira_dist.metrics import ALIGNMENT, COLLAPSED, COMMON_GROUPS, FEATURE_STD, PSNR, RANKME, SSIM, UNIFORMITY
from dira_dist.models.backbone import Backbone
from dira_dist.objectives import discriminator_input
from dira_dist.views import ViewsConfig, make_views

BATCH = 64
BATCH_VOXELS = 2**20
"""Of cubes at once: eight of the published 64 x 64 x 32."""
PICTURED = 8
MOST_IMAGES = 2048
MOST_PROBE_IMAGES = 4096


@dataclass(frozen=True)
class Restorations:
    """The first few validation images on the CPU: distorted ``(n, C, *S)``, restored and target ``(n, 1, *S)``."""

    distorted: Tensor
    restored: Tensor
    target: Tensor


@dataclass(frozen=True)
class PatchScores:
    """The discriminator's scores of the images of :class:`Restorations`, ``(n, 1, *P)`` each, on the CPU."""

    target: Tensor
    restored: Tensor


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``(N, C)`` of the probe's ``val`` set on the CPU, and the N names of their classes."""

    features: Tensor
    classes: list[str]


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, ready for a tracker, and what there is to look at.

    Attributes:
        restorations: where there is a validation set, and something that restores.
        scores: where a discriminator was given as well.
        features: where there is a probe.
        warnings: what a person should know of these figures.
    """

    metrics: dict[str, float]
    restorations: Restorations | None = None
    scores: PatchScores | None = None
    features: LabelledFeatures | None = None
    warnings: tuple[str, ...] = ()


RESTORATION_METRICS = (PSNR.name, SSIM.name)
VAL_METRICS = tuple(metric.name for metric in (RANKME, FEATURE_STD, UNIFORMITY, COLLAPSED, ALIGNMENT))


def reported_metrics(val: str | None, probe: ProbeConfig | None, *, restores: bool = True) -> list[str]:
    """Names of the figures that a :class:`Evaluator` with these settings gives."""
    of_val = (*(RESTORATION_METRICS if restores else ()), *VAL_METRICS) if val is not None else ()
    return [*of_val, *(probe_metric_names(probe) if probe is not None else ())]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a U-Net on a validation set and, where given, labelled probe sets. Trains nothing, keeps nothing.

    Validation views are those of epoch 0 under the job's seed, so that all evaluations of a job see the same ones. At
    most 2,048 validation images and 4,096 of each probe set are looked at, drawn over the whole set under that seed.

    Attributes:
        val: address of the validation set, or none.
        probe: labelled sets, or none.
        seed: the job's.
        image_size: pixels of the views, a side or one for each axis.
        timeout_s: seconds of trouble with the storage that are borne.
        restores: whether the decoder is ever trained; the restorations of one that is not mean nothing.
        dims: spatial axes of the views.
        conditional: whether the discriminator sees images beside the distorted ones.
    """

    val: str | None
    probe: ProbeConfig | None
    views: ViewsConfig
    seed: int
    image_size: int | Sequence[int]
    timeout_s: float = 300.0
    restores: bool = True
    dims: int = 2
    conditional: bool = False

    @torch.no_grad()
    def evaluate(self, unet: Backbone, device: torch.device, discriminator: nn.Module | None = None) -> Evaluation:
        """Figures named ``val/...`` and ``probe/...``; whatever has no set to be measured on is left out.

        Args:
            unet: on ``device``; its mode is restored.
            device: where to compute.
            discriminator: on ``device``; give it from the stage on in which it learns. Before, its scores mean nothing.
        """
        metrics: dict[str, float] = {}
        restorations, scores, labelled = None, None, None
        warnings: tuple[str, ...] = ()
        with frozen(unet):
            if self.val is not None:
                figures, restorations = self._of_views(unet, self.val, device)
                features = self._features(unet, self.val, device, MOST_IMAGES).features
                metrics |= figures | representation_health(features).as_metrics()
                if discriminator is not None and restorations is not None:
                    scores = self._scores(discriminator, restorations, device)
            if self.probe is not None:
                figures, labelled = self._probe(unet, self.probe, device)
                metrics |= figures
                warnings = _warnings(figures)
        return Evaluation(metrics, restorations, scores, labelled, warnings)

    def _scores(self, discriminator: nn.Module, shown: Restorations, device: torch.device) -> PatchScores:
        distorted = shown.distorted if self.conditional else None
        seen = (discriminator_input(images, distorted).to(device) for images in (shown.target, shown.restored))
        return PatchScores(*(discriminator(images).float().cpu() for images in seen))

    def _batch_size(self) -> int:
        """Images at once; of cubes, which are larger than they look, as many as their voxels allow."""
        return BATCH if self.dims == 2 else max(1, min(BATCH, BATCH_VOXELS // math.prod(per_axis(self.image_size, 3))))

    def _batches(self, address: str, most: int) -> Iterator[LocalBatch]:
        options, index = ReadOptions(storage_timeout_s=self.timeout_s), read_index(address)
        ids = draw_spread([shard.samples for shard in index.shards], most, self.seed)
        with ValidationStream(address, options, batch_size=self._batch_size(), ids=ids, index=index) as stream:
            yield from stream

    def _of_views(
        self, unet: Backbone, address: str, device: torch.device
    ) -> tuple[dict[str, float], Restorations | None]:
        """The alignment of two views' features; of what restores PSNR, SSIM and images to look at."""
        found: dict[str, list[Tensor]] = {}
        shown: list[tuple[Tensor, ...]] = []
        for batch in self._batches(address, MOST_IMAGES):
            views = make_views(
                batch.images.to(device),
                batch.sizes_px.to(device),
                batch.sample_ids.to(device),
                torch.zeros_like(batch.epochs, device=device),
                seed=self.seed,
                image_size=self.image_size,
                in_channels=unet.config.in_channels,
                rgb=unet.config.is_rgb,
                config=self.views,
                with_target=self.restores,
            )
            assert views.view_2 is not None
            maps = unet.encode(views.view_1)
            figures = {ALIGNMENT.name: view_distances(unet.pooled(maps), unet.pooled(unet.encode(views.view_2)))}
            if views.target is not None:
                restored = unet.decode(maps)
                figures |= {PSNR.name: psnr(restored, views.target), SSIM.name: ssim(restored, views.target)}
                if sum(len(images) for images, *_ in shown) < PICTURED:
                    shown.append(tuple(images.cpu() for images in (views.view_1, restored, views.target)))
            for name, values in figures.items():
                found.setdefault(name, []).append(values[batch.valid.to(device)])
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}, _pictured(shown)

    def _features(self, unet: Backbone, address: str, device: torch.device, most: int) -> LabelledSet:
        """Features of the samples that can be decoded, and all their labels by name."""
        labels: list[Any] = []
        groups: list[str] = []
        valid: list[Tensor] = []

        def images() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self._batches(address, most):
                valid.append(batch.valid)
                labels.extend(compress(batch.labels, batch.valid.tolist()))
                groups.extend(compress(batch.groups, batch.valid.tolist()))
                yield batch.images, batch.sizes_px

        features = extract_features(
            unet.encoder, images(), image_size=self.image_size, in_channels=unet.config.in_channels, device=device
        )
        return LabelledSet(features[torch.cat(valid)], labels, groups)

    def _probe(
        self, unet: Backbone, probe: ProbeConfig, device: torch.device
    ) -> tuple[dict[str, float], LabelledFeatures]:
        train, val = (
            _labelled(self._features(unet, address, device, MOST_PROBE_IMAGES), probe.label)
            for address in (probe.train, probe.val)
        )
        return probe_metrics(probe, train, val), LabelledFeatures(val.features, class_names(val.labels))


def _pictured(shown: list[tuple[Tensor, ...]]) -> Restorations | None:
    """The first few of some batches' distorted views, restorations and targets."""
    return Restorations(*(torch.cat(images)[:PICTURED] for images in zip(*shown, strict=True))) if shown else None


def _labelled(found: LabelledSet, name: str) -> LabelledSet:
    """Those samples that have the label: an archive's table may leave it open for some."""
    kept = found.take(np.flatnonzero([known.get(name) is not None for known in found.labels]))
    return replace(kept, labels=[known[name] for known in kept.labels])


def _warnings(figures: dict[str, float]) -> tuple[str, ...]:
    common = figures[COMMON_GROUPS.name]
    if not common:
        return ()
    return (
        f"probe: {common:.1%} of the images read of probe.val are of patients (or are images) that probe.train holds, "
        "too; the probes learned nothing from those. Split by patient: dira-dist shard ... --group-by patient",
    )
