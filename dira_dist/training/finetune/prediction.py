"""What the networks of a fine-tuning say of a set: each worker its part, all of it gathered in the order of the set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dira_dist.config import per_axis
from dira_dist.data.batch import LocalBatch
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.validation import ValidationStream
from dira_dist.evaluation.classification import ClassPredictions
from dira_dist.evaluation.features import frozen
from dira_dist.evaluation.planes import fullest_place, three_planes
from dira_dist.evaluation.segmentation import Bools, Pixels, SegmentationCase, case_figures
from dira_dist.objectives.collectives import gather, my_place
from dira_dist.objectives.supervised import mask_targets
from dira_dist.training.finetune.labels import UNCERTAIN, LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe, Segment
from dira_dist.training.finetune.samples import FinetuneSamples, Known, batch_size_of
from dira_dist.views.frame_view import unfit
from dira_dist.views.labelled import LabelledViews, labelled_views
from dira_dist.views.sliding_window import slide

_UNKNOWN = Known({}, None)


class SetReader:
    """Brings the sets of a recipe before its networks, this worker's part of each.

    Args:
        recipe: settled.
        samples: what is known of those that are judged.
        networks: on their device.
        device: of the networks.
    """

    def __init__(
        self, recipe: FinetuneRecipe, samples: FinetuneSamples, networks: FinetuneNetworks, device: torch.device
    ) -> None:
        self.recipe, self.samples, self.networks, self.device = recipe, samples, networks, device
        self._indices: dict[str, ShardSetIndex] = {}

    @torch.no_grad()
    def logits(self, name: str) -> Iterator[tuple[LocalBatch, LabelledViews, Tensor]]:
        """Each batch of a set, its views and what the network makes of them, in float32."""
        with frozen(self.networks):
            for batch in self._batches(name):
                views = self._views(batch.to(self.device))
                yield batch, views, self._answers(views.images)

    def _answers(self, images: Tensor) -> Tensor:
        """Of framed images all at once; over volumes window by window."""
        recipe, network = self.recipe, self.networks.network
        if recipe.patches is None:
            logits: Tensor = network(images)
            return logits.float()
        assert recipe.model is not None
        return slide(
            network,
            images,
            per_axis(recipe.data.image_size, recipe.model.dims),
            overlap=recipe.patches.overlap,
            blend=recipe.patches.blend,
            windows_at_once=recipe.patches.windows_at_once,
        )

    def annotated(self, name: str, ids: Sequence[int]) -> Iterator[tuple[LocalBatch, LabelledViews]]:
        """Batches of some samples of a set, with masks and boxes, and their views; as many on every worker."""
        for batch in self._batches(name, ids):
            yield batch, self._views(batch.to(self.device))

    def known(self, name: str, sample_id: int) -> Known:
        """What is known of a sample of a set beside its label."""
        known = self.samples.evaluated.get(name)
        return known[sample_id] if known is not None else _UNKNOWN

    def _batches(self, name: str, ids: Sequence[int] | None = None) -> Iterator[LocalBatch]:
        """As many on every worker; rows that only pad them are not valid. Masks and boxes come with chosen samples."""
        address = str(self.recipe.data.address_of(name))
        if name not in self._indices:
            self._indices[name] = read_index(address)
        options = replace(self.recipe.data.read_options, annotations=self.recipe.segments or ids is not None)
        ids = self._places(name) if ids is None else ids
        rank, workers = my_place()
        with ValidationStream(
            address,
            options,
            batch_size=batch_size_of(self.recipe),
            rank=rank,
            world_size=workers,
            ids=ids,
            index=self._indices[name],
        ) as stream:
            yield from stream

    def _places(self, name: str) -> list[int] | None:
        """Places in the set of the samples that are judged by, where they are not all."""
        known = self.samples.evaluated.get(name)
        return None if known is None or len(known) == self._indices[name].samples else sorted(known)

    def _views(self, batch: LocalBatch) -> LabelledViews:
        """The images in their frames, as they are."""
        assert self.recipe.model is not None
        return labelled_views(
            batch.images,
            batch.sizes_px,
            batch.sample_ids,
            batch.epochs,
            seed=self.recipe.seed,
            image_size=self.recipe.data.image_size,
            in_channels=self.recipe.model.in_channels,
            fit=self.recipe.fit,
            masks=batch.masks if self.recipe.segments else None,
        )


def predict_classes(reader: SetReader, name: str) -> ClassPredictions:
    """A classifier's logits of a whole set, on every worker; a collective."""
    assert isinstance(reader.recipe.task, Classify)
    coding = LabelCoding.of(reader.recipe.task)
    rows: list[tuple[int, str, str, Any, Any, Any]] = []
    for batch, _, logits in reader.logits(name):
        targets = coding.encode(batch.labels)
        targets[targets == UNCERTAIN] = np.nan  # nobody knows whether it was right
        found = zip(batch.sample_ids.tolist(), batch.keys, batch.groups, logits.cpu().numpy(), targets, strict=True)
        rows.extend((*row, reader.known(name, row[0]).columns) for row in compress(found, batch.valid.tolist()))
    ids_first = sorted((row for part in gather(rows) for row in part), key=lambda row: row[0])
    _, keys, groups, logits_of, targets_of, columns = zip(*ids_first, strict=True)
    return ClassPredictions(
        keys=keys,
        groups=groups,
        logits=np.stack(logits_of).astype(np.float64),
        targets=np.stack(targets_of),
        classes=coding.classes,
        kind=coding.kind,
        columns=columns,
    )


def predict_masks(reader: SetReader, name: str, *, in_full: bool = False) -> list[SegmentationCase]:
    """How a segmenter's masks of a whole set compare with the true ones, on every worker; a collective.

    Args:
        reader: of the sets.
        name: of the set.
        in_full: compare in the image's own pixels, and surfaces too; else in the frame.
    """
    assert isinstance(reader.recipe.task, Segment)
    coding = MaskCoding.of(reader.recipe.task)
    cases: list[tuple[int, SegmentationCase]] = []
    for batch, views, logits in reader.logits(name):
        assert batch.masks is not None
        coding.check(batch.masks, f"data.{name}")
        for place in np.flatnonzero(batch.valid.numpy()).tolist():
            sample_id, known = int(batch.sample_ids[place]), reader.known(name, int(batch.sample_ids[place]))
            figures = _case(coding, batch, views, logits, place, known, in_full, reader.recipe)
            if figures is not None:
                cases.append((sample_id, figures))
    found = sorted((case for part in gather(cases) for case in part), key=lambda case: case[0])
    return [case for _, case in found]


def _case(
    coding: MaskCoding,
    batch: LocalBatch,
    views: LabelledViews,
    logits: Tensor,
    place: int,
    known: Known,
    in_full: bool,
    recipe: FinetuneRecipe,
) -> SegmentationCase | None:
    """One image; none where nobody has drawn its mask."""
    assert views.masks is not None and batch.masks is not None
    mask, image = views.masks[place : place + 1], views.images[place, 0]
    chances = as_chances(logits[place : place + 1], coding)
    if in_full:
        size = batch.sizes_px[place].tolist()
        chances = unfit(chances, size)
        mask = batch.masks[place : place + 1][(slice(None), *map(slice, size))]
    truth, valid = mask_targets(mask.to(chances.device), coding.kind, coding.values)
    if not valid.any():
        return None
    predicted = decided(chances, coding)[0, coding.measured]
    figures = case_figures(
        predicted.cpu().numpy(),
        truth[0, coding.measured].bool().cpu().numpy(),
        valid[0].cpu().numpy(),
        known.spacing_mm if in_full else None,
        tolerance=recipe.report.tolerance_mm,
        surfaces=in_full,
        chances=chances[0, coding.measured].cpu().numpy(),
    )
    shown, inside = mask_targets(views.masks[place : place + 1], coding.kind, coding.values)
    framed = decided(as_chances(logits[place : place + 1], coding), coding)[0, coding.measured] & inside
    seen = _seen(image, framed, shown[0, coding.measured], known.spacing_mm) if in_full else (None, None, None)
    return SegmentationCase(batch.keys[place], batch.groups[place], known.columns, figures, *seen)


def _seen(
    image: Tensor, predicted: Tensor, truth: Tensor, spacing_mm: Sequence[float] | None
) -> tuple[Pixels, Bools, Bools]:
    """A frame to look at, (H, W), with (K, H, W) masks; of a volume three slices of it through most of the truth."""
    thumbnail = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    masks = [each.bool().cpu().numpy() for each in (predicted, truth)]
    if thumbnail.ndim == 2:
        return thumbnail, masks[0], masks[1]
    place = fullest_place(masks[1] if masks[1].any() else masks[0])
    said, true = (np.stack([three_planes(mask, place, spacing_mm) for mask in each]) for each in masks)
    return three_planes(thumbnail, place, spacing_mm), said, true


def as_chances(logits: Tensor, coding: MaskCoding) -> Tensor:
    """(B, K, *S) probabilities."""
    return logits.softmax(1) if coding.kind == "multiclass" else logits.sigmoid()


def decided(chances: Tensor, coding: MaskCoding) -> Tensor:
    """(B, K, *S) bool: the likeliest of classes that exclude each other, else what is likelier than not."""
    if coding.kind != "multiclass":
        return chances > 0.5
    best = chances.argmax(1, keepdim=True)
    return torch.zeros_like(chances, dtype=torch.bool).scatter_(1, best, True)
