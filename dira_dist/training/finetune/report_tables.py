"""What the chosen networks say of each sample of a set, as a table beside the report: written, and read back."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dira_dist.evaluation.classification import ClassPredictions, Floats
from dira_dist.evaluation.segmentation import DICE, SegmentationCase

_BEFORE = 2  # key and group


def predictions_file(name: str) -> str:
    """The name of a classifier's table of a set."""
    return f"predictions-{name}.csv"


def cases_file(name: str) -> str:
    """The name of a segmenter's table of a set."""
    return f"cases-{name}.csv"


def predictions_csv(predictions: ClassPredictions, chances: Floats) -> str:
    """A line for each sample: its key, its group, and truth and calibrated chance of each class."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = predictions.classes
    writer.writerow(["key", "group", *(f"true {name}" for name in names), *names])
    for row, key in enumerate(predictions.keys):
        truth = ["" if value != value else f"{value:g}" for value in predictions.targets[row].tolist()]
        writer.writerow([key, predictions.groups[row], *truth, *(f"{value:.12g}" for value in chances[row])])
    return text.getvalue()


def cases_csv(cases: Sequence[SegmentationCase], outputs: Sequence[str]) -> str:
    """A line for each image: its key, its group, and each figure of each output."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = list(cases[0].figures) if cases else []
    writer.writerow(["key", "group", *(f"{name} {output}" for name in names for output in outputs)])
    for case in cases:
        values = [value for name in names for value in case.figures[name]]
        writer.writerow([case.key, case.group, *("" if value != value else f"{value:.6g}" for value in values)])
    return text.getvalue()


@dataclass(frozen=True)
class SampleRows:
    """A table read back.

    Attributes:
        keys, groups: of the N samples.
        truth: (N, K) of a classifier's classes, NaN where not known; none of a segmenter.
        values: (N, K) calibrated chances of a classifier, Dice of a segmenter; NaN where not defined.
    """

    keys: list[str]
    groups: list[str]
    truth: Floats | None
    values: Floats


def read_rows(files: Mapping[str, bytes], name: str) -> SampleRows:
    """The table of a set among the files of a report."""
    if predictions_file(name) in files:
        head, rows = _read(files[predictions_file(name)])
        classes = (len(head) - _BEFORE) // 2
        truth, values = np.split(_numbers(rows, range(_BEFORE, _BEFORE + 2 * classes)), [classes], axis=1)
        return SampleRows([row[0] for row in rows], [row[1] for row in rows], truth, values)
    head, rows = _read(files[cases_file(name)])
    dice = [place for place, title in enumerate(head) if place >= _BEFORE and title.startswith(f"{DICE} ")]
    return SampleRows([row[0] for row in rows], [row[1] for row in rows], None, _numbers(rows, dice))


def read_cases(files: Mapping[str, bytes], name: str, outputs: Sequence[str]) -> list[SegmentationCase]:
    """A segmenter's table of a set among the files of a report, all figures of its cases; no pictures.

    Args:
        files: of the report.
        name: of the set.
        outputs: that figures are given of.
    """
    head, rows = _read(files[cases_file(name)])
    names = [title.removesuffix(f" {outputs[0]}") for title in head[_BEFORE :: len(outputs)]]
    values = _numbers(rows, range(_BEFORE, len(head))).reshape(len(rows), len(names), len(outputs)).tolist()
    return [
        SegmentationCase(row[0], row[1], figures=dict(zip(names, each, strict=True)))
        for row, each in zip(rows, values, strict=True)
    ]


def _read(content: bytes) -> tuple[list[str], list[list[str]]]:
    head, *rows = csv.reader(io.StringIO(content.decode()))
    return head, rows


def _numbers(rows: Sequence[Sequence[str]], places: Any) -> Floats:
    return np.array([[float(row[place]) if row[place] else np.nan for place in places] for row in rows])


def read_calibration(files: Mapping[str, bytes]) -> dict[str, list[float]]:
    """Slopes and intercepts in a classifier's report; empty of a segmenter's."""
    found = json.loads(files["report.json"]).get("calibration", {})
    return {name: found[name] for name in ("slopes", "intercepts") if name in found}
