"""Generations of a shard set: how an address names one, and where a sample stands in one and in the next.

A set changes by whole generations and never in place: images are added, patients withdrawn. ``index.json`` is the
newest; ``generations/000001.json`` is the index of an older one as it was. ``ADDRESS#generation=1`` means that one
wherever a set is read.

A tar never changes. A sample that is withdrawn is passed over in its tar, until the tar is rewritten without it under
another name. Three numberings of a tar's samples follow from that: as it was first made (its *origin*), as the tar now
holds them, and as a generation counts them. Each comes from the one before by leaving some places out.
"""

import re
from collections.abc import Sequence

import numpy as np

from dira_dist.config import RequestError
from dira_dist.data.splitmix import Int64s

GENERATIONS = "generations/"
APPENDS = "appends/"  # what is being added, each under a mark that its tars bear in their names, too
PLAN_NAME = "plan.json"  # of a set that is being made, or of what is being added
_PINNED = re.compile(r"(?P<address>.*)#generation=(?P<number>[^#]*)", re.DOTALL)


def plain_address(address: str) -> str:
    """Where a set lies, whichever of its generations is meant."""
    found = _PINNED.fullmatch(address)
    return found["address"] if found else address


def generation_of(address: str) -> int | None:
    """The generation that an address names; none where the newest is meant.

    Raises:
        RequestError: what stands there is no number of a generation.
    """
    found = _PINNED.fullmatch(address)
    if found is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", found["number"]):
        raise RequestError(
            f"{address}: {found['number']!r} is no generation; write {found['address']}#generation=1 or a later one, "
            "or leave it out for the newest."
        )
    return int(found["number"])


def at_generation(address: str, number: int) -> str:
    """``s3://bucket/set#generation=2``, of an address that may name another one."""
    return f"{plain_address(address)}#generation={number}"


def generation_name(number: int) -> str:
    """``generations/000002.json``, beside the newest index."""
    return f"{GENERATIONS}{number:06d}.json"


def without(places: Sequence[int] | Int64s, left_out: Sequence[int] | Int64s) -> Int64s:
    """Places as they are counted once ``left_out`` is gone; none of them is left out itself.

    Args:
        places: ``(n,)``.
        left_out: ``(m,)`` rising, in the same numbering.
    """
    return np.asarray(places, dtype=np.int64) - np.searchsorted(np.asarray(left_out, dtype=np.int64), places)


def among(places: Sequence[int] | Int64s, left_out: Sequence[int] | Int64s) -> Int64s:
    """The way back: places that are counted without ``left_out``, as they are counted with it.

    Args:
        places: ``(n,)``.
        left_out: ``(m,)`` rising, in the numbering of the outcome.
    """
    gone = np.asarray(left_out, dtype=np.int64)
    counted: Int64s = np.asarray(places, dtype=np.int64)
    return counted + np.searchsorted(gone - np.arange(len(gone)), counted, side="right")
