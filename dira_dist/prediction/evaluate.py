"""``dira-dist evaluate``: the report of a fine-tuning on any labelled set, with the model as it is."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.data.samples import SampleTable, read_samples
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.evaluation.calibration import Calibration
from dira_dist.models.fine_tuned_files import GROUPS
from dira_dist.prediction.model import REPORT, FineTuned, files_of, load_fine_tuned
from dira_dist.prediction.work import device_of
from dira_dist.registry.model_folder import fetch_model_folder
from dira_dist.tracking.config import tracking_at
from dira_dist.training.finetune.labels import UNCERTAIN, LabelCoding
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.prediction import SetReader, predict_classes, predict_masks
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.finetune.report import classifier_report_elsewhere, segmenter_report_elsewhere
from dira_dist.training.finetune.samples import FinetuneSamples, known_of, resampled_of
from dira_dist.training.trained_on import group_digests
from dira_dist.training.validation import Report
from dira_dist.views import check_viewable

_TEST = "test"
_OLDER = (
    "the model is older and does not say whom it learned from, and its training set is out of reach: whether a patient "
    "of this set was among them is not known"
)


@dataclass(frozen=True)
class Evaluated:
    """What a model is worth on a set.

    Attributes:
        text: the report as Markdown.
        metrics: its figures by name.
        dest: where the report lies; empty where it was not written.
    """

    text: str
    metrics: Mapping[str, float]
    dest: str = ""


def evaluate(
    model: str, shard_set: str, dest: str | None = None, *, device: str | None = None, tracking_uri: str | None = None
) -> Evaluated:
    """The report of a fine-tuning on a labelled set: calibration and thresholds are the model's, and nothing is fitted.

    Args:
        model: see :func:`dira_dist.registry.model_folder.fetch_model_folder`.
        shard_set: address of the set.
        dest: folder or prefix for the report (Markdown, JSON, CSV, pictures); not written if none.
        device: cpu or cuda; a GPU where there is one if none.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.

    Raises:
        RequestError: the model was trained on a patient of the set, the set has no label of the model's, or its images
            are others than the model takes.
    """
    if dest is not None:
        check_reachable(dest, write=True)
        if next(iter(open_store(dest).list()), None) is not None:
            raise RequestError(f"{dest}: holds files; give a new or empty folder for the report")
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_model_folder(model, Path(scratch), tracking_at(tracking_uri), files_of, as_registered=True)
        found = load_fine_tuned(folder, model)
        report = _report(found, shard_set, torch.device(device_of(device)))
    if dest is not None:
        _write(open_store(dest), report)
    return Evaluated(report.files["report.md"].decode(), report.metrics, dest or "")


def _report(model: FineTuned, shard_set: str, device: torch.device) -> Report:
    index = read_index(shard_set)
    try:
        check_viewable(index.image, model.dims, model.in_channels, rgb=model.rgb)
    except RequestError as error:
        raise RequestError(f"{shard_set}: the set has {error}") from None
    table = read_samples(shard_set, index)
    notes = [*_check_strangers(model, table, shard_set), *_check_labels(model.recipe, table, shard_set)]
    recipe = model.recipe.model_copy(update={"data": model.recipe.data.model_copy(update={_TEST: shard_set})})
    samples = FinetuneSamples(
        per_epoch=1, evaluated={_TEST: known_of(table)}, resampled=resampled_of([table]), notes=tuple(notes)
    )
    network: Any = model.network
    reader = SetReader(recipe, samples, FinetuneNetworks(network).to(device), device)
    title = f"{model.address} on {shard_set}"
    if not isinstance(recipe.task, Classify):
        cases = predict_masks(reader, _TEST, in_full=True)
        return segmenter_report_elsewhere(recipe, samples, cases, title)
    predictions, facts = predict_classes(reader, _TEST), model.facts
    calibration = Calibration(predictions.kind, facts.calibration["slopes"], facts.calibration["intercepts"])
    return classifier_report_elsewhere(
        recipe, samples, predictions, calibration, facts.thresholds, _prevalence(model), title
    )


def _check_strangers(model: FineTuned, table: SampleTable, address: str) -> list[str]:
    """Whether the model knows a patient of the set.

    Returns:
        What a person should know.

    Raises:
        RequestError: it was trained on one of them.
    """
    groups = _groups_of(model)
    if groups is None:
        return [_OLDER]
    own = set(group_digests(table.groups))
    common = {name: len(own & set(each)) for name, each in groups.items()}
    if count := common.get("train", 0):
        raise RequestError(
            f"{address}: {count} of its {len(own)} patients (or groups) stand in the set that {model.address} was "
            "trained on, so that it would be judged on what it has seen: evaluate it on other patients"
        )
    notes = ["patients are compared by the salted keys of the sets: sets made with another salt share none by name"]
    if count := common.get("val", 0):
        notes.append(
            f"{count} of its {len(own)} patients stand in val, on which the model was chosen: that flatters it"
        )
    return notes


def _groups_of(model: FineTuned) -> Mapping[str, Sequence[str]] | None:
    """Digests of its patients by set: as the model remembers them, else, of an older one, as its sets say."""
    file = model.folder / GROUPS
    if not file.is_file():
        return model.recipe.trained_on().groups
    groups: Mapping[str, Sequence[str]] = json.loads(file.read_text())
    return groups


def _check_labels(recipe: FinetuneRecipe, table: SampleTable, address: str) -> list[str]:
    """Whether the set can judge the model.

    Raises:
        RequestError: it holds nothing of what the model answers.
    """
    if not isinstance(recipe.task, Classify):
        if not table.has_mask.any():
            raise RequestError(f"{address}: no sample has a mask; make the set with --masks")
        return []
    coding = LabelCoding.of(recipe.task)
    targets = coding.encode(table.labels)
    known = ~np.isnan(targets) & (targets != UNCERTAIN)
    if not known.any():
        names = ", ".join(sorted({name for labels in table.labels for name in labels})) or "none"
        raise RequestError(
            f"{address}: no sample has a label that the model answers ({', '.join(coding.labels)}: "
            f"{', '.join(coding.classes)}); labels there: {names}"
        )
    positives = ((targets == 1) & known).any(axis=0)
    return [
        f"{name} is absent in the set, so that its figures are n/a, left out of means"
        for name, there in zip(coding.classes, positives, strict=True)
        if not there
    ]


def _prevalence(model: FineTuned) -> dict[str, float | None]:
    """Of each class on the val set where the model was calibrated, as its own report has it."""
    file = model.folder / REPORT
    if not file.is_file():
        return {}
    table = json.loads(file.read_text())["sets"]["val"]["per_image"]
    return {name: row.get("prevalence") for name, row in table.items()}


def _write(store: Store, report: Report) -> None:
    """The pictures first and the figures last: where they stand, the report is whole."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, picture in report.pictures.items():
            path = Path(scratch) / f"{name.replace('/', '-')}.png"
            Image.fromarray(picture).save(path)
            store.upload(f"pictures/{path.name}", path)
    for name in sorted(report.files, key=lambda name: name == "report.json"):
        store.write_bytes(name, report.files[name])
