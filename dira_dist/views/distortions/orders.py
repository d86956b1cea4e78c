"""Orders of pieces that lie far apart: permutations chosen for their Hamming distance.

Noroozi & Favaro, *Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles* (ECCV 2016), section 3.2.
"""

import math
from functools import lru_cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

_ALL_OF = 8
"""Pieces of which all orders are candidates; of more pieces some are drawn:"""
_DRAWN = 10_000

Orders = npt.NDArray[np.int64]


def order_count(pieces: int, most: int) -> int:
    """How many orders there are to choose from, at most so many."""
    return min(most, math.factorial(min(pieces, 20)))


@lru_cache(maxsize=4)
def far_orders(pieces: int, most: int) -> Orders:
    """Orders (K, pieces) of which the first is the pieces' own, and each other one the farthest from those before it.

    Farthest is what has most places different from the nearest of them, and of several such the most in sum.
    The same everywhere and for ever.
    """
    candidates = _candidates(pieces)
    count = min(order_count(pieces, most), len(candidates))
    chosen, nearest, total = [0], np.full(len(candidates), pieces), np.zeros(len(candidates), dtype=np.int64)
    for _ in range(count - 1):
        distance = (candidates != candidates[chosen[-1]]).sum(1)
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int(np.argmax(nearest * (total.max() + 1) + total)))
    return candidates[chosen].astype(np.int64)


def _candidates(pieces: int) -> npt.NDArray[np.int8]:
    """Orders to choose from, the pieces' own first and none twice."""
    if pieces <= _ALL_OF:
        return np.array(list(permutations(range(pieces))), dtype=np.int8)
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(pieces, dtype=np.int8), (_DRAWN, 1)), axis=1)
    others = np.unique(drawn, axis=0)
    own = np.arange(pieces, dtype=np.int8)
    return np.concatenate([own[None], others[(others != own).any(1)]])
