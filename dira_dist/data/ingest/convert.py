"""One item of a plan to samples of a shard: read, bring to the set's mode, resize once, code, and say what is known."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest.listing import one_file_of
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.pixels import PictureMode, Pixels
from dira_dist.data.ingest.plan import Item
from dira_dist.data.ingest.readers import Picture, UnreadableError, read_pictures
from dira_dist.data.ingest.tables import Box, scale_boxes
from dira_dist.data.ingest.volumes import Volume, read_nifti, read_series
from dira_dist.data.shards import Sample
from dira_dist.data.store import open_store


@dataclass(frozen=True)
class Task:
    """An item with all that rides along; small, and fit to be sent to another process."""

    item: Item
    labels: dict[str, Any] = field(default_factory=dict)
    boxes: Sequence[Box] = ()
    mask: str | None = None
    group: str | None = None

    def record(self) -> dict[str, Any]:
        """What every sample of the item carries in its JSON member."""
        record: dict[str, Any] = {"labels": self.labels, "boxes": []}
        return record | ({"split_group": self.group} if self.group else {})


class Converter:
    """Turns tasks into samples, by one set of options.

    Args:
        source: address of the files.
        options: of the set.
        mode: the set's image mode; none for volumes.
    """

    def __init__(self, source: str, options: ShardOptions, mode: PictureMode | None) -> None:
        self._source = open_store(source)
        self._masks = open_store(options.masks) if options.masks else None
        self._options, self._mode = options, mode

    def fetch(self, task: Task) -> list[bytes]:
        """The task's files, the mask last.

        Raises:
            UnreadableError: one of them has gone, or may not be read.
            RequestError, StoreError: trouble with the store is not the file's fault, and is raised as it is.
        """
        with one_file_of(self._source):
            files = [self._source.read_bytes(file) for file in task.item.files]
        if task.mask is not None:
            assert self._masks is not None
            with one_file_of(self._masks):
                files.append(self._masks.read_bytes(task.mask))
        return files

    def samples(self, task: Task, files: list[bytes]) -> tuple[list[Sample], bool]:
        """The samples, and whether pixels lost depth or colour to the set's mode.

        Raises:
            Exception: of any kind, from the decoders, for a file that cannot be read.
        """
        mask = files.pop() if task.mask is not None else None
        if task.item.kind in ("nifti", "series"):
            return [self._volume_sample(task, files, mask)], False
        assert task.item.kind != "series"
        options = self._options
        pictures = list(read_pictures(files[0], task.item.kind, options.intensity, options.image_size))
        if not pictures:
            raise UnreadableError("it holds no image")
        if len(pictures) > 1:  # nothing says which frame boxes and mask belong to
            samples = [
                self._picture_sample(picture, f"{task.item.key}-{number:04d}", {**task.record(), "frame": number})
                for number, picture in enumerate(pictures)
            ]
        else:
            samples = [self._only_picture_sample(task, pictures[0], mask)]
        return samples, any(self._loses(picture.pixels) for picture in pictures)

    def _loses(self, pixels: Pixels) -> bool:
        own = px.mode_of(pixels)
        return own != self._mode and own != "L"

    def _only_picture_sample(self, task: Task, picture: Picture, mask: bytes | None) -> Sample:
        size = self._size_of(picture)
        boxes = list(scale_boxes(task.boxes, picture.original_px, size))
        labels = _coded_mask(mask, picture.original_px, size) if mask is not None else None
        return self._picture_sample(picture, task.item.key, {**task.record(), "boxes": boxes}, labels)

    def _size_of(self, picture: Picture) -> tuple[int, int]:
        return px.fitted_size(*picture.original_px, self._options.image_size, self._options.side)

    def _picture_sample(self, picture: Picture, key: str, record: dict[str, Any], mask: bytes | None = None) -> Sample:
        assert self._mode is not None
        height, width = self._size_of(picture)
        pixels = px.resize(px.to_mode(picture.pixels, self._mode), height, width)
        coding = self._options.coding
        return Sample(
            key=key,
            image=px.encode(pixels, coding, self._options.jpeg_quality),
            encoding=coding,
            height_px=height,
            width_px=width,
            record={**record, "original_px": list(picture.original_px), **_scaled_tags(picture, (height, width))},
            mask=mask,
        )

    def _volume_sample(self, task: Task, files: list[bytes], mask: bytes | None) -> Sample:
        volume = read_nifti(files[0]) if task.item.kind == "nifti" else read_series(files)
        depth, height, width = volume.voxels.shape
        record = {"shape": [depth, height, width], "spacing_mm": list(volume.spacing_mm), **volume.tags}
        return Sample(
            key=task.item.key,
            image=px.encode_array(volume.voxels),
            encoding="npy",
            height_px=height,
            width_px=width,
            record=task.record() | record,
            mask=_coded_volume_mask(mask, volume) if mask is not None else None,
        )


def _scaled_tags(picture: Picture, size_px: tuple[int, int]) -> dict[str, Any]:
    tags = dict(picture.tags)
    if "pixel_spacing_mm" in tags:
        factors = (now / before for before, now in zip(picture.original_px, size_px, strict=True))
        tags["pixel_spacing_mm"] = [
            round(length / factor, 6) for length, factor in zip(tags["pixel_spacing_mm"], factors, strict=True)
        ]
    return tags


def _coded_mask(data: bytes, original_px: tuple[int, int], size_px: tuple[int, int]) -> bytes:
    """A label map of the image's size as PNG, its values untouched."""
    with Image.open(io.BytesIO(data)) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise UnreadableError("its mask is in colour, where a label map has one value per pixel")
    if labels.shape != original_px:
        raise UnreadableError(
            f"its mask is {labels.shape[0]} x {labels.shape[1]} px, it {original_px[0]} x {original_px[1]}"
        )
    if labels.min() < 0 or labels.max() > 255:
        raise UnreadableError("its mask holds values beyond 0 to 255")
    return px.encode(px.resize_labels(labels.astype(np.uint8), *size_px), "png")


def _coded_volume_mask(data: bytes, volume: Volume) -> bytes:
    labels = read_nifti(data).voxels
    if labels.shape != volume.voxels.shape:
        raise UnreadableError(f"its mask is of shape {labels.shape}, it {volume.voxels.shape}")
    return px.encode_array(labels)
