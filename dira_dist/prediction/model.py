"""The networks that answer: a classifier or segmenter, or the encoder of any model, with what each wants to be fed."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dira_dist.config import RequestError, parse_document, per_axis
from dira_dist.files import sha256_of
from dira_dist.models.backbone import Size
from dira_dist.models.fine_tuned_files import GROUPS, NETWORK, FineTunedFile, is_fine_tuned, read_fine_tuned
from dira_dist.models.model_files import UNET, read_facts
from dira_dist.models.precision import average_over_positions
from dira_dist.models.supervised import Classifier, Segmenter
from dira_dist.training.finetune.networks import build_networks
from dira_dist.training.finetune.recipe import FinetuneRecipe
from dira_dist.training.pretrain.recipe import PretrainRecipe
from dira_dist.training.task import Recipe, recipe_of
from dira_dist.views.labelled import Fit
from dira_dist.views.patches import PatchConfig
from dira_dist.views.sliding_window import pad_to_window, slide, tiles

RecipeT = TypeVar("RecipeT", bound=Recipe)

JOB = "job.yaml"
REPORT = "report/report.json"


@dataclass(frozen=True)
class Model:
    """A network, and what it wants to be fed.

    Attributes:
        address: as it was asked for.
        digest: of its weights and of all else that its answers depend on.
        network: in evaluation mode, on the CPU.
        image_size, in_channels, fit: of the frame that an image is brought into.
        fed: how the images that it learned from were made; see :class:`dira_dist.training.trained_on.TrainedOn`.
        dims: spatial axes that it takes.
        rgb: whether its three channels are red, green and blue, and no sequences.
    """

    address: str
    digest: str
    network: nn.Module
    image_size: Size
    in_channels: int
    fit: Fit
    fed: Mapping[str, Any]
    dims: int
    rgb: bool


@dataclass(frozen=True)
class FineTuned(Model):
    """A classifier or segmenter.

    Attributes:
        facts: ``model.json``.
        recipe: settled, of the job that trained it.
        folder: of the model, where its report is.
    """

    facts: FineTunedFile
    recipe: FinetuneRecipe
    folder: Path

    @property
    def label(self) -> str:
        """What it is, in a word."""
        return "classifier" if self.facts.task == "classify" else "segmenter"


class Features(nn.Module):
    """Images to features: the deepest map of an encoder, averaged over its positions."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *S) to (B, F)."""
        return average_over_positions(self.encoder(images)[-1])


class Sliding(nn.Module):
    """A segmenter over whole volumes, see :func:`dira_dist.views.sliding_window.slide`."""

    def __init__(self, network: nn.Module, image_size: Sequence[int], patches: PatchConfig) -> None:
        super().__init__()
        self.network, self.image_size, self.patches = network, image_size, patches

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, *S) to (B, K, *S)."""
        settings = self.patches
        return slide(
            self.network,
            volumes,
            self.image_size,
            overlap=settings.overlap,
            blend=settings.blend,
            windows_at_once=settings.windows_at_once,
        )


class TiledFeatures(nn.Module):
    """Features of whole volumes: the mean over as few windows as cover them, evenly spaced."""

    def __init__(self, network: nn.Module, image_size: Sequence[int]) -> None:
        super().__init__()
        self.network, self.image_size = network, image_size

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, *S) to (B, F)."""
        padded = pad_to_window(volumes, self.image_size)
        found = [
            self.network(padded[(slice(None), slice(None), *window)])
            for window in tiles(padded.shape[2:], self.image_size)
        ]
        return torch.stack(found).mean(0)


def files_of(fine_tuned: bool) -> Collection[str]:
    """What is wanted of a model's folder."""
    return (NETWORK, JOB, GROUPS, REPORT) if fine_tuned else (UNET, JOB)


def load_fine_tuned(folder: Path, address: str) -> FineTuned:
    """The classifier or segmenter of a model's folder.

    Raises:
        RequestError: it is a pretrained model, which says nothing of images by itself; or of another version.
    """
    if not is_fine_tuned(folder):
        encoder = read_facts(folder).encoder
        raise RequestError(
            f"{address}: is a pretrained {encoder}, which gives features and no answers: fine-tune it (kind: "
            "finetune) and give that model, or take its features with dira-dist embed"
        )
    facts, recipe = read_fine_tuned(folder), _recipe(folder, FinetuneRecipe)
    network = build_networks(recipe).network
    network.load_state_dict(load_file(folder / NETWORK))
    return FineTuned(
        address=address,
        digest=_digest(folder / NETWORK, _settings_of(facts)),
        network=network.eval(),
        image_size=facts.image_size,
        in_channels=facts.in_channels,
        fit=facts.fit,
        fed=facts.fed,
        dims=network.config.dims,
        rgb=network.config.is_rgb,
        facts=facts,
        recipe=recipe,
        folder=folder,
    )


def load_encoder(folder: Path, address: str) -> Model:
    """The encoder of any model's folder, with the view by which it is evaluated.

    Raises:
        RequestError: it is of another version.
    """
    if is_fine_tuned(folder):
        found = load_fine_tuned(folder, address)
        if not isinstance(found.network, Classifier | Segmenter):
            raise RequestError(
                f"{address}: is the ensemble of several folds' networks, which have an encoder each: give the run of "
                "one of its folds (NAME-fold1), or the pretrained model that they started from"
            )
        encoder: nn.Module = found.network.encoder
        own = {each.name: getattr(found, each.name) for each in fields(Model)}
        return Model(**own | {"network": Features(encoder)})
    facts, recipe = read_facts(folder), _recipe(folder, PretrainRecipe)
    encoder = recipe.model.build().encoder
    state = {name: weight for name, weight in load_file(folder / UNET).items() if name.startswith("encoder.")}
    encoder.load_state_dict({name.removeprefix("encoder."): weight for name, weight in state.items()})
    network = Features(encoder).eval()
    digest = _digest(folder / UNET, [facts.image_size, facts.in_channels, facts.fed])
    dims, rgb = recipe.model.dims, recipe.model.is_rgb
    return Model(address, digest, network, facts.image_size, facts.in_channels, "crop", facts.fed, dims, rgb)


def over_volumes(model: Model) -> Model:
    """The same for whole volumes: masks window by window; features of windows that tile the volume, their mean."""
    size = per_axis(model.image_size, model.dims)
    if isinstance(model, FineTuned) and model.recipe.patches is not None:
        return replace(model, network=Sliding(model.network, size, model.recipe.patches).eval())
    return replace(model, network=TiledFeatures(model.network, size).eval())


_ANSWERS = ("kind", "classes", "calibration", "thresholds", "localization", "image_size", "in_channels", "fit", "fed")


def _settings_of(facts: FineTunedFile) -> list[Any]:
    """What answers depend on beside the weights; of a model that slides over nothing, as it ever was."""
    return [*(getattr(facts, name) for name in _ANSWERS), *([facts.sliding] if facts.sliding else [])]


def _digest(weights: Path, settings: Sequence[Any]) -> str:
    return hashlib.sha256(f"{sha256_of(weights)}{json.dumps(settings)}".encode()).hexdigest()


def _recipe(folder: Path, kind: type[RecipeT]) -> RecipeT:
    job = parse_document((folder / JOB).read_text(), str(folder / JOB)).values
    recipe = recipe_of(job)
    assert isinstance(recipe, kind), f"{folder} says that it is of another kind than its {JOB}"
    return recipe
