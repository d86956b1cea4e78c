"""What a fine-tuning starts from, brought here from wherever it is: registry, run, checkpoint or file."""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dira_dist.config import RequestError, parse_document, without_credentials
from dira_dist.models.fine_tuned_files import is_fine_tuned
from dira_dist.models.model_files import FACTS, UNET, read_facts
from dira_dist.models.weights import WEIGHT_FILES, read_weights
from dira_dist.registry.checkpoint import FoundCheckpoint, download_checkpoint
from dira_dist.registry.fetch import fetch
from dira_dist.registry.lookup import find_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import connect
from dira_dist.training.pretrain.recipe import PretrainRecipe
from dira_dist.training.pretrain.task import state_of
from dira_dist.training.task import recipe_of

_JOB = "job.yaml"


@dataclass(frozen=True)
class FoundStart:
    """Weights to start from, and what they want to be fed.

    Attributes:
        address: of this version or checkpoint, for good: what an alias stands for may change.
        weights: of encoder and, where it was trained, decoder.
        model: the network's section, as the job that made it has it; none where nobody tells.
        image_size: pixels of the views that it was trained on; none where nobody tells.
    """

    address: str
    weights: Mapping[str, Tensor]
    model: dict[str, Any] | None = None
    image_size: int | tuple[int, ...] | None = None

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith("decoder.") for name in self.weights)


def find_start(address: str, config: TrackingConfig) -> FoundStart:
    """The weights at an address.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/ID``, a checkpoint's or a run's folder, or a
            file of weights.
        config: where the registry is.

    Raises:
        RequestError: there is nothing of the kind, or it cannot be read.
    """
    if address.startswith(("models:", "runs:")):
        return _of_registry(address, config)
    if Path(address).suffix in WEIGHT_FILES:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return FoundStart(address, read_weights(address))
    with tempfile.TemporaryDirectory() as scratch:
        return _of_checkpoint(download_checkpoint(address, Path(scratch)))


def _of_registry(address: str, config: TrackingConfig) -> FoundStart:
    config = config.resolve_paths()
    if config.uri is None:
        raise RequestError(f"{address}: no registry is known; give tracking.uri or set MLFLOW_TRACKING_URI")
    version = find_version(connect(config.uri), config.uri, address)
    pinned = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch(pinned, Path(scratch), config, only=(FACTS, _JOB))
        if is_fine_tuned(folder):
            raise RequestError(f"{address}: is fine-tuned already; start from the pretrained model that it came from")
        fetch(pinned, folder, config, only=(UNET, FACTS, _JOB))
        facts, job = read_facts(folder), parse_document((folder / _JOB).read_text(), pinned).values
        return FoundStart(pinned, load_file(folder / UNET), _model_of(job), facts.image_size)


def _of_checkpoint(found: FoundCheckpoint) -> FoundStart:
    """Encoder and, where any stage up to there trained it, decoder of a pretraining's checkpoint."""
    recipe, checkpoint = recipe_of(found.checkpoint.job), found.checkpoint
    if not isinstance(recipe, PretrainRecipe):
        raise RequestError(
            f"{without_credentials(found.address)}: a checkpoint of kind {recipe.kind}; start from one of a "
            "pretraining, or from a file of weights"
        )
    restores = recipe.trained_parts(checkpoint.position).restores
    kept = ("encoder.", "decoder.", "segmentation_head.") if restores else ("encoder.",)
    unet = {name: weight for name, weight in state_of(checkpoint.tensors, "unet").items() if name.startswith(kept)}
    return FoundStart(found.address, unet, _model_of(checkpoint.job), recipe.data.image_size)


def _model_of(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section of the network in a recorded job, without what its own training started from."""
    section = job.get("model")
    return None if section is None else {**section, "init": None, "gradient_checkpointing": False}
