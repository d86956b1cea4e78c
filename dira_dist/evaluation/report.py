"""Tables of what a classifier or a segmenter is worth: figures with intervals and counts, as data and as Markdown."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.evaluation import classification as of_classes
from dira_dist.evaluation.calibration import decided
from dira_dist.evaluation.classification import ClassPredictions, Floats, Pooling, pooled
from dira_dist.evaluation.intervals import Figure, Measured, Resamples, all_or_none, weighted_mean
from dira_dist.evaluation.localization import ENERGY, FIGURES, HIT, IOU, MODEL, WITH_HEAT, LocalizationCase
from dira_dist.evaluation.segmentation import CASE_FIGURES, CHANCE, HD95, IN_MM, OF_SURFACES, SegmentationCase
from dira_dist.metrics import Metric

Table = dict[str, dict[str, Any]]
"""By class: figures as ``{value, low, high}``, numbers that are not defined as None, and counts.

Those of masks say of how many ``cases`` they are, and those of surfaces the ``unit`` of distances.
"""

MEAN = "mean"
IOU_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_OF_CHANCES = {"auroc": of_classes.auroc, "average_precision": of_classes.average_precision}
_OF_CALIBRATION = {"brier": of_classes.brier, "calibration_error": of_classes.calibration_error}
_OF_DECISIONS = {
    "sensitivity": of_classes.sensitivity,
    "specificity": of_classes.specificity,
    "f1": of_classes.f1,
}
_TITLES = {
    "auroc": "AUROC",
    "presence_auroc": "presence AUROC",
    "f1": "F1",
    "brier": "Brier",
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "surface_dice": "surface Dice",
    "mean_iou": "mean IoU",
    "energy": "energy inside",
    **{f"iou_{level}": f"IoU > {level}" for level in IOU_LEVELS},
}
CLASS_FIGURES = (*_OF_CHANCES, *_OF_DECISIONS, *_OF_CALIBRATION)
_BANDS = (0, 18, 40, 65, 90)
_OLDEST = "90+"
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
        return counts | {name: _entry(Measured(math.nan, math.nan, math.nan)) for name in CLASS_FIGURES}
    figures: dict[str, Figure] = {
        **{name: _bound(function, chances, truth) for name, function in (_OF_CHANCES | _OF_CALIBRATION).items()},
        **{name: _bound(function, said, truth) for name, function in _OF_DECISIONS.items()},
    }
    having = {True: len({groups[row] for row in np.flatnonzero(truth)})}
    having[False] = len({groups[row] for row in np.flatnonzero(~truth)})
    found = Resamples(groups, draws).measure_all(figures, _telling(having))
    for name, kind in (("sensitivity", True), ("specificity", False)):
        found[name] = all_or_none(found[name], having[kind])
    return counts | {name: _entry(found[name]) for name in CLASS_FIGURES}


def _telling(having: Mapping[bool, int]) -> dict[str, int]:
    """How many groups each figure hangs on, of those with and without a class; Brier and calibration on all."""
    both = dict.fromkeys(("auroc", "average_precision", "f1"), min(having.values()))
    return both | {"sensitivity": having[True], "specificity": having[False]}


def _mean_row(predictions: ClassPredictions, chances: Floats, draws: int) -> dict[str, Any]:
    """Means over the classes, the same patients drawn for all of them."""
    counts = {"images": len(predictions), "groups": len(set(predictions.groups))}
    figures = {
        name: mean_over_classes(function, chances, predictions.targets) for name, function in _OF_CHANCES.items()
    }
    found = Resamples(predictions.groups, draws).measure_all(figures)
    return counts | {name: _entry(each) for name, each in found.items()}


def mean_over_classes(
    function: Callable[..., Floats], chances: Floats, targets: npt.NDArray[np.floating[Any]]
) -> Figure:
    """The mean of a figure over the classes where it is defined.

    Args:
        function: of chances (M,), truth (M,) and weights (R, M).
        chances: (N, K).
        targets: (N, K) 1, 0, or NaN where nothing is known.
    """

    def figure(weights: Floats) -> Floats:
        found = [
            function(chances[known, place], targets[known, place] == 1, weights[:, known])
            for place in range(targets.shape[1])
            for known in [~np.isnan(targets[:, place])]
            if known.any()
        ]
        return _mean_of_known(np.stack(found))

    return figure


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
    """Means over the cases of each output and over all outputs, and how often it is seen whether anything is there.

    Distances in mm and in pixels have no mean: where the spacing of some cases is known, surfaces are of those alone.
    """
    if not cases:
        return {}
    groups = [case.group for case in cases]
    table: Table = {}
    for place, output in enumerate(outputs):
        there = np.array([case.figures["there"][place] for case in cases]) > 0
        said = np.array([case.figures["said"][place] for case in cases]) > 0
        counts = {"images": len(cases), "with": int(there.sum())}
        values = {name: _values(cases, name)[place] for name in CASE_FIGURES}
        chances = np.array([case.figures[CHANCE][place] for case in cases])
        presence = _presence(groups, said, there, draws) | _presence_auroc(groups, chances, there, draws)
        table[output] = counts | _of_cases(cases, values, draws) | presence
    if len(outputs) > 1:
        means = {name: _values(cases, name) for name in CASE_FIGURES}
        table[MEAN] = {"images": len(cases)} | _of_cases(cases, means, draws)
    return table


def _values(cases: Sequence[SegmentationCase], name: str) -> Floats:
    """(K, N) a figure of N cases; of surfaces NaN where it is in pixels and others are in mm."""
    values = np.array([case.figures[name] for case in cases], dtype=np.float64).T
    if name in OF_SURFACES and _in_mm(cases).any():
        values[:, ~_in_mm(cases)] = np.nan
    return values


def _in_mm(cases: Sequence[SegmentationCase]) -> npt.NDArray[np.bool_]:
    return np.array([case.figures[IN_MM][0] > 0 for case in cases])


def _of_cases(cases: Sequence[SegmentationCase], values: Mapping[str, Floats], draws: int) -> dict[str, Any]:
    """Means by name of the figure, of (N,) values or over the K rows of (K, N), and how many cases have any."""
    unit = "mm" if _in_mm(cases).any() else "px"
    groups, rows = [case.group for case in cases], {name: np.atleast_2d(each) for name, each in values.items()}
    places = {name: np.flatnonzero(~np.isnan(each).all(axis=0)).tolist() for name, each in rows.items()}
    telling = {name: len({groups[place] for place in known}) for name, known in places.items()}
    figures = {name: mean_over_outputs(each) for name, each in rows.items()}
    return {
        name: _entry(found) | {"cases": len(places[name])} | ({"unit": unit} if name in OF_SURFACES else {})
        for name, found in Resamples(groups, draws).measure_all(figures, telling).items()
    }


def _presence(
    groups: Sequence[str], said: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_], draws: int
) -> dict[str, Any]:
    """Whether anything is there at all, and is said to be."""
    row = {}
    for name, among in (("sensitivity", there), ("specificity", ~there)):
        groups_of = len(set(compress(groups, among)))
        figures = {name: _bound(_OF_DECISIONS[name], said, there)}
        found = Resamples(groups, draws).measure_all(figures, {name: groups_of})[name]
        row[f"presence_{name}"] = _entry(all_or_none(found, groups_of)) | {"cases": int(among.sum())}
    return row


def _presence_auroc(groups: Sequence[str], chances: Floats, there: npt.NDArray[np.bool_], draws: int) -> dict[str, Any]:
    """How well the images in which anything is there are told from the others by the largest probability."""
    known = ~np.isnan(chances)
    among = list(compress(groups, known))
    having = [len(set(compress(among, there[known] == value))) for value in (True, False)]
    figures = {"auroc": _bound(of_classes.auroc, chances[known], there[known])}
    found = Resamples(among, draws).measure_all(figures, {"auroc": min(having)})["auroc"]
    return {"presence_auroc": _entry(found) | {"cases": int(known.sum())}}


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


def localization_table(cases: Sequence[LocalizationCase], draws: int, by: str = MODEL) -> Table:
    """Of each class, and the mean over the classes: hit rate, mean IoU, shares of cases above an IoU, energy inside.

    Args:
        cases: with a known lesion.
        draws: resamples of the groups.
        by: what located it; empty where it has located nothing.
    """
    groups = [case.group for case in cases]
    labels = sorted({case.label for case in cases})
    values = {
        name: np.stack([np.where([case.label == label for case in cases], row, np.nan) for label in labels])
        for name, row in _of_localization(cases, by).items()
        if not np.isnan(row).all()
    }
    if not values:
        return {}
    table = {label: _localization_row(cases, values, place, draws) for place, label in enumerate(labels)}
    if len(labels) > 1:
        found = Resamples(groups, draws).measure_all({name: mean_over_outputs(rows) for name, rows in values.items()})
        counts = {"images": len(cases), "groups": len(set(groups)), "boxes": sum(case.boxes for case in cases)}
        table[MEAN] = counts | {name: _entry(each) for name, each in _shares(found, len(set(groups))).items()}
    return table


def _shares(found: Mapping[str, Measured], groups: int) -> dict[str, Measured]:
    """The figures of a row, of which a share that is 0 or 1 is no surer than its groups are many."""
    means = ("mean_iou", "energy")
    return {name: each if name in means else all_or_none(each, groups) for name, each in found.items()}


def _of_localization(cases: Sequence[LocalizationCase], by: str) -> dict[str, Floats]:
    """(N,) by figure; NaN where there is none."""
    found = {name: np.array([case.figures.get(by, {}).get(name, np.nan) for case in cases]) for name in FIGURES}
    above = {
        f"iou_{level}": np.where(np.isnan(found[IOU]), np.nan, (found[IOU] > level).astype(float))
        for level in IOU_LEVELS
    }
    return {
        "hit_rate": found[HIT],
        "with_heat": found[WITH_HEAT],
        "mean_iou": found[IOU],
        **above,
        "energy": found[ENERGY],
    }


def _localization_row(
    cases: Sequence[LocalizationCase], values: Mapping[str, Floats], place: int, draws: int
) -> dict[str, Any]:
    """Of the class at a place."""
    own = np.flatnonzero(~np.isnan(values["hit_rate"][place])).tolist()
    groups = [cases[row].group for row in own]
    figures = {name: weighted_mean(rows[place, own]) for name, rows in values.items()}
    found = _shares(Resamples(groups, draws).measure_all(figures), len(set(groups)))
    counts = {"images": len(own), "groups": len(set(groups)), "boxes": sum(cases[row].boxes for row in own)}
    return counts | {name: _entry(each) for name, each in found.items()}


def localization_gains(cases: Sequence[LocalizationCase], draws: int, baselines: Sequence[str]) -> Table:
    """By baseline: what the model has beyond it in the same images, mean over the classes, the same groups drawn."""
    groups, labels = [case.group for case in cases], sorted({case.label for case in cases})
    table: Table = {}
    for name in baselines:
        own, other = _of_localization(cases, MODEL), _of_localization(cases, name)
        gains = {each: own[each] - other[each] for each in ("hit_rate", "mean_iou", "energy")}
        rows = {
            each: np.stack([np.where([case.label == label for case in cases], gain, np.nan) for label in labels])
            for each, gain in gains.items()
            if not np.isnan(gain).all()
        }
        found = Resamples(groups, draws).measure_all({each: mean_over_outputs(gain) for each, gain in rows.items()})
        if found:
            table[name] = {"images": len(cases)} | {each: _entry(one) for each, one in found.items()}
    return table


def mean_over_outputs(values: Floats) -> Figure:
    """The mean over K rows of the means of their N values."""
    return lambda weights: _mean_of_known(np.stack([weighted_mean(row)(weights) for row in values]))


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
    """A number's band, as ages have them; nothing where it is NaN or below 0, and what is no number stays."""
    try:
        number = float(str(value).removesuffix("+"))
    except ValueError:
        return _text(value)
    if math.isnan(number) or number < 0:
        return ""
    return next((f"{low}-{high - 1}" for low, high in pairwise(_BANDS) if number < high), _OLDEST)


def _bound(function: Callable[..., Floats], *arguments: Any) -> Figure:
    return lambda weights: function(*arguments, weights)


def _entry(found: Measured) -> dict[str, Any]:
    return {name: None if math.isnan(number) else number for name, number in asdict(found).items()}


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
    """A table as Markdown: counts first, then each figure with its interval; ``n/a`` where it is not defined.

    A figure that is of fewer images than its row says of how many: ``4.21 (3.10 to 5.00; n = 9)``.
    """
    figures = {name: each for row in table.values() for name, each in row.items() if isinstance(each, dict)}
    titles = [_title(name, each) for name, each in figures.items()]
    yield "| | " + " | ".join([*counts, *titles]) + " |"
    yield "| --- |" + " ---: |" * (len(counts) + len(figures))
    for label, row in table.items():
        cells = [_figure(row.get(name), row["images"]) for name in figures]
        yield (
            f"| {label.replace('|', '/')} | " + " | ".join([*(_count(row.get(name)) for name in counts), *cells]) + " |"
        )


def _title(name: str, entry: Mapping[str, Any]) -> str:
    """A figure's name as people write it; a distance with its unit."""
    title = _TITLES.get(name, name.replace("_", " "))
    return f"{title} ({entry['unit']})" if name == HD95 and "unit" in entry else title


def _figure(entry: Mapping[str, Any] | None, images: int) -> str:
    if entry is None or entry["value"] is None:
        return "" if entry is None else "n/a"
    digits = 2 if "unit" in entry and entry["value"] > 1 else 3
    ends = "" if entry["low"] is None else f"{entry['low']:.{digits}f} to {entry['high']:.{digits}f}"
    cases = f"n = {entry['cases']:,}" if entry.get("cases", images) != images else ""
    behind = "; ".join(filter(None, (ends, cases)))
    return f"{entry['value']:.{digits}f}" + (f" ({behind})" if behind else "")


def _count(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
