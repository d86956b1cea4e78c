"""How well a classifier that learned from image labels shows where a lesion lies, beside what knows nothing of it.

A case is an image and a class that it has and whose lesion is known. Its figures:

- *hit*: whether the hottest point lies in the lesion (the pointing game; Zhang et al., *Top-Down Neural Attention by
  Excitation Backprop*, IJCV 2018, section 4.1, there with a tolerance of 15 px);
- *IoU* of the boxes that were found and the true ones, see :func:`dira_dist.evaluation.boxes.iou`;
- *energy*: share of the heat that lies in the lesion (Wang et al., *Score-CAM*, CVPR Workshops 2020, section 4.3);
- *with heat*: whether there is any heat.

A map without heat is no localisation: no hit, IoU 0, energy 0, and it counts as such. A baseline is a box: its centre
is its hottest point, and its heat is even.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dira_dist.data.decode import Box
from dira_dist.evaluation.boxes import (
    Bools,
    BoundingBox,
    Heat,
    Point,
    ScoredBox,
    boxes_around,
    boxes_of,
    covered,
    iou,
    peak_of,
)
from dira_dist.evaluation.config import LocalizationConfig

HIT, IOU, ENERGY, WITH_HEAT = "hit", "iou", "energy", "with_heat"
FIGURES = (WITH_HEAT, HIT, IOU, ENERGY)
MODEL, UNTRAINED, CENTER, MEAN_BOX = "model", "untrained network", "centre of the image", "mean box of the class"
BASELINES = (CENTER, MEAN_BOX, UNTRAINED)
TUNED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Thresholds that are tried on ``val``; those of CheXlocalize (Saporta et al., *Nature Machine Intelligence*, 2022)."""
UNTUNED = 0.5
"""Of a class that has no lesion on ``val``."""

Figures = Mapping[str, float]
Threshold = float | Literal["otsu"]


@dataclass(frozen=True)
class TrueLesion:
    """Where the lesions of a class lie in an image.

    Attributes:
        boxes: at least one.
        mask: (*S) in place of the boxes, for hits and energy.
    """

    boxes: tuple[BoundingBox, ...]
    mask: Bools | None = None

    def holds(self, point: Point, tolerance_px: float) -> bool:
        """Whether a point lies in it, or within a distance of it."""
        if self.mask is None:
            return any(box.holds(point, tolerance_px) for box in self.boxes)
        places = np.argwhere(self.mask)
        away = np.maximum(np.maximum(places - point, np.asarray(point) - places - 1), 0)
        return bool((np.square(away).sum(axis=1) <= tolerance_px**2).any())

    def pixels(self, shape: Sequence[int]) -> Bools:
        """(*shape) the pixels that belong to it."""
        return self.mask if self.mask is not None else covered(self.boxes, shape)


@dataclass(frozen=True)
class LocalizationCase:
    """An image, a class that it has, and how what was found lies to what is known.

    Attributes:
        key: of the sample.
        group: whom it is of.
        label: the class.
        boxes: how many are known.
        figures: by what located it, :data:`MODEL` or one of :data:`BASELINES`; then by figure.
        ious: of the model on ``val``, by the threshold that is tried.
        relative: the known boxes as shares of the image's sides, for the mean box.
        seen: what there is to look at; none where not kept.
    """

    key: str
    group: str
    label: str
    boxes: int
    figures: Mapping[str, Figures] = field(default_factory=dict)
    ious: Mapping[float, float] = field(default_factory=dict)
    relative: tuple[BoundingBox, ...] = ()
    seen: "Seen | None" = None


@dataclass(frozen=True)
class Seen:
    """Of a case to look at.

    Attributes:
        image: (H, W) uint8.
        heat: (H, W) shares of the largest.
        found, true: boxes in the pixels of both.
    """

    image: npt.NDArray[np.uint8]
    heat: Heat
    found: tuple[BoundingBox, ...]
    true: tuple[BoundingBox, ...]


# ------------------------------------------------------------------------------------ what is true


def known_boxes(boxes: Sequence[Box], label: str, classes: Sequence[str], positive: Sequence[str]) -> list[BoundingBox]:
    """The boxes of a class among those of a sample.

    Of a classifier with one class all are its own; else those with its name, and, where it is the only class that the
    sample has, those without a name.

    Args:
        boxes: as shards hold them.
        label: the class.
        classes: all of them.
        positive: those that the sample has.
    """
    own = {label} if list(positive) != [label] else {label, ""}
    return [_from_shard(box) for box in boxes if len(classes) == 1 or str(box.get("label", "")).strip() in own]


def _from_shard(box: Box) -> BoundingBox:
    """Rows first."""
    left, top = float(box["x"]), float(box["y"])
    return BoundingBox((top, left), (top + float(box["height"]), left + float(box["width"])))


def lesion_of_mask(mask: npt.NDArray[np.integer[Any]]) -> TrueLesion | None:
    """The lesion where a mask is above 0; none where it is nowhere."""
    there = mask > 0
    return TrueLesion(tuple(boxes_around(there)), there) if there.any() else None


def as_shares(boxes: Sequence[BoundingBox], size_px: Sequence[int]) -> tuple[BoundingBox, ...]:
    """Boxes in units of the image's sides."""
    return tuple(_scaled(box, [1 / side for side in size_px]) for box in boxes)


def _scaled(box: BoundingBox, factors: Sequence[float]) -> BoundingBox:
    low, high = (tuple(at * factor for at, factor in zip(ends, factors, strict=True)) for ends in (box.low, box.high))
    return BoundingBox(low, high)


# ------------------------------------------------------------------------------------ what was found


def map_figures(heat: Heat, boxes: Sequence[ScoredBox], truth: TrueLesion, tolerance: float) -> Figures:
    """The figures of a map.

    Args:
        heat: (*S) in the image's pixels.
        boxes: that were made of it.
        truth: of the class.
        tolerance: share of the image's longer side.
    """
    peak = peak_of(heat)
    if peak is None:
        return dict.fromkeys(FIGURES, 0.0)
    return {
        WITH_HEAT: 1.0,
        HIT: float(truth.holds(peak, tolerance * max(heat.shape))),
        IOU: iou([each.box for each in boxes], truth.boxes),
        ENERGY: float(heat[truth.pixels(heat.shape)].sum(dtype=np.float64) / heat.sum(dtype=np.float64)),
    }


def box_figures(box: BoundingBox, truth: TrueLesion, size_px: Sequence[int], tolerance: float) -> Figures:
    """The figures of a baseline that is a box."""
    inside = covered([box], size_px)
    common = float((inside & truth.pixels(size_px)).sum())
    return {
        WITH_HEAT: 1.0,
        HIT: float(truth.holds(box.center, tolerance * max(size_px))),
        IOU: iou([box], truth.boxes),
        ENERGY: common / float(inside.sum()) if inside.any() else 0.0,
    }


def baseline_figures(
    mean_box: BoundingBox | None, truth: TrueLesion, size_px: Sequence[int], tolerance: float
) -> dict[str, Figures]:
    """The figures of the centre of the image, with a box as large as the class's mean one, and of that mean box.

    Args:
        mean_box: in units of the image's sides; where it is not known the centre has a hit alone, and there is no
            figure of the mean box.
        truth: of the class.
        size_px: of the image.
        tolerance: share of its longer side.
    """
    middle = tuple(side / 2 for side in size_px)
    if mean_box is None:
        return {CENTER: {WITH_HEAT: 1.0, HIT: float(truth.holds(middle, tolerance * max(size_px)))}}
    usual = _scaled(mean_box, list(size_px))
    half = [(high - low) / 2 for low, high in zip(usual.low, usual.high, strict=True)]
    centered = BoundingBox(
        tuple(at - each for at, each in zip(middle, half, strict=True)),
        tuple(at + each for at, each in zip(middle, half, strict=True)),
    )
    return {
        CENTER: box_figures(centered, truth, size_px, tolerance),
        MEAN_BOX: box_figures(usual, truth, size_px, tolerance),
    }


def mean_boxes(cases: Sequence[LocalizationCase]) -> dict[str, BoundingBox]:
    """By class, the mean of the known boxes' ends, in units of the images' sides."""
    found: dict[str, BoundingBox] = {}
    for label in dict.fromkeys(case.label for case in cases):
        boxes = [box for case in cases if case.label == label for box in case.relative]
        low, high = (np.mean([getattr(box, end) for box in boxes], axis=0).tolist() for end in ("low", "high"))
        found[label] = BoundingBox(tuple(low), tuple(high))
    return found


def tuned_thresholds(cases: Sequence[LocalizationCase], classes: Sequence[str]) -> dict[str, float]:
    """By class, the threshold with the highest mean IoU on ``val``; of several the lowest."""
    found = {}
    for label in classes:
        own = [case.ious for case in cases if case.label == label and case.ious]
        found[label] = max(TUNED, key=lambda level: np.mean([ious[level] for ious in own])) if own else UNTUNED
    return found


def ious_by_threshold(heat: Heat, truth: TrueLesion, settings: LocalizationConfig) -> dict[float, float]:
    """IoU with each threshold that is tried."""
    return {level: iou([each.box for each in made_boxes(heat, level, settings)], truth.boxes) for level in TUNED}


def made_boxes(heat: Heat, threshold: Threshold, settings: LocalizationConfig) -> list[ScoredBox]:
    """The boxes of a map by the settings, with a threshold that is settled."""
    return boxes_of(heat, threshold, settings.components, settings.least_peak)


def gated(
    cases: Sequence[LocalizationCase], chances: Mapping[tuple[str, str], float], gates: Mapping[str, float]
) -> list[LocalizationCase]:
    """The cases without the model's boxes where the class's probability does not pass its gate; maps stay.

    Args:
        cases: of a set.
        chances: calibrated, by key and class.
        gates: by class.
    """
    return [case if chances[case.key, case.label] > gates[case.label] else _without_boxes(case) for case in cases]


def _without_boxes(case: LocalizationCase) -> LocalizationCase:
    figures = {**case.figures, MODEL: {**case.figures[MODEL], IOU: 0.0}}
    return replace(case, figures=figures, seen=case.seen and replace(case.seen, found=()))
