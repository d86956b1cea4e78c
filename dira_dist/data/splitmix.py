"""The finaliser of SplitMix64, for whatever here has to look random and be the same everywhere and for ever.

Steele, Lea & Flood, *Fast Splittable Pseudorandom Number Generators* (OOPSLA 2014). All of it is arithmetic of int64,
which wraps the same way in numpy and in torch, on every device.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Int64s = npt.NDArray[np.int64]
WordsT = TypeVar("WordsT", "Tensor", Int64s)


def signed(value: int) -> int:
    """The int64 with the same 64 bits as ``value`` modulo 2**64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


GOLDEN_GAMMA = signed(0x9E3779B97F4A7C15)
"""Odd, and near 2**64 over the golden ratio: the step from one state of the generator to the next."""


def shift_right(words: WordsT, count: int) -> WordsT:
    """Logical right shift: that of signed words keeps the sign."""
    return (words >> count) & ((1 << (64 - count)) - 1)


def mix(words: WordsT) -> WordsT:
    """A bijection of 64-bit words in which every input bit moves every output bit.

    Args:
        words: int64, of any shape; an array, for a scalar of numpy warns where it wraps.
    """
    words = (words ^ shift_right(words, 30)) * signed(0xBF58476D1CE4E5B9)
    words = (words ^ shift_right(words, 27)) * signed(0x94D049BB133111EB)
    return words ^ shift_right(words, 31)


def key_of(*words: int) -> int:
    """A 64-bit number, signed, that a sequence of words always gets; unlike sequences give unrelated ones."""
    key = 0
    for word in words:
        key = int(mix(np.array([signed((key + word + 1) * GOLDEN_GAMMA)]))[0])
    return key


def permutation(count: int, *words: int) -> Int64s:
    """A permutation of ``count`` numbers drawn from ``words``: the order of a hash, the same on every machine and with
    every release of numpy, whose own generators promise no such thing."""
    hashes = mix(np.arange(count, dtype=np.int64) * GOLDEN_GAMMA + key_of(*words))
    return np.argsort(hashes.view(np.uint64), kind="stable").astype(np.int64, copy=False)


def drawn(count: int, *words: int) -> int:
    """One of ``count`` numbers, drawn from ``words``."""
    return key_of(*words) % count


class Drawn(IntEnum):
    """What is drawn, the second word of each draw: keeps the kinds apart under one seed. Numbers stay for ever."""

    SHARDS = 1
    ROWS = 2
    ENTRY = 3
    BEGINNING = 4
    SPREAD = 5
    LIST = 6
    LIST_START = 7
    LIST_DRAWS = 8
    FRACTION = 9
    FRACTION_START = 10
    FOLD_UNITS = 11
    FOLDS = 12
    CUBE = 13
    WORD = 14
    WORD_VOLUME = 15
    WORD_PLACE = 16
    WORD_SIZE = 17
