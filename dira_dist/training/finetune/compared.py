"""Fine-tunings compared: what their reports hold of the same test samples, and what a comparison makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation.classification import Floats, auroc, brier, calibration_error
from dira_dist.evaluation.comparison import ComparedStarts, Estimate, aligned, compare_starts, estimate_means
from dira_dist.evaluation.intervals import Figure
from dira_dist.evaluation.report import mean_over_classes, mean_over_outputs
from dira_dist.training.finetune.report_tables import SampleRows, read_rows

Cell = tuple[str, float]
"""Start and fraction."""

_OF_CALIBRATION: Mapping[str, Callable[..., Floats]] = {"Brier score": brier, "calibration error": calibration_error}


@dataclass(frozen=True)
class ComparedFits:
    """What the fits of a comparison are worth on the test set.

    Attributes:
        figure: what they are compared by, as people write it.
        found: the comparison.
        calibration: by figure and cell, means over the seeds; of classifiers only. Less is better.
        patients: whom the test samples are of, counted.
        samples: of the test set.
    """

    figure: str
    found: ComparedStarts
    calibration: Mapping[str, Mapping[Cell, Estimate]]
    patients: int
    samples: int


def compare_fits(
    reports: Mapping[Cell, Sequence[Mapping[str, bytes]]], images: Mapping[float, int], draws: int
) -> ComparedFits:
    """Compares the fits of all starts with those of the first one.

    Args:
        reports: files of each seed's report, by cell; as many seeds in each.
        images: that were learned from, by fraction.
        draws: of patients and seeds.
    """
    read = {cell: [read_rows(files, "test") for files in fits] for cell, fits in reports.items()}
    flat = [rows for fits in read.values() for rows in fits]
    common, places = aligned([rows.keys for rows in flat])
    place_of = {id(rows): place for rows, place in zip(flat, places, strict=True)}
    groups = [flat[0].groups[row] for row in places[0]]

    def figures(build: Callable[[SampleRows], Figure]) -> dict[Cell, list[Figure]]:
        return {cell: [build(_take(rows, place_of[id(rows)])) for rows in fits] for cell, fits in read.items()}

    by_start: dict[str, dict[float, Sequence[Figure]]] = {}
    for (start, fraction), each in figures(_main_figure).items():
        by_start.setdefault(start, {})[fraction] = each
    labels = {fraction: float(images[fraction]) for fraction in next(iter(by_start.values()))}
    telling = _telling(_take(flat[0], places[0]))
    calibration = {
        name: estimate_means(figures(_mean_of(function)), groups, draws=draws)
        for name, function in (_OF_CALIBRATION.items() if flat[0].truth is not None else ())
    }
    return ComparedFits(
        figure="Dice" if flat[0].truth is None else "AUROC",
        found=compare_starts(by_start, groups, labels, draws=draws, telling=telling),
        calibration=calibration,
        patients=len(set(groups)),
        samples=len(common),
    )


def _take(rows: SampleRows, places: npt.NDArray[np.int64]) -> SampleRows:
    kept = places.tolist()
    truth = None if rows.truth is None else rows.truth[kept]
    return SampleRows([rows.keys[row] for row in kept], [rows.groups[row] for row in kept], truth, rows.values[kept])


def _main_figure(rows: SampleRows) -> Figure:
    """AUROC, the mean over the classes; or Dice, the mean over cases and outputs."""
    return mean_over_outputs(rows.values.T) if rows.truth is None else _mean_of(auroc)(rows)


def _mean_of(function: Callable[..., Floats]) -> Callable[[SampleRows], Figure]:
    def build(rows: SampleRows) -> Figure:
        assert rows.truth is not None
        return mean_over_classes(function, rows.values, rows.truth)

    return build


def _telling(rows: SampleRows) -> int | None:
    """How many patients the figure hangs on: of a single class, those of the rarer kind."""
    if rows.truth is None or rows.truth.shape[1] > 1:
        return None
    of_kind = [{rows.groups[row] for row in np.flatnonzero(rows.truth[:, 0] == kind)} for kind in (0, 1)]
    return max(2, min(map(len, of_kind)))
