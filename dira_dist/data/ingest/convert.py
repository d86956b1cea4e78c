"""One item of a plan to samples of a shard: read, bring to the set's mode, resize once, code, and say what is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest.assembly import read_stack
from dira_dist.data.ingest.centres import Centre
from dira_dist.data.ingest.columns import Scalar
from dira_dist.data.ingest.cubes import Source, cubes_of, is_too_small
from dira_dist.data.ingest.greys import read_dicom
from dira_dist.data.ingest.intensity import Mapping as Greying
from dira_dist.data.ingest.intensity import parse_intensity
from dira_dist.data.ingest.items import VOLUME_KINDS, Item
from dira_dist.data.ingest.itk import read_itk
from dira_dist.data.ingest.label_maps import LossyMaskError, coded_mask
from dira_dist.data.ingest.listing import one_file_of
from dira_dist.data.ingest.nifti import read_nifti
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.pixels import PictureMode, Pixels
from dira_dist.data.ingest.readers import Picture, RasterRules, UnreadableError, read_pictures
from dira_dist.data.ingest.slices import slices_of_channels, upright
from dira_dist.data.ingest.tables import Box, scale_boxes
from dira_dist.data.ingest.volumes import (
    Volume,
    differs_in_an_unset_origin,
    mask_problem,
    place_problem,
    resampled_mask,
    says_nothing,
)
from dira_dist.data.shards import Sample
from dira_dist.data.store import open_store


@dataclass(frozen=True)
class Task:
    """An item with all that rides along; small, and fit to be sent to another process."""

    item: Item
    labels: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Scalar] = field(default_factory=dict)
    boxes: Sequence[Box] = ()
    mask: str | None = None
    group: str | None = None
    scale: Greying | None = None
    centres: Sequence[Centre] | None = None

    def record(self) -> dict[str, Any]:
        """What every sample of the item carries in its JSON member."""
        record: dict[str, Any] = {"labels": self.labels, "boxes": []}
        known = {"split_group": self.group, "columns": self.columns}
        return record | {name: value for name, value in known.items() if value}


@dataclass
class ItemFindings:
    """What is said of an item beside its samples.

    Attributes:
        converted: whether pixels lost depth or colour to the set's mode; ``lost_colour`` whether colour.
        padded: whether it is a volume smaller than the cubes that are cut of it.
        notes: what a user should know of it.
    """

    converted: bool = False
    lost_colour: bool = False
    padded: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, *texts: str) -> None:
        """Remembers what was not said before."""
        self.notes += [text for text in texts if text not in self.notes]


class Converter:
    """Turns tasks into samples, by one set of options.

    Args:
        source: address of the files.
        options: of the set.
        mode: the set's image mode; none for volumes.
        rules: how flat images are read.
    """

    def __init__(self, source: str, options: ShardOptions, mode: PictureMode | None, rules: RasterRules) -> None:
        self._source = open_store(source)
        self._masks = open_store(options.masks) if options.masks else None
        self._options, self._mode, self._rules = options, mode, rules

    def fetch(self, task: Task) -> list[bytes]:
        """The task's files, the mask last; those of a series are read as they are needed, one after another.

        Raises:
            UnreadableError: one of them has gone, or may not be read.
            RequestError, StoreError: trouble with the store is not the file's fault, and is raised as it is.
        """
        files = [self._read(file) for each in _each_of(task.item) if each.kind != "series" for file in each.files]
        if task.mask is not None:
            assert self._masks is not None
            with one_file_of(self._masks):
                files.append(self._masks.read_bytes(task.mask))
        return files

    def _read(self, file: str) -> bytes:
        with one_file_of(self._source):
            return self._source.read_bytes(file)

    def samples(self, task: Task, files: list[bytes], findings: ItemFindings) -> Iterator[Sample]:
        """The samples, one by one; what is to be said of them is added to ``findings``.

        Raises:
            Exception: of any kind, from the decoders, for a file that cannot be read.
        """
        mask = files.pop() if task.mask is not None else None
        if task.item.kind in VOLUME_KINDS:
            if task.boxes:
                findings.note("it is a volume, and nothing says which plane its boxes belong to: they are left out")
            yield from self._volume_samples(task, files, mask, findings)
            return
        pictures = self.pictures(task, files[0])
        head = list(islice(pictures, 2))
        if not head:
            raise UnreadableError("it holds no image")
        if len(head) == 1:
            yield self._only_picture_sample(task, self._heard(head[0], findings), mask, findings)
            return
        if task.boxes or mask is not None:
            findings.note(
                "it has several frames, and nothing says which of them its mask and boxes belong to: they are left out"
            )
        for number, picture in enumerate(chain(head, pictures)):
            record = {**task.record(), "frame": number}
            yield self._picture_sample([self._heard(picture, findings)], f"{task.item.key}-{number:04d}", record)

    def pictures(self, task: Task, data: bytes) -> Iterator[Picture]:
        """The images of a flat file, read but not brought to the set's mode and size yet."""
        kind, options = task.item.kind, self._options
        if kind == "dicom":
            rule = parse_intensity(options.intensity)
            return read_dicom(data, rule, task.scale, options.volume_budget_bytes, self._rules)
        assert kind in ("raster", "tiff")
        return read_pictures(data, self._rules)

    def _heard(self, picture: Picture, findings: ItemFindings) -> Picture:
        findings.note(*picture.notes)
        own = px.mode_of(picture.pixels)
        findings.lost_colour = findings.lost_colour or (own == "RGB" and self._mode != "RGB")
        findings.converted = findings.converted or picture.lost_depth or (own not in ("L", self._mode))
        return picture

    def _only_picture_sample(self, task: Task, picture: Picture, mask: bytes | None, findings: ItemFindings) -> Sample:
        size = self._size_of(picture)
        boxes = list(scale_boxes(task.boxes, picture.original_px, size))
        labels = None
        if mask is not None and task.mask is not None:
            try:
                labels = coded_mask(mask, picture, size, self._rules)
            except LossyMaskError as error:
                findings.note(f"its mask {error}: it is left out")  # the set keeps its notes: no name may stand in them
        return self._picture_sample([picture], task.item.key, {**task.record(), "boxes": boxes}, labels)

    def _size_of(self, picture: Picture) -> tuple[int, int]:
        return px.fitted_size(*picture.original_px, self._options.image_size, self._options.side)

    def fitted(self, picture: Picture) -> Pixels:
        """The pixels as the set holds them: in its mode, at its size."""
        assert self._mode is not None
        return px.resize(px.to_mode(picture.pixels, self._mode), *self._size_of(picture))

    def _picture_sample(
        self, pictures: Sequence[Picture], key: str, record: dict[str, Any], mask: bytes | None = None
    ) -> Sample:
        """A picture, or the channels of one, which no picture format holds."""
        fitted, picture, coding = [self.fitted(each) for each in pictures], pictures[0], self._options.coding
        height, width = fitted[0].shape[:2]
        alone = len(fitted) == 1
        return Sample(
            key=key,
            image=px.encode(fitted[0], coding, self._options.jpeg_quality)
            if alone
            else px.encode_array(np.stack(fitted)),
            encoding=coding if alone else "npy",
            height_px=height,
            width_px=width,
            record={**record, "original_px": list(picture.original_px), **_scaled_tags(picture, (height, width))},
            mask=mask,
        )

    def _volume_samples(
        self, task: Task, files: list[bytes], mask: bytes | None, findings: ItemFindings
    ) -> Iterator[Sample]:
        volumes = self.channels(task.item, files)
        findings.note(*(note for volume in volumes for note in volume.notes))
        labels = (
            self._volume_mask(mask, PurePosixPath(task.mask).name, volumes[0], findings) if mask and task.mask else None
        )
        if self._mode is not None:
            yield from self._slice_samples(task, volumes, labels, findings)
            return
        source = Source.of(volumes, labels, self._options)
        if self._options.content != "cubes":
            yield source.part(task.item.key, (0, 0, 0), source.grid.sides, task.record())
            return
        if is_too_small(source, self._options):
            self._pad(source, findings)
        yield from cubes_of(task.item.key, source, self._options, task.centres, task.record(), findings.note)

    def channels(self, item: Item, files: list[bytes]) -> list[Volume]:
        """The volume of an item, or its channels, which lie on each other; the files are let go one by one.

        Raises:
            UnreadableError: they do not.
        """
        volumes: list[Volume] = []
        for number, each in enumerate(_each_of(item), 1):
            own = [] if each.kind == "series" else [files.pop(0) for _ in each.files]
            volumes.append(self.volume(each, own))
            if problem := place_problem(volumes[-1], volumes[0], f"its channel {number}"):
                raise UnreadableError(f"its channels are not registered to each other: {problem}")
        return volumes

    def _pad(self, source: Source, findings: ItemFindings) -> None:
        has, wanted = (" x ".join(map(str, sides or ())) for sides in (source.grid.sides[::-1], self._options.cube))
        said = f"its {has} voxels (x, y, z) are fewer than the {wanted} of a cube"
        if self._options.strict:
            raise UnreadableError(said)
        findings.padded = True
        findings.note(f"{said}: it is padded with its lowest value")

    def volume(self, item: Item, files: list[bytes]) -> Volume:
        """The volume of an item; of a series its files are read one after another."""
        budget = self._options.volume_budget_bytes
        if item.kind == "nifti":
            return read_nifti(files, budget)
        if item.kind == "itk":
            return read_itk(files[0], PurePosixPath(item.files[0]).suffix.lower(), budget)
        assert item.stack is not None
        return read_stack(item.stack, self._read, budget)

    def _volume_mask(self, data: bytes, name: str, volume: Volume, findings: ItemFindings) -> Pixels | None:
        """The label map on the volume's voxels; none, with a word, where it does not lie on them."""
        budget = self._options.volume_budget_bytes
        suffix = PurePosixPath(name.lower()).suffix
        mask = read_itk(data, suffix, budget) if suffix in (".nrrd", ".mha") else read_nifti([data], budget)
        problem = mask_problem(mask, volume)
        if not problem:
            return mask.voxels
        if says_nothing(mask) and volume.file_affine is not None:
            findings.note("its mask's header says nothing (a bare identity): it is laid on the image voxel by voxel")
            mask = read_nifti([data], budget, volume.file_affine)
            return mask.voxels if not (problem := mask_problem(mask, volume)) else self._left_out(problem, findings)
        if differs_in_an_unset_origin(mask, volume):
            findings.note(
                "its mask's header has an origin that was never set (0, 0, 0): its directions alone are believed"
            )
            return mask.voxels
        if self._options.volume_masks == "resample":
            findings.note(f"{problem}; it is resampled to the nearest voxel")
            return resampled_mask(mask, volume)
        return self._left_out(f"{problem}; --volume-masks resample fits it by the headers of both", findings)

    @staticmethod
    def _left_out(problem: str, findings: ItemFindings) -> Pixels | None:
        findings.note(f"its mask is left out: {problem}")
        return None

    def _slice_samples(
        self, task: Task, volumes: Sequence[Volume], labels: Pixels | None, findings: ItemFindings
    ) -> Iterator[Sample]:
        options, found, rule = self._options, 0, parse_intensity(self._options.intensity)
        for number, pictures in slices_of_channels(volumes, options.axis, options.every, rule):
            found += 1
            mask = None
            if labels is not None:
                flat = upright(labels, options.axis, number)
                if flat.min() < 0 or flat.max() > 255:
                    raise UnreadableError("its mask holds values beyond 0 to 255, which a picture has no room for")
                flat = np.ascontiguousarray(flat).astype(np.uint8)
                flat = px.resize_labels(flat, *self._size_of(pictures[0]))
                mask = px.encode(flat, "png") if len(pictures) == 1 else px.encode_array(flat)
            heard = [self._heard(picture, findings) for picture in pictures]
            yield self._picture_sample(heard, f"{task.item.key}-{number:04d}", task.record(), mask)
        if not found:
            raise UnreadableError("each of its slices holds one value only")


def _each_of(item: Item) -> tuple[Item, ...]:
    """The volumes of an item: its channels, or itself."""
    return item.channels or (item,)


def _scaled_tags(picture: Picture, size_px: tuple[int, int]) -> dict[str, Any]:
    tags = dict(picture.tags)
    if tags.get("pixel_spacing_mm"):
        factors = (now / before for before, now in zip(picture.original_px, size_px, strict=True))
        tags["pixel_spacing_mm"] = [
            round(length / factor, 6) for length, factor in zip(tags["pixel_spacing_mm"], factors, strict=True)
        ]
    return tags
