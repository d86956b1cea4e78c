"""The registered model as MLflow runs it: images in, features out, with torch and without dira_dist.

MLflow executes this file where the model is used ("models from code"); beside it lies a copy of ``center_view.py``.
It must not import anything of dira_dist.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel

IMAGES_AT_ONCE = 64


class FeatureModel(PythonModel):
    """Features of images by the pretrained encoder."""

    def load_context(self, context: Any) -> None:
        """Read the encoder's graph and what it wants to see."""
        folder = Path(context.artifacts["model"])
        facts = json.loads((folder / "model.json").read_text())
        self._image_size, self._in_channels = int(facts["image_size"]), int(facts["in_channels"])
        self._encoder = torch.export.load(folder / "features.pt2").module()
        self._center_view = importlib.import_module("center_view").center_view

    # Without annotations: MLflow takes those of this method for a schema, and knows none for images of any size.
    @torch.no_grad()
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Features ``(N, C)`` float32 of images ``(N, 1 or 3, H, W)``: uint8, uint16, or floating point in [0, 1].

        Images of any height and width; each is resized and cut to its centre square as in pretraining's evaluation.
        """
        images = torch.from_numpy(np.ascontiguousarray(model_input))
        parts = [
            self._encoder(self._center_view(part, self._image_size, self._in_channels))
            for part in torch.split(images, IMAGES_AT_ONCE)
        ]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


mlflow.models.set_model(FeatureModel())
