"""What runs a registered line where nothing of this project is installed."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


class LineModel:
    def __init__(self, folder: Path) -> None:
        self._weights = load_file(folder / "line.safetensors")

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return np.asarray(model_input) * self._weights["line.weight"][0, 0] + self._weights["line.bias"][0]


def _load_pyfunc(path: str) -> LineModel:
    return LineModel(Path(path))
