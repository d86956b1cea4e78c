"""Tables of what a classifier or a segmenter is worth: figures with intervals and counts, as data and as Markdown."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation import classification as of_classes
from dira_dist.evaluation.calibration import decided
from dira_dist.evaluation.classification import ClassPredictions, Floats, Pooling, pooled
from dira_dist.evaluation.intervals import Figure, Resamples, weighted_mean
from dira_dist.evaluation.segmentation import CASE_FIGURES, SegmentationCase
from dira_dist.metrics import Metric

Table = dict[str, dict[str, Any]]
"""By class: figures as ``{value, low, high}``, numbers that are not defined as None, and counts."""

MEAN = "mean"
_OF_CHANCES = {"auroc": of_classes.auroc, "average_precision": of_classes.average_precision}
_OF_CALIBRATION = {"brier": of_classes.brier, "calibration_error": of_classes.calibration_error}
_OF_DECISIONS = {
    "sensitivity": of_classes.sensitivity,
    "specificity": of_classes.specificity,
    "f1": of_classes.f1,
}
CLASS_FIGURES = (*_OF_CHANCES, *_OF_DECISIONS, *_OF_CALIBRATION)
_BANDS = (0, 18, 40, 65, 200)
_MOST_VALUES = 12
_LEAST_IN_SUBGROUP = 10


def class_table(predictions: ClassPredictions, chances: Floats, thresholds: Sequence[float], draws: int) -> Table:
    """Figures of each class and, for those of ranking, their mean over the classes that have both values.

    Args:
        predictions: the truth, and whom each sample is of.
        chances: (N, K) calibrated.
        thresholds: (K,) above which a class is said to be there.
        draws: resamples of the groups.
    """
    said = decided(chances, thresholds, predictions.kind)
    table = {
        name: _class_row(predictions, chances[:, place], said[:, place], place, draws)
        for place, name in enumerate(predictions.classes)
    }
    if len(table) > 1:
        table[MEAN] = _mean_row(predictions, chances, draws)
    return table


def _class_row(
    predictions: ClassPredictions, chances: Floats, said: npt.NDArray[np.bool_], place: int, draws: int
) -> dict[str, Any]:
    known = np.flatnonzero(~np.isnan(predictions.targets[:, place]))
    chances, said, truth = chances[known], said[known], predictions.targets[known, place] == 1
    groups = [predictions.groups[row] for row in known.tolist()]
    counts = {
        "images": len(known),
        "groups": len(set(groups)),
        "positives": int(truth.sum()),
        "prevalence": float(truth.mean()) if len(truth) else None,
    }
    if not len(known):
        return counts | {name: _entry(math.nan, math.nan, math.nan) for name in CLASS_FIGURES}
    resamples = Resamples(groups, draws)
    figures: dict[str, Figure] = {
        **{name: _bound(function, chances, truth) for name, function in (_OF_CHANCES | _OF_CALIBRATION).items()},
        **{name: _bound(function, said, truth) for name, function in _OF_DECISIONS.items()},
    }
    return counts | {name: _measured(resamples, figures[name]) for name in CLASS_FIGURES}


def _mean_row(predictions: ClassPredictions, chances: Floats, draws: int) -> dict[str, Any]:
    """Means over the classes, the same patients drawn for all of them."""

    def mean_of(function: Callable[..., Floats]) -> Figure:
        def figure(weights: Floats) -> Floats:
            found = [
                function(chances[known, place], predictions.targets[known, place] == 1, weights[:, known])
                for place in range(len(predictions.classes))
                for known in [~np.isnan(predictions.targets[:, place])]
                if known.any()
            ]
            return _mean_of_known(np.stack(found))

        return figure

    resamples = Resamples(predictions.groups, draws)
    counts = {"images": len(predictions), "groups": len(set(predictions.groups))}
    return counts | {name: _measured(resamples, mean_of(function)) for name, function in _OF_CHANCES.items()}


def _mean_of_known(found: Floats) -> Floats:
    """(R,) of (K, R): over the classes that are defined there."""
    known = ~np.isnan(found)
    counts = known.sum(axis=0)
    total = np.where(known, found, 0).sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(found.shape[1], np.nan), where=counts > 0))


def class_tables(
    predictions: ClassPredictions,
    chances: Floats,
    thresholds: Sequence[float],
    *,
    draws: int,
    subgroups: Sequence[str] = (),
) -> dict[str, Any]:
    """Per image; pooled per group where groups have several images; and apart by what is known of the samples."""
    tables: dict[str, Any] = {"per_image": class_table(predictions, chances, thresholds, draws)}
    if len(set(predictions.groups)) < len(predictions):
        hows: tuple[Pooling, ...] = ("mean", "max")
        for how in hows:
            merged, truth = pooled(chances, predictions, how)
            tables[f"per_group_{how}"] = class_table(truth, merged, thresholds, draws)
    tables["subgroups"] = {
        column: {
            value: class_table(predictions.take(rows), chances[rows], thresholds, draws)
            for value, rows in _parts(predictions.columns, column)
        }
        for column in subgroups
    }
    return tables


def case_table(cases: Sequence[SegmentationCase], outputs: Sequence[str], draws: int) -> Table:
    """Means over the cases of each output and over all outputs, and how often it is seen whether anything is there."""
    if not cases:
        return {}
    resamples = Resamples([case.group for case in cases], draws)
    table: Table = {}
    for place, output in enumerate(outputs):
        there = np.array([case.figures["there"][place] for case in cases]) > 0
        said = np.array([case.figures["said"][place] for case in cases]) > 0
        row: dict[str, Any] = {"images": len(cases), "with": int(there.sum())}
        for name in CASE_FIGURES:
            values = np.array([case.figures[name][place] for case in cases], dtype=np.float64)
            row[name] = _measured(resamples, weighted_mean(values)) | {"cases": int((~np.isnan(values)).sum())}
        for name in ("sensitivity", "specificity"):
            row[f"presence_{name}"] = _measured(resamples, _bound(_OF_DECISIONS[name], said, there))
        table[output] = row
    if len(outputs) > 1:
        table[MEAN] = {"images": len(cases)} | {
            name: _measured(resamples, _mean_over_outputs(cases, name)) for name in CASE_FIGURES
        }
    return table


def case_tables(
    cases: Sequence[SegmentationCase], outputs: Sequence[str], *, draws: int, subgroups: Sequence[str] = ()
) -> dict[str, Any]:
    """Of all cases, and apart by what is known of them."""
    columns = [case.columns for case in cases]
    return {
        "per_image": case_table(cases, outputs, draws),
        "subgroups": {
            column: {
                value: case_table([cases[row] for row in rows], outputs, draws)
                for value, rows in _parts(columns, column)
            }
            for column in subgroups
        },
    }


def _mean_over_outputs(cases: Sequence[SegmentationCase], name: str) -> Figure:
    columns = np.array([case.figures[name] for case in cases], dtype=np.float64).T
    return lambda weights: _mean_of_known(np.stack([weighted_mean(values)(weights) for values in columns]))


def _parts(columns: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Values of a column and the samples that have them; numbers in bands, and small parts left out."""
    values = [known.get(name) for known in columns]
    distinct = {str(value) for value in values if value is not None}
    named = [_band(value) if len(distinct) > _MOST_VALUES else _text(value) for value in values]
    for part in sorted({value for value in named if value}):
        rows = np.flatnonzero([value == part for value in named])
        if len(rows) >= _LEAST_IN_SUBGROUP:
            yield part, rows


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _band(value: Any) -> str:
    """A number's band; ``90+`` is one of its own kind, and what is no number stays."""
    try:
        number = float(str(value).removesuffix("+"))
    except ValueError:
        return _text(value)
    return next(f"{low}-{high - 1}" for low, high in pairwise(_BANDS) if number < high)


def _bound(function: Callable[..., Floats], *arguments: Any) -> Figure:
    return lambda weights: function(*arguments, weights)


def _measured(resamples: Resamples, figure: Figure) -> dict[str, float | None]:
    found = resamples.measure(figure)
    return _entry(found.value, found.low, found.high)


def _entry(value: float, low: float, high: float) -> dict[str, float | None]:
    return {
        name: None if math.isnan(number) else number
        for name, number in (("value", value), ("low", low), ("high", high))
    }


def metrics_of(table: Table, family: Metric) -> dict[str, float]:
    """A table's means, or its only row, as figures of a family for a tracker, with the ends of their intervals."""
    row = table.get(MEAN) or next(iter(table.values()), {})
    found: dict[str, float] = {}
    for name, entry in row.items():
        if isinstance(entry, dict) and entry["value"] is not None:
            found[family.of(name)] = entry["value"]
            found |= {family.of(f"{name}_{end}"): entry[end] for end in ("low", "high") if entry[end] is not None}
    if MEAN in table:
        for label, entries in table.items():
            leading = next((entry for entry in entries.values() if isinstance(entry, dict)), None)
            name = next((name for name, entry in entries.items() if isinstance(entry, dict)), "")
            if label != MEAN and leading is not None and leading["value"] is not None:
                found[family.of(f"{name}/{label}")] = leading["value"]
    return found


def markdown_table(table: Table, counts: Sequence[str]) -> Iterator[str]:
    """A table as Markdown: counts first, then each figure with its interval; ``n/a`` where it is not defined."""
    figures = list(
        dict.fromkeys(name for row in table.values() for name, each in row.items() if isinstance(each, dict))
    )
    yield "| | " + " | ".join([*counts, *(name.replace("_", " ") for name in figures)]) + " |"
    yield "| --- |" + " --- |" * (len(counts) + len(figures))
    for label, row in table.items():
        cells = [_cell(row.get(name)) for name in (*counts, *figures)]
        yield f"| {label.replace('|', '/')} | " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        if value["value"] is None:
            return "n/a"
        ends = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
        return f"{value['value']:.3f}{ends}"
    if value is None:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
