"""Masks as files: PNG of flat images, NIfTI of volumes in their file's own geometry."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dira_dist.data.ingest import pixels as px
from dira_dist.data.ingest.nifti import mask_in, mask_like
from dira_dist.data.ingest.volumes import in_source_axes
from dira_dist.data.store import Store
from dira_dist.prediction.answers import Answered, Columns, Row

FOLDER = "masks"


@dataclass(frozen=True)
class PlainMasks:
    """``masks/PATH.png`` of flat images and ``masks/PATH.nii.gz`` of volumes, one for each region where they overlap.

    Values are those of the masks that the model learned from: 0 and 1, or the number of the class. A PNG has the size
    and the turn of its image as viewers show it; of a volume the voxels lie one by one on those of its file.

    Attributes:
        budget_bytes: of one volume.
    """

    budget_bytes: int

    @property
    def columns(self) -> Columns:
        return {"mask": "text"}

    def write(self, answered: Answered, store: Store) -> Row:
        names = []
        for region, labels in zip(answered.names, answered.maps, strict=True):
            suffix = "nii.gz" if answered.opened.volume is not None else "png"
            names.append(f"{FOLDER}/{'.'.join(filter(None, (answered.stem, file_word(region), suffix)))}")
            data = px.encode(np.ascontiguousarray(labels), "png") if suffix == "png" else self._nifti(answered, labels)
            store.write_bytes(names[-1], data)
        return {"mask": "|".join(names)}

    def _nifti(self, answered: Answered, labels: npt.NDArray[np.uint8]) -> bytes:
        volume, files = answered.opened.volume, answered.opened.files
        assert volume is not None and volume.turned_from is not None
        own = np.ascontiguousarray(in_source_axes(labels, volume.turned_from))
        return mask_like(files, own, self.budget_bytes) if files else mask_in(volume.turned_from, own)


def file_word(name: str) -> str:
    """A region's name as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
