"""Heat maps and boxes of a fine-tuned classifier, in the pixels of the images that it is asked about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.evaluation.boxes import ScoredBox
from dira_dist.evaluation.calibration import Calibration
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.localization import UNTUNED, Threshold, made_boxes
from dira_dist.models.fine_tuned_files import FineTunedFile
from dira_dist.models.saliency import as_share, heat_maps, in_image
from dira_dist.models.supervised import Classifier
from dira_dist.views.labelled import labelled_views

FROM_THE_REPORT = "report.localization"


@dataclass(frozen=True)
class HeatMap:
    """Where a class is seen in an image.

    Attributes:
        heat: (*S) float32 in the image's pixels, shares of the largest; all 0 where nothing speaks for the class.
        boxes: the one that most speaks for first; a score is the class's probability times the share of the map's
            largest heat that the box holds. None where the probability does not pass the gate.
        probability: of the class, calibrated.
    """

    heat: npt.NDArray[np.float32]
    boxes: tuple[ScoredBox, ...]
    probability: float


def settings_of(facts: FineTunedFile) -> LocalizationConfig:
    """How the model's own report located lesions, but with boxes only of classes that are said to be there."""
    known: Mapping[str, Any] = facts.localization.get("settings", {})
    return LocalizationConfig.model_validate({**known, "gate": "decision"})


def locate(
    network: Classifier,
    facts: FineTunedFile,
    images: Tensor,
    *,
    classes: Sequence[str] | None = None,
    settings: LocalizationConfig | None = None,
) -> list[dict[str, HeatMap]]:
    """Heat maps and boxes of some images, a pass forward for all and one backward for each class that is asked for.

    Args:
        network: of :func:`dira_dist.models.fine_tuned_files.load_classifier`, in evaluation mode; its device is used.
        facts: what the model's folder says.
        images: (B, 1 or 3, *S) uint8, uint16, or floating point in [0, 1], of one size.
        classes: that are looked for; left out: in each image those whose probability passes the gate.
        settings: left out: :func:`settings_of` the model.

    Returns:
        For each image, by class. A heat map is given for each class that is asked for, whatever its probability.

    Raises:
        RequestError: the model has no such class, or is asked for tuned thresholds that it does not have.
    """
    settings = settings or settings_of(facts)
    _check_classes(facts, classes)
    thresholds, gates = box_thresholds(facts, settings), gates_of(facts, settings)
    views = _framed(facts, images.to(next(network.parameters()).device))
    with torch.no_grad():
        logits = network(views).double().cpu().numpy()
    chances = Calibration(facts.kind, **facts.calibration).chances(logits)  # type: ignore[arg-type]
    found: list[dict[str, HeatMap]] = [{} for _ in images]
    for place, label in enumerate(facts.classes):
        passes = chances[:, place] > gates[label]
        rows = np.flatnonzero(passes if classes is None else np.full(len(images), label in classes)).tolist()
        if not rows:
            continue
        maps = heat_maps(network, views[rows], [place] * len(rows), settings.stages)
        heats = as_share(in_image(maps, images.shape[2:], facts.fit)).cpu().numpy()
        for row, heat in zip(rows, heats, strict=True):
            boxes = made_boxes(heat, thresholds[label], settings) if passes[row] else []
            chance = float(chances[row, place])
            found[row][label] = HeatMap(heat, tuple(ScoredBox(each.box, each.score * chance) for each in boxes), chance)
    return found


def _framed(facts: FineTunedFile, images: Tensor) -> Tensor:
    """As the network was trained on them."""
    count, sizes = len(images), torch.tensor([images.shape[2:]] * len(images))
    none = torch.zeros(count, dtype=torch.int64)
    framed = labelled_views(
        images, sizes, none, none, seed=0, image_size=facts.image_size, in_channels=facts.in_channels, fit=facts.fit
    )
    return framed.images


def _check_classes(facts: FineTunedFile, classes: Sequence[str] | None) -> None:
    unknown = [label for label in classes or () if label not in facts.classes]
    if unknown:
        raise RequestError(f"classes: found {unknown[0]!r}; the model knows {', '.join(facts.classes)}")


def box_thresholds(facts: FineTunedFile, settings: LocalizationConfig) -> dict[str, Threshold]:
    """Of each class's maps: one for all, or each its own that was tuned on ``val``.

    Raises:
        RequestError: tuned ones are wanted, and the model knows none.
    """
    if settings.threshold != "tuned":
        return dict.fromkeys(facts.classes, settings.threshold)
    tuned: Mapping[str, float] = facts.localization.get("thresholds", {})
    if not tuned:
        raise RequestError(
            "threshold: found tuned, and the model knows no thresholds for boxes, since its report had no boxes on "
            "val: give a share of the map's largest heat, or otsu"
        )
    return {label: tuned.get(label, UNTUNED) for label in facts.classes}


def gates_of(facts: FineTunedFile, settings: LocalizationConfig) -> dict[str, float]:
    """Of each class the probability from which on it is looked for."""
    if settings.gate != "decision":
        return dict.fromkeys(facts.classes, settings.gate)
    return dict(zip(facts.classes, facts.thresholds, strict=True))
