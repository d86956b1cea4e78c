"""The report of a fine-tuning: what its chosen networks are worth, for people and for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dira_dist.evaluation.calibration import Calibration, choose_thresholds, fit_calibration
from dira_dist.evaluation.classification import ClassPredictions
from dira_dist.evaluation.report import case_tables, class_tables, markdown_table, metrics_of
from dira_dist.evaluation.report_pictures import case_pictures, class_pictures
from dira_dist.evaluation.segmentation import SegmentationCase
from dira_dist.metrics import TEST_FIGURE, VAL_REPORT
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.localization import Localization
from dira_dist.training.finetune.localization_report import LocalizationReport, localization_report
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe, Segment
from dira_dist.training.finetune.report_tables import cases_csv, cases_file, predictions_csv, predictions_file
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.validation import Report

_FAMILIES = {"val": VAL_REPORT, "test": TEST_FIGURE, "set": TEST_FIGURE}
_NOTES = (
    "Intervals are of 95 %, over resamples of {resampled}; none where a single one tells, wider where positives or "
    "negatives are few. A figure that is not defined is n/a and left out of means. Subgroups of fewer than 10 images "
    "are left out."
)
_ON_VAL = "There is no test set: these figures are of the samples that the networks were chosen on, and flatter them."
_ON_FOLD = (
    "These figures are of fold {fold} of {folds} of the training set, which was held out and which the networks were "
    "chosen on: that flatters them."
)
_OUT_OF_FOLD = (
    "These figures are out of fold: each sample is judged by the networks of the one of {folds} fits that held its "
    "fold out. They were chosen and calibrated on that fold, which flatters the figures a little."
)
_ENSEMBLE = (
    "The model is the ensemble of the {folds} folds' networks: the mean of their {answers}. Figures on a test set are "
    "the ensemble's, figures out of fold are of single networks."
)
_POOLED = {
    "per_group_mean": "Per patient (group of the set), mean of its images",
    "per_group_max": "Per patient (group of the set), largest of its images",
}
_EMPTY = (
    "Dice, IoU and distances are over cases where truth or mask has anything; whether anything is there at all is told "
    "by presence, whose AUROC ranks images by their largest probability. Surfaces are compared in mm where the spacing "
    "is known, else in pixels."
)


def classifier_report(
    recipe: FinetuneRecipe,
    samples: FinetuneSamples,
    sets: Mapping[str, ClassPredictions],
    localization: Localization | None = None,
) -> Report:
    """Of a classifier: calibration and thresholds by ``val``, figures of all sets, and where it looks.

    Args:
        recipe: settled.
        samples: whom intervals draw again.
        sets: predictions by the name of the set; ``val``, and ``test`` where there is one.
        localization: on the set that is reported on, where it has known lesions.
    """
    assert isinstance(recipe.task, Classify)
    coding, settings = LabelCoding.of(recipe.task), recipe.report
    count = len(coding.classes)
    # what is pooled is calibrated already, by each fold
    calibrated = Calibration(coding.kind, [1.0] * count, [0.0] * count)
    calibration = calibrated if recipe.is_ensemble else fit_calibration(sets["val"])
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
        _decisions(recipe, coding, thresholds),
    )
    files = {predictions_file(name): predictions_csv(each, chances[name]).encode() for name, each in sets.items()}
    report = _report(found, samples, tables, text, files, class_pictures(sets[shown], chances[shown]))
    if localization is None:
        return report
    assert settings.localization is not None
    return _with_localization(
        report,
        localization_report(
            localization, settings.localization, sets[shown], chances[shown], thresholds, settings.bootstrap
        ),
    )


def _with_localization(report: Report, more: LocalizationReport) -> Report:
    """The report with a chapter at its end."""
    metrics = {**report.metrics, **more.metrics}
    whole = {**json.loads(report.files["report.json"]), "localization": more.content, "metrics": metrics}
    text = report.files["report.md"].decode() + "\n".join(more.lines) + "\n"
    own = {"report.json": json.dumps(whole, indent=1).encode(), "report.md": text.encode()}
    return Report(metrics, {**report.files, **more.files, **own}, {**report.pictures, **more.pictures})


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
    files = {cases_file(name): cases_csv(cases, outputs).encode() for name, cases in sets.items()}
    text = _markdown(recipe, samples, tables, ("images", "with"), (_EMPTY, *_on_ensemble(recipe)))
    return _report(found, samples, tables, text, files, case_pictures(sets.get("test") or sets["val"]))


ELSEWHERE = "set"
"""What a set is called in the report on it that no run made."""


def classifier_report_elsewhere(
    recipe: FinetuneRecipe,
    samples: FinetuneSamples,
    predictions: ClassPredictions,
    calibration: Calibration,
    thresholds: Sequence[float],
    prevalence: Mapping[str, float | None],
    title: str,
) -> Report:
    """Of a classifier on a set of another place: with calibration and thresholds as they are.

    Args:
        recipe: settled; its report's settings say which figures are given.
        samples: whom intervals draw again, and what a person should know.
        predictions: of the set.
        calibration: the model's.
        thresholds: likewise.
        prevalence: of each class where both were fitted; empty where nobody knows.
        title: of the report.
    """
    settings, chances = recipe.report, calibration.chances(predictions.logits)
    tables = class_tables(
        predictions, chances, list(thresholds), draws=settings.bootstrap, subgroups=settings.subgroups
    )
    shift = _shift(tables["per_image"], prevalence)
    found: dict[str, Any] = {
        "task": "classify",
        "kind": predictions.kind,
        "classes": list(predictions.classes),
        "calibration": asdict(calibration),
        "thresholds": list(thresholds),
        "prevalence": shift,
    }
    said = ", ".join(f"{name} {level:.3f}" for name, level in zip(predictions.classes, thresholds, strict=True))
    notes = (f"Calibration and thresholds are the model's own, fitted on its val: {said}.",)
    counts = ("images", "groups", "positives", "prevalence")
    lines = list(_markdown_lines(title, tables, counts, (), _all_notes(samples, notes)))
    lines += _shift_lines(shift)
    files = {"predictions.csv": predictions_csv(predictions, chances).encode()}
    return _elsewhere(found, samples, tables, lines, files, class_pictures(predictions, chances))


def segmenter_report_elsewhere(
    recipe: FinetuneRecipe, samples: FinetuneSamples, cases: Sequence[SegmentationCase], title: str
) -> Report:
    """Of a segmenter on a set of another place, in the images' own pixels."""
    assert isinstance(recipe.task, Segment)
    coding, settings = MaskCoding.of(recipe.task), recipe.report
    outputs = coding.outputs[coding.measured]
    tables = case_tables(cases, outputs, draws=settings.bootstrap, subgroups=settings.subgroups)
    found = {
        "task": "segment",
        "kind": coding.kind,
        "classes": list(coding.outputs),
        "tolerance": settings.tolerance_mm,
    }
    lines = list(_markdown_lines(title, tables, ("images", "with"), (), _all_notes(samples, (_EMPTY,))))
    return _elsewhere(
        found, samples, tables, lines, {"cases.csv": cases_csv(cases, outputs).encode()}, case_pictures(cases)
    )


def _elsewhere(
    found: Mapping[str, Any],
    samples: FinetuneSamples,
    tables: Mapping[str, Any],
    lines: Sequence[str],
    files: Mapping[str, bytes],
    pictures: Mapping[str, Any],
) -> Report:
    notes = ["\n## Notes\n", *(f"- {note}" for note in samples.notes)] if samples.notes else []
    text = "\n".join((*lines, *notes)) + "\n"
    return _report(found, samples, {ELSEWHERE: tables}, text, files, pictures)


def _shift(table: Mapping[str, Mapping[str, Any]], before: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    """Prevalence of each class in the set, and where the model was calibrated."""
    return {
        name: {"here": row["prevalence"], "calibrated_at": before.get(name)}
        for name, row in table.items()
        if "prevalence" in row
    }


def _shift_lines(shift: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What another prevalence means for the probabilities."""
    known = {name: row for name, row in shift.items() if None not in row.values()}
    yield "\n## Shift of prevalence\n"
    if not known:
        yield "The model does not tell the prevalence that its probabilities were calibrated for."
        return
    yield "| | here | on the model's val |\n| --- | ---: | ---: |"
    for name, row in known.items():
        yield f"| {name} | {row['here']:.1%} | {row['calibrated_at']:.1%} |"
    yield (
        "\nProbabilities are calibrated for the prevalence of val: where a class is rarer here they are too high, "
        "where it is more frequent too low. AUROC, sensitivity and specificity do not depend on it; precision does."
    )


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
    shown = "test" if "test" in tables else "val"
    on_val = "out of fold" if recipe.is_ensemble else "on val"
    title = f"{recipe.name}: figures {'on the test set' if shown == 'test' else on_val}"
    before = () if shown == "test" else (f"**{_of_val(recipe)}**\n",)
    lines = list(_markdown_lines(title, tables[shown], counts, before, _all_notes(samples, notes)))
    if shown == "test":
        heading = (
            f"Out of fold\n\n{_of_val(recipe)}" if recipe.is_ensemble else "On val, by which the networks were chosen"
        )
        lines += [f"\n## {heading}\n"]
        lines += markdown_table(tables["val"]["per_image"], counts)
    if samples.notes:
        lines += ["\n## Notes\n", *(f"- {note}" for note in samples.notes)]
    return "\n".join(lines) + "\n"


def _all_notes(samples: FinetuneSamples, notes: Sequence[str]) -> Sequence[str]:
    return (_NOTES.format(resampled=samples.resampled), *notes)


def _markdown_lines(
    title: str, tables: Mapping[str, Any], counts: Sequence[str], before: Sequence[str], notes: Sequence[str]
) -> Iterator[str]:
    """Of one set: figures per image, then pooled, then of parts of it."""
    yield f"# {title}"
    yield ""
    yield from before
    yield from markdown_table(tables["per_image"], counts)
    yield ""
    yield from notes
    for key, heading in _POOLED.items():
        if key in tables:
            yield f"\n## {heading}\n"
            yield from markdown_table(tables[key], counts)
    for column, parts in tables["subgroups"].items():
        for value, table in parts.items():
            yield f"\n## {column}: {value}\n"
            yield from markdown_table(table, counts)


def _of_val(recipe: FinetuneRecipe) -> str:
    """Whom figures on ``val`` are of, and whom they flatter."""
    if recipe.is_ensemble:
        return _OUT_OF_FOLD.format(folds=recipe.data.folds)
    return _ON_VAL if recipe.data.fold is None else _ON_FOLD.format(fold=recipe.data.fold, folds=recipe.data.folds)


def _on_ensemble(recipe: FinetuneRecipe) -> tuple[str, ...]:
    if not recipe.is_ensemble:
        return ()
    answers = "masks before they are decided" if recipe.segments else "calibrated probabilities"
    return (_ENSEMBLE.format(folds=recipe.data.folds, answers=answers),)


def _decisions(recipe: FinetuneRecipe, coding: LabelCoding, thresholds: Sequence[float]) -> tuple[str, ...]:
    chosen = ", ".join(f"{name} {level:.3f}" for name, level in zip(coding.classes, thresholds, strict=True))
    calibrated = (
        "each on its fold, and thresholds chosen out of fold"
        if recipe.is_ensemble
        else "on val, and thresholds chosen there"
    )
    point = recipe.report.operating_point
    return (f"Probabilities are calibrated {calibrated} ({point}): {chosen}.", *_on_ensemble(recipe))
