"""The registered model as MLflow runs it: images in, features out, with torch and without dira_dist.

A copy of this file travels with every registered model, beside one of ``center_view.py``; MLflow calls
:func:`_load_pyfunc` where the model is used. It must not import anything of dira_dist.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IMAGES_AT_ONCE = 64


class FeatureModel:
    """Features of images by the pretrained encoder.

    Args:
        folder: holds ``model.json`` and the encoder's graph, ``features.pt2``.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "model.json").read_text())
        self._image_size, self._in_channels = int(facts["image_size"]), int(facts["in_channels"])
        self._encoder = torch.export.load(folder / "features.pt2").module()
        self._center_view = importlib.import_module("center_view").center_view

    @torch.no_grad()
    def predict(self, model_input: npt.NDArray[Any], params: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
        """Features ``(N, C)`` float32 of images ``(N, 1 or 3, H, W)``: uint8, uint16, or floating point in [0, 1].

        Images of any height and width; each is resized and cut to its centre square as in pretraining's evaluation.
        """
        images = torch.from_numpy(np.ascontiguousarray(model_input))
        parts = [
            self._encoder(self._center_view(part, self._image_size, self._in_channels))
            for part in torch.split(images, IMAGES_AT_ONCE)
        ]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def _load_pyfunc(path: str) -> FeatureModel:
    """MLflow's entrance: ``path`` is the model's folder."""
    return FeatureModel(Path(path))
