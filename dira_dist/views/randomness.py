"""Random numbers that belong to the sample, not to the process that asks for them.

A number is a pure function of (seed, epoch, sample, view, stream, draw): a counter-based generator in the manner of
Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), built from :mod:`dira_dist.data.splitmix`. All
of it is integer arithmetic in int64 tensors, so any worker, batch or device draws the same numbers.
"""

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor

from dira_dist.data.splitmix import GOLDEN_GAMMA, mix, shift_right, signed


class RandomPurpose(IntEnum):
    """What a number is drawn for. Streams are independent: more draws of one never move another."""

    CROP = 1
    JITTER = 2
    BLUR = 3
    DISTORTION = 4
    CUT_OUT = 5
    SHUFFLE = 6
    AUGMENTATION_GEOMETRY = 7
    AUGMENTATION_INTENSITY = 8
    AUGMENTATION_NOISE = 9
    UNCERTAIN = 10
    ALIGNED_FLIP = 11
    LOCAL_SHUFFLING = 12
    SHUFFLED_ORDER = 13
    CURVE = 14
    PAINTING = 15
    PAINTED_NOISE = 16
    WARP = 17
    PIECES = 18
    PENALTY_MIX = 19
    PATCH = 20


def _absorb(state: Tensor, word: Tensor) -> Tensor:
    return mix(state + mix(word + GOLDEN_GAMMA))


def view_keys(seed: int, epochs: Tensor, sample_ids: Tensor, views: int) -> Tensor:
    """One key for each view of each sample.

    Args:
        seed: the job's seed.
        epochs: (B,) int64.
        sample_ids: (B,) int64, the sample's index in its shard set.
        views: how many views of each sample, V.

    Returns:
        (V, B) int64.
    """
    start = mix(torch.full_like(sample_ids, signed(seed)))
    keys = _absorb(_absorb(start, epochs), sample_ids)
    return _absorb(keys, torch.arange(views, device=keys.device)[:, None])


def uniform(keys: Tensor, stream: RandomPurpose, count: int) -> Tensor:
    """``count`` independent numbers in [0, 1) for each key.

    Args:
        keys: (...) int64, from :func:`view_keys`.
        stream: what they are for.
        count: how many; asking for more leaves the first ones as they were.

    Returns:
        (..., count) float64 with 53 random bits: parameters are drawn in double precision so that a last-bit
        difference of `exp` between devices cannot move a rounded pixel.
    """
    return shift_right(words(keys, stream, count), 11).double() * 2.0**-53


def words(keys: Tensor, stream: RandomPurpose, count: int) -> Tensor:
    """``count`` independent words of 64 random bits for each key: (...) int64 to (..., count) int64."""
    draws = torch.arange(1, count + 1, device=keys.device)
    start = _absorb(keys, torch.full_like(keys, int(stream)))
    return mix(start[..., None] + draws * GOLDEN_GAMMA)


def pairs(keys: Tensor, stream: RandomPurpose, count: int) -> tuple[Tensor, Tensor]:
    """Twice as many numbers of half as many bits: two (..., count) float64 in [0, 1) with 32 random bits."""
    drawn = words(keys, stream, count)
    return shift_right(drawn, 32).double() * 2.0**-32, (drawn & 0xFFFFFFFF).double() * 2.0**-32


def noise(keys: Tensor, stream: RandomPurpose, count: int) -> Tensor:
    """As :func:`uniform`, in float32 with 24 random bits, two of a word: for values of pixels, which are many."""
    drawn = words(keys, stream, -(-count // 2))
    both = torch.cat([shift_right(drawn, 40), (drawn >> 16) & 0xFFFFFF], -1)
    return both[..., :count].float() * 2.0**-24


def uniform_between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers of [0, 1) stretched to [low, high)."""
    return low + numbers * (high - low)


def integers_between(numbers: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Numbers of [0, 1) as int64 in [low, high], both ends included."""
    return low + (numbers * (high - low + 1)).long()


@dataclass(frozen=True)
class PerView:
    """Parameters of V views of B samples: every field is a tensor (V, B, ...)."""

    def of(self, part: slice) -> Self:
        """The parameters of some of the samples, as (V * b, ...), all first views before all second ones."""
        rows = {field.name: getattr(self, field.name)[:, part].flatten(0, 1) for field in fields(self)}
        return replace(self, **rows)
