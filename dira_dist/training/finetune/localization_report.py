"""The part of a classifier's report that says where it looks: tables, a line for each case, a gallery."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dira_dist.drawing import Picture
from dira_dist.evaluation.classification import ClassPredictions, Floats
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.evaluation.localization import (
    BASELINES,
    FIGURES,
    MODEL,
    LocalizationCase,
    gated,
)
from dira_dist.evaluation.report import MEAN, Table, localization_gains, localization_table, markdown_table, metrics_of
from dira_dist.evaluation.report_pictures import localization_pictures
from dira_dist.metrics import TEST_LOCALIZATION, VAL_LOCALIZATION
from dira_dist.training.finetune.localization import Localization

_COUNTS = ("images", "groups", "boxes")
_FAMILIES = {"val": VAL_LOCALIZATION, "test": TEST_LOCALIZATION}
_EXPLAINED = (
    "Grad-CAM of the class that an image is known to have, in the image's own pixels, beside {truth}. Hit: the "
    "hottest point lies inside{tolerance}. IoU is of the boxes found and the true ones; energy is the share of the "
    "heat inside. A map without heat is a miss with IoU and energy 0."
)


@dataclass(frozen=True)
class LocalizationReport:
    """What a report takes over of it: JSON-ready content, Markdown, files, metrics and pictures."""

    content: Mapping[str, Any]
    lines: Sequence[str]
    files: Mapping[str, bytes]
    metrics: Mapping[str, float]
    pictures: Mapping[str, Picture]


def localization_report(
    found: Localization,
    settings: LocalizationConfig,
    predictions: ClassPredictions,
    chances: Floats,
    thresholds: Sequence[float],
    draws: int,
) -> LocalizationReport:
    """Of a classifier's maps on a set.

    Args:
        found: on the set.
        settings: of the report.
        predictions: of the set's samples.
        chances: (N, K) calibrated, of the same.
        thresholds: (K,) above which a class is said to be there.
        draws: resamples of the groups.
    """
    found = replace(found, cases=_gated(found.cases, settings, predictions, chances, thresholds))
    tables = {by: localization_table(found.cases, draws, by) for by in (MODEL, *BASELINES)}
    tables = {by: table for by, table in tables.items() if table}
    gains = localization_gains(found.cases, draws, BASELINES)
    content = {
        "set": found.name,
        "settings": settings.model_dump(mode="json"),
        "thresholds": dict(found.thresholds),
        "by": tables,
        "beyond": gains,
    }
    return LocalizationReport(
        content,
        list(_lines(found, settings, tables, gains)),
        {f"localization-{found.name}.csv": _csv(found.cases).encode()},
        metrics_of(tables[MODEL], _FAMILIES[found.name]),
        localization_pictures(found.cases),
    )


def _gated(
    cases: Sequence[LocalizationCase],
    settings: LocalizationConfig,
    predictions: ClassPredictions,
    chances: Floats,
    thresholds: Sequence[float],
) -> Sequence[LocalizationCase]:
    classes = predictions.classes
    levels = thresholds if settings.gate == "decision" else [settings.gate] * len(classes)
    rows = zip(predictions.keys, chances.tolist(), strict=True)
    by_class = {(key, label): chance for key, row in rows for label, chance in zip(classes, row, strict=True)}
    return gated(cases, by_class, dict(zip(classes, levels, strict=True)))


def _lines(
    found: Localization, settings: LocalizationConfig, tables: Mapping[str, Table], gains: Table
) -> Iterator[str]:
    yield f"\n## Where lesions lie, on {found.name}\n"
    yield from markdown_table(tables[MODEL], _COUNTS)
    yield ""
    truth = "the true boxes" if settings.truth == "boxes" else "the true masks, and boxes around their parts"
    tolerance = f", or within {settings.tolerance:g} of the image's longer side" if settings.tolerance else ""
    yield _EXPLAINED.format(truth=truth, tolerance=tolerance)
    yield _boxes_are(found, settings)
    yield "\n### Beside what knows nothing of the image\n"
    yield from markdown_table({by: table.get(MEAN) or next(iter(table.values())) for by, table in tables.items()}, ())
    yield "\n### Model minus baseline, in the same images\n"
    yield from markdown_table(gains, ())


def _boxes_are(found: Localization, settings: LocalizationConfig) -> str:
    levels = found.thresholds
    same = len(set(levels.values())) == 1
    level = f"{next(iter(levels.values()))}" if same else ", ".join(f"{label} {each}" for label, each in levels.items())
    how = "Otsu's level" if level == "otsu" else f"{level} of the map's largest heat"
    tuned = ", chosen on val" if settings.threshold == "tuned" else ""
    around = "the largest connected part" if settings.components == "largest" else "each connected part"
    gate = f" Boxes only above the gate {settings.gate}." if settings.gate else ""
    return f"Boxes lie around {around} of what has at least {how}{tuned}; stages: {settings.stages}.{gate}"


def _csv(cases: Sequence[LocalizationCase]) -> str:
    """A line for each case: key, group, class, known boxes, and the figures of the model and the baselines."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = [(by, name) for by in (MODEL, *BASELINES) for name in FIGURES]
    writer.writerow(["key", "group", "class", "boxes", *(f"{by}: {name}" for by, name in names)])
    for case in cases:
        values = [case.figures.get(by, {}).get(name, float("nan")) for by, name in names]
        shown = ["" if value != value else f"{value:.6g}" for value in values]
        writer.writerow([case.key, case.group, case.label, case.boxes, *shown])
    return text.getvalue()
