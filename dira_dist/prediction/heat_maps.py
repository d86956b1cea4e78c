"""Where a classifier sees what it says is there: heat maps as pictures, boxes as columns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.data.ingest import pixels as px
from dira_dist.data.store import Store
from dira_dist.evaluation.boxes import ScoredBox
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.localization import Threshold, made_boxes
from dira_dist.evaluation.locate import box_thresholds, gates_of, settings_of
from dira_dist.evaluation.planes import three_planes
from dira_dist.models.fine_tuned_files import FineTunedFile
from dira_dist.models.saliency import as_share, heat_maps, in_image
from dira_dist.models.supervised import Classifier
from dira_dist.prediction.answers import ClassAnswers, ClassCollector, Columns, Row, rounded
from dira_dist.prediction.inputs import Opened, View
from dira_dist.prediction.masks import file_word
from dira_dist.prediction.options import Flips
from dira_dist.views.labelled import Fit

FOLDER = "heatmaps"
_OF_CUBES = (("x", "width"), ("y", "height"), ("z", "depth"))
_BOX = ("x", "y", "z", "width", "height", "depth", "score")
Heat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What is said of a frame.

    Attributes:
        chances: (2, K) raw and calibrated probabilities.
        maps: (*S) heat in the frame, by the place of each class that is said to be there.
    """

    chances: Tensor
    maps: Mapping[int, Tensor]


@dataclass(frozen=True)
class HeatMapAnswers(ClassAnswers):
    """Probabilities and decisions, and of each class that is said to be there ``heatmaps/PATH.CLASS.png`` and boxes.

    Attributes:
        settings: how boxes are made of maps.
        gates: least calibrated probability of each class.
        levels: threshold of each class's maps.
        fit: how images were framed.
    """

    settings: LocalizationConfig = field(default_factory=LocalizationConfig)
    gates: Sequence[float] = ()
    levels: Sequence[Threshold] = ()
    fit: Fit = "crop"

    @classmethod
    def of(cls, facts: FineTunedFile, flips: Flips) -> "HeatMapAnswers":
        """Those of a model, by its own settings.

        Raises:
            RequestError: it was to tune the thresholds of its boxes and has none.
        """
        plain, settings = ClassAnswers.of(facts, flips), settings_of(facts)
        gates, levels = gates_of(facts, settings), box_thresholds(facts, settings)
        return cls(
            **vars(plain),
            settings=settings,
            gates=[gates[name] for name in facts.classes],
            levels=[levels[name] for name in facts.classes],
            fit=facts.fit,
        )

    @property
    def columns(self) -> Columns:
        own = {"heatmap": "text", **{f"boxes {name}": "text" for name in self.classes}}
        return {**super().columns, **own}

    def outputs(self, network: nn.Module, frames: Tensor) -> list[Seen]:  # type: ignore[override]
        """Of each frame; its own collector takes them."""
        chances = super().outputs(network, frames)
        maps: list[dict[int, Tensor]] = [{} for _ in frames]
        for place, gate in enumerate(self.gates):
            rows = torch.nonzero(chances[:, 1, place] > gate).flatten().tolist()
            if rows:
                for row, found in zip(rows, self._maps(network, frames[rows], place), strict=True):
                    maps[row][place] = found
        return [Seen(each, found) for each, found in zip(chances, maps, strict=True)]

    def _maps(self, network: nn.Module, frames: Tensor, place: int) -> Tensor:
        """(B, *S), with gradients in the middle of a work that has none."""
        assert isinstance(network, Classifier)
        with torch.inference_mode(False):
            return heat_maps(network, frames.clone(), [place] * len(frames), self.settings.stages).cpu()

    def collector(self, opened: Opened, store: Store) -> "HeatMapCollector":
        return HeatMapCollector(self, opened=opened, store=store)

    def heat(self, found: Tensor, view: View) -> Heat:
        """(H, W) of the picture in its file, or (x, y, z) of a cube, shares of the largest; all 0 where nothing speaks
        for the class."""
        stored = in_image(found[None], view.stored_px, self.fit)
        if view.stored_px != view.picture_px:
            stored = functional.interpolate(stored[None], view.picture_px, mode="bilinear", align_corners=False)[0]
        own: Heat = as_share(stored)[0].numpy()
        return own


@dataclass
class HeatMapCollector(ClassCollector):
    """A row for each view, and its files."""

    answers: HeatMapAnswers
    opened: Opened = field(kw_only=True)
    store: Store = field(kw_only=True)

    def add(self, view: View, output: Any) -> None:
        super().add(view, output.chances)
        self.found[-1] |= self._write(view, output.maps)

    def _write(self, view: View, maps: Mapping[int, Tensor]) -> Row:
        answers, stem, names, row = self.answers, self.opened.entry.stem, [], Row()
        if view.number is not None:
            stem = f"{stem}-{view.number:04d}"
        for place, found in maps.items():
            label, heat = answers.classes[place], answers.heat(found, view)
            names.append(f"{FOLDER}/{stem}.{file_word(label)}.png")
            self.store.write_bytes(names[-1], px.encode(np.rint(_flat(heat) * 255).astype(np.uint8), "png"))
            boxes = made_boxes(heat, answers.levels[place], answers.settings)
            row[f"boxes {label}"] = json.dumps([_described(each) for each in boxes])
        return row | {"heatmap": "|".join(names)}


def _flat(heat: Heat) -> Heat:
    """A picture as it is; of a cube three slices through its hottest voxel."""
    return heat if heat.ndim == 2 else three_planes(heat, _hottest(heat))


def _hottest(heat: Heat) -> tuple[int, ...]:
    return tuple(int(place) for place in np.unravel_index(int(heat.argmax()), heat.shape))


def _described(found: ScoredBox) -> dict[str, float]:
    """In pixels of the picture, as labels tables have boxes, or in voxels of the cube along x, y and z; the score is
    the share of the largest heat in it."""
    names = (("y", "height"), ("x", "width")) if len(found.box.low) == 2 else _OF_CUBES
    values = {"score": found.score}
    for (start, length), low, high in zip(names, found.box.low, found.box.high, strict=True):
        values |= {start: low, length: high - low}
    return {name: rounded(values[name]) for name in _BOX if name in values}
