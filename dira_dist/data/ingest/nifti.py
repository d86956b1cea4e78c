"""NIfTI-1, NIfTI-2 and Analyze files to volumes, with what their headers say, leave out and contradict."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.volumes import (
    Index,
    Parts,
    SpacingMm,
    Volume,
    assemble,
    check_budget,
    lengths_of,
    way_from,
)

_HEADER_BYTES = 540
_GZIP_MARK = b"\x1f\x8b"
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_SAME_LENGTH = 1e-3  # as a share: headers hold float32
_SAME_TURN = 0.02  # of direction cosines, about a degree
_VOXEL_BYTES = 4


def read_nifti(
    files: Sequence[bytes], budget_bytes: int = 2 << 30, affine_instead: NDArray[np.float64] | None = None
) -> Volume:
    """A NIfTI file, gzipped or not, or the two files of a pair, header first.

    Args:
        files: one, or header and voxels.
        budget_bytes: a volume that would take more is not unpacked.
        affine_instead: of its indices, in place of what its own header says.

    Raises:
        UnreadableError: it has not three dimensions, is in colour, exceeds the budget, or is damaged.
    """
    image, sizes = _opened(files, budget_bytes)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = "; take one time point or channel of it" if len(shape) > 3 else ""
        raise UnreadableError(f"its shape is {tuple(map(int, shape))}, where a volume has three dimensions{what}")
    geometry = _Geometry(image, sizes)
    own = geometry.affine if affine_instead is None else affine_instead
    parts = Parts(tuple(map(int, shape)), lambda: _slabs(image))  # type: ignore[arg-type]
    try:
        voxels, affine, missing = assemble(parts, own)
    except UnreadableError:
        raise
    except (OSError, EOFError, ValueError) as error:  # nibabel says it in each of these ways
        raise UnreadableError("its voxels are cut off") from error
    notes = [*geometry.notes, *([f"{missing} voxels that are no numbers are stored as 0"] if missing else [])]
    known = geometry.known
    spacing: SpacingMm = lengths_of(affine) if known else (None, None, None)
    tags = {"spacing_from": geometry.spacing_from, "orientation_from": geometry.orientation_from}
    placed = affine if known and geometry.orientation_from else None
    return Volume(voxels, spacing, placed, tags, tuple(notes), own, way_from(own, affine), turned_from=own)


def mask_like(files: Sequence[bytes], voxels: NDArray[np.uint8], budget_bytes: int = 2 << 30) -> bytes:
    """A label map in the geometry of a NIfTI file: its size, its axes, both of its forms and its unit, to the letter.

    What a header may tell of a person (description, names, extensions) is not taken over.

    Args:
        files: as :func:`read_nifti` takes them.
        voxels: (i, j, k), in the axes of the file.
        budget_bytes: as there.

    Returns:
        A gzipped NIfTI file of uint8.
    """
    import nibabel

    image, _ = _opened(files, budget_bytes)
    two = isinstance(image.header, nibabel.Nifti2Header)
    kind: Any = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    header = kind.header_class.from_header(image.header)
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in header:
            header[name] = b""
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    mask = kind(voxels.reshape(image.shape), image.affine, header)
    mask.header["sform_code"], mask.header["qform_code"] = header["sform_code"], header["qform_code"]
    return gzip.compress(mask.to_bytes(), 6, mtime=0)


def mask_in(affine_ras_mm: NDArray[np.float64], voxels: NDArray[np.uint8]) -> bytes:
    """A label map as gzipped NIfTI, where no NIfTI file says where it lies.

    Args:
        affine_ras_mm: (4, 4) of its indices.
        voxels: of three axes.
    """
    nibabel: Any = import_module("nibabel")  # it has no types of its own
    mask = nibabel.Nifti1Image(voxels, affine_ras_mm)
    mask.header.set_xyzt_units("mm")
    return gzip.compress(mask.to_bytes(), 6, mtime=0)


def _opened(files: Sequence[bytes], budget_bytes: int) -> tuple[Any, NDArray[np.float64]]:
    """The image with its voxels still packed, of those that fit the budget; and its pixdim, which nibabel mends."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    head = _unpacked(files[0], _HEADER_BYTES, whole=False)
    kind = _kind_of(head, pair=len(files) > 1)
    try:
        block = head[: kind.header_class.template_dtype.itemsize]
        header: Any = kind.header_class(block, check=False)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    except (HeaderDataError, ValueError, EOFError) as error:
        raise UnreadableError("its NIfTI header is damaged") from error
    if dtype.kind not in "iufb":
        what = "colours" if dtype.names or dtype.kind == "V" else f"numbers of the kind {dtype}"
        raise UnreadableError(f"its voxels are {what}, where a volume has one real number per voxel")
    check_budget(shape, max(_VOXEL_BYTES, dtype.itemsize), budget_bytes)
    most = int(np.prod(shape)) * dtype.itemsize + (1 << 20) + int(max(0, header.get_data_offset()))
    data = [io.BytesIO(_unpacked(file, most, whole=True)) for file in files]
    holders = [nibabel.FileHolder(fileobj=stream) for stream in data]
    names = ("header", "image") if len(files) > 1 else ("image",)
    try:
        sizes = np.abs(np.array(header["pixdim"][1:4], dtype=float))
        return kind.from_file_map(dict(zip(names, holders, strict=True))), sizes
    except Exception as error:  # the parser raises whatever a damaged header drives it to
        raise UnreadableError("its NIfTI header is damaged") from error


def _kind_of(head: bytes, *, pair: bool) -> Any:
    import nibabel

    if int.from_bytes(head[:4], "little") in (540, 0x1C020000):
        return nibabel.Nifti2Pair if pair else nibabel.Nifti2Image
    if len(head) < 348 or int.from_bytes(head[:4], "little") not in (348, 0x5C010000):
        raise UnreadableError("it is no NIfTI file: its header does not begin like one")
    if head[344:347] in (b"ni1", b"n+1"):
        return nibabel.Nifti1Pair if pair else nibabel.Nifti1Image
    if pair:
        return nibabel.AnalyzeImage
    raise UnreadableError("it is no NIfTI file: it lacks NIfTI's mark")


def _unpacked(data: bytes, most_bytes: int, *, whole: bool) -> bytes:
    """The file, or its beginning, unpacked; of a bomb no more than ``most_bytes``."""
    if data[:2] != _GZIP_MARK:
        return data if whole else data[:most_bytes]
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            found = stream.read(most_bytes)
            if whole and len(found) < most_bytes:
                stream.read()  # the check sum stands at the end
            return found
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError("its gzip stream is cut off or damaged") from error


def _slabs(image: Any) -> Iterator[tuple[Index, NDArray[Any], None]]:
    """Slices along the slowest axis of the file, each scaled by itself."""
    for number in range(image.shape[2]):
        index = (slice(None), slice(None), number)
        values = np.asarray(image.dataobj[(*index, *(0 for _ in image.shape[3:]))])
        yield index, values, None


class _Geometry:
    """Which of a header's two forms and its voxel sizes are believed, and where they contradict each other.

    The sform is believed where its steps are the voxel sizes (pixdim). Where they are not, one of the two was never
    set: steps of exactly one unit lose against any others; else the qform, which has no steps of its own, is believed.

    Attributes:
        affine: from indices (i, j, k) to millimetres, RAS.
        known: whether anything says how large a voxel is.
        spacing_from, orientation_from: ``sform``, ``qform`` or ``pixdim``; none where nothing says it.
        notes: contradictions and guesses.
    """

    def __init__(self, image: Any, sizes: NDArray[np.float64]) -> None:
        self.notes: list[str] = []
        header = image.header
        self._sizes = sizes
        self.known = bool((sizes > 0).all() and np.isfinite(sizes).all())
        codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform") if f"{name}_code" in header}
        self._sform = _usable(image.get_sform()) if codes.get("sform") else None
        self._qform = _usable(image.get_qform()) if codes.get("qform") else None
        self.spacing_from: str | None = None
        self.orientation_from: str | None = None
        self.affine = _in_mm(self._chosen(), self._unit_of(header))

    def _chosen(self) -> NDArray[np.float64]:
        if self._sform is None and self._qform is None:
            return self._without_forms()
        if self._sform is None:
            assert self._qform is not None
            return self._believed(self._qform, "qform", "qform")
        steps = np.array(lengths_of(self._sform))
        if not self.known or np.allclose(steps, self._sizes, rtol=_SAME_LENGTH):
            self._compare_turns()
            return self._believed(self._sform, "sform", "sform")
        return self._of_contradiction(self._sform, steps)

    def _believed(self, affine: NDArray[np.float64], spacing: str, orientation: str) -> NDArray[np.float64]:
        self.spacing_from, self.orientation_from, self.known = spacing, orientation, True
        return affine

    def _without_forms(self) -> NDArray[np.float64]:
        """As nibabel guesses: from left to right reversed, as Analyze files are."""
        self.notes.append("neither its sform nor its qform is set: its orientation is not known, and was guessed")
        if not self.known:
            self.notes.append("its header does not say how large a voxel is")
            return np.diag([-1.0, 1.0, 1.0, 1.0])
        self.spacing_from = "pixdim"
        return np.diag([*(self._sizes * (-1.0, 1.0, 1.0)), 1.0])

    def _compare_turns(self) -> None:
        if self._sform is None or self._qform is None:
            return
        turns = [form[:3, :3] / np.array(lengths_of(form)) for form in (self._sform, self._qform)]
        if np.abs(turns[0] - turns[1]).max() > _SAME_TURN:
            self.notes.append("its sform and its qform are turned against each other; the sform is believed")

    def _of_contradiction(self, sform: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
        difference = f"its sform has steps of {_lengths(steps)}, its pixdim says {_lengths(self._sizes)}"
        if np.allclose(self._sizes, 1.0) or (self._qform is None and not np.allclose(steps, 1.0)):
            self.notes.append(f"{difference}; the sform is believed")
            return self._believed(sform, "sform", "sform")
        if self._qform is not None:
            self.notes.append(f"{difference}; the qform, with the steps of pixdim, is believed")
            return self._believed(self._qform, "pixdim", "qform")
        self.notes.append(f"{difference}; pixdim is believed, and of the sform its directions")
        scaled = sform.copy()
        scaled[:3, :3] *= self._sizes / steps
        return self._believed(scaled, "pixdim", "sform")

    def _unit_of(self, header: Any) -> float:
        if "xyzt_units" not in header:
            return 1.0
        unit = header.get_xyzt_units()[0]
        if _MM_PER_UNIT.get(unit, 1.0) != 1.0:
            self.notes.append(f"its lengths are in {unit}s by its header, and are stored in mm")
        return _MM_PER_UNIT.get(unit, 1.0)


def _usable(form: Any) -> NDArray[np.float64] | None:
    """A form that spans three axes; others are as good as not set."""
    if form is None:
        return None
    affine = np.array(form, dtype=float)
    spans = np.isfinite(affine).all() and abs(float(np.linalg.det(affine[:3, :3]))) > 1e-12
    return affine if spans else None


def _in_mm(affine: NDArray[np.float64], unit_mm: float) -> NDArray[np.float64]:
    scaled = affine.copy()
    scaled[:3] *= unit_mm
    return scaled


def _lengths(lengths: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.5g}" for length in lengths)
