"""NRRD and MetaImage files to volumes, by SimpleITK, which is an extra: ``pip install 'dira-dist[formats]'``."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.volumes import Index, Parts, Volume, assemble, check_budget, lengths_of, way_from

_HEADER_BYTES = 1 << 20
_VOXEL_BYTES = 4


def read_itk(data: bytes, suffix: str, budget_bytes: int = 2 << 30) -> Volume:
    """An NRRD or MetaImage file that holds its own voxels.

    Args:
        data: the whole file.
        suffix: ``.nrrd`` or ``.mha``.
        budget_bytes: a volume that would take more is not read.

    Raises:
        UnreadableError: SimpleITK is not installed, the voxels stand in another file, or the file is no volume.
    """
    header = _header_of(data, suffix)
    try:
        import SimpleITK
    except ImportError as error:
        raise UnreadableError(
            "NRRD and MetaImage are read by SimpleITK, which is not installed: pip install 'dira-dist[formats]'"
        ) from error
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:  # SimpleITK reads no bytes
        file.write(data)
        file.flush()
        return _volume(SimpleITK, Path(file.name), header, budget_bytes)


def _header_of(data: bytes, suffix: str) -> str:
    """The text in front of the voxels; one that names another file for them is refused: it could name any file."""
    end = re.search(rb"\r?\n\r?\n" if suffix == ".nrrd" else rb"ElementDataFile[^\n]*\n", data[:_HEADER_BYTES])
    text = (data[: end.end()] if end else b"").decode("latin-1")
    begins = text.startswith("NRRD") if suffix == ".nrrd" else "NDims" in text
    if not begins:
        raise UnreadableError(f"it is no {'NRRD' if suffix == '.nrrd' else 'MetaImage'} file: its header is not one")
    elsewhere = re.search(
        r"^data ?file:" if suffix == ".nrrd" else r"^ElementDataFile\s*=\s*(?!\s|LOCAL)", text, re.M | re.I
    )
    if elsewhere:
        raise UnreadableError("its voxels stand in another file; write header and voxels into one (.nrrd, .mha)")
    return text


def _volume(sitk: Any, path: Path, header: str, budget_bytes: int) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape = [int(length) for length in reader.GetSize()]
        if reader.GetNumberOfComponents() > 1:
            raise UnreadableError("its voxels are vectors or colours, where a volume has one number per voxel")
        if len([length for length in shape[3:] if length > 1]) or len(shape) < 3:
            raise UnreadableError(f"its shape is {tuple(shape)}, where a volume has three dimensions")
        check_budget(shape, _VOXEL_BYTES, budget_bytes)
        image = reader.Execute()
    except RuntimeError as error:  # its words quote the path of the temporary file
        raise UnreadableError("SimpleITK cannot read it: its header or voxels are damaged") from error
    while image.GetDimension() > 3:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    values = sitk.GetArrayViewFromImage(image)
    own = _affine_of(image)
    voxels, affine, missing = assemble(Parts(values.shape, lambda: _slabs(values)), own)
    notes = [f"{missing} voxels that are no numbers are stored as 0"] if missing else []
    volume = _with_geometry(voxels, affine, header, notes)
    return replace(volume, from_file=way_from(own[:, [2, 1, 0, 3]], affine), turned_from=own)


def _with_geometry(voxels: NDArray[Any], affine: NDArray[np.float64], header: str, notes: list[str]) -> Volume:
    sized = re.search(r"^(space directions|spacings|ElementSpacing|ElementSize)\s*[:=]", header, re.M)
    turned = re.search(r"^(space|space dimension|TransformMatrix|Orientation|Rotation)\s*[:=]", header, re.M)
    tags = {"spacing_from": "header" if sized else None, "orientation_from": "header" if turned else None}
    if not sized:
        notes.append("its header does not say how large a voxel is")
    if not turned:
        notes.append("its header does not say how it is turned: its orientation is not known, and was guessed")
    spacing = lengths_of(affine) if sized else (None, None, None)
    return Volume(voxels, spacing, affine if sized and turned else None, tags, tuple(notes))


def _slabs(values: NDArray[Any]) -> Iterator[tuple[Index, NDArray[Any], None]]:
    for number in range(values.shape[0]):
        yield (number,), values[number], None


def _affine_of(image: Any) -> NDArray[np.float64]:
    """Indices (k, j, i) to millimetres, RAS; ITK's frame is DICOM's (left, posterior, superior)."""
    affine = np.eye(4)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3] = steps[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return affine
