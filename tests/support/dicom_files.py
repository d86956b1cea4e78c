"""Small DICOM files with a known right answer, made in memory."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CR, CT, MR = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("1", "2", "4"))
ENHANCED_CT, ENHANCED_MR, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "4.1", "7"))
ULTRASOUND_CINE, SEGMENTATION, DOSE = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("3.1", "66.4", "481.2"))
SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dicom(values: np.ndarray, sop_class: str = CR, **tags: Any) -> FileDataset:
    """A DICOM file of one frame, or of many where ``values`` has three dimensions, all of its bits stored."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = values.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3:
        dataset.NumberOfFrames = values.shape[0]
    data = values.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def item(**tags: Any) -> Dataset:
    """An item of a sequence; values that are data sets become sequences of one."""
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, DicomSequence([value]) if isinstance(value, Dataset) else value)
    return made


def lut(entries: Sequence[int] | np.ndarray, first: int = 0, bits: int = 16) -> DicomSequence:
    """A sequence with one table, its entries in words."""
    table = np.asarray(entries, dtype="<u2")
    made = item(LUTExplanation="x", LUTData=table.tobytes())
    made.add_new(0x00283002, "SS" if first < 0 else "US", [len(table) % 65536, first, bits])
    return DicomSequence([made])


def compressed(dataset: FileDataset, syntax: str, share: float = 1.0) -> FileDataset:
    """The same, its only frame coded and cut off after a share of its bytes."""
    from pydicom.encaps import generate_frames

    dataset.compress(syntax, generate_instance_uid=False)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    return with_stream(dataset, stream[: int(len(stream) * share)], syntax)


def with_stream(dataset: FileDataset, stream: bytes, syntax: str) -> FileDataset:
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def slices(
    volume: np.ndarray,
    step_mm: float = 2.5,
    cosines: Sequence[float] = SUPINE,
    shift_mm: float = 0.0,
    start_mm: float = 0.0,
    **tags: Any,
) -> list[FileDataset]:
    """The planes of a CT series along their normal; ``shift_mm`` moves each next one down its rows' direction."""
    along, down = np.array(cosines[:3]), np.array(cosines[3:])
    normal = np.cross(along, down)
    usual = {"Modality": "CT", "PixelSpacing": [0.7, 0.6], "SeriesInstanceUID": "1.2.3", "PatientID": "P1"}
    made = []
    for number, plane in enumerate(volume):
        position = normal * (start_mm + step_mm * number) + down * shift_mm * number
        place = {"ImagePositionPatient": [round(float(value), 4) for value in position]}
        turn = {"ImageOrientationPatient": [float(value) for value in cosines], "InstanceNumber": number + 1}
        made.append(dicom(plane, CT, **(usual | place | turn | tags)))
    return made


def enhanced(frames: np.ndarray, shared: Dataset, each: Sequence[Dataset], sop_class: str = ENHANCED_CT) -> FileDataset:
    """An enhanced multi-frame object with its functional groups."""
    dataset = dicom(frames, sop_class, Modality="CT" if sop_class == ENHANCED_CT else "MR", SeriesInstanceUID="1.2.4")
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(each)
    return dataset


def write(folder: Path, datasets: Sequence[FileDataset], name: str = "im") -> None:
    """Files of a folder, numbered in the order of ``datasets``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{name}{number:03d}.dcm").write_bytes(dicom_bytes(dataset))
