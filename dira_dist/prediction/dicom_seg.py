"""Masks of DICOM images as DICOM-SEG (PS3.3, A.51), by highdicom, which is an extra: ``pip install 'dira-dist[seg]'``.

A segmentation belongs to the study of its images and repeats whose they are, as DICOM wants it: it must stay where they
are.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.ingest.readers import quiet_decoders
from dira_dist.data.ingest.stacks import Stack
from dira_dist.data.ingest.volumes import in_source_axes
from dira_dist.data.store import Store, open_store
from dira_dist.prediction.answers import Answered, Columns, Row
from dira_dist.prediction.masks import FOLDER, PlainMasks
from dira_dist.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

_NOT_THE_SAME_TWICE = ("InstanceCreationDate", "InstanceCreationTime")
_OF_THE_SOURCE = ("ContentDate", "ContentTime", "SeriesDate", "SeriesTime")
_NO_TIME = {"ContentDate": "19000101", "ContentTime": "000000"}  # DICOM wants one, and the source has none


def check_installed() -> None:
    """Raises:
    RequestError: highdicom is not there.
    """
    if find_spec("highdicom") is None:
        raise RequestError(
            "masks of DICOM files are DICOM-SEG, which highdicom writes, and it is not installed: pip install "
            "'dira-dist[seg]', or give --masks plain (NIfTI of series, PNG of single images)"
        )


@dataclass(frozen=True)
class DicomMasks:
    """``masks/PATH.seg.dcm`` of DICOM images and series, all regions in one file; of others as :class:`PlainMasks`.

    A series whose gantry was tilted has slices that were moved, and a file of several frames without places has none:
    their masks, and those of files whose header lacks what a DICOM-SEG repeats, are plain.

    Attributes:
        source: address of the images.
        plain: for what is no DICOM.
        segments: names of the classes or regions.
        model: its name, and ``weights`` their digest.
    """

    source: str
    plain: PlainMasks
    segments: Sequence[str]
    model: str
    weights: str

    @property
    def columns(self) -> Columns:
        return self.plain.columns

    def write(self, answered: Answered, store: Store) -> Row:
        item = answered.entry.item
        if item is None or item.kind not in ("dicom", "series") or answered.number is not None:
            return self.plain.write(answered, store)
        if item.stack is not None and item.stack.tilted:
            answered.opened.notes.append("its gantry is tilted: its mask is NIfTI, of the slices moved upright")
            return self.plain.write(answered, store)
        try:
            with quiet_decoders():  # warnings of a name that is written oddly quote it
                data = self._segmentation(answered, item.stack)
        except (AttributeError, KeyError, TypeError, ValueError):  # highdicom's ways to say it
            answered.opened.notes.append("its header lacks what a DICOM-SEG repeats: its mask is plain")
            return self.plain.write(answered, store)
        name = f"{FOLDER}/{answered.stem}.seg.dcm"
        store.write_bytes(name, data)
        return {"mask": name}

    def _segmentation(self, answered: Answered, stack: Stack | None) -> bytes:
        import highdicom

        images, masks = self._of_picture(answered) if stack is None else self._of_stack(answered, stack)
        uid = _uid_of(images, self.weights)
        made: Any = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=masks,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[self._segment(place + 1, name) for place, name in enumerate(self.segments)],
            series_instance_uid=uid("series"),
            sop_instance_uid=uid("instance"),
            series_number=1,
            instance_number=1,
            manufacturer="dira_dist",
            manufacturer_model_name=self.model,
            software_versions=__version__,
            device_serial_number=self.weights[:16],
            omit_empty_frames=bool(masks.any()),
        )
        _same_each_time(made, images[0], uid("dimensions"))
        buffer = io.BytesIO()
        made.save_as(buffer)
        return buffer.getvalue()

    def _of_picture(self, answered: Answered) -> tuple[Sequence["Dataset"], npt.NDArray[np.uint8]]:
        import pydicom

        return [pydicom.dcmread(io.BytesIO(answered.opened.files[0]))], self._stacked(list(answered.maps))[None]

    def _of_stack(self, answered: Answered, stack: Stack) -> tuple[Sequence["Dataset"], npt.NDArray[np.uint8]]:
        """Source images and their masks; those of one file of many frames in the order of its frames."""
        import pydicom

        store, volume = open_store(self.source), answered.opened.volume
        assert volume is not None and volume.turned_from is not None
        masks = self._stacked([in_source_axes(labels, volume.turned_from) for labels in answered.maps])
        files = list(dict.fromkeys(plane.file for plane in stack.planes))
        images = [pydicom.dcmread(io.BytesIO(store.read_bytes(file))) for file in files]
        if len(files) == len(stack.planes):
            return images, masks
        if len(files) > 1:
            raise ValueError("several files of several frames each")
        whole = np.zeros((int(images[0].NumberOfFrames), *masks.shape[1:]), dtype=np.uint8)
        whole[[plane.frame for plane in stack.planes]] = masks
        return images, whole

    def _stacked(self, maps: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """One label map, whose values are numbers of segments; or regions along a last axis."""
        return np.ascontiguousarray(maps[0] if len(maps) == 1 else np.stack(maps, axis=-1))

    def _segment(self, number: int, name: str) -> Any:
        """What a class means is the user's to know: its code says tissue, its label its name."""
        import highdicom
        from pydicom.sr.codedict import codes

        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=self.model, version=self.weights[:16], family=codes.DCM.ArtificialIntelligence
        )
        return highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )


def _uid_of(images: Sequence["Dataset"], weights: str) -> Any:
    """UIDs that are the same for the same images and model."""
    from pydicom.uid import generate_uid

    sources = [str(image.SOPInstanceUID) for image in images]
    return lambda purpose: generate_uid(entropy_srcs=[purpose, weights, *sources])


def _same_each_time(made: "Dataset", image: "Dataset", dimensions: str) -> None:
    """Takes out the time of making and chance: a call that goes on writes the same bytes."""
    for item in made.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    for name in _NOT_THE_SAME_TWICE:
        if name in made:
            delattr(made, name)
    times: Mapping[str, str] = _NO_TIME | {name: image.get(name) for name in _OF_THE_SOURCE if image.get(name)}
    for name in _OF_THE_SOURCE:
        if name in made and name in times:
            setattr(made, name, times[name])
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(sequence, ()):
            item.DimensionOrganizationUID = dimensions
