"""Synthetic radiographs as a hospital has them: DICOM files, a table of labels and one of boxes."""

import csv
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.quickstart.phantom import write_archive

_BITS = 12
_ROOT = "1.2.826.0.1.3680043.10.1538"  # below it every phantom has an identifier of its own
_TABLES = ("labels.csv", "boxes.csv")


def write_phantoms(folder: Path | str, count: int = 240, *, seed: int = 0, size_px: int = 64) -> list[Path]:
    """Draw an archive of chest radiographs, two of each patient, where there is none to try things out with::

        images/000000.dcm   labels.csv   boxes.csv

    ``labels.csv`` has the columns image, patient, finding, findings (joined by ``|``), pattern; ``boxes.csv`` has
    image, finding, x, y, width, height in pixels. The files are computed radiographs of 12 bits that name a patient
    who does not exist, so that it can be seen what becomes of names. Equal arguments give equal files.

    Args:
        folder: to write; what stands there is left as it is.
        count: how many images.
        seed: which archive.
        size_px: side of the images.

    Returns:
        The images.

    Raises:
        RequestError: the folder holds something already, or an image would be too small to draw.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RequestError(f"{folder} holds files already; give a folder that is empty, or a new one")
    if size_px < 32 or count < 1:
        raise RequestError(f"found {count} images of {size_px} px; at least 1 image of 32 px is drawn")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as drawn:
        write_archive(Path(drawn), count, seed, size_px)
        for table in _TABLES:
            _copy_table(Path(drawn) / table, folder / table)
        patients = _patients(folder / _TABLES[0])
        return [_convert(Path(drawn) / "images", folder / "images", name, patients[name]) for name in sorted(patients)]


def _copy_table(drawn: Path, table: Path) -> None:
    """The same rows, of files with another ending."""
    table.write_text(drawn.read_text().replace(".png,", ".dcm,"))


def _patients(table: Path) -> dict[str, str]:
    with table.open(newline="") as file:
        return {row["image"]: row["patient"] for row in csv.DictReader(file)}


def _convert(drawn: Path, images: Path, name: str, patient: str) -> Path:
    with Image.open((drawn / name).with_suffix(".png")) as picture:
        _save(images / name, np.asarray(picture), patient)
    return images / name


def _save(file: Path, grey: NDArray[np.uint8], patient: str) -> None:
    """An image (H, W) as a computed radiograph of 12 bits with all that such a file has to say (PS3.3, A.2)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    study, image = (generate_uid(f"{_ROOT}.", [patient, word]) for word in ("study", file.stem))
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = ComputedRadiographyImageStorage, image
    made.PatientID, made.PatientName, made.PatientBirthDate = patient, f"Phantom^{patient}", ""
    made.StudyInstanceUID, made.SeriesInstanceUID = study, generate_uid(f"{_ROOT}.", [file.stem, "series"])
    made.Modality, made.BodyPartExamined, made.ViewPosition = "CR", "CHEST", "PA"
    made.Rows, made.Columns = grey.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, _BITS, _BITS - 1
    made.PixelData = (grey.astype("<u2") << (_BITS - 8)).tobytes()
    made.save_as(file, enforce_file_format=True)
