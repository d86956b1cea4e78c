"""The registered model as MLflow runs it: images in, features out, with torch and without dira_dist.

A copy of this file travels with every registered model, beside ``center_view.py`` and ``sent_images.py``; MLflow calls
:func:`_load_pyfunc` where the model is used. It must not import anything of dira_dist.
"""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IMAGES_AT_ONCE = 64
VOXELS_AT_ONCE = 2**20


class Encoder(torch.nn.Module):
    """Images to features, trainable: the pretrained encoder behind the view that it was evaluated with.

    Its weights learn; its batch norms keep the statistics of pretraining, as fine-tuning on few images wants it.

    Attributes:
        channels: of the features.
        image_size: pixels of the view, a side or one for each axis; three of a network of cubes.

    Args:
        folder: holds ``model.json`` and the encoder's graph, ``features.pt2``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        facts = json.loads((folder / "model.json").read_text())
        self.image_size, self.channels = facts["image_size"], int(facts["feature_channels"])
        self._in_channels = int(facts["in_channels"])
        self.graph = torch.export.load(folder / "features.pt2").module()
        self._center_view = importlib.import_module("center_view").center_view

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features ``(N, channels)`` of images ``(N, 1 or 3, H, W)`` or, of a network of cubes, ``(N, C, X, Y, Z)``.

        uint8, uint16, or floating point in [0, 1]; of any size; each is resized and cut to the centre of the view.
        """
        features: torch.Tensor = self.graph(self._center_view(images, self.image_size, self._in_channels))
        return features

    def train(self, mode: bool = True) -> "Encoder":
        """Notes the mode; a captured graph computes the same in both."""
        self.training = mode
        return self


class FeatureModel:
    """Features of images by the pretrained encoder.

    Args:
        folder: the model's.
    """

    def __init__(self, folder: Path) -> None:
        self._encoder = Encoder(folder)

    def get_raw_model(self) -> Encoder:
        """The encoder itself, to be fine-tuned; MLflow's ``load_model(...).get_raw_model()`` ends here."""
        return self._encoder

    def _at_once(self) -> int:
        """Images in one batch; of cubes, which are larger than they look, as many as their voxels allow."""
        sides = self._encoder.image_size
        is_cube = not isinstance(sides, int) and len(sides) == 3
        return max(1, min(IMAGES_AT_ONCE, VOXELS_AT_ONCE // math.prod(sides))) if is_cube else IMAGES_AT_ONCE

    @torch.no_grad()
    def predict(self, model_input: npt.NDArray[Any], params: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
        """Features ``(N, C)`` float32 of images.

        Args:
            model_input: ``(N, C, *S)``, see :meth:`Encoder.forward`; or for each image the base64 of a PNG or JPEG
                file, as a request to a server holds it.
        """
        parts = [self._encoder(batch) for batch in _batches(model_input, self._at_once())]
        return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float32)


def _batches(model_input: Any, at_once: int) -> Iterator[torch.Tensor]:
    if np.asarray(model_input).dtype.kind in "OUS":  # words, or what a request held
        yield from importlib.import_module("sent_images").sent_images(model_input, at_once)
    else:
        yield from torch.split(torch.from_numpy(np.ascontiguousarray(model_input)), at_once)


def _load_pyfunc(path: str) -> FeatureModel:
    """MLflow's entrance: ``path`` is the model's folder."""
    return FeatureModel(Path(path))
