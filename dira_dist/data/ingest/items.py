"""What a plan is made of: the files that become one sample, or one for each frame or slice."""

from dataclasses import dataclass
from typing import Literal

from dira_dist.data.ingest.stacks import Stack

ItemKind = Literal["raster", "tiff", "dicom", "nifti", "itk", "series", "channels"]
VOLUME_KINDS = ("nifti", "itk", "series", "channels")  # kinds of items that are volumes


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one sample, or one for each frame or slice: a file, the files of a series, or several such volumes.

    Attributes:
        key: of its sample.
        kind: how it is read.
        files: within the source.
        stack: where the planes of a series lie; none for other kinds.
        called: how tables and masks may call it beside its files: a series by its folder, channels by their case.
        channels: the volumes that are its channels, in order; none of other kinds.
    """

    key: str
    kind: ItemKind
    files: tuple[str, ...]
    stack: Stack | None = None
    called: str = ""
    channels: tuple["Item", ...] = ()
