"""A fine-tuned model as MLflow runs it: images in, probabilities or masks out, with torch and without dira_dist.

A copy of this file travels with every registered classifier and segmenter, beside ``center_view.py``,
``frame_view.py`` and ``sent_images.py``, and of a segmenter of volumes ``sliding_window.py``, which wants MONAI; MLflow
calls :func:`_load_pyfunc` where the model is used. It must not import anything of dira_dist.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IMAGES_AT_ONCE = 32
OUTPUTS = {
    "classify": ("probabilities", "decisions", "logits"),
    "segment": ("masks", "probabilities"),
}


class Predictor:
    """Answers about images.

    Attributes:
        facts: ``model.json``: classes, thresholds, calibration, size and channels of the input ...

    Args:
        folder: the model's, with ``model.json`` and the network's graph, ``network.pt2``.
    """

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text())
        self.graph = torch.export.load(folder / "network.pt2").module()
        self._center_view = importlib.import_module("center_view").center_view
        self._frame = importlib.import_module("frame_view")

    @torch.no_grad()
    def predict(self, model_input: npt.NDArray[Any], params: dict[str, Any] | None = None) -> npt.NDArray[Any]:
        """What the model says of images.

        Args:
            model_input: ``(N, 1 or 3, H, W)`` uint8, uint16, or floating point in [0, 1]; or for each image the base64
                of a PNG or JPEG file, as a request to a server holds it. Of a network of volumes ``(N, C, x, y, z)``,
                towards left, back and head; masks and probabilities have their spatial axes in that order, too.
            params: ``output``: of a classifier ``probabilities`` (N, K) float32, calibrated, ``decisions`` (N, K) bool
                by the thresholds, or ``logits``; of a segmenter ``masks``, (N, H, W) uint8 values of classes that
                exclude each other, or (N, K, H, W) bool, or ``probabilities`` (N, K, H, W) float32.

        Raises:
            ValueError: there is no such output, an image cannot be read, or masks differ in size.
        """
        allowed = OUTPUTS[self.facts["task"]]
        output = (params or {}).get("output", allowed[0])
        if output not in allowed:
            raise ValueError(f"output {output!r}: allowed are {', '.join(allowed)}")
        answer = self._classes if self.facts["task"] == "classify" else self._masks
        answers = [answer(batch, output) for batch in _batches(model_input)]
        sizes = {each.shape[1:] for each in answers}
        if len(sizes) > 1:
            raise ValueError(f"masks of shapes {sorted(sizes)}; one answer holds one: send images of a size at a time")
        return np.concatenate(answers)

    def _classes(self, images: torch.Tensor, output: str) -> npt.NDArray[Any]:
        logits = self.graph(self._center_view(images, self.facts["image_size"], self.facts["in_channels"])).float()
        if output == "logits":
            return np.asarray(logits.numpy())
        calibration = self.facts["calibration"]
        slopes, intercepts = (
            torch.tensor(calibration[name], dtype=torch.float64)  # as it was fitted, so that decisions are the report's
            for name in ("slopes", "intercepts")
        )
        scaled = logits.double() * slopes + intercepts
        exclusive = self.facts["kind"] == "multiclass"
        chances = (scaled.softmax(1) if exclusive else scaled.sigmoid()).numpy()
        if output == "decisions":
            return np.asarray(chances > np.asarray(self.facts["thresholds"]))
        return np.asarray(chances.astype(np.float32))

    def _masks(self, images: torch.Tensor, output: str) -> npt.NDArray[Any]:
        size = tuple(images.shape[2:])
        whole = self._center_view(images, size, self.facts["in_channels"])  # channels and range; the size stays
        logits = self._slid(whole) if self.facts["fit"] == "slide" else self._framed(whole)
        exclusive = self.facts["kind"] == "multiclass"
        chances = self._frame.unfit(logits.softmax(1) if exclusive else logits.sigmoid(), size)
        if output == "probabilities":
            return np.asarray(chances.numpy())
        if exclusive:
            return np.asarray(chances.argmax(1).byte().numpy())
        return np.asarray((chances > 0.5).numpy())

    def _framed(self, whole: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.graph(self._frame.fit_view(whole, self.facts["image_size"])).float()
        return logits

    def _slid(self, whole: torch.Tensor) -> torch.Tensor:
        side = self.facts["image_size"]
        window = (side,) * (whole.ndim - 2) if isinstance(side, int) else side
        logits: torch.Tensor = importlib.import_module("sliding_window").slide(
            self.graph, whole, window, **self.facts["sliding"]
        )
        return logits


def _batches(model_input: Any) -> Iterator[torch.Tensor]:
    if np.asarray(model_input).dtype.kind in "OUS":  # words, or what a request held
        yield from importlib.import_module("sent_images").sent_images(model_input, IMAGES_AT_ONCE)
    else:
        yield from torch.split(torch.from_numpy(np.ascontiguousarray(model_input)), IMAGES_AT_ONCE)


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entrance: ``path`` is the model's folder."""
    return Predictor(Path(path))
