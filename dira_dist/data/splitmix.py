"""The finaliser of SplitMix64, for whatever here has to look random and be the same everywhere and for ever.

Steele, Lea & Flood, *Fast Splittable Pseudorandom Number Generators* (OOPSLA 2014). All of it is arithmetic of int64,
which wraps the same way in numpy and in torch, on every device.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int64s = npt.NDArray[np.int64]
WordsT = TypeVar("WordsT", Tensor, Int64s)


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
