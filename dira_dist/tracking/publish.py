"""From a run's last checkpoint to a registered model."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from dira_dist.config import flatten
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.model_files import ModelFacts, write_model_folder
from dira_dist.tracking.registry import Metric, register
from dira_dist.training.state import Checkpoint

# By which versions of a model are compared: the first of these that the run measured.
RANKING = ("probe/auroc", "val/rankme")


def publish(config: TrackingConfig, run_id: str, checkpoint: Checkpoint, data: Mapping[str, Any]) -> str:
    """Register the networks of a checkpoint as a new version of ``config.register_as``.

    Args:
        config: of the job, its address settled.
        run_id: the run that made them; may be empty.
        checkpoint: of a finished run.
        data: what the card says of the training images.

    Returns:
        ``models:/name/version``, or an empty string where nothing is to be registered.

    Raises:
        RequestError: the registry is away or refuses.
    """
    if config.register_as is None or not run_id:
        return ""
    quality = list(checkpoint.quality.values())[-1] if checkpoint.quality else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model_folder(
            Path(scratch) / "model",
            network_state(checkpoint, "unet"),
            _facts(config.register_as, run_id, checkpoint, data, quality),
            job=yaml.safe_dump(checkpoint.job, sort_keys=False, allow_unicode=True),
            discriminator_state=network_state(checkpoint, "discriminator"),
        )
        metric = next((Metric(name, quality[name]) for name in RANKING if name in quality), None)
        tags = {"dira.method": checkpoint.job["method"]["name"], "dira.train_digest": str(data.get("digest", ""))}
        return register(config, run_id, folder, metric=metric, tags=tags).address


def network_state(checkpoint: Checkpoint, network: str) -> dict[str, Tensor]:
    """The weights of ``unet``, ``method`` or ``discriminator`` under their own names."""
    networks: Mapping[str, Any] = checkpoint.tensors["networks"]
    prefix = f"{network}."
    return {
        name.removeprefix(prefix): value.contiguous()
        for name, value in networks.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def _facts(
    name: str, run_id: str, checkpoint: Checkpoint, data: Mapping[str, Any], quality: Mapping[str, float]
) -> ModelFacts:
    job = checkpoint.job
    shown = ("method", "loss_weights", "optimizer", "precision", "seed")
    return ModelFacts(
        name=name,
        encoder=job["model"]["encoder"],
        in_channels=job["model"]["in_channels"],
        image_size=job["data"]["image_size"],
        settings=flatten({key: job[key] for key in shown})
        | {"stages": " -> ".join(stage["objective"] for stage in job["stages"])},
        data=data,
        quality=quality,
        origin={"job": job["name"], "run": run_id, "steps": checkpoint.position.step},
    )
