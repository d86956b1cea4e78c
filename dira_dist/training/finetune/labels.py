"""From labels as they stand in shards to targets: a number for each sample and class.

Targets are ``(N, K)`` float32: 1 where a sample has a class, 0 where it has not, NaN where that is not known, and
:data:`UNCERTAIN` where whoever labelled it was not sure (CheXpert's -1; Irvin et al., AAAI 2019, section 3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.training.finetune.recipe import Classify

Kind = Literal["binary", "multiclass", "multilabel"]
Targets = npt.NDArray[np.float32]

SEPARATOR = "|"
UNCERTAIN = -1.0
_NUMBERS = {"0": 0.0, "1": 1.0, "-1": UNCERTAIN, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class LabelCoding:
    """How the labels of a task become targets.

    Attributes:
        kind: binary (one output), multiclass (classes that exclude each other) or multilabel.
        classes: names of the outputs.
        labels: names in the shards: one, whose values are classes; or one for each class.
    """

    kind: Kind
    classes: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, task: Classify) -> "LabelCoding":
        """That of a settled task, see :func:`settled`."""
        assert task.classes is not None and task.exclusive is not None, "settled before anything is read"
        if not isinstance(task.label, str) or task.classes == (task.label,):
            return cls("multilabel" if len(task.classes) > 1 else "binary", task.classes, task.labels)
        return cls("multiclass" if task.exclusive else "multilabel", task.classes, task.labels)

    def encode(self, labels: Sequence[Mapping[str, Any]]) -> Targets:
        """``(N, K)`` targets of N samples' labels."""
        targets = np.full((len(labels), len(self.classes)), np.nan, dtype=np.float32)
        for row, known in zip(targets, labels, strict=True):
            row[:] = self._row(known)
        return targets

    def _row(self, known: Mapping[str, Any]) -> list[float]:
        if len(self.labels) == len(self.classes) and (self.kind == "binary" or len(self.labels) > 1):
            return [_number(known.get(label), label) for label in self.labels]
        words = words_of(known.get(self.labels[0]))
        found = [float(name in words) for name in self.classes]
        if not words or (self.kind == "multiclass" and sum(found) != 1):
            return [math.nan] * len(found)
        return found


def settled(task: Classify, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Classify:
    """The task with its classes, and whether they exclude each other, as far as it leaves them to the sets.

    Args:
        task: the section.
        sets: labels of the samples, by the name of the set.

    Raises:
        RequestError: no sample of a set has a label, or none of all has one of the given classes.
    """
    for name, samples in sets.items():
        for label in task.labels:
            if not any(known.get(label) is not None for known in samples):
                names = ", ".join(sorted({each for known in samples for each in known})) or "none"
                raise RequestError(f"task.label: no sample of the {name} set has {label!r}; known there: {names}")
    if not isinstance(task.label, str):
        return task.model_copy(update={"classes": _one_for_each(task), "exclusive": False})
    values = [known.get(task.label) for samples in sets.values() for known in samples]
    found = sorted({word for value in values for word in words_of(value)})
    if task.classes is None and all(_plain(word) in _NUMBERS for word in found):
        return task.model_copy(update={"classes": (task.label,), "exclusive": False})
    unknown = [name for name in task.classes or () if name not in (*found, task.label)]
    if unknown:
        raise RequestError(
            f"task.classes: no sample of any set has {unknown[0]!r} as its {task.label}; found: {', '.join(found)}"
        )
    one_each = all(len(words_of(value)) <= 1 for value in values)
    exclusive = task.exclusive if task.exclusive is not None else one_each
    return task.model_copy(update={"classes": task.classes or tuple(found), "exclusive": exclusive})


def _one_for_each(task: Classify) -> tuple[str, ...]:
    """Names of the outputs where each label is one."""
    names = task.classes or task.labels
    if len(names) != len(task.labels):
        raise RequestError(
            f"task.classes: {len(names)} names for {len(task.labels)} labels, each of which is an output: leave "
            "task.classes out, or give one name for each"
        )
    return names


def words_of(value: Any) -> tuple[str, ...]:
    """The classes that a label names: a list of them, or a text that may name several with ``|`` between."""
    if value is None:
        return ()
    parts = value if isinstance(value, list | tuple) else str(value).split(SEPARATOR)
    return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))


def _number(value: Any, label: str) -> float:
    """1, 0, :data:`UNCERTAIN`, or NaN where nothing is known.

    Raises:
        RequestError: it is none of these.
    """
    text = _plain(value)
    if not text:
        return math.nan
    if text not in _NUMBERS:
        raise RequestError(
            f"task.label: {label} is {value!r} of some sample; allowed are 1, 0, -1 (uncertain), or none"
        )
    return _NUMBERS[text]


def _plain(value: Any) -> str:
    """A number or a truth as text: ``1``, ``1.0`` and ``True`` are written in many ways."""
    return "" if value is None else str(value).strip().lower().removesuffix(".0")
