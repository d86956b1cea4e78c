"""What is put before a network: a source's entries opened one by one, each as views and the geometry of its file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dira_dist.data.ingest.grids import Grid
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.volumes import Volume
from dira_dist.models.backbone import Size
from dira_dist.views.labelled import Fit, labelled_views

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """A row, or a run of rows, of the table to come: a file, the files of a series, or a sample of a shard set.

    Attributes:
        name: what it is called in the table: its path, or its key.
        stem: what its own files are called, below their folders.
        group: whom it is pooled with; empty where nothing is pooled.
        item: how it is read; none where it is not, or is a sample of a set.
        sample_id: its place in a shard set; none for files.
        scale: the grey scale of its series; see ``Converter``.
        reason: why it is not read; empty where it is.
    """

    name: str
    stem: str
    group: str = ""
    item: Item | None = None
    sample_id: int | None = None
    scale: Any = None
    reason: str = ""


@dataclass(frozen=True)
class View:
    """One picture as the network sees it.

    Attributes:
        frame: (C, *image_size) float32; of a volume over which windows slide (C, x, y, z) of its own size.
        stored_px: (H, W) of the picture as a shard would hold it, from which the frame was made; (x, y, z) of a volume.
        picture_px: (H, W) of the picture in its file, as viewers show it; of a volume as ``stored_px``.
        picture: (H, W) or (H, W, 3), the stored one, for people to look at; of a volume (x, y, z).
        number: of the frame, or of the slice along the axis that a volume is cut along; none where there is one only.
    """

    frame: Tensor
    stored_px: tuple[int, ...]
    picture_px: tuple[int, ...]
    picture: Pixels
    number: int | None = None


@dataclass
class Opened:
    """An entry that is read.

    Attributes:
        views: read as they are taken; an error there ends them.
        volume: the volume that they are slices of, or that is the one view; none for flat images.
        grid: at which a volume is seen whole; none where it is cut into slices.
        files: the bytes of its files, as far as masks in their geometry need them.
        notes: what a user should know of it, complete when the views are taken.
        reason: why it cannot be read, or not to its end; known when the views are taken.
    """

    entry: Entry
    views: Iterator[View]
    volume: Volume | None = None
    grid: Grid | None = None
    files: Sequence[bytes] = ()
    notes: list[str] = field(default_factory=list)
    reason: str = ""


class Reader(Protocol):
    """Opens entries; goes to other processes as it is."""

    @property
    def address(self) -> str:
        """Of the source."""

    def open(self, entries: Sequence[Entry]) -> Iterator[Opened]:
        """Each of the entries, in their order, some read ahead.

        Raises:
            RequestError, StoreError: the storage is away: no fault of a file.
        """


@dataclass(frozen=True)
class Framing:
    """How a picture is brought before a network."""

    image_size: Size
    in_channels: int
    fit: Fit

    def volume_view(self, voxels: Pixels) -> View:
        """A volume, or a cube, as validation sees it, to the last bit.

        Args:
            voxels: (C, x, y, z) uint8 or uint16, as a batch holds them.
        """
        size = voxels.shape[1:]
        return View(self._frame(voxels), size, size, voxels[0])

    def view(self, pixels: Pixels, picture_px: tuple[int, int], number: int | None = None) -> View:
        """The same view as that of validation, to the last bit.

        Args:
            pixels: (H, W) or (H, W, 3), uint8 or uint16, as a shard holds them.
            picture_px: see :class:`View`.
            number: likewise.
        """
        channels_first = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
        return View(self._frame(channels_first), pixels.shape[:2], picture_px, pixels, number)

    def _frame(self, channels_first: Pixels) -> Tensor:
        image, number_of = torch.from_numpy(np.ascontiguousarray(channels_first))[None], torch.zeros(1).long()
        views = labelled_views(
            image,
            torch.tensor([channels_first.shape[1:]]),
            number_of,
            number_of,
            seed=0,
            image_size=self.image_size,
            in_channels=self.in_channels,
            fit=self.fit,
        )
        return views.images[0].contiguous()
