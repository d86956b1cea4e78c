"""What the fits of all folds say together: of the samples that each held out, and as an ensemble of the test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dira_dist.data.samples import SampleTable
from dira_dist.evaluation.classification import ClassPredictions, Floats
from dira_dist.evaluation.segmentation import SegmentationCase, val_figures
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.prediction import SetReader, predict_classes, predict_masks
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.finetune.report import classifier_report, segmenter_report
from dira_dist.training.finetune.report_tables import read_cases, read_rows
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.validation import Report

Said = ClassPredictions | list[SegmentationCase]
"""What networks say of a set: classifiers' logits, or how segmenters' masks compare with the true ones."""

_SURE = 1e-12  # chances are written with so many digits


@dataclass(frozen=True)
class Pooled:
    """What a cross-validation found.

    Attributes:
        report: on the pooled predictions out of fold, as ``val``, and on ``test`` where there is one.
        figures: of the pooled predictions, by the names that validations have.
    """

    report: Report
    figures: Mapping[str, float]


def say_of_test(reader: SetReader) -> Said:
    """What an ensemble says of the test set."""
    if isinstance(reader.recipe.task, Classify):
        return predict_classes(reader, "test")
    return predict_masks(reader, "test", in_full=True)


def pool(
    recipe: FinetuneRecipe,
    samples: FinetuneSamples,
    train: SampleTable,
    folds: Sequence[Mapping[str, bytes]],
    test: Said | None = None,
) -> Pooled:
    """The report of all folds together.

    Args:
        recipe: settled, of all folds.
        samples: whom intervals draw again, and what a person should know.
        train: the training set's samples.
        folds: files of each fold's report, in the order of the folds.
        test: what the ensemble says of the test set.
    """
    if isinstance(recipe.task, Classify):
        predictions = pooled_predictions(recipe.task, train, folds)
        sets = {"val": predictions} | ({"test": test} if isinstance(test, ClassPredictions) else {})
        return Pooled(classifier_report(recipe, samples, sets), predictions.figures())
    cases = pooled_cases(recipe, train, folds)
    coding = MaskCoding.of(recipe.task)
    of_sets = {"val": cases} | ({"test": test} if isinstance(test, list) else {})
    return Pooled(segmenter_report(recipe, samples, of_sets), val_figures(cases, coding.outputs[coding.measured]))


def pooled_predictions(task: Classify, train: SampleTable, folds: Sequence[Mapping[str, bytes]]) -> ClassPredictions:
    """What each fold's classifier says of the samples that it held out, calibrated by that fold, in the set's order."""
    rows = [read_rows(files, "val") for files in folds]
    places = _places(train, [key for each in rows for key in each.keys])
    order, coding = np.argsort(places), LabelCoding.of(task)
    chances = np.concatenate([each.values for each in rows])[order]
    truth = np.concatenate([each.truth for each in rows if each.truth is not None])[order]
    inside = [places[row] for row in order.tolist()]
    return ClassPredictions(
        keys=[train.keys[place] for place in inside],
        groups=[train.groups[place] for place in inside],
        logits=_logits(chances, exclusive=coding.kind == "multiclass"),
        targets=truth.astype(np.float32),
        classes=coding.classes,
        kind=coding.kind,
        columns=[train.columns[place] for place in inside],
    )


def pooled_cases(
    recipe: FinetuneRecipe, train: SampleTable, folds: Sequence[Mapping[str, bytes]]
) -> list[SegmentationCase]:
    """How each fold's masks of the images that it held out compare with the true ones, in the set's order."""
    assert not isinstance(recipe.task, Classify)
    coding = MaskCoding.of(recipe.task)
    cases = [case for files in folds for case in read_cases(files, "val", coding.outputs[coding.measured])]
    places = _places(train, [case.key for case in cases])
    found = {
        place: SegmentationCase(case.key, case.group, train.columns[place], case.figures)
        for place, case in zip(places, cases, strict=True)
    }
    return [found[place] for place in sorted(found)]


def _places(train: SampleTable, keys: Sequence[str]) -> list[int]:
    """Of samples in their set; each is held out once."""
    assert len(set(keys)) == len(keys), "folds do not overlap"
    place_of = {key: place for place, key in enumerate(train.keys)}
    return [place_of[key] for key in keys]


def _logits(chances: Floats, *, exclusive: bool) -> Floats:
    """(N, K) whose softmax or sigmoid are these chances."""
    kept = np.clip(chances, _SURE, 1 - _SURE)
    return np.log(kept) if exclusive else np.log(kept) - np.log1p(-kept)
