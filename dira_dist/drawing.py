"""Figures of matplotlib as pixels, without a display."""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Picture = npt.NDArray[np.uint8]
"""(H, W, 3)."""


def drawn(figure: Figure, dpi: float | Literal["figure"] = "figure") -> Picture:
    """The figure as a picture, at ``dpi`` pixels an inch or at its own resolution."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return np.asarray(Image.open(buffer, formats=["PNG"]).convert("RGB"))
