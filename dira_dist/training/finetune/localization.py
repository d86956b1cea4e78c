"""Where a fine-tuned classifier looks, beside where lesions lie: each worker its part of a set, all of it gathered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dira_dist.data.batch import LocalBatch
from dira_dist.evaluation.boxes import BoundingBox
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.features import frozen
from dira_dist.evaluation.localization import (
    MODEL,
    UNTRAINED,
    LocalizationCase,
    Seen,
    Threshold,
    TrueLesion,
    as_shares,
    baseline_figures,
    ious_by_threshold,
    known_boxes,
    lesion_of_mask,
    made_boxes,
    map_figures,
    mean_boxes,
    tuned_thresholds,
)
from dira_dist.evaluation.planes import boxes_in_planes, fullest_place, three_planes
from dira_dist.models.saliency import as_share, heat_maps, in_image
from dira_dist.models.supervised import Classifier
from dira_dist.objectives.collectives import gather
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.networks import FinetuneNetworks, build_networks
from dira_dist.training.finetune.prediction import SetReader
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.finetune.samples import lesions_known
from dira_dist.views.labelled import LabelledViews

SHOWN = 24
_SHOWN_PX = 320


@dataclass(frozen=True)
class Localization:
    """What was found of a set.

    Attributes:
        name: of the set.
        cases: in its order.
        thresholds: share of the largest heat, or ``otsu``, by class.
        mean_boxes: classes whose usual box is known, from ``val``.
    """

    name: str
    cases: Sequence[LocalizationCase]
    thresholds: Mapping[str, Threshold]
    mean_boxes: Mapping[str, BoundingBox] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """An image of a batch, a class that it has, and where its lesion lies."""

    row: int
    sample_id: int
    label: str
    place: int
    truth: TrueLesion


def locate_lesions(reader: SetReader, name: str) -> Localization | None:
    """The maps of a classifier beside the known lesions of a set, and its baselines, on every worker; a collective.

    Thresholds and mean boxes come from ``val``. None where the report does not ask for it or no lesion is known.
    """
    recipe = reader.recipe
    settings = recipe.report.localization
    ids = lesions_known(recipe, reader.samples.evaluated[name])
    if settings is None or not ids:
        return None
    assert isinstance(recipe.task, Classify)
    classes = LabelCoding.of(recipe.task).classes
    of_val = _gathered(_val_cases(reader, settings))
    usual, tuned = mean_boxes(of_val), tuned_thresholds(of_val, classes)
    thresholds = {label: tuned[label] if settings.threshold == "tuned" else settings.threshold for label in classes}
    shown = set(ids[:: -(-len(ids) // SHOWN)])
    cases = _gathered(_Comparison(reader, settings, thresholds, usual).cases(name, ids, shown))
    return Localization(name, cases, thresholds, usual) if cases else None


def _gathered(cases: Iterator[tuple[int, LocalizationCase]]) -> list[LocalizationCase]:
    """Those of all workers in the order of the set."""
    return [
        case for _, case in sorted((case for part in gather(list(cases)) for case in part), key=lambda each: each[0])
    ]


def _val_cases(reader: SetReader, settings: LocalizationConfig) -> Iterator[tuple[int, LocalizationCase]]:
    """What ``val`` knows of boxes; where thresholds are tuned, with the IoU of each."""
    ids = lesions_known(reader.recipe, reader.samples.evaluated["val"])
    tunes = settings.threshold == "tuned"
    for batch, views in reader.annotated("val", ids) if ids else ():
        asked = list(_asked(reader.recipe, batch, settings))
        heats = _heats(reader.networks, views, batch, asked, reader.recipe) if tunes else iter([None] * len(asked))
        for each, heat in zip(asked, heats, strict=True):
            ious = {} if heat is None else ious_by_threshold(heat, each.truth, settings)
            yield each.sample_id, _case(batch, each, ious=ious)


def _case(batch: LocalBatch, asked: _Asked, **more: Any) -> LocalizationCase:
    return LocalizationCase(
        key=batch.keys[asked.row],
        group=batch.groups[asked.row],
        label=asked.label,
        boxes=len(asked.truth.boxes),
        relative=as_shares(asked.truth.boxes, batch.sizes_px[asked.row].tolist()),
        **more,
    )


@dataclass(frozen=True)
class _Comparison:
    """Compares maps and baselines with what is known of a set."""

    reader: SetReader
    settings: LocalizationConfig
    thresholds: Mapping[str, Threshold]
    mean_boxes: Mapping[str, BoundingBox]

    def cases(self, name: str, ids: Sequence[int], shown: set[int]) -> Iterator[tuple[int, LocalizationCase]]:
        recipe, tolerance = self.reader.recipe, self.settings.tolerance
        untrained = build_networks(recipe).to(self.reader.device)
        for batch, views in self.reader.annotated(name, ids):
            asked = list(_asked(recipe, batch, self.settings))
            maps = (_heats(each, views, batch, asked, recipe) for each in (self.reader.networks, untrained))
            for each, heat, blind in zip(asked, *maps, strict=True):
                size = batch.sizes_px[each.row].tolist()
                figures = dict(baseline_figures(self.mean_boxes.get(each.label), each.truth, size, tolerance))
                for by, found in ((MODEL, heat), (UNTRAINED, blind)):
                    boxes = made_boxes(found, self.thresholds[each.label], self.settings)
                    figures[by] = map_figures(found, boxes, each.truth, tolerance)
                seen = self._seen(batch, each, heat) if each.sample_id in shown else None
                yield each.sample_id, _case(batch, each, figures=figures, seen=seen)

    def _seen(self, batch: LocalBatch, asked: _Asked, heat: npt.NDArray[np.float32]) -> Seen | None:
        """The image and its map, made smaller where they are large; of a volume three slices through the lesion."""
        image = batch.images[asked.row, 0][tuple(map(slice, heat.shape))].cpu().numpy()
        white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0
        found: Sequence[BoundingBox] = [
            each.box for each in made_boxes(heat, self.thresholds[asked.label], self.settings)
        ]
        true: Sequence[BoundingBox] = asked.truth.boxes
        if heat.ndim == 3:
            place = fullest_place(asked.truth.pixels(heat.shape)[None])
            found, true = (boxes_in_planes(boxes, place, heat.shape) for boxes in (found, true))
            image, heat = (three_planes(each, place) for each in (image, heat))
        step = -(-max(heat.shape) // _SHOWN_PX)
        return Seen(
            image=(np.clip(image[::step, ::step] / white, 0, 1) * 255).astype(np.uint8),
            heat=heat[::step, ::step],
            found=as_shares(found, (step, step)),
            true=as_shares(true, (step, step)),
        )


def _asked(recipe: FinetuneRecipe, batch: LocalBatch, settings: LocalizationConfig) -> Iterator[_Asked]:
    """Each class that an image of a batch is known to have, where its lesion is known, too."""
    assert isinstance(recipe.task, Classify)
    classes = LabelCoding.of(recipe.task).classes
    targets = LabelCoding.of(recipe.task).encode(batch.labels)
    for row in np.flatnonzero(batch.valid.cpu().numpy()).tolist():
        positive = [classes[place] for place in np.flatnonzero(targets[row] == 1)]
        for label in positive:
            truth = _truth(batch, row, label, classes, positive, settings)
            if truth is not None:
                yield _Asked(row, int(batch.sample_ids[row]), label, classes.index(label), truth)


def _truth(
    batch: LocalBatch,
    row: int,
    label: str,
    classes: Sequence[str],
    positive: Sequence[str],
    settings: LocalizationConfig,
) -> TrueLesion | None:
    """Of a mask, which says nothing of classes, only where the image has a single one."""
    if settings.truth == "boxes":
        boxes = known_boxes(batch.boxes[row], label, classes, positive)
        return TrueLesion(tuple(boxes)) if boxes else None
    if batch.masks is None or len(positive) != 1:
        return None
    own = tuple(map(slice, batch.sizes_px[row].tolist()))
    return lesion_of_mask(batch.masks[row][own].cpu().numpy())


def _heats(
    networks: FinetuneNetworks, views: LabelledViews, batch: LocalBatch, asked: Sequence[_Asked], recipe: FinetuneRecipe
) -> Iterator[npt.NDArray[np.float32]]:
    """A map for each, in the pixels of its image; a batch's memory at the most."""
    assert isinstance(networks.network, Classifier) and recipe.report.localization is not None
    at_once = len(views)
    for start in range(0, len(asked), at_once):
        part = asked[start : start + at_once]
        with frozen(networks):
            maps = heat_maps(
                networks.network,
                views.images[[each.row for each in part]],
                [each.place for each in part],
                recipe.report.localization.stages,
            )
        for each, framed in zip(part, maps, strict=True):
            yield _in_image(framed, batch.sizes_px[each.row].tolist(), recipe)


def _in_image(framed: Tensor, size_px: Sequence[int], recipe: FinetuneRecipe) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return as_share(in_image(framed[None], size_px, recipe.fit))[0].cpu().numpy()
