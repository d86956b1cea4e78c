"""How MLflow's page finds the pictures of a run: by the names of their files below ``images/``."""

import io
import re
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from PIL import Image

THUMBNAIL_PX = 256
FOLDER = "images"
_FILE = re.compile(rf"{FOLDER}/(?P<name>.+)\+step\+(?P<step>\d+)\+timestamp\+\d+\+[0-9a-f-]+\.png")


class PictureFile(NamedTuple):
    """A picture that a run holds."""

    name: str
    step: int
    path: str


def picture_stem(run_id: str, name: str, step: int, timestamp_ms: int) -> str:
    """The path of a picture's files without their endings; the same for every attempt to send it."""
    stem = f"{FOLDER}/{name.replace('/', '~')}+step+{step}+timestamp+{timestamp_ms}+"
    return stem + str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}:{stem}"))


def encodings(image: npt.NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """The files of one picture by their endings: a small one for the overview first, and the whole."""
    whole, small = Image.fromarray(image), Image.fromarray(image)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    for ending, kind, picture in (("+compressed.webp", "webp", small), (".png", "png", whole)):
        buffer = io.BytesIO()
        picture.save(buffer, format=kind)
        yield ending, buffer.getvalue()


def picture_files(client: MlflowClient, run_id: str) -> list[PictureFile]:
    """The pictures that a run holds, in the order of their steps."""
    matches = (_FILE.fullmatch(file.path) for file in client.list_artifacts(run_id, FOLDER))
    found = [PictureFile(m["name"].replace("~", "/"), int(m["step"]), m.string) for m in matches if m]
    return sorted(found, key=lambda picture: picture.step)
