"""How masks compare with true ones: figures of each case, and of all of them.

Of two empty masks Dice, IoU and distances say nothing: they are NaN there and left out of means, and whether anything
is there at all is measured apart (*presence*). A mask where none should be has Dice 0; its distance is NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.metrics import VAL_DICE, VAL_IOU

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]

DICE, IOU, HD95, SURFACE_DICE, VOLUME_ERROR = "dice", "iou", "hd95", "surface_dice", "volume_error"
CASE_FIGURES = (DICE, IOU, HD95, SURFACE_DICE, VOLUME_ERROR)
OF_SURFACES = (HD95, SURFACE_DICE)
IN_MM = "in_mm"
CHANCE = "chance"


@dataclass(frozen=True)
class SegmentationCase:
    """One image, and how its mask compares with the true one.

    Attributes:
        key: of the sample.
        group: whom it is of.
        columns: what else is known of it.
        figures: (K,) lists by name; see :func:`case_figures`.
        image, predicted, truth: (H, W) uint8 and (K, H, W) bool of its frame, to look at; of a volume three slices of
            it, see :func:`dira_dist.evaluation.planes.three_planes`; none where not kept.
    """

    key: str
    group: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    image: Pixels | None = None
    predicted: Bools | None = None
    truth: Bools | None = None


def case_figures(
    predicted: Bools,
    truth: Bools,
    valid: Bools,
    spacing_mm: Sequence[float] | None,
    *,
    tolerance: float = 2.0,
    surfaces: bool = True,
    chances: Floats | None = None,
) -> dict[str, list[float]]:
    """Dice, IoU, volume error, and with ``surfaces`` HD95 and surface Dice, of each output.

    Args:
        predicted: (K, *S).
        truth: (K, *S).
        valid: (*S) where the truth is known; elsewhere nothing counts.
        spacing_mm: along each axis; none where it is not known, and distances are in pixels.
        tolerance: of the surface Dice, in the unit of distances.
        surfaces: whether surfaces are compared.
        chances: (K, *S) probabilities.

    Returns:
        (K,) lists. ``volume_error`` is relative to the true volume; ``hd95`` is the larger of the 95th percentiles of
        each surface's distances from the other. ``there`` and ``said`` tell whether anything is there, and is said to
        be; ``in_mm`` whether distances and tolerance are in mm; ``chance`` is the largest probability, by which images
        are ranked where the question is whether anything is there: which of an output alone is above 0.5 just where
        something is said to be. (A sum of probabilities would rank large images, and large organs, above small ones.)
    """
    found: dict[str, list[float]] = {name: [] for name in (*CASE_FIGURES, "there", "said", IN_MM)}
    for one, other in zip(predicted & valid, truth & valid, strict=True):
        common, said, there = float((one & other).sum()), float(one.sum()), float(other.sum())
        both = said + there
        found[DICE].append(2 * common / both if both else np.nan)
        found[IOU].append(common / (both - common) if both else np.nan)
        found[VOLUME_ERROR].append((said - there) / there if there else np.nan)
        found["there"].append(float(there > 0))
        found["said"].append(float(said > 0))
        found[IN_MM].append(float(spacing_mm is not None))
        distance, share = (np.nan, np.nan)
        if surfaces and said and there:
            distance, share = _surfaces(one, other, spacing_mm or (1.0,) * one.ndim, tolerance)
        elif surfaces and both:
            share = 0.0
        found[HD95].append(distance)
        found[SURFACE_DICE].append(share)
    known = None if chances is None or not valid.any() else chances[:, valid]
    found[CHANCE] = [np.nan] * len(truth) if known is None else known.max(axis=1).astype(float).tolist()
    return found


def _surfaces(one: Bools, other: Bools, spacing: Sequence[float], tolerance: float) -> tuple[float, float]:
    """The larger of the 95th percentiles of the distances from one surface to the other and back (Huttenlocher et al.,
    *IEEE TPAMI* 15, 1993, with a percentile in place of the maximum), and the share of both within the tolerance
    (Nikolov et al., *JMIR* 2021). A surface is the pixels of a mask that touch what is none of it.

    One percentile of both directions together would hide a piece far off that makes 5 to 10 % of one surface.
    """
    from scipy import ndimage

    borders = [mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in (one, other)]
    away = [ndimage.distance_transform_edt(~border, sampling=spacing) for border in borders]
    there, back = away[1][borders[0]], away[0][borders[1]]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float((np.concatenate([there, back]) <= tolerance).mean())


def val_figures(cases: Sequence[SegmentationCase], outputs: Sequence[str]) -> dict[str, float]:
    """The figures of an epoch on ``val``: means over the cases of each output, and their mean over the outputs."""
    found: dict[str, float] = {}
    for metric, name in ((VAL_DICE, DICE), (VAL_IOU, IOU)):
        values = np.array([case.figures[name] for case in cases], dtype=np.float64).reshape(len(cases), len(outputs))
        measured = [float(np.nanmean(column)) if not np.isnan(column).all() else np.nan for column in values.T]
        known = [value for value in measured if not np.isnan(value)]
        if known:
            found[metric.name] = float(np.mean(known))
        if len(outputs) > 1:
            found |= {
                metric.of(f"/{output}"): value
                for output, value in zip(outputs, measured, strict=True)
                if not np.isnan(value)
            }
    return found
