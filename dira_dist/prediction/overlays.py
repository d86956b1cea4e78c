"""Masks over their images, for people."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dira_dist.data.ingest import pixels as px
from dira_dist.data.store import Store
from dira_dist.prediction.answers import Answered, Columns, Maps, Row
from dira_dist.prediction.inputs import Pixels

FOLDER = "overlays"
_LONGEST_PX = 1024
_SHARE = 0.4
# Okabe and Ito's colours, which colour-blind people tell apart (Wong, Nature Methods 8, 2011).
_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)


@dataclass(frozen=True)
class Overlays:
    """``overlays/PATH.png``: each class in a colour of its own; of a volume the slice that most of is in a mask."""

    @property
    def columns(self) -> Columns:
        return {"overlay": "text"}

    def write(self, answered: Answered, store: Store) -> Row:
        if answered.view is None or answered.shown is None:
            return {}
        name = f"{FOLDER}/{answered.stem}.png"
        store.write_bytes(name, px.encode(overlay(answered.view.picture, answered.shown), "png"))
        return {"overlay": name}


def overlay(picture: Pixels, maps: Maps) -> npt.NDArray[np.uint8]:
    """A picture in colour, at most 1024 px long.

    Args:
        picture: (H, W) or (H, W, 3), uint8 or uint16, as the model has seen it.
        maps: (M, h, w) at any size.
    """
    height, width = px.fitted_size(picture.shape[0], picture.shape[1], _LONGEST_PX, "longest")
    grey = picture if picture.ndim == 2 or picture.shape[2] == 3 else picture[:, :, 0]
    shown = px.to_mode(px.resize(grey, height, width), "RGB").astype(np.float32)
    for number, labels in enumerate(maps):
        fitted = px.resize_labels(np.ascontiguousarray(labels), height, width)
        for value in np.unique(fitted[fitted > 0]).tolist():
            inside = fitted == value
            colour = _COLOURS[(number + value - 1) % len(_COLOURS)]
            shown[inside] = (1 - _SHARE) * shown[inside] + _SHARE * colour
    return np.rint(shown).astype(np.uint8)
