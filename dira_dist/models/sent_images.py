"""Images as they come in a request: base64 of PNG or JPEG files, or the numbers of JSON.

A copy of this file travels with every registered model. It must not import anything of dira_dist.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

FORMATS = ("PNG", "JPEG")
_GREY_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I")
_AS_GREY = ("1", "L", "LA", "La")


def sent_images(sent: Any, at_once: int) -> Iterator[torch.Tensor]:
    """Batches ``(B, C, *S)`` of images in their order: of ``at_once`` where all are alike, else one by one.

    Args:
        sent: for each image the base64 of a file, the file's bytes, or numbers ``(C, *S)``: whole ones are 0 to 255,
            others 0 to 1.
        at_once: most images of a batch.

    Raises:
        ValueError: one of them is something else; says which, and what is allowed.
    """
    images = [_image(number, each) for number, each in enumerate(np.asarray(sent, dtype=object))]
    if len({(image.shape, image.dtype) for image in images}) == 1:
        yield from torch.split(torch.cat(images), at_once)
    else:
        yield from images


def _image(number: int, sent: Any) -> torch.Tensor:
    values: Any = sent.tolist() if isinstance(sent, np.ndarray) else sent
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str | bytes):
        values = values[0]  # a table of one column
    pixels = _decoded(number, values) if isinstance(values, str | bytes) else _numbers(number, values)
    return torch.from_numpy(np.array(pixels))[None]


def _decoded(number: int, sent: str | bytes) -> npt.NDArray[Any]:
    """``(1 or 3, H, W)`` uint8, or uint16 of a file of 16 bits."""
    try:
        content = sent if isinstance(sent, bytes) else base64.b64decode(sent.rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return _pixels(picture)
    except (binascii.Error, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {number}: no base64 of a {' or '.join(FORMATS)} file: {error}") from error


def _pixels(picture: Image.Image) -> npt.NDArray[Any]:
    if picture.mode in _GREY_OF_16_BITS:
        return np.asarray(picture).astype(np.uint16)[None]
    if picture.mode in _AS_GREY:
        return np.asarray(picture.convert("L"))[None]
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def _numbers(number: int, sent: Any) -> npt.NDArray[Any]:
    """``(C, *S)`` uint8 or float32."""
    try:
        values = np.asarray(sent)
    except ValueError:  # rows of different lengths
        values = np.asarray(None)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"image {number}: found {values.dtype} of shape {values.shape}; allowed are the base64 of a "
            f"{' or '.join(FORMATS)} file, and numbers of shape (channels, rows, columns)"
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise ValueError(
            f"image {number}: whole numbers from {values.min()} to {values.max()}; allowed are 0 to 255: send 16 bits "
            "as a PNG file, or as numbers in [0, 1]"
        )
    return values.astype(np.uint8)
