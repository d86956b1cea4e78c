"""DICOM files to the items of a set: volumes by series, and which objects are no samples unless they are asked for."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dira_dist.data.ingest.headers import Header
from dira_dist.data.ingest.stacks import Plane, Stack, sort_planes
from dira_dist.data.ingest.terms import KINDS_LEFT_OUT


def left_out(headers: Mapping[str, Header], include: Iterable[str]) -> dict[str, str]:
    """Files that are no samples unless they are asked for, with the reason; ``include`` names kinds that are.

    A raw image (FOR PROCESSING) is left out where its study has an image FOR PRESENTATION, too: it shows the same.
    """
    presented = {header.study for header in headers.values() if header.study and header.intent == "FOR PRESENTATION"}
    kinds = {
        file: "for-processing" if header.intent == "FOR PROCESSING" and header.study in presented else header.kind
        for file, header in headers.items()
        if not header.problem
    }
    wanted = set(include)
    return {
        file: f"it is {KINDS_LEFT_OUT[kind]}, no image to train on unless asked for: --include {kind}"
        for file, kind in kinds.items()
        if kind and kind not in wanted
    }


@dataclass
class SeriesVolumes:
    """The volumes of a source's DICOM files.

    Attributes:
        stacks: each with what its key is made of.
        left: files, or frames of files, that are in none, with the reason.
        notes: ``(file, text)``: what a user should know of a volume.
    """

    stacks: list[tuple[str, Stack]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def volumes_of(headers: Mapping[str, Header], tolerance: float, digest: Callable[[Plane], str]) -> SeriesVolumes:
    """All regular stacks of all series.

    Args:
        headers: with their planes, by file, of those files that may be part of a volume.
        tolerance: see :func:`dira_dist.data.ingest.stacks.sort_planes`.
        digest: likewise.
    """
    found = SeriesVolumes()
    series: dict[str, list[str]] = defaultdict(list)
    for file, header in headers.items():
        if header.no_volume:
            found.left.append((file, header.no_volume))
        else:
            series[header.series].append(file)
    for name, files in series.items():
        _add_series(name, [headers[file] for file in files], files, tolerance, digest, found)
    return found


def _add_series(
    name: str,
    headers: Sequence[Header],
    files: Sequence[str],
    tolerance: float,
    digest: Callable[[Plane], str],
    found: SeriesVolumes,
) -> None:
    planes = [plane for header in headers for plane in header.planes]
    result = sort_planes(planes, tolerance, digest)
    for number, stack in enumerate(result.stacks):
        found.stacks.append((name if number == 0 else f"{name}\0{number}", stack))
        first = stack.planes[0].file
        found.notes += [(first, note) for note in stack.notes]
        if headers[0].made_up_series:
            found.notes.append((first, "its header names no series: the slices of its folder are taken for one"))
    whole = {plane.file for stack in result.stacks for plane in stack.planes}
    reasons: dict[str, str] = {}
    for plane, reason in result.left:
        reasons.setdefault(plane.file, reason)
    for file, reason in reasons.items():
        if file in whole:
            frames = [plane.frame for plane, _ in result.left if plane.file == file]
            found.notes.append((file, f"{len(frames)} of its frames are left out: {reason}"))
        else:
            found.left.append((file, reason))


def shared_identity(headers: Mapping[str, Header]) -> Iterator[tuple[str, str]]:
    """``(file, note)`` of series UIDs that stand in files of several patients: an anonymiser has made them equal."""
    patients: dict[str, dict[str, str]] = defaultdict(dict)
    for file, header in headers.items():
        uid = header.series.rpartition("\0")[2]
        if uid and not header.made_up_series and not header.problem:
            patients[uid].setdefault(header.patient, file)
    for files in patients.values():
        if len(files) > 1:
            yield (
                next(iter(files.values())),
                f"its series UID stands in files of {len(files)} patients, which are kept apart",
            )
