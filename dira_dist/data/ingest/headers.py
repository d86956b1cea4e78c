"""What the plan must know of DICOM files: whose they are, of which series, of what kind, and where their planes lie."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dira_dist.data.ingest.depths import HEAD_BYTES, Depth
from dira_dist.data.ingest.dicom import number_of, numbers_of, pixel_format, read_header, whole_of
from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.functional_groups import FrameGroups
from dira_dist.data.ingest.greys import is_grey, pixel_spacing, voi_lut_of, window_of
from dira_dist.data.ingest.intensity import Window
from dira_dist.data.ingest.listing import in_threads, one_file_of
from dira_dist.data.ingest.readers import quiet_decoders
from dira_dist.data.ingest.stacks import Plane, Vector
from dira_dist.data.ingest.terms import image_type_of, kind_of_object, text_of
from dira_dist.data.ranges import ObjectRange
from dira_dist.data.store import Store

if TYPE_CHECKING:
    from pydicom import Dataset

# Whose slices show one patient in one unit: their series shares one grey scale. A radiograph is exposed by itself.
_CROSS_SECTIONAL = frozenset(("CT", "MR", "PT", "NM", "OPT"))
_CROSS_SECTIONAL_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "20", "128"))


@dataclass(frozen=True, slots=True)
class Header:
    """What the plan must know of a DICOM file.

    Attributes:
        patient: PatientID, without the padding that DICOM gives it.
        series: what tells the file's series from all others; not for display.
        kind: of an object that is no sample unless it is asked for, see ``terms.KINDS_LEFT_OUT``; empty for others.
        problem: why it cannot be read; empty where it can.
        study: its study, to find the twin of a raw image.
        intent: ``FOR PRESENTATION``, ``FOR PROCESSING`` or empty.
        scale_group: what tells the slices that share one grey scale from all others; empty where a file has its own.
        window: its window, where it has one; ``has_lut`` a VOI LUT.
        planes: where its frames lie, in a set of volumes; ``no_volume`` why it has none.
        made_up_series: whether the header names no series, so that the folder stands for it.
        depth: what its pixels hold, as far as a header tells.
        modality: CT, MR or another, as the header says it.
    """

    patient: str = ""
    series: str = ""
    kind: str = ""
    problem: str = ""
    study: str = ""
    intent: str = ""
    scale_group: str = ""
    window: Window | None = None
    has_lut: bool = False
    planes: tuple[Plane, ...] = ()
    no_volume: str = ""
    made_up_series: bool = False
    depth: Depth = "unknown"
    modality: str = ""


def read_headers(store: Store, files: Iterable[str], *, planes: bool) -> dict[str, Header]:
    """The headers of DICOM files, by path; of each no more is read than its header takes.

    Args:
        store: where they are.
        files: their paths.
        planes: whether to read where their frames lie, too.
    """
    with quiet_decoders():
        return dict(in_threads(lambda file: _read(store, file, planes), files))


def _read(store: Store, file: str, planes: bool) -> Header:
    try:
        with one_file_of(store), store.open(file, ObjectRange(first_bytes=HEAD_BYTES)) as stream:
            dataset = read_header(stream)
        return _header_of(dataset, file, planes)
    except UnreadableError as error:
        return Header(series=file, problem=str(error))


def _header_of(dataset: "Dataset", file: str, planes: bool) -> Header:
    series = text_of(dataset, "SeriesInstanceUID")
    patient, study = text_of(dataset, "PatientID"), text_of(dataset, "StudyInstanceUID")
    where = series or f"folder {PurePosixPath(file).parent}"
    problem = _problem_of(dataset)
    groups = FrameGroups(dataset)
    frames, no_volume = _planes_of(dataset, groups, file) if planes and not problem else ((), "")
    return Header(
        patient=patient,
        series="\0".join((patient, study, where)),
        kind=kind_of_object(dataset) or "",
        problem=problem,
        study=f"{patient}\0{study}" if study else "",
        intent=text_of(dataset, "PresentationIntentType").upper(),
        scale_group="\0".join((patient, study, where, *image_type_of(dataset))) if _is_slice(dataset, groups) else "",
        window=window_of(dataset, groups, 0),
        has_lut=voi_lut_of(dataset) is not None,
        planes=frames,
        no_volume=no_volume,
        made_up_series=not series,
        depth="unknown" if problem else _depth_of(dataset),
        modality=text_of(dataset, "Modality").upper(),
    )


def _depth_of(dataset: "Dataset") -> Depth:
    if not is_grey(dataset):
        return "colour"
    return "grey" if pixel_format(dataset).stored <= 8 else "deep"


def _is_slice(dataset: "Dataset", groups: FrameGroups) -> bool:
    """Whether a file is one of the slices of a series; an enhanced object holds all of its own."""
    of_slices = text_of(dataset, "Modality").upper() in _CROSS_SECTIONAL
    return not groups.enhanced and (of_slices or text_of(dataset, "SOPClassUID") in _CROSS_SECTIONAL_CLASSES)


def _problem_of(dataset: "Dataset") -> str:
    """Files without pixels are told from the header alone: rows and columns go with pixels."""
    if whole_of(dataset, "Rows") and whole_of(dataset, "Columns"):
        return ""
    modality = text_of(dataset, "Modality").upper()
    what = {
        "SR": "a structured report",
        "KO": "a key object selection",
        "PR": "a presentation state",
        "DOC": "a document",
    }
    return f"it is a DICOM file without pixels{f': {what[modality]}' if modality in what else ''}"


# --------------------------------------------------------------------------------- planes


def _planes_of(header: "Dataset", groups: FrameGroups, file: str) -> tuple[tuple[Plane, ...], str]:
    """Where the frames of a file lie, or why it can be no part of a volume."""
    if not is_grey(header):
        return (), "it is in colour, where a volume has one value per voxel"
    if "MOSAIC" in image_type_of(header):
        return (), "it is a mosaic: its slices lie side by side in one picture; export them as slices"
    layout = pixel_format(header)
    if layout.frames == 1 or groups.enhanced:
        planes = tuple(_plane(header, groups, file, frame) for frame in range(layout.frames))
    else:
        planes = _planes_of_grid(header, groups, file, layout.frames)
    if any(plane.position is None or plane.cosines is None for plane in planes) or not planes:
        return (), _why_unplaced(header, layout.frames)
    return planes, ""


def _why_unplaced(header: "Dataset", frames: int) -> str:
    if frames > 1:
        return (
            f"its {frames} frames have no places in the patient: a cine or rotation, whose depth is time, is no volume"
        )
    return (
        "nothing in its header says where it lies in the patient (ImagePositionPatient, ImageOrientationPatient), as "
        "of a radiograph: it is no part of a volume"
    )


def _vector(dataset: "Dataset", keyword: str, length: int) -> tuple[float, ...] | None:
    numbers = numbers_of(dataset, keyword)
    return tuple(numbers) if len(numbers) == length else None


def _place(position: tuple[float, ...] | None) -> Vector | None:
    return None if position is None else (position[0], position[1], position[2])


def _plane(header: "Dataset", groups: FrameGroups, file: str, frame: int) -> Plane:
    position = _vector(groups.macro(frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = _vector(groups.macro(frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing, source = pixel_spacing(header, groups, frame)
    return Plane(
        file=file,
        frame=frame,
        rows=whole_of(header, "Rows"),
        columns=whole_of(header, "Columns"),
        position=_place(position),
        cosines=_unit(cosines),
        spacing=spacing,
        spacing_from=source,
        number=frame if groups.enhanced else whole_of(header, "InstanceNumber", -1),
        marks=_marks_of(header, groups, frame),
    )


def _unit(cosines: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Both directions at length one; none where they are no directions, or not at a right angle."""
    if cosines is None:
        return None
    down, along = np.array(cosines[3:]), np.array(cosines[:3])
    lengths = float(np.linalg.norm(along)), float(np.linalg.norm(down))
    if min(lengths) < 0.5 or abs(float(along @ down)) > 0.02 * lengths[0] * lengths[1]:
        return None
    return tuple(float(value) for value in (*(along / lengths[0]), *(down / lengths[1])))


def _planes_of_grid(header: "Dataset", groups: FrameGroups, file: str, frames: int) -> tuple[Plane, ...]:
    """Frames on a grid of their own: a dose (PS3.3, C.8.8.3.2), or slices of nuclear medicine (C.8.4.15)."""
    first = _plane(header, groups, file, 0)
    offsets = numbers_of(header, "GridFrameOffsetVector")
    if not offsets and "TOMO" in " ".join(image_type_of(header)) and header.get("DetectorInformationSequence"):
        detector = header.DetectorInformationSequence[0]
        place, turn = (
            _vector(detector, "ImagePositionPatient", 3),
            _unit(_vector(detector, "ImageOrientationPatient", 6)),
        )
        first = _moved(first, place, turn, 0)
        step = number_of(header, "SpacingBetweenSlices") or 0.0
        offsets = [step * number for number in range(frames)] if step else []
    if len(offsets) != frames or first.position is None or first.cosines is None:
        return ()
    normal = np.cross(first.cosines[:3], first.cosines[3:])
    start = offsets[0] if offsets[0] != 0 else 0.0  # offsets may be places themselves, of which the first is the origin
    places = (np.array(first.position) + normal * (offset - start) for offset in offsets)
    return tuple(_moved(first, tuple(map(float, place)), first.cosines, frame) for frame, place in enumerate(places))


def _moved(plane: Plane, position: tuple[float, ...] | None, cosines: tuple[float, ...] | None, frame: int) -> Plane:
    return replace(plane, frame=frame, position=_place(position), cosines=cosines, number=frame)


def _marks_of(header: "Dataset", groups: FrameGroups, frame: int) -> tuple[Hashable, ...]:
    """In the order of ``stacks.MARKS``."""
    content, diffusion = groups.macro(frame, "FrameContentSequence"), groups.macro(frame, "MRDiffusionSequence")
    gradient = diffusion.get("DiffusionGradientDirectionSequence") or [diffusion]
    echo, cardiac = groups.macro(frame, "MREchoSequence"), groups.macro(frame, "CardiacSynchronizationSequence")
    frame_type = groups.own(frame, "MRImageFrameTypeSequence") or groups.own(frame, "CTImageFrameTypeSequence")
    return (
        text_of(content, "StackID"),
        image_type_of(frame_type if frame_type is not None else header),
        _first_number(diffusion, "DiffusionBValue"),
        tuple(numbers_of(gradient[0], "DiffusionGradientOrientation")),
        _first_number(echo, "EffectiveEchoTime", "EchoTime", "EchoNumbers"),
        _first_number(content, "TemporalPositionIndex", "TemporalPositionIdentifier"),
        _first_number(cardiac, "NominalCardiacTriggerDelayTime", "TriggerTime"),
        _first_number(header, "InversionTime"),
        text_of(header, "ConvolutionKernel"),
        _first_number(header, "AcquisitionNumber"),
        text_of(header, "AcquisitionTime") or text_of(content, "FrameAcquisitionDateTime"),
        text_of(header, "ContentTime"),
    )


def _first_number(dataset: "Dataset", *keywords: str) -> float | None:
    found = (number_of(dataset, keyword) for keyword in keywords)
    return next((number for number in found if number is not None), None)
