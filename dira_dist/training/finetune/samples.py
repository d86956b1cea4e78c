"""What a fine-tuning learns from and is judged on: drawn from what the samples of its sets say of themselves."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.decode import NO_LABEL, Box
from dira_dist.data.order import draw_spread
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.selection import Draw, Selection, balanced_weights, common_groups, draw_fraction
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.validation import ValidationStream
from dira_dist.objectives.supervised import positive_weights
from dira_dist.training.finetune.folds import HeldOut, hold_out, notes_on_folds
from dira_dist.training.finetune.labels import UNCERTAIN, LabelCoding, Targets
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe, Segment
from dira_dist.training.task import TrainingSamples

Bools = npt.NDArray[np.bool_]

_MASKS_LOOKED_AT = {2: 500, 3: 50}
"""By spatial axes: a volume takes as long as many images."""


@dataclass(frozen=True)
class Known:
    """What is known of a sample that is judged, beside its label.

    Attributes:
        columns: what ``shard --keep-columns`` carried.
        spacing_mm: along each axis of its pixels; none where it is not known.
        boxes: of its lesions, in its pixels.
        has_mask: whether it has a mask.
    """

    columns: Mapping[str, Any]
    spacing_mm: tuple[float, ...] | None
    boxes: tuple[Box, ...] = ()
    has_mask: bool = False


@dataclass(frozen=True)
class FinetuneSamples(TrainingSamples):
    """What a fine-tuning learns from.

    Attributes:
        class_weights: how much the positives of each class count; none: all alike.
        evaluated: by the name of the set, what is known of the samples that are judged by, by their places in the set
            and rising; of ``val``, where a fold is held out, those of the fold, with their places in the training set.
        resampled: whom intervals draw again: patients, or the groups that stand for them.
    """

    class_weights: tuple[float, ...] | None = None
    evaluated: Mapping[str, Mapping[int, Known]] = field(default_factory=dict)
    resampled: str = "patients"


def draw_samples(recipe: FinetuneRecipe, sets: Mapping[str, ShardSetIndex]) -> FinetuneSamples:
    """Draws what a settled recipe learns from.

    Raises:
        RequestError: two sets share a patient, nothing is labelled, or a fraction of nothing is asked for.
    """
    tables = {name: read_samples(str(getattr(recipe.data, name)), index) for name, index in sets.items()}
    train = tables["train"]
    _check_apart(tables)
    if isinstance(recipe.task, Segment):
        for name, index in sets.items():
            _check_masks(recipe, name, index)
    classes, targets = _classes(recipe, train)
    usable = np.flatnonzero(_is_usable(recipe, train, targets))
    if not len(usable):
        raise RequestError(f"{_what(recipe)}: no sample of the train set has it, so that there is nothing to learn")
    parts = hold_out(recipe, train.groups, classes, usable)
    draw = draw_fraction(
        [train.groups[place] for place in parts.learned.tolist()],
        classes[parts.learned],
        recipe.data.label_fraction,
        recipe.data.fraction_seed,
        by=recipe.data.fraction_of,
    )
    ids = parts.learned[draw.ids]
    evaluated = _evaluated(tables, parts)
    _check_lesions(recipe, evaluated)
    notes = [*_notes(recipe, tables, draw, len(usable)), *_notes_on_classes(recipe, tables, draw, targets, parts)]
    if recipe.data.folds is not None and isinstance(recipe.task, Classify):
        names = LabelCoding.of(recipe.task).classes
        notes += notes_on_folds(recipe.data.folds, names, train.groups, classes, usable)
    return FinetuneSamples(
        per_epoch=len(ids),
        selection=Selection(ids, _drawing_weights(recipe, classes[ids]), train.places),
        notes=(*notes, *_notes_on_lesions(recipe, evaluated)),
        record=_record(recipe, train, draw, ids) | _record_of_fold(recipe, train, parts),
        class_weights=_class_weights(recipe, None if targets is None else targets[ids]),
        evaluated=evaluated,
        resampled=resampled_of(tables.values()),
    )


def _evaluated(tables: Mapping[str, SampleTable], parts: HeldOut) -> dict[str, Mapping[int, Known]]:
    """What is known of the samples that are judged by."""
    own: dict[str, Mapping[int, Known]] = {}
    if parts.held_out is not None:
        known = known_of(tables["train"])
        own["val"] = {place: known[place] for place in parts.held_out.tolist()}
    return own | {name: known_of(table) for name, table in tables.items() if name != "train"}


def _check_apart(tables: Mapping[str, SampleTable]) -> None:
    """Refuses sets that share a patient: what is learned by heart would be taken for skill.

    Raises:
        RequestError: with the count.
    """
    names = list(tables)
    for place, name in enumerate(names):
        for other in names[:place]:
            if (count := common_groups(tables[name].groups, tables[other].groups)[0]) > 0:
                raise RequestError(
                    f"data.{name}: {count} of its {len(set(tables[name].groups))} patients (or groups) stand in "
                    f"data.{other}, too, so that a network would be judged on what it has seen; split by patient: "
                    "dira-dist shard ... --split train=0.7,val=0.1,test=0.2 --group-by patient"
                )


def _check_masks(recipe: FinetuneRecipe, name: str, index: ShardSetIndex) -> None:
    """Refuses masks with values that the task does not know, before anything is started.

    Some hundreds of them (some tens of volumes) are looked at, spread over the set; the others when they are learned
    from or judged by.

    Raises:
        RequestError: with the values.
    """
    assert isinstance(recipe.task, Segment)
    coding = MaskCoding.of(recipe.task)
    if coding.kind == "binary":
        return
    ids = draw_spread([shard.samples for shard in index.shards], _MASKS_LOOKED_AT[index.image.axes], seed=0)
    options = replace(recipe.data.read_options, annotations=True)
    found: set[int] = set()
    at_once = batch_size_of(recipe)
    with ValidationStream(str(getattr(recipe.data, name)), options, batch_size=at_once, ids=ids, index=index) as stream:
        for batch in stream:
            assert batch.masks is not None
            coding.check(batch.masks, f"data.{name}")
            found.update(batch.masks.unique().tolist())
    if coding.kind == "regions" and not found & {value for each in coding.values for value in each}:
        there = ", ".join(map(str, sorted(found - {NO_LABEL})))
        raise RequestError(f"data.{name}: no mask holds any value of task.regions; found: {there}")


def batch_size_of(recipe: FinetuneRecipe) -> int:
    """How many images of a set are read together: volumes of any size one by one."""
    return 1 if recipe.fit == "slide" else 32


def lesions_known(recipe: FinetuneRecipe, known: Mapping[int, Known]) -> list[int]:
    """Places of the samples by which localisation is judged; none where it is not asked for."""
    settings = recipe.report.localization
    if settings is None or recipe.segments:
        return []
    return [place for place, each in known.items() if (each.boxes if settings.truth == "boxes" else each.has_mask)]


def _check_lesions(recipe: FinetuneRecipe, evaluated: Mapping[str, Mapping[int, Known]]) -> None:
    """Raises:
    RequestError: thresholds are to be tuned, and no lesion is known on ``val``.
    """
    settings = recipe.report.localization
    if settings is not None and settings.threshold == "tuned" and not lesions_known(recipe, evaluated["val"]):
        raise RequestError(
            f"report.localization.threshold: tuned, and no sample of data.val has {settings.truth}: shard it with "
            f"--{settings.truth}, or give a share of the map's largest heat, or otsu"
        )


def _notes_on_lesions(recipe: FinetuneRecipe, evaluated: Mapping[str, Mapping[int, Known]]) -> Iterator[str]:
    """Whether localisation is judged as asked, and boxes that belong to no class."""
    settings, shown = recipe.report.localization, "test" if "test" in evaluated else "val"
    if settings is None or not isinstance(recipe.task, Classify):
        return
    if not lesions_known(recipe, evaluated[shown]):
        if "localization" in recipe.report.model_fields_set:
            yield f"report.localization: no sample of data.{shown} has {settings.truth}, so that it is not judged"
        return
    classes = LabelCoding.of(recipe.task).classes
    if settings.truth == "boxes" and len(classes) > 1:
        labels = Counter(str(box.get("label", "")).strip() for each in evaluated[shown].values() for box in each.boxes)
        unknown = {label: count for label, count in labels.items() if label and label not in classes}
        if unknown:
            names = ", ".join(f"{label} ({count})" for label, count in sorted(unknown.items()))
            yield f"data.{shown}: boxes of no class of the task are left out of localisation: {names}"


def _classes(recipe: FinetuneRecipe, table: SampleTable) -> tuple[Bools, Targets | None]:
    """``(N, K)`` what each sample holds; and the targets of a classifier."""
    if not isinstance(recipe.task, Classify):
        return table.has_mask[:, None], None
    targets = LabelCoding.of(recipe.task).encode(table.labels)
    return np.nan_to_num(targets) > 0, targets


def _is_usable(recipe: FinetuneRecipe, table: SampleTable, targets: Targets | None) -> Bools:
    """``(N,)`` whether anything of a sample's label is known."""
    if targets is None:
        return table.has_mask
    known = ~np.isnan(targets)
    if isinstance(recipe.task, Classify) and recipe.task.uncertain == "ignore":
        known &= targets != UNCERTAIN
    return np.asarray(known.any(axis=1))


def _drawing_weights(recipe: FinetuneRecipe, classes: Bools) -> npt.NDArray[np.float64] | None:
    if not isinstance(recipe.task, Classify) or recipe.task.imbalance != "sampling":
        return None
    return balanced_weights(classes, recipe.task.weight_cap)


def _class_weights(recipe: FinetuneRecipe, targets: Targets | None) -> tuple[float, ...] | None:
    if not isinstance(recipe.task, Classify) or recipe.task.imbalance != "weights" or targets is None:
        return None
    known = np.where(targets == UNCERTAIN, np.nan, targets).astype(np.float32)
    weights = positive_weights(known, LabelCoding.of(recipe.task).kind, cap=recipe.task.weight_cap)
    return tuple(float(weight) for weight in weights)


def resampled_of(tables: Iterable[SampleTable]) -> str:
    """Whom intervals draw again, in words."""
    return "patients (groups of the sets)" if any(each.has_groups for each in tables) else "images"


def known_of(table: SampleTable) -> dict[int, Known]:
    """What is known of the samples of a set that is judged by, by their places in it."""
    columns = (table.columns, table.spacing_mm, table.boxes, table.has_mask.tolist())
    return {place: Known(*each) for place, each in enumerate(zip(*columns, strict=True))}


def _notes(recipe: FinetuneRecipe, tables: Mapping[str, SampleTable], draw: Draw, usable: int) -> Iterator[str]:
    """What a person should know of the samples."""
    if (without := len(tables["train"]) - usable) > 0:
        yield f"{without} of {len(tables['train'])} samples of the train set have no {_what(recipe)}; they are left out"
    if recipe.data.label_fraction < 1:
        unit = "images" if recipe.data.fraction_of == "image" else "groups (patients)"
        yield (f"data.label_fraction: {draw.units} of {draw.all_units} {unit} of the train set, {len(draw.ids)} images")
    if not tables["train"].has_groups:
        yield (
            "the train set names no patients, so that each image counts as one; where patients have several, shard "
            "with --group-by"
        )


def _notes_on_classes(
    recipe: FinetuneRecipe, tables: Mapping[str, SampleTable], draw: Draw, targets: Targets | None, parts: HeldOut
) -> Iterator[str]:
    """Classes that nothing is learned of, or that cannot be judged."""
    if targets is None:
        return
    assert isinstance(recipe.task, Classify)
    coding = LabelCoding.of(recipe.task)
    for name, count in zip(coding.classes, draw.positives.tolist(), strict=True):
        if count == 0:
            yield f"task.classes: no sample that is learned from has {name}; its output learns nothing"
    if parts.held_out is not None:
        remedy = "choose fewer folds, or another seed"
        yield from _absent(coding, f"data.folds: fold {recipe.data.fold}", targets[parts.held_out], remedy)
    for part, table in tables.items():
        if part != "train":
            remedy = "split the labelled samples so that each part has some of both"
            yield from _absent(coding, f"data.{part}", coding.encode(table.labels), remedy)


def _absent(coding: LabelCoding, part: str, targets: Targets, remedy: str) -> Iterator[str]:
    """Classes that a set, or a fold, cannot judge.

    Raises:
        RequestError: it can judge none.
    """
    known = np.where(np.isnan(targets) | (targets == UNCERTAIN), np.nan, targets)
    both = (known == 1).any(axis=0) & (known == 0).any(axis=0)
    if not both.any():
        raise RequestError(
            f"{part}: no class has samples with and samples without it there, so that nothing can be judged: {remedy}"
        )
    for name, has_both in zip(coding.classes, both, strict=True):
        if not has_both:
            yield f"{part}: {name} is absent (or everywhere) there, so that its figures are n/a, left out of means"


def _record(recipe: FinetuneRecipe, table: SampleTable, draw: Draw, ids: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What was drawn, for the run."""
    if recipe.data.label_fraction == 1:
        return {}
    return {
        "label_fraction": recipe.data.label_fraction,
        "fraction_of": recipe.data.fraction_of,
        "fraction_seed": recipe.data.fraction_seed,
        "units": draw.units,
        "of_units": draw.all_units,
        "positives": draw.positives.tolist(),
        "samples": [table.keys[place] for place in ids.tolist()],
    }


def _record_of_fold(recipe: FinetuneRecipe, table: SampleTable, parts: HeldOut) -> dict[str, Any]:
    """What was held out, for the run."""
    if parts.held_out is None:
        return {}
    held_out = parts.held_out.tolist()
    return {
        "folds": recipe.data.folds,
        "fold": recipe.data.fold,
        "held_out_groups": len({table.groups[place] for place in held_out}),
        "held_out": [table.keys[place] for place in held_out],
    }


def _what(recipe: FinetuneRecipe) -> str:
    """What a sample needs to be learned from."""
    if isinstance(recipe.task, Classify):
        return "task.label " + ", ".join(map(repr, recipe.task.labels))
    return "mask"
