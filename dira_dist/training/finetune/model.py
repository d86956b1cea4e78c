"""The model that a fine-tuning leaves."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from dira_dist.config import flatten
from dira_dist.models import predictor, sent_images
from dira_dist.models.backbone import input_size
from dira_dist.models.fine_tuned_files import NETWORK, FineTunedFacts, write_fine_tuned_folder
from dira_dist.models.model_files import example_input
from dira_dist.training.finetune.labels import LabelCoding
from dira_dist.training.finetune.masks import MaskCoding
from dira_dist.training.finetune.networks import build_networks
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.task import REQUIREMENTS, About, Package
from dira_dist.views import center_view, frame_view, sliding_window

_SETTINGS = {"start", "optimizer", "augmentation", "precision", "seed", "epochs"}


def write_model(recipe: FinetuneRecipe, state: Mapping[str, Tensor], folder: Path, about: About) -> Package:
    """Writes the model folder of a settled recipe's networks, with what the run's report found of them."""
    networks = build_networks(recipe)
    networks.load_state_dict(state)
    report = json.loads(about.report["report.json"]) if about.report else {}
    facts = _facts(recipe, report, about)
    write_fine_tuned_folder(
        folder,
        networks.network,
        facts,
        job=about.job,
        report=about.report,
        pictures=about.pictures,
    )
    return Package(
        folder,
        weights=NETWORK,
        code=[Path(str(module.__file__)) for module in _code_of(recipe)],
        model_type=f"dira-{recipe.task.name}",
        description="Classifiers and segmenters fine-tuned with dira_dist.",
        parameters={"output": predictor.OUTPUTS[recipe.task.name][0]},
        example=example_input(facts.in_channels, facts.image_size, networks.network.config.dims),
        requirements=(*REQUIREMENTS, *(("monai",) if recipe.fit == "slide" else ())),
    )


def _code_of(recipe: FinetuneRecipe) -> Iterator[ModuleType]:
    """What travels with the model, and runs it."""
    yield from (predictor, center_view, frame_view, sent_images)
    if recipe.fit == "slide":
        yield sliding_window


def _facts(recipe: FinetuneRecipe, report: Mapping[str, Any], about: About) -> FineTunedFacts:
    assert recipe.model is not None
    task = recipe.task
    calibration, thresholds = report.get("calibration", {}), tuple(report.get("thresholds", ()))
    if isinstance(task, Classify):
        classes, kind, label = LabelCoding.of(task).classes, str(LabelCoding.of(task).kind), task.labels
        count = len(classes)
        calibration = calibration or {"slopes": [1.0] * count, "intercepts": [0.0] * count}
        thresholds = thresholds or (0.5,) * count
    else:
        classes, kind, label = MaskCoding.of(task).outputs, MaskCoding.of(task).kind, ("mask",)
    return FineTunedFacts(
        name=about.name,
        task=task.name,
        kind=kind,
        classes=classes,
        encoder=recipe.model.label,
        in_channels=recipe.model.in_channels,
        image_size=input_size(recipe.model, recipe.data.image_size),
        fit=recipe.fit,
        sliding=recipe.patches.model_dump(mode="json", include={"overlap", "blend"}) if recipe.patches else {},
        calibration={name: calibration[name] for name in ("slopes", "intercepts") if name in calibration},
        thresholds=thresholds,
        label=label,
        localization=_localization(recipe, report),
        quality=about.quality,
        settings=flatten(recipe.model_dump(mode="json", include=_SETTINGS)),
        data=about.data,
        origin=about.origin,
        fed=about.trained_on.fed,
        groups=about.trained_on.groups,
    )


def _localization(recipe: FinetuneRecipe, report: Mapping[str, Any]) -> dict[str, Any]:
    """How the report located lesions, for whoever asks the model for maps and boxes."""
    settings = recipe.report.localization
    if settings is None or recipe.segments or recipe.is_ensemble:
        return {}
    found = {"settings": settings.model_dump(mode="json")}
    thresholds = report.get("localization", {}).get("thresholds")
    return found | ({"thresholds": thresholds} if thresholds else {})
