"""The report of a fine-tuning: what its chosen networks are worth, for people and for programs."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dira_dist.evaluation.calibration import choose_thresholds, fit_calibration
from dira_dist.evaluation.classification import ClassPredictions, Floats
from dira_dist.evaluation.report import case_tables, class_tables, markdown_table, metrics_of
from dira_dist.evaluation.report_pictures import case_pictures, class_pictures
from dira_dist.evaluation.segmentation import SegmentationCase
from dira_dist.metrics import TEST_FIGURE, VAL_REPORT
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe, Segment
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.validation import Report

_FAMILIES = {"val": VAL_REPORT, "test": TEST_FIGURE}
_NOTES = (
    "Intervals are of 95 %, over resamples of {resampled}; none where a single one tells, wider where positives or "
    "negatives are few. A figure that is not defined is n/a and left out of means. Subgroups of fewer than 10 images "
    "are left out."
)
_ON_VAL = "There is no test set: these figures are of the samples that the networks were chosen on, and flatter them."
_POOLED = {
    "per_group_mean": "Per patient (group of the set), mean of its images",
    "per_group_max": "Per patient (group of the set), largest of its images",
}
_EMPTY = (
    "Dice, IoU and distances are over cases where truth or mask has anything; whether anything is there at all is told "
    "by presence, whose AUROC ranks images by their largest probability. Surfaces are compared in mm where the spacing "
    "is known, else in pixels."
)


def classifier_report(recipe: FinetuneRecipe, samples: FinetuneSamples, sets: Mapping[str, ClassPredictions]) -> Report:
    """Of a classifier: calibration and thresholds by ``val``, figures of all sets.

    Args:
        recipe: settled.
        samples: whom intervals draw again.
        sets: predictions by the name of the set; ``val``, and ``test`` where there is one.
    """
    assert isinstance(recipe.task, Classify)
    coding, settings = LabelCoding.of(recipe.task), recipe.report
    calibration = fit_calibration(sets["val"])
    chances = {name: calibration.chances(each.logits) for name, each in sets.items()}
    thresholds = choose_thresholds(chances["val"], sets["val"], settings.operating_point)
    tables = {
        name: class_tables(each, chances[name], thresholds, draws=settings.bootstrap, subgroups=settings.subgroups)
        for name, each in sets.items()
    }
    shown = "test" if "test" in sets else "val"
    found: dict[str, Any] = {
        "task": "classify",
        "kind": coding.kind,
        "classes": list(coding.classes),
        "calibration": asdict(calibration),
        "operating_point": settings.operating_point,
        "thresholds": thresholds,
    }
    text = _markdown(
        recipe,
        samples,
        tables,
        ("images", "groups", "positives", "prevalence"),
        _decisions(coding, thresholds, settings),
    )
    files = {f"predictions-{name}.csv": _predictions_csv(each, chances[name]).encode() for name, each in sets.items()}
    return _report(found, samples, tables, text, files, class_pictures(sets[shown], chances[shown]))


def segmenter_report(
    recipe: FinetuneRecipe, samples: FinetuneSamples, sets: Mapping[str, Sequence[SegmentationCase]]
) -> Report:
    """Of a segmenter: figures of all sets, in the images' own pixels."""
    assert isinstance(recipe.task, Segment)
    coding, settings = MaskCoding.of(recipe.task), recipe.report
    outputs = coding.outputs[coding.measured]
    tables = {
        name: case_tables(cases, outputs, draws=settings.bootstrap, subgroups=settings.subgroups)
        for name, cases in sets.items()
    }
    found: dict[str, Any] = {
        "task": "segment",
        "kind": coding.kind,
        "classes": list(coding.outputs),
        "tolerance": settings.tolerance_mm,
    }
    files = {f"cases-{name}.csv": _cases_csv(cases, outputs).encode() for name, cases in sets.items()}
    text = _markdown(recipe, samples, tables, ("images", "with"), (_EMPTY,))
    return _report(found, samples, tables, text, files, case_pictures(sets.get("test") or sets["val"]))


def _report(
    found: Mapping[str, Any],
    samples: FinetuneSamples,
    tables: Mapping[str, Any],
    text: str,
    files: Mapping[str, bytes],
    pictures: Mapping[str, Any],
) -> Report:
    metrics = {
        key: value
        for name, table in tables.items()
        for key, value in metrics_of(table["per_image"], _FAMILIES[name]).items()
    }
    whole = {**found, "resampled": samples.resampled, "drawn": samples.record, "sets": tables, "metrics": metrics}
    own = {"report.json": json.dumps(whole, indent=1).encode(), "report.md": text.encode()}
    return Report(metrics, {**files, **own}, pictures)


def _markdown(
    recipe: FinetuneRecipe,
    samples: FinetuneSamples,
    tables: Mapping[str, Any],
    counts: Sequence[str],
    notes: Sequence[str],
) -> str:
    return "\n".join(_markdown_lines(recipe, samples, tables, counts, notes)) + "\n"


def _markdown_lines(
    recipe: FinetuneRecipe,
    samples: FinetuneSamples,
    tables: Mapping[str, Any],
    counts: Sequence[str],
    notes: Sequence[str],
) -> Iterator[str]:
    shown = "test" if "test" in tables else "val"
    yield f"# {recipe.name}: {'figures on the test set' if shown == 'test' else 'figures on val'}"
    yield ""
    if shown == "val":
        yield f"**{_ON_VAL}**\n"
    yield from markdown_table(tables[shown]["per_image"], counts)
    yield ""
    yield _NOTES.format(resampled=samples.resampled)
    yield from notes
    for key, title in _POOLED.items():
        if key in tables[shown]:
            yield f"\n## {title}\n"
            yield from markdown_table(tables[shown][key], counts)
    for column, parts in tables[shown]["subgroups"].items():
        for value, table in parts.items():
            yield f"\n## {column}: {value}\n"
            yield from markdown_table(table, counts)
    if shown == "test":
        yield "\n## On val, by which the networks were chosen\n"
        yield from markdown_table(tables["val"]["per_image"], counts)
    if samples.notes:
        yield "\n## Notes\n"
        yield from (f"- {note}" for note in samples.notes)


def _decisions(coding: LabelCoding, thresholds: Sequence[float], settings: Any) -> tuple[str, ...]:
    chosen = ", ".join(f"{name} {level:.3f}" for name, level in zip(coding.classes, thresholds, strict=True))
    return (
        f"Probabilities are calibrated on val, and thresholds chosen there ({settings.operating_point}): {chosen}.",
    )


def _predictions_csv(predictions: ClassPredictions, chances: Floats) -> str:
    """A line for each sample: its key, its group, and truth and calibrated chance of each class."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = predictions.classes
    writer.writerow(["key", "group", *(f"true {name}" for name in names), *names])
    for row, key in enumerate(predictions.keys):
        truth = ["" if value != value else f"{value:g}" for value in predictions.targets[row].tolist()]
        writer.writerow([key, predictions.groups[row], *truth, *(f"{value:.6f}" for value in chances[row])])
    return text.getvalue()


def _cases_csv(cases: Sequence[SegmentationCase], outputs: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    names = list(cases[0].figures) if cases else []
    writer.writerow(["key", "group", *(f"{name} {output}" for name in names for output in outputs)])
    for case in cases:
        values = [value for name in names for value in case.figures[name]]
        writer.writerow([case.key, case.group, *("" if value != value else f"{value:.6g}" for value in values)])
    return text.getvalue()
