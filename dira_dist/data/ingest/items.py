"""What a plan is made of: the files that become one sample, or one for each frame or slice."""

from dataclasses import dataclass
from typing import Literal

from dira_dist.data.ingest.stacks import Stack

ItemKind = Literal["raster", "tiff", "dicom", "nifti", "itk", "series"]
VOLUME_KINDS = ("nifti", "itk", "series")  # kinds of items that are volumes


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one sample, or one for each frame or slice: a file, or the files of a series.

    Attributes:
        key: of its sample.
        kind: how it is read.
        files: within the source.
        stack: where the planes of a series lie; none for other kinds.
    """

    key: str
    kind: ItemKind
    files: tuple[str, ...]
    stack: Stack | None = None
