"""What is made of a network's outputs: rows of a table, and files beside it.

A task's :class:`Answers` computes for a batch of views what it needs of them, and collects for each entry. Files are
written by a list of :class:`FileWriter`: what is to be drawn or stored beside masks is one more of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.data.ingest.slices import Axis, upright
from dira_dist.data.ingest.volumes import Volume
from dira_dist.data.store import Store
from dira_dist.evaluation.calibration import Calibration, decided
from dira_dist.evaluation.classification import Floats, plain_chances
from dira_dist.evaluation.planes import fullest_place, three_planes
from dira_dist.models.fine_tuned_files import FineTunedFile
from dira_dist.prediction.inputs import Entry, Opened, View
from dira_dist.prediction.options import Flips
from dira_dist.training.finetune.labels import Kind
from dira_dist.views.frame_view import fitted_size

Row = dict[str, Any]
Columns = Mapping[str, str]
"""Names of columns with their types: ``text``, ``number``, ``count``, ``truth`` or ``vector``."""

Maps = npt.NDArray[np.uint8]
"""(M, H, W) or (M, D, H, W): one label map of classes that exclude each other, or one of 0 and 1 for each region."""

LAST_COLUMNS: Columns = {"number": "count", "reason": "text", "note": "text"}
_DIGITS = 6
_WAYS: Mapping[Flips, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (0,)),
    "both": ((), (0,), (1,), (1, 0)),
}
_ACROSS_AND_DOWN = {4: (-1, -2), 5: (-3, -2)}
"""By the axes of frames: those of an image (B, C, H, W) and of a volume (B, C, x, y, z)."""


class Collector(Protocol):
    """Takes what the network says of an entry's views, in their order."""

    def add(self, view: View, output: Any) -> None:
        """Of one view."""

    def rows(self) -> list[Row]:
        """The entry's rows, when all views were added; files of its own are written then."""


class Answers(Protocol):
    """What is made of a network's outputs; goes to other processes as it is."""

    @property
    def columns(self) -> Columns:
        """Behind those of every table."""

    def outputs(self, network: nn.Module, frames: Tensor) -> Iterable[Any]:
        """B of them, on the CPU: what a collector takes for each of (B, C, *S) frames."""

    def collector(self, opened: Opened, store: Store) -> Collector:
        """For one entry."""


def mirrored(network: nn.Module, frames: Tensor, flips: Flips) -> Iterator[Tensor]:
    """Logits of the frames as they are and mirrored (of volumes left and right, front and back); maps mirrored back."""
    for ways in _WAYS[flips]:
        axes = [_ACROSS_AND_DOWN[frames.ndim][way] for way in ways]
        logits = network(frames.flip(axes) if axes else frames).float()
        yield logits.flip(axes) if axes and logits.ndim > 2 else logits


def rounded(value: float) -> float:
    """As tables have it: further digits are those of the machine that computed them."""
    return round(float(value), _DIGITS)


# -------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class ClassAnswers:
    """Probabilities and decisions of a classifier.

    Attributes:
        kind, classes, thresholds: of the model.
        calibration: likewise.
        flips: whether mirrored images are asked about, too; their probabilities are averaged.
    """

    kind: Kind
    classes: Sequence[str]
    calibration: Calibration
    thresholds: Sequence[float]
    flips: Flips = "none"

    @classmethod
    def of(cls, facts: FineTunedFile, flips: Flips) -> "ClassAnswers":
        """Those of a model."""
        kind: Kind = facts.kind  # type: ignore[assignment]  # of a classifier
        calibration = Calibration(kind, facts.calibration["slopes"], facts.calibration["intercepts"])
        return cls(kind, tuple(facts.classes), calibration, tuple(facts.thresholds), flips)

    @property
    def columns(self) -> Columns:
        likeliest = {"class": "text"} if self.kind == "multiclass" else {}
        kinds = {"probability": "number", "decision": "truth", "raw": "number"}
        return likeliest | {f"{kind} {name}": of for kind, of in kinds.items() for name in self.classes}

    def outputs(self, network: nn.Module, frames: Tensor) -> Tensor:
        """(B, 2, K) float64: raw and calibrated probabilities."""
        logits = [each.cpu().numpy().astype(np.float64) for each in mirrored(network, frames, self.flips)]
        raw = np.mean([plain_chances(each, self.kind) for each in logits], axis=0)
        calibrated = np.mean([self.calibration.chances(each) for each in logits], axis=0)
        return torch.from_numpy(np.stack([raw, calibrated], axis=1))

    def row(self, raw: Floats | None, chances: Floats) -> Row:
        """The columns of (K,) probabilities."""
        said = decided(chances[None], self.thresholds, self.kind)[0]
        row: Row = {"class": self.classes[int(chances.argmax())]} if self.kind == "multiclass" else {}
        for place, name in enumerate(self.classes):
            row[f"probability {name}"], row[f"decision {name}"] = rounded(chances[place]), bool(said[place])
            if raw is not None:
                row[f"raw {name}"] = rounded(raw[place])
        return row

    def collector(self, opened: Opened, store: Store) -> "ClassCollector":
        return ClassCollector(self)


@dataclass
class ClassCollector:
    """A row for each view."""

    answers: ClassAnswers
    found: list[Row] = field(default_factory=list)

    def add(self, view: View, output: Tensor) -> None:
        raw, chances = output.numpy()
        self.found.append({"number": view.number} | self.answers.row(raw, chances))

    def rows(self) -> list[Row]:
        return self.found


# -------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class FeatureAnswers:
    """Features of an encoder."""

    @property
    def columns(self) -> Columns:
        return {"features": "vector"}

    def outputs(self, network: nn.Module, frames: Tensor) -> Tensor:
        """(B, F) float32."""
        features: Tensor = network(frames).float().cpu()
        return features

    def collector(self, opened: Opened, store: Store) -> "FeatureCollector":
        return FeatureCollector()


@dataclass
class FeatureCollector:
    """A row for each view."""

    found: list[Row] = field(default_factory=list)

    def add(self, view: View, output: Tensor) -> None:
        self.found.append({"number": view.number, "features": output.numpy()})

    def rows(self) -> list[Row]:
        return self.found


# ---------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class Answered:
    """An entry with its masks, for whoever writes files of it.

    Attributes:
        entry: it.
        opened: with the volume and the files that it was read from.
        maps: in the geometry of the picture, as viewers show it, or of the volume along its axes.
        names: of the maps: one empty name of a label map, or those of regions.
        view: the picture, or of a volume the slice of which most is in a mask; none of a volume without any.
        shown: (M, H, W) the maps on that picture.
        number: of the frame; none where the entry has one only, and of volumes.
    """

    entry: Entry
    opened: Opened
    maps: Maps
    names: Sequence[str]
    view: View | None
    shown: Maps | None
    number: int | None = None

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        return self.entry.stem if self.number is None else f"{self.entry.stem}-{self.number:04d}"


class FileWriter(Protocol):
    """Writes files beside the table."""

    @property
    def columns(self) -> Columns:
        """That it adds to the table."""

    def write(self, answered: Answered, store: Store) -> Row:
        """Writes what there is to write of an entry, each file whole or not at all; values of its columns."""


@dataclass(frozen=True)
class MaskAnswers:
    """Masks of a segmenter.

    Attributes:
        kind, classes: of the model; of classes that exclude each other the first is the background.
        axis: along which volumes are cut.
        writers: of files.
        flips: whether mirrored images are asked about, too; their probabilities are averaged.
        slides: whether volumes are answered whole.
    """

    kind: str
    classes: Sequence[str]
    axis: Axis
    writers: Sequence[FileWriter] = ()
    flips: Flips = "none"
    slides: bool = False

    @property
    def measured(self) -> Sequence[str]:
        """Names of what is counted: all but the background."""
        return self.classes[1:] if self.kind == "multiclass" else self.classes

    @property
    def map_names(self) -> Sequence[str]:
        """Of the maps."""
        return tuple(self.classes) if self.kind == "regions" else ("",)

    @property
    def columns(self) -> Columns:
        of_writers = {name: kind for writer in self.writers for name, kind in writer.columns.items()}
        kinds = {"decision": "truth", "pixels": "count", "ml": "number", "highest": "number"}
        return of_writers | {f"{kind} {name}": of for kind, of in kinds.items() for name in self.measured}

    def outputs(self, network: nn.Module, frames: Tensor) -> Tensor:
        """(B, K, *S) float32 probabilities in the frame."""
        parts = [
            (logits.softmax(1) if self.kind == "multiclass" else logits.sigmoid())
            for logits in mirrored(network, frames, self.flips)
        ]
        return torch.stack(parts).mean(0).cpu()

    def decide(self, chances: Tensor) -> Maps:
        """(M, *S) of (K, *S)."""
        if self.kind == "multiclass":
            return chances.argmax(0, keepdim=True).byte().numpy()
        return (chances > 0.5).byte().numpy()

    def collector(self, opened: Opened, store: Store) -> "Collector":
        if self.slides:
            return WholeVolumeMasks(self, opened, store)
        return VolumeMasks(self, opened, store) if opened.volume is not None else PictureMasks(self, opened, store)

    def figures(self, maps: Maps, highest: Floats, voxel_ml: float | None) -> Row:
        """Counts and probabilities of one entry.

        Args:
            maps: of it.
            highest: (K,) see :func:`highest_in`.
            voxel_ml: size of a voxel; none where it is not known.
        """
        row: Row = {}
        first = len(self.classes) - len(self.measured)
        for place, name in enumerate(self.measured):
            counted = maps[0] == place + 1 if self.kind == "multiclass" else maps[place]
            pixels = int(np.count_nonzero(counted))
            row |= {f"decision {name}": pixels > 0, f"pixels {name}": pixels}
            row[f"ml {name}"] = None if voxel_ml is None else rounded(pixels * voxel_ml)
            row[f"highest {name}"] = rounded(highest[first + place])
        return row


def without_padding(chances: Tensor, view: View) -> Tensor:
    """(K, *image_size) of a frame without what only pads it."""
    return chances[(slice(None), *map(slice, fitted_size(view.stored_px, tuple(chances.shape[1:]))))]


def unframed(chances: Tensor, view: View) -> Tensor:
    """(K, *image_size) of a frame as (K, H, W) of the picture in its file.

    The frame was made of the stored picture, whose share of it is cut out before it is brought to the file's size.
    """
    own = without_padding(chances, view)
    if tuple(own.shape[1:]) == view.picture_px:
        return own
    return functional.interpolate(own[None], view.picture_px, mode="bilinear", align_corners=False)[0]


def highest_in(chances: Tensor, view: View) -> Floats:
    """(K,) the largest probability of each output anywhere in the frame."""
    found: Floats = without_padding(chances, view).amax((1, 2)).numpy().astype(np.float64)
    return found


@dataclass
class PictureMasks:
    """Masks of flat images: a row and its files for each."""

    answers: MaskAnswers
    opened: Opened
    store: Store
    found: list[Row] = field(default_factory=list)

    def add(self, view: View, output: Tensor) -> None:
        maps = self.answers.decide(unframed(output, view))
        answered = Answered(self.opened.entry, self.opened, maps, self.answers.map_names, view, maps, view.number)
        row: Row = {"number": view.number}
        for writer in self.answers.writers:
            row |= writer.write(answered, self.store)
        self.found.append(row | self.answers.figures(maps, highest_in(output, view), None))

    def rows(self) -> list[Row]:
        return self.found


@dataclass
class VolumeMasks:
    """The mask of a volume, slice by slice; slices of one value only are not asked about, and hold nothing."""

    answers: MaskAnswers
    opened: Opened
    store: Store
    maps: Maps | None = None
    highest: Floats | None = None
    best: View | None = None
    most: int = -1

    def add(self, view: View, output: Tensor) -> None:
        volume = self.opened.volume
        assert volume is not None and view.number is not None
        if self.maps is None:
            self.maps = np.zeros((len(self.answers.map_names), *volume.voxels.shape), dtype=np.uint8)
        for whole, flat in zip(self.maps, self.answers.decide(unframed(output, view)), strict=True):
            upright(whole, self.answers.axis, view.number)[...] = flat
        top = highest_in(output, view)
        self.highest = top if self.highest is None else np.maximum(self.highest, top)
        if (count := int(np.count_nonzero(self._shown(view)))) > self.most:
            self.best, self.most = view, count

    def _shown(self, view: View) -> Maps:
        assert self.maps is not None and view.number is not None
        return np.stack([upright(whole, self.answers.axis, view.number) for whole in self.maps])

    def rows(self) -> list[Row]:
        if self.maps is None or self.highest is None or self.opened.volume is None:
            return []
        shown = None if self.best is None else self._shown(self.best)
        entry = self.opened.entry
        answered = Answered(entry, self.opened, self.maps, self.answers.map_names, self.best, shown)
        row: Row = {}
        for writer in self.answers.writers:
            row |= writer.write(answered, self.store)
        return [row | self.answers.figures(self.maps, self.highest, voxel_ml(self.opened.volume))]


def voxel_ml(volume: Volume) -> float | None:
    """Size of a voxel; none where it is not known."""
    spacing = [length for length in volume.spacing_mm if length is not None]
    return float(np.prod(spacing)) / 1000 if len(spacing) == 3 else None


@dataclass
class WholeVolumeMasks:
    """The mask of a volume that was answered whole: of a file in its own voxels, of a set's sample in the sample's."""

    answers: MaskAnswers
    opened: Opened
    store: Store
    found: list[Row] = field(default_factory=list)

    def add(self, view: View, output: Tensor) -> None:
        """Of (K, x, y, z) probabilities on the grid; at the file's voxels they are interpolated before the decision."""
        seen, opened = self.answers.decide(output), self.opened
        stored = output.permute(0, 3, 2, 1).numpy()  # (K, D, H, W)
        if opened.grid is not None and not opened.grid.is_own:
            stored = np.stack([opened.grid.own_voxels(each) for each in stored])
        maps = self.answers.decide(torch.from_numpy(np.ascontiguousarray(stored)))
        picture, shown = self._shown(view, seen)
        answered = Answered(opened.entry, opened, maps, self.answers.map_names, picture, shown)
        row: Row = {}
        for writer in self.answers.writers:
            row |= writer.write(answered, self.store)
        size_ml = None if opened.volume is None else voxel_ml(opened.volume)
        self.found.append(row | self.answers.figures(maps, output.flatten(1).amax(1).double().numpy(), size_ml))

    def _shown(self, view: View, seen: Maps) -> tuple[View, Maps]:
        """Three slices through most of the mask, and the maps there."""
        place, grid = fullest_place(seen > 0), self.opened.grid
        known = [] if grid is None else [length for length in reversed(grid.spacing_mm) if length is not None]
        spacing = known if len(known) == len(place) else None
        picture = three_planes(view.picture, place, spacing)
        return replace(view, picture=picture), np.stack([three_planes(each, place, spacing) for each in seen])

    def rows(self) -> list[Row]:
        return self.found
