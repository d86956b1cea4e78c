"""Published recipes that a pretraining job takes by name; what its file says itself wins.

Where their sources stand, and what of them could not be taken over, says docs/restorative.md.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from dira_dist.config import flatten

Preset = Literal["dira", "models_genesis", "rubik", "transvw"]

_AS_CUT: Mapping[str, Any] = {
    "crop": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip_probability": 0.0},
    "jitter": {"probability": 0.0},
    "blur": {"probability": 0.0},
}
"""Cubes as they were cut: the distortion is all that is done to them."""

_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dira": {
        "data": {"image_size": 224, "global_batch": 256},
        "model": {"name": "unet", "encoder": "resnet50", "in_channels": 3},
        "method": {"name": "moco_v2", "queue_size": 65536, "momentum": 0.999, "temperature": 0.2},
        "views": {"distortion": {"name": "dira"}},
        "loss_weights": {"discriminative": 1.0, "restorative": 10.0, "adversarial": 0.001},
        "restorative": {"loss": "mse"},
        "adversarial": {"loss": "lsgan", "conditional": False, "lr": 2e-4},
        "stages": [
            {"objective": "di", "epochs": 200},
            {"objective": "dir", "epochs": 200},
            {"objective": "dira", "epochs": 400, "global_batch": 16},
        ],
        "optimizer": {"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine"},
    },
    "models_genesis": {
        "data": {"image_size": [64, 64, 32], "global_batch": 6},
        "model": {"name": "unet3d"},
        "views": {**_AS_CUT, "distortion": {"name": "models_genesis"}},
        "loss_weights": {"restorative": 1.0},
        "restorative": {"loss": "mse"},
        "stages": [{"objective": "re", "epochs": 240}],
        "optimizer": {
            "name": "sgd",
            "lr": 1.0,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "step",
            "halve_every_epochs": 40.0,
        },
    },
    "rubik": {
        "data": {"image_size": [64, 64, 64], "global_batch": 8},
        "model": {"name": "unet3d"},
        "method": {"name": "rubik", "orders": 1000, "pieces": 8},
        "views": {**_AS_CUT, "distortion": {"name": "rubik", "grid": 2, "orders": 1000}},
        "loss_weights": {"discriminative": 1.0, "restorative": 100.0, "adversarial": 1.0},
        "restorative": {"loss": "mae"},
        "adversarial": {"loss": "wgan_gp", "gradient_penalty": 10.0, "conditional": True, "lr": 1e-4},
        "stages": [{"objective": objective, "epochs": 40} for objective in ("di", "dir", "dira")],
        "optimizer": {
            "name": "adamw",
            "lr": 1e-4,
            "momentum": 0.5,
            "weight_decay": 0.0,
            "warmup_epochs": 0.0,
            "schedule": "step",
            "halve_every_epochs": 10.0,
        },
    },
    "transvw": {
        "data": {"image_size": [64, 64, 32], "global_batch": 64},
        "model": {"name": "unet3d"},
        "method": {"name": "visual_words", "label": "word", "words": 44},
        "views": {**_AS_CUT, "distortion": {"name": "transvw"}},
        "loss_weights": {"discriminative": 0.01, "restorative": 1.0, "adversarial": 0.01},
        "restorative": {"loss": "mse"},
        "adversarial": {"loss": "wgan_gp", "gradient_penalty": 100.0, "conditional": True, "lr": 1e-3},
        "stages": [{"objective": "dir", "epochs": 240}],
        "optimizer": {
            "name": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.0,
            "warmup_epochs": 0.0,
            "schedule": "step",
            "halve_every_epochs": 40.0,
        },
    },
}
_UNNAMED = {"model": "unet"}
"""What a section is that does not name itself; of the others one without a name goes with the preset's."""


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """A job file's values with what its preset, if it has a known one, fills in."""
    preset = values.get("preset")
    if not isinstance(preset, str) or preset not in _PRESETS:
        return values
    return _under(values, json.loads(json.dumps(_PRESETS[preset])))


def _under(own: dict[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Its own values over the preset's, key by key; a section of another name, or a list, is its own as a whole."""
    merged = dict(own)
    for key, value in preset.items():
        if key not in own:
            merged[key] = value
        elif isinstance(own[key], dict) and isinstance(value, dict):
            name = own[key].get("name", _UNNAMED.get(key, value.get("name")))
            if name == value.get("name"):
                merged[key] = _under(own[key], value)
    return merged


def preset_lines(preset: Preset, values: Mapping[str, Any]) -> list[str]:
    """What it filled in of a job with these values, and what of it the job's file says otherwise."""
    found = flatten(dict(values))
    lines = []
    for key, value in flatten({key: value for key, value in _PRESETS[preset].items() if key != "stages"}).items():
        if key not in found:
            lines.append(f"{key}: not here, for the file chose another {key.rpartition('.')[0]}")
        elif found[key] == value:
            lines.append(f"{key}: {value}")
        else:
            lines.append(f"{key}: {found[key]} (the file's; {preset} has {value})")
    return [f"{preset} fills in what the file leaves out:", *lines, _stages(preset, values["stages"])]


def _stages(preset: Preset, stages: list[Mapping[str, Any]]) -> str:
    own, published = (_lengths(each) for each in (stages, _PRESETS[preset]["stages"]))
    return f"stages: {own}" + ("" if own == published else f" (the file's; {preset} has {published})")


def _lengths(stages: list[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{stage['objective']} {stage['epochs']:g} epochs"
        if stage.get("epochs") is not None
        else f"{stage['objective']} {stage['steps']} steps"
        for stage in stages
    )
