"""Which of the cubes at random places are worth keeping, by the values in them."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

LUNG = "lung"
LOOK_AHEAD = 1  # slices beyond a cube that the lung rule looks at
_SOLID_HU = -150
_MOST_SOLID = 0.15
_ABOVE = re.compile(r"above:([^,]+),([^,]+)")


@dataclass(frozen=True, slots=True)
class AboveRule:
    """At least ``share`` of a cube lies above ``value``, in the unit of the volume; none: above the volume's mean."""

    value: float | None
    share: float

    def keeps(self, cube: NDArray[Any], volume_mean: float) -> bool:
        """Whether a cube holds enough."""
        above = volume_mean if self.value is None else self.value
        return bool((cube > above).mean() >= self.share)


def parse_filter(text: str) -> AboveRule | None:
    """``above:-500,0.3`` or ``above:mean,0.3``; none for ``lung``.

    Raises:
        ValueError: it is written otherwise.
    """
    if text == LUNG:
        return None
    found = _ABOVE.fullmatch(text.replace(" ", ""))
    try:
        value = None if found and found[1] == "mean" else float(found[1] if found else "nan")
        share = float(found[2] if found else "nan")
    except ValueError:
        value = share = math.nan
    if not 0 < share <= 1 or (value is not None and not math.isfinite(value)):
        raise ValueError(
            f"{text!r} is no filter: write lung, or above:VALUE,SHARE with a value in the volumes' unit or the word "
            "mean, and a share above 0 and up to 1"
        )
    return AboveRule(value, share)


def _checked(text: str) -> str:
    parse_filter(text)
    return text


ContentFilter = Annotated[str, AfterValidator(_checked)]


def is_mostly_lung(block: NDArray[Any], depth: int) -> bool:
    """The rule by which the published 3D pretraining keeps cubes of LUNA16: hardly more in them than air.

    A voxel counts 1 where it is solid (-150 HU or more), 0.5 where the next slice towards the head is solid there, and
    0 otherwise; a cube is kept where the mean is at most 0.15 (Models Genesis, TransVW).

    Args:
        block: (depth + 1, H, W) in HU, the cube and the slice ahead of it, which the end of a volume lacks.
        depth: slices of the cube.
    """
    solid = block >= _SOLID_HU
    following = np.zeros_like(solid)
    following[:-1] = solid[1:]
    counted = np.where(solid, 1.0, np.where(following, 0.5, 0.0))
    return bool(counted[:depth].mean() <= _MOST_SOLID)
