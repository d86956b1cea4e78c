"""Whole volumes of a shard set, one after another: their features, and cubes cut of them."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from dira_dist.config import RequestError, per_axis
from dira_dist.data.decode import CorruptSampleError, EncodedSample, read_metadata
from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest.cubes import Source, Start
from dira_dist.data.ingest.grids import Grid, Sides, grid_of, grid_of_sides
from dira_dist.data.ingest.volumes import Volume
from dira_dist.data.lanes import ShardSet
from dira_dist.data.shards import Sample
from dira_dist.prediction.model import Model
from dira_dist.views.center_view import center_view

_TOP = 65535


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its set holds it.

    Attributes:
        key: of the sample.
        channels: each (D, H, W) uint16, with the geometry of all.
        metadata: what the sample says of itself.
    """

    key: str
    channels: tuple[Volume, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> Sides:
        """(D, H, W)."""
        sides: Sides = self.channels[0].voxels.shape
        return sides

    @property
    def is_placed(self) -> bool:
        """Whether it is known how it lies in the patient, and so that its axes run towards head, back and left."""
        return self.channels[0].affine is not None

    @cached_property
    def lowest(self) -> tuple[float, ...]:
        """What stands beyond each channel."""
        return tuple(float(each.voxels.min()) for each in self.channels)

    def in_own_unit(self) -> Source:
        """Its first channel with the values that its file had, as far as its 16 bits tell: HU of a CT."""
        first = self.channels[0]
        known = self.metadata["intensity"]
        scale = known[0] if isinstance(known, list) else known
        low, high = np.float32(scale["low"]), np.float32(scale["high"])
        values = low + first.voxels.astype(np.float32) * ((high - low) / np.float32(_TOP))
        return Source((Volume(values, first.spacing_mm, first.affine),), None, grid_of(first, None), (None,))


def read_volumes(shards: ShardSet, ids: Sequence[int]) -> Iterator[StoredVolume]:
    """The volumes of rising ids; one lies in memory at a time.

    Raises:
        RequestError: one cannot be decoded, or does not say how its values were brought to 16 bits.
        ShardError, StoreError: a shard is damaged, or could not be read.
    """
    with closing(shards.reader(threading.Event())) as reader:
        for number in ids:
            (span,) = shards.spans_of(range(number, number + 1))
            (sample,) = reader.read(span)
            yield _stored(shards, sample)


def _stored(shards: ShardSet, sample: EncodedSample) -> StoredVolume:
    try:
        pixels = shards.decoder.decode(sample).pixels.transpose(0, 3, 2, 1)  # as it lies in its file
        metadata = read_metadata(sample.members.get("json", b"{}"))
    except CorruptSampleError as error:
        raise RequestError(f"{shards.address}: the sample {sample.key} cannot be read: {error}") from error
    if not _says_its_scale(metadata.get("intensity")):
        raise RequestError(
            f"{shards.address}: the sample {sample.key} does not say which of its file's values became black and white "
            "on 16 bits: make the set with --intensity (range:-1000,1000 for CT in HU, percentiles:0.5,99.5 for MR)"
        )
    spacing = metadata.get("spacing_mm") or (None, None, None)
    affine = metadata.get("affine_ras_mm")
    known = None if affine is None else np.array(affine, dtype=np.float64)
    return StoredVolume(sample.key, tuple(Volume(each, tuple(spacing), known) for each in pixels), metadata)


def _says_its_scale(known: Any) -> bool:
    scales = known if isinstance(known, list) else [known]
    return bool(scales) and all(isinstance(each, dict) and {"low", "high"} <= each.keys() for each in scales)


@torch.inference_mode()
def features_of(volume: StoredVolume, model: Model, device: str) -> npt.NDArray[np.float32]:
    """(F,): the encoder's deepest map of the whole volume, resampled to the size that the model takes, averaged.

    Haghighi et al. (2021), section III-A, where whole scans are resized to one size likewise.
    """
    stacked = torch.from_numpy(np.stack([each.voxels.T for each in volume.channels]))
    images = stacked.to(device, torch.float32)[None].div_(_TOP)
    size = per_axis(model.image_size, model.dims)
    resized = functional.interpolate(images, size, mode="trilinear", align_corners=False)
    features: torch.Tensor = model.network(center_view(resized, size, model.in_channels))[0]
    return np.asarray(features.float().cpu().numpy())


def cut(volume: StoredVolume, start: Start, sides: Sides, cube: Sides) -> tuple[Volume, ...]:
    """A cube of each channel, resized to ``cube`` where its sides are others; beyond a volume stands its lowest value.

    Args:
        volume: it.
        start: of the part, (D, H, W).
        sides: of the part, (D, H, W).
        cube: of what is made of it, (D, H, W).
    """
    grid = grid_of(volume.channels[0], None)
    parts = tuple(
        _part(channel, grid, start, sides, lowest)
        for channel, lowest in zip(volume.channels, volume.lowest, strict=True)
    )
    return parts if sides == cube else tuple(_resized(part, cube) for part in parts)


def sample_of(volume: StoredVolume, cube: Sequence[Volume], key: str, own: Mapping[str, Any]) -> Sample:
    """A cube as it goes into a shard.

    Args:
        volume: that it was cut of; what it says of itself is said of the cube.
        cube: its channels.
        key: of the sample.
        own: what the cube says of itself beside its geometry.
    """
    voxels = [channel.voxels for channel in cube]
    kept = {name: value for name, value in volume.metadata.items() if name not in ("labels", "boxes")}
    return Sample(
        key=key,
        image=px.encode_array(voxels[0] if len(voxels) == 1 else np.stack(voxels)),
        encoding="npy",
        height_px=voxels[0].shape[1],
        width_px=voxels[0].shape[2],
        record={**kept, **cube[0].geometry(), **own},
    )


def _part(channel: Volume, grid: Grid, start: Start, sides: Sides, lowest: float) -> Volume:
    return Volume(grid.read(channel.voxels, start, sides, fill=lowest), grid.spacing_mm, grid.affine_from(start))


def _resized(part: Volume, cube: Sides) -> Volume:
    """Linearly, axis by axis."""
    grid = grid_of_sides(part, cube)
    values = grid.read(part.voxels, (0, 0, 0), cube, fill=0)
    return Volume(np.rint(values).astype(np.uint16), grid.spacing_mm, grid.affine)
