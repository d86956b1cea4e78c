"""Cubes cut of a volume: at random places or around given centres, on 16 bits, with their masks and where they lie.

A random place comes from (seed, volume, number of the cube, try) alone: whoever cuts a volume, and after whatever
interruption, gets the same cubes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest.centres import Centre, voxel_of
from dira_dist.data.ingest.content_filters import LOOK_AHEAD, is_mostly_lung, parse_filter
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.grids import Grid, Sides, grid_of
from dira_dist.data.ingest.intensity import Scale, parse_intensity, scale_of_volume, to_depth
from dira_dist.data.ingest.options import NOT_SAID, ShardOptions
from dira_dist.data.ingest.volumes import Volume
from dira_dist.data.shards import Sample
from dira_dist.data.splitmix import Drawn, drawn

_TRIES_PER_CUBE = 50  # after so many for each cube that is wanted a volume gives what it has, as in the published code
_MOST_LABEL = np.iinfo(np.int16).max

Start = tuple[int, int, int]
Note = Callable[[str], None]
Keeps = Callable[[Start], bool]


@dataclass(frozen=True)
class Source:
    """A volume that parts are taken of, or several on the same voxels, its channels.

    Attributes:
        volumes: the channels; ``labels`` their label map, if there is one.
        grid: at which they are read.
        scales: of each channel, which values become black and white on 16 bits; none keeps values as they are.
    """

    volumes: tuple[Volume, ...]
    labels: NDArray[Any] | None
    grid: Grid
    scales: tuple[Scale | None, ...]

    @classmethod
    def of(cls, volumes: Sequence[Volume], labels: NDArray[Any] | None, options: ShardOptions) -> "Source":
        """Volumes with their grid and scales.

        Raises:
            UnreadableError: a spacing was asked for, and their own is not known.
        """
        rule = parse_intensity(options.intensity)
        scales = [None if options.intensity == NOT_SAID else scale_of_volume(each.voxels, rule) for each in volumes]
        grid = grid_of(volumes[0], options.spacing and options.spacing[::-1])
        return cls(tuple(volumes), labels, grid, tuple(scales))

    @property
    def volume(self) -> Volume:
        """The first channel, which tells where all of them lie."""
        return self.volumes[0]

    @cached_property
    def lowest(self) -> tuple[float, ...]:
        """What stands beyond each channel."""
        return tuple(float(each.voxels.min()) for each in self.volumes)

    def voxels(self) -> NDArray[Any]:
        """(C, D, H, W) of the whole volume on its grid, as a shard holds it."""
        channels = [self._channel(number, (0, 0, 0), self.grid.sides) for number in range(len(self.volumes))]
        return channels[0][None] if len(channels) == 1 else np.stack(channels)

    def part(self, key: str, start: Start, sides: Sides, record: dict[str, Any]) -> Sample:
        """A part, or all, of the volume as it goes into a shard.

        Args:
            key: of the sample.
            start: index of its first voxel in the grid; negative where the volume begins later.
            sides: (D, H, W).
            record: what the sample's metadata say beside geometry and scale.
        """
        grid = self.grid
        channels = [self._channel(number, start, sides) for number in range(len(self.volumes))]
        part = Volume(channels[0], grid.spacing_mm, grid.affine_from(start))
        known = part.geometry() | self.volume.tags | self._intensity()
        mask = None if self.labels is None else grid.read(self.labels, start, sides, fill=0, labels=True)
        return Sample(
            key=key,
            image=px.encode_array(channels[0] if len(channels) == 1 else np.stack(channels)),
            encoding="npy",
            height_px=sides[1],
            width_px=sides[2],
            record=record | known,
            mask=None if mask is None else px.encode_array(mask),
        )

    def _channel(self, number: int, start: Start, sides: Sides) -> NDArray[Any]:
        values = self.grid.read(self.volumes[number].voxels, start, sides, fill=self.lowest[number])
        scale = self.scales[number]
        return values if scale is None else _on_16_bits(values, scale)

    def _intensity(self) -> dict[str, Any]:
        """For a sample's metadata: of its one channel, or a list with one for each."""
        known = [scale.metadata() for scale in self.scales if scale is not None]
        return {"intensity": known if len(known) > 1 else known[0]} if known else {}


def _on_16_bits(values: NDArray[Any], scale: Scale) -> NDArray[np.uint16]:
    """Plane by plane: a whole volume of shares would be four times the volume."""
    scaled = np.empty(values.shape, dtype=np.uint16)
    for plane, row in zip(values, scaled, strict=True):
        row[...] = to_depth(scale.shares(plane), 16)
    return scaled


# ------------------------------------------------------------------------------- cubes


def cubes_of(
    key: str,
    source: Source,
    options: ShardOptions,
    centres: Sequence[Centre] | None,
    record: dict[str, Any],
    note: Note,
) -> Iterator[Sample]:
    """The cubes of a volume, with ``place_xyz``, ``volume`` and a ``split_group`` among their metadata.

    Args:
        key: of the volume.
        source: it.
        options: of the set.
        centres: of the cubes; none: at random places.
        record: what every cube of the volume says of itself.
        note: told what a user should know.

    Raises:
        UnreadableError: the volume gives no cube, and why.
    """
    assert options.cube is not None
    depth, height, width = options.cube[::-1]
    sides: Sides = (depth, height, width)
    _check(source)
    if centres is not None:
        places = _around(source, sides, centres, options, note)
    else:
        places = ((start, {}) for start in _at_random(key, source, sides, options, note))
    for number, (start, labels) in enumerate(places):
        own = {
            "labels": {**record["labels"], **labels},
            "split_group": record.get("split_group", key),
            "volume": key,
            "place_xyz": relative_place(start, sides, source.grid.sides),
        }
        yield source.part(f"{key}-{number:05d}", start, sides, record | own)


def is_too_small(source: Source, options: ShardOptions) -> bool:
    """Whether a volume has a side that is shorter than the cube's."""
    assert options.cube is not None
    return any(has < wanted for has, wanted in zip(source.grid.sides[::-1], options.cube, strict=True))


def _check(source: Source) -> None:
    for number, (lowest, volume) in enumerate(zip(source.lowest, source.volumes, strict=True), 1):
        if lowest == float(volume.voxels.max()):
            where = f" of channel {number}" if len(source.volumes) > 1 else ""
            raise UnreadableError(f"each of its voxels{where} holds one value")
    labels = source.labels
    if labels is not None and (labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > _MOST_LABEL):
        raise UnreadableError(f"its mask holds other values than labels from 0 to {_MOST_LABEL}")


def relative_place(start: Start, sides: Sides, volume: Sides) -> list[float]:
    """Where a cube's centre lies in its volume, as shares of the volume's sides x, y and z."""
    places = zip(start, sides, volume, strict=True)
    return [round((first + side / 2) / most, 6) for first, side, most in places][::-1]


# ------------------------------------------------------------------------- random places


def _at_random(key: str, source: Source, sides: Sides, options: ShardOptions, note: Note) -> list[Start]:
    wanted = options.cubes_per_volume
    spans = [
        span_of_starts(has, side, margin)
        for has, side, margin in zip(source.grid.sides, sides, options.margin[::-1], strict=True)
    ]
    found, tried = random_starts(options.seed, key, spans, wanted, filter_of(source, sides, options.content_filter))
    if len(found) < wanted:
        places = prod(count for _, count in spans)
        why = f"after {tried} tries" if places > wanted else f"there are {places} places for one"
        said = f"it gives {len(found)} of {wanted} cubes: {why}"
        if options.content_filter:
            said += f" by --content-filter {options.content_filter}"
        if not found:
            raise UnreadableError(said)
        note(said)
    return found


def span_of_starts(has: int, side: int, margin: float) -> tuple[int, int]:
    """First start along an axis, and how many there are; a margin that leaves no room for a cube leaves its middle."""
    first = floor(margin * has)
    free = has - 2 * first - side
    if free < 0:
        return (has - side) // 2, 1  # before 0 where the whole volume is smaller: padded on both sides alike
    return first, free + 1


def random_starts(
    seed: int, key: str, spans: Sequence[tuple[int, int]], wanted: int, keeps: Keeps
) -> tuple[list[Start], int]:
    """Unlike places that are kept, and how many were tried.

    Args:
        seed: of the set.
        key: of the volume, hexadecimal.
        spans: along each axis the first start, and how many there are.
        wanted: how many places.
        keeps: whether a place is kept.
    """
    found: list[Start] = []
    seen: set[Start] = set()
    places, most_tries, tried = prod(count for _, count in spans), _TRIES_PER_CUBE * wanted, 0
    for number in range(wanted):
        attempt = 0
        while len(found) == number and tried < most_tries and len(seen) < places:
            words = (seed, Drawn.CUBE, int(key, 16), number, attempt)
            first, second, third = (low + drawn(count, *words, axis) for axis, (low, count) in enumerate(spans))
            start = (first, second, third)
            if start not in seen and keeps(start):
                found.append(start)
            seen.add(start)
            attempt, tried = attempt + 1, tried + 1
    return found, tried


def filter_of(source: Source, sides: Sides, content_filter: str | None) -> Keeps:
    """What keeps a place, by the values of its cube in the volume's own unit; of several channels the first's."""
    if content_filter is None:
        return lambda start: True
    rule = parse_filter(content_filter)
    voxels, lowest, grid = source.volume.voxels, source.lowest[0], source.grid
    if rule is not None:
        mean = float(voxels.mean(dtype=np.float64))
        return lambda start: rule.keeps(grid.read(voxels, start, sides, fill=lowest), mean)

    def mostly_lung(start: Start) -> bool:
        ahead = min(LOOK_AHEAD, max(0, grid.sides[0] - start[0] - sides[0]))
        block = grid.read(voxels, start, (sides[0] + ahead, *sides[1:]), fill=lowest)
        return is_mostly_lung(block, sides[0])

    return mostly_lung


# ------------------------------------------------------------------------ around centres


def _around(
    source: Source, sides: Sides, centres: Sequence[Centre], options: ShardOptions, note: Note
) -> Iterator[tuple[Start, dict[str, Any]]]:
    """Starts and labels of the cubes around centres; those whose centre lies outside of the volume are told of.

    Raises:
        UnreadableError: one lies outside and the set is strict, or all do, or nothing says where they lie.
    """
    assert options.centres_in is not None
    own = np.array(source.grid.source)
    placed = [(centre, voxel_of(centre, source.volume, options.centres_in)) for centre in centres]
    outside = [centre for centre, voxel in placed if ((voxel < -0.5) | (voxel > own - 0.5)).any()]
    if outside:
        lines = ", ".join(str(centre.line) for centre in outside[:5]) + (", ..." if len(outside) > 5 else "")
        said = f"{len(outside)} of its {len(centres)} centres lie outside of it (line {lines} of the table)"
        if options.strict or len(outside) == len(centres):
            raise UnreadableError(said)
        note(f"{said} and are left out")
    starts = [
        (_start_around(source.grid.index_of(voxel), sides), centre.labels)
        for centre, voxel in placed
        if centre not in outside
    ]
    beyond = sum(1 for start, _ in starts if _reaches_beyond(start, sides, source.grid.sides))
    if beyond:
        note(f"{beyond} of its {len(starts)} cubes reach beyond it, where its lowest value stands")
    yield from starts


def _start_around(index: NDArray[np.float64], sides: Sides) -> Start:
    """The voxel nearest to a centre becomes number ``side // 2`` of each side."""
    first, second, third = (floor(place + 0.5) - side // 2 for place, side in zip(index, sides, strict=True))
    return first, second, third


def _reaches_beyond(start: Start, sides: Sides, most: Sides) -> bool:
    return any(first < 0 or first + side > end for first, side, end in zip(start, sides, most, strict=True))
