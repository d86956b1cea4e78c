"""The words to look at: a row for each, with the middle slices of its cubes in the nearest patients."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from dira_dist.data.ingest.pixels import Pixels
from dira_dist.drawing import Picture
from dira_dist.evaluation.pictures import labelled_grid, orthogonal_slices
from dira_dist.vocabulary.places import Place

COLUMNS = 6
ROWS = 100  # more would be no picture to look at

Slices = npt.NDArray[np.float32]
"""(H, W) in [0, 1]: three slices side by side."""


def middle_slices(cube: Pixels) -> Slices:
    """Axial, coronal and sagittal, of a cube (D, H, W) uint16."""
    shares = cube.T.astype(np.float32) / np.float32(65535)
    return np.asarray(orthogonal_slices(shares[None, None])[0, 0], dtype=np.float32)


def contact_sheet(cubes: Sequence[Sequence[Slices]], places: Sequence[Place]) -> Picture:
    """A row for each word, a column for each patient, the reference first.

    Args:
        cubes: of each word the slices in as many patients.
        places: of the words.
    """
    grey = np.stack([np.stack(row) for row in cubes])
    columns = [np.repeat(column[..., None], 3, axis=-1) for column in grey.swapaxes(0, 1)]
    titles = ["reference", *(f"nearest {number}" for number in range(1, len(columns)))]
    captions = [
        f"word {word} at x {x:.2f}, y {y:.2f}, z {z:.2f} of the volume" for word, (x, y, z) in enumerate(places)
    ]
    return labelled_grid(columns, titles, captions, 192)


def as_png(picture: Picture) -> bytes:
    """The file's bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
