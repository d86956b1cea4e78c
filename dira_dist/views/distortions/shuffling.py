"""Local shuffling: the voxels of small windows in another order (Zhou et al., *Models Genesis*, 2021, section 3.1).

Content is always read from the view before any shuffling, and a later window writes over an earlier one. So what a
voxel becomes is settled by the last window that covers it alone, and all windows are worked on at once.

To sort the voxels of all windows by random keys would take two thirds of the time. In its place a window takes one of
some permutations of as many voxels, which are the same everywhere and for ever, begun at one of its places at random:
each voxel goes to each place with the same probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dira_dist.views.randomness import RandomPurpose, integers_between, pairs

_ENTRIES = 1 << 18
"""Voxels of windows that a CPU takes at once: more would leave its caches."""
_UNLIKELY = math.log(1e12)
_PERMUTATIONS = (16, 64)
"""Fewest and most permutations of so many voxels, and between them what keeps to this number of table entries:"""
_TABLE_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Windows:
    """K windows of each of N views with n axes.

    Attributes:
        first_px: (N, K, n) int64, their first pixels.
        side_px: (N, K, n) int64, their sides.
        permutation: (N, K) int64, which of the permutations of as many voxels.
        begin: (N, K) int64, where in it the window's first voxel stands.
    """

    first_px: Tensor
    side_px: Tensor
    permutation: Tensor
    begin: Tensor


def largest_px(sides_px: Sequence[int], share: float) -> tuple[int, ...]:
    """Largest sides of a window: a share of the view's, and at least a pixel."""
    return tuple(max(1, int(side * share)) for side in sides_px)


def draw_windows(keys: Tensor, count: int, sides_px: Sequence[int], share: float) -> Windows:
    """Windows of views with the (N,) keys: sides uniform from 1 to a share of the view's, places uniform inside it."""
    most, axes = largest_px(sides_px, share), len(sides_px)
    one, other = (
        each.view(-1, axes + 1, count) for each in pairs(keys, RandomPurpose.LOCAL_SHUFFLING, (axes + 1) * count)
    )
    sides = [integers_between(one[:, axis], 1, side) for axis, side in enumerate(most)]
    places = enumerate(zip(sides_px, sides, strict=True))
    firsts = [integers_between(other[:, axis], 0, length - side) for axis, (length, side) in places]
    volume = math.prod(sides[1:], start=sides[0])
    permutation = integers_between(one[:, axes], 0, permutations(most).count - 1)
    begin = integers_between(other[:, axes], 0, volume - 1)
    return Windows(torch.stack(firsts, -1), torch.stack(sides, -1), permutation, begin)


@dataclass(frozen=True)
class Permutations:
    """Permutations of 1, 2, ... voxels, as many as a window may have.

    Attributes:
        table: (T,) int32, one after the other, each twice, so that it may be begun anywhere.
        starts: (L + 1,) int64, where those of so many voxels begin, L being the largest window's.
        count: of each number of voxels.
    """

    table: Tensor
    starts: Tensor
    count: int


@lru_cache(maxsize=8)
def permutations(most: tuple[int, ...], device: torch.device | None = None) -> Permutations:
    """Those for windows with sides up to `most`; made once, for numbers that are products of such sides alone."""
    volumes = sorted({math.prod(shape) for shape in np.ndindex(*(side + 1 for side in most))} - {0})
    low, high = _PERMUTATIONS
    count = max(low, min(high, _TABLE_ENTRIES // (2 * sum(volumes))))
    drawn, begun, tables = np.random.default_rng(0), 0, []
    starts = torch.zeros(volumes[-1] + 1, dtype=torch.int64)
    for volume in volumes:
        rows = drawn.permuted(np.tile(np.arange(volume), (count, 1)), axis=1)
        tables.append(np.tile(rows, 2).reshape(-1))
        starts[volume], begun = begun, begun + len(tables[-1])
    return Permutations(torch.from_numpy(np.concatenate(tables)).int().to(device), starts.to(device), count)


def shuffle_locally(views: Tensor, keys: Tensor, count: int, share: float) -> Tensor:
    """(N, C, *S) views with (N,) keys, shuffled in `count` windows each whose sides are up to `share` of the view's."""
    sides_px = tuple(views.shape[2:])
    on_cpu = views.device.type == "cpu"
    at_once = max(1, _ENTRIES // _capacity(count, largest_px(sides_px, share))) if on_cpu else len(views)
    parts = zip(views.split(at_once), keys.split(at_once), strict=True)
    return torch.cat([_shuffled(part, draw_windows(own, count, sides_px, share), share) for part, own in parts])


def _shuffled(views: Tensor, windows: Windows, share: float) -> Tensor:
    by_channel = views.transpose(0, 1)
    sources = _sources(windows, tuple(views.shape[2:]), share)
    moved = by_channel.flatten(1).index_select(1, sources)  # quicker than a gather
    return moved.view(by_channel.shape).transpose(0, 1)


def shuffled_sources(windows: Windows, sides_px: tuple[int, ...], share: float) -> Tensor:
    """Where each voxel's content comes from, (N, P) int64 flat numbers of a view's P voxels."""
    own = math.prod(sides_px)
    sources = _sources(windows, sides_px, share).long().view(-1, own)
    return sources - torch.arange(len(sources), device=sources.device)[:, None] * own


def _sources(windows: Windows, sides_px: tuple[int, ...], share: float) -> Tensor:
    """The same among the voxels of all views, (N * P,) int32: half the bytes are twice as quick.

    Entries are the voxels of all windows, one after the other; those beyond the last are of a window that is none.
    """
    most, device = largest_px(sides_px, share), windows.first_px.device
    voxels, count = len(windows.first_px) * math.prod(sides_px), windows.permutation.numel()
    table, entries = permutations(most, device), _capacity(count, most)
    volume = windows.side_px.prod(-1).flatten()
    starts = F.pad(volume.cumsum(0), (1, 0))
    window = torch.zeros(entries + 1, dtype=torch.int32, device=device).scatter_(0, starts[1:].clamp_max(entries), 1)
    window = window[:entries].cumsum(0, dtype=torch.int32)
    entry = torch.arange(entries, dtype=torch.int32, device=device)
    position = _positions(windows, sides_px, most, starts, window, entry)
    last = torch.full((voxels + 1,), -1, dtype=torch.int32, device=device)
    last = last.scatter_reduce_(0, position.long(), entry, "amax")[:voxels]
    begin = table.starts[volume] + 2 * volume * windows.permutation.flatten() + windows.begin.flatten() - starts[:-1]
    covering = last.clamp_min(0)
    last_window = window.index_select(0, covering)
    permuted = table.table.index_select(0, begin.int().index_select(0, last_window).add_(covering))
    source = position.index_select(0, permuted.add_(starts.int().index_select(0, last_window)))
    return torch.where(last < 0, torch.arange(voxels, dtype=torch.int32, device=device), source)


def _positions(
    windows: Windows, sides_px: tuple[int, ...], most: tuple[int, ...], starts: Tensor, window: Tensor, entry: Tensor
) -> Tensor:
    """Flat numbers of the entries' voxels among those of all views; one beyond them for entries of no window."""
    views, _, axes = windows.first_px.shape
    shape_number, first = torch.zeros_like(windows.permutation), torch.arange(views, device=window.device)[:, None]
    for axis in range(axes):
        shape_number = shape_number * most[axis] + windows.side_px[..., axis] - 1
        first = first * sides_px[axis] + windows.first_px[..., axis]
    offsets, shape_starts = _shapes(most, sides_px, window.device)
    shift = F.pad(shape_starts[shape_number.flatten()] - starts[:-1], (0, 1), value=-len(window)).int()
    position = offsets.index_select(0, shift.index_select(0, window).add_(entry).clamp_min_(0))
    beyond = views * math.prod(sides_px)
    position += F.pad(first.flatten(), (0, 1), value=beyond).int().index_select(0, window)
    return position.clamp_max_(beyond)


def _capacity(count: int, most: Sequence[int]) -> int:
    """Entries that so many windows do not exceed, but once in 10^12 draws, whose last windows then do less.

    It has to be known before anything is drawn, for a device is not waited for. Bernstein's inequality for a sum of
    volumes with this mean, variance and bound (Boucheron, Lugosi & Massart 2013, theorem 2.10).
    """
    mean = math.prod((side + 1) / 2 for side in most)
    square = math.prod((side + 1) * (2 * side + 1) / 6 for side in most)
    bound = _UNLIKELY * (math.prod(most) - mean) / 3
    beyond = bound + math.sqrt(bound**2 + 2 * _UNLIKELY * count * (square - mean**2))
    return min(count * math.prod(most), math.ceil(count * mean + beyond))


@lru_cache(maxsize=8)
def _shapes(most: tuple[int, ...], sides_px: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat offsets of the voxels of every window's shape, shape after shape, and where each shape's begin."""
    offsets, starts, begun = [], [], 0
    for shape in torch.cartesian_prod(*(torch.arange(1, side + 1) for side in most)).view(-1, len(most)).tolist():
        offset = torch.zeros(1, dtype=torch.int64)
        for side, length in zip(shape, sides_px, strict=True):
            offset = (offset[:, None] * length + torch.arange(side)).flatten()
        offsets.append(offset)
        starts.append(begun)
        begun += len(offset)
    return torch.cat(offsets).int().to(device), torch.tensor(starts).to(device)
