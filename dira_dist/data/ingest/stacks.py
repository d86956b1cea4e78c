"""Planes of a series to regular stacks: what lies in one orientation, at distinct and evenly spaced positions.

Pure geometry, from headers alone. A series that holds several stacks is taken apart where the headers tell them apart;
what fits into no stack is named with the reason and the numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FEWEST_PLANES = 3  # two planes are any two planes: nothing shows that they are evenly spaced
_SAME_DIRECTION = 1e-3  # of direction cosines, which are written with as few as four digits
_SAME_PLACE_MM = 2e-3
_WORTH_KEEPING = 0.5  # a series of which less than this lies in regular runs is no stack with a gap, but none at all
_TILT_PX = 0.5  # planes that stay within half a pixel of their place are not tilted

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice, as its header tells of it.

    Attributes:
        file: name within the source; ``frame`` within the file.
        rows, columns: of pixels.
        position: of the first pixel, in mm, DICOM's frame (left, posterior, superior); none where not said.
        cosines: of the rows' and the columns' direction; none where not said.
        spacing: mm between rows and between columns; none where not said.
        number: InstanceNumber, or of the frame.
        marks: what may tell time points, echoes or b-values apart, in the order of :data:`MARKS`.
    """

    file: str
    frame: int
    rows: int
    columns: int
    position: Vector | None
    cosines: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    spacing_from: str = ""
    number: int | None = None
    marks: tuple[Hashable, ...] = ()


# What of a header may differ between the stacks of a series, and how it is called in a message. From the trigger time
# on they may differ from slice to slice, too: they count only where they take a series apart into whole, equal stacks.
MARKS = (
    "stack",
    "image type",
    "b-value",
    "gradient direction",
    "echo time",
    "time point",
    "trigger time",
    "inversion time",
    "kernel",
    "acquisition",
    "acquisition time",
    "content time",
)
_OF_EACH_SLICE = MARKS.index("trigger time")


@dataclass(frozen=True, slots=True)
class Stack:
    """A regular volume.

    Attributes:
        planes: in the order of their places along the normal.
        step_mm: between planes; ``shift_mm`` how far each next plane is shifted down its rows' and along its columns'
            direction: zero but for a tilted gantry.
        notes: how it was found, where that is more than a series in order.
    """

    planes: tuple[Plane, ...]
    step_mm: float
    shift_mm: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()

    @property
    def tilted(self) -> bool:
        """Whether the planes do not stand one behind the other."""
        return self.shift_mm != (0.0, 0.0)


@dataclass
class Sorted:
    """Stacks, and planes that are in none of them with the reason."""

    stacks: list[Stack] = field(default_factory=list)
    left: list[tuple[Plane, str]] = field(default_factory=list)


def sort_planes(planes: Sequence[Plane], tolerance: float, digest: Callable[[Plane], str]) -> Sorted:
    """Takes a series apart into regular stacks.

    Args:
        planes: all planes of one patient's series, in the order of the listing.
        tolerance: how far a step may differ from the usual one, as a share of it.
        digest: of a plane's pixels, to find copies; asked only where planes lie on one place.
    """
    found = Sorted()
    placed = [plane for plane in planes if plane.position is not None and plane.cosines is not None]
    for plane in planes:
        if plane.position is None or plane.cosines is None:
            found.left.append((plane, "nothing in its header says where it lies and how it is turned"))
    for group in _alike(placed):
        if len(group) < FEWEST_PLANES:
            found.left += [(plane, _too_few(group, len(planes))) for plane in group]
            continue
        for members, notes in _one_at_each_place(group, digest, found.left):
            _regular(members, tolerance, notes, found)
    return found


def _too_few(group: Sequence[Plane], total: int) -> str:
    count = f"{len(group)} plane{'s' if len(group) > 1 else ''}"
    others = f", of {total} in its series," if total > len(group) else ""
    return f"{count}{others} of this size and orientation: no volume, which has {FEWEST_PLANES} planes at least"


def _alike(planes: Iterable[Plane]) -> list[list[Plane]]:
    """Planes of one size, pixel spacing and orientation together."""
    groups: dict[Hashable, list[list[Plane]]] = defaultdict(list)
    for plane in planes:
        spacing = plane.spacing and tuple(round(length, 3) for length in plane.spacing)
        clusters = groups[plane.rows, plane.columns, spacing]
        for cluster in clusters:
            if _turned_alike(cluster[0], plane):
                cluster.append(plane)
                break
        else:
            clusters.append([plane])
    return [cluster for clusters in groups.values() for cluster in clusters]


def _turned_alike(one: Plane, other: Plane) -> bool:
    assert one.cosines is not None and other.cosines is not None
    return max(abs(a - b) for a, b in zip(one.cosines, other.cosines, strict=True)) <= _SAME_DIRECTION


def normal_of(plane: Plane) -> NDArray[np.float64]:
    """The unit vector across the rows and columns of a plane."""
    assert plane.cosines is not None
    normal = np.cross(plane.cosines[:3], plane.cosines[3:])
    return normal / (float(np.linalg.norm(normal)) or 1.0)


def _place(plane: Plane, normal: NDArray[np.float64]) -> float:
    assert plane.position is not None
    return float(np.dot(plane.position, normal))


# -------------------------------------------------------------- several planes on one place


def _places(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes by their place along the normal, in order; those on one place together."""
    normal = normal_of(planes[0])
    ordered = sorted(planes, key=lambda plane: _place(plane, normal))
    places: list[list[Plane]] = []
    for plane in ordered:
        if places and _place(plane, normal) - _place(places[-1][0], normal) <= _SAME_PLACE_MM:
            places[-1].append(plane)
        else:
            places.append([plane])
    return places


def _collide(planes: Sequence[Plane]) -> bool:
    return any(len(place) > 1 for place in _places(planes))


Notes = tuple[str, ...]


def _one_at_each_place(
    planes: list[Plane], digest: Callable[[Plane], str], left: list[tuple[Plane, str]]
) -> list[tuple[list[Plane], Notes]]:
    """Stacks with one plane at each place: by the headers, then without copies, then by the planes' order."""
    if not _collide(planes):
        return [(planes, ())]
    stacks: list[tuple[list[Plane], Notes]] = []
    for part, notes in _by_marks(planes, ()):
        if not _collide(part):
            stacks.append((part, notes))
            continue
        single, copies = _without_copies(part, digest)
        notes = (
            (*notes, f"{copies} planes stand there twice, with equal pixels: each is kept once") if copies else notes
        )
        passes = [single] if not _collide(single) else _by_order(single)
        if passes:
            by_order = (
                () if len(passes) == 1 else (f"{len(passes)} time points, told apart by the order of their slices",)
            )
            stacks += [(part, notes + by_order) for part in passes]
        else:
            left += [(plane, _collision(single)) for plane in part]
    return stacks


def _collision(planes: Sequence[Plane]) -> str:
    places = _places(planes)
    most = max(len(place) for place in places)
    return (
        f"its series has {len(planes)} planes at {len(places)} places, up to {most} at one, and nothing in the headers "
        "tells time points, echoes or the like apart"
    )


def _by_marks(planes: list[Plane], notes: Notes) -> list[tuple[list[Plane], Notes]]:
    """Parts by the first mark that takes the planes apart, and so on until no places collide or no mark is left."""
    if not _collide(planes):
        return [(planes, notes)]
    for number, name in enumerate(MARKS):
        parts: dict[Hashable, list[Plane]] = defaultdict(list)
        for plane in planes:
            parts[plane.marks[number] if number < len(plane.marks) else None].append(plane)
        if len(parts) < 2 or (number >= _OF_EACH_SLICE and not _whole_and_equal(list(parts.values()))):
            continue
        notes_now = (*notes, f"one of {len(parts)} stacks of its series, told apart by {name}")
        ordered = sorted(parts.items(), key=lambda item: str(item[0]))
        return [piece for _, part in ordered for piece in _by_marks(part, notes_now)]
    return [(planes, notes)]


def _whole_and_equal(parts: Sequence[Sequence[Plane]]) -> bool:
    sizes = {len(part) for part in parts}
    return len(sizes) == 1 and min(sizes) >= FEWEST_PLANES and not any(_collide(part) for part in parts)


def _without_copies(planes: Sequence[Plane], digest: Callable[[Plane], str]) -> tuple[list[Plane], int]:
    """One of all planes that lie on one place with equal pixels, and how many went."""
    single: list[Plane] = []
    for place in _places(planes):
        if len(place) == 1:
            single += place
            continue
        first_of: dict[str, Plane] = {}
        for plane in place:
            first_of.setdefault(digest(plane), plane)
        single += first_of.values()
    return single, len(planes) - len(single)


def _by_order(planes: Sequence[Plane]) -> list[list[Plane]] | None:
    """Time points by instance number, else by the listing; none unless that order passes all places again and again."""
    numbers = [plane.number for plane in planes]
    listed = sorted(planes, key=lambda plane: (plane.file, plane.frame))
    orders = [listed]
    if None not in numbers and len(set(numbers)) == len(numbers):
        orders.insert(0, sorted(planes, key=lambda plane: plane.number or 0))
    places = _places(planes)
    times = len(places[0])
    if any(len(place) != times for place in places):
        return None
    place_of = {id(plane): number for number, place in enumerate(places) for plane in place}
    for order in orders:
        visits = [place_of[id(plane)] for plane in order]
        passes = _passes(visits, len(places), times)
        if passes:
            return [[order[index] for index in indices] for indices in passes]
    return None


def _passes(visits: Sequence[int], places: int, times: int) -> list[list[int]] | None:
    """Indices of each pass through the places, visited one after another, or each ``times`` times over."""
    up, down = list(range(places)), list(range(places - 1, -1, -1))
    blocks = [list(visits[start : start + places]) for start in range(0, len(visits), places)]
    if all(block == up for block in blocks) or all(block == down for block in blocks):
        return [list(range(start, start + places)) for start in range(0, len(visits), places)]
    slow = [list(visits[start : start + times]) for start in range(0, len(visits), times)]
    if [block[0] for block in slow] in (up, down) and all(len(set(block)) == 1 for block in slow):
        return [list(range(time, len(visits), times)) for time in range(times)]
    return None


# -------------------------------------------------------------------------- even steps


def _regular(planes: list[Plane], tolerance: float, notes: Notes, found: Sorted) -> None:
    """Adds the planes as a stack, or as the stacks between its gaps, or names what is wrong with them."""
    normal = normal_of(planes[0])
    ordered = sorted(planes, key=lambda plane: _place(plane, normal))
    if len(ordered) < FEWEST_PLANES:
        found.left += [(plane, _too_few(ordered, len(ordered))) for plane in ordered]
        return
    places = [_place(plane, normal) for plane in ordered]
    runs = _runs(places, tolerance)
    if len(runs) > 1 and (parts := _even_by_marks(ordered, tolerance)):
        for name, part in parts:
            _regular(
                part, tolerance, (*notes, f"one of {len(parts)} stacks of its series, told apart by {name}"), found
            )
        return
    steps = np.diff(places)
    whole = [run for run in runs if len(run) >= FEWEST_PLANES]
    kept = sum(map(len, whole))
    if not whole or kept < _WORTH_KEEPING * len(ordered):
        reason = (
            f"its {len(ordered)} slices are not evenly spaced: steps of {steps.min():.4g} to {steps.max():.4g} mm, "
            f"the usual one {_usual(steps, tolerance):.4g} mm, where {tolerance:.0%} of it may be missing or too much"
        )
        found.left += [(plane, reason) for plane in ordered]
        return
    in_runs = {index for run in whole for index in run}
    for run in whole:
        members = [ordered[index] for index in run]
        aside_mm = _aside_mm(members, normal)
        if aside_mm > _TILT_PX * min(members[0].spacing or (1.0, 1.0)):
            reason = f"the planes of its series lie up to {aside_mm:.4g} mm beside a straight line"
            found.left += [(plane, reason) for plane in members]
            continue
        note = notes if len(run) == len(ordered) else (*notes, _of_several(len(whole), places, run, steps, tolerance))
        found.stacks.append(_stack(members, normal, note))
    found.left += [
        (plane, f"its neighbours are not at the usual step of its series, {_usual(steps, tolerance):.4g} mm")
        for index, plane in enumerate(ordered)
        if index not in in_runs
    ]


def _even_by_marks(planes: Sequence[Plane], tolerance: float) -> list[tuple[str, list[Plane]]]:
    """Evenly spaced parts of an uneven series, such as two acquisitions that overlap; none where no mark gives them."""
    normal = normal_of(planes[0])
    for number, name in enumerate(MARKS):
        parts: dict[Hashable, list[Plane]] = defaultdict(list)
        for plane in planes:
            parts[plane.marks[number] if number < len(plane.marks) else None].append(plane)
        even = (len(_runs([_place(plane, normal) for plane in part], tolerance)) == 1 for part in parts.values())
        if len(parts) > 1 and min(map(len, parts.values())) >= FEWEST_PLANES and all(even):
            return [(name, part) for _, part in sorted(parts.items(), key=lambda item: str(item[0]))]
    return []


def _of_several(
    stacks: int, places: Sequence[float], run: Sequence[int], steps: NDArray[np.float64], tolerance: float
) -> str:
    """What is said of one of the stacks between the gaps of a series."""
    usual = _usual(steps, tolerance)
    odd = int(np.abs(steps - usual).argmax())
    times = float(steps[odd]) / usual
    missing = round(times) - 1
    slices = f", where {missing} slices are missing" if missing > 0 and abs(times - round(times)) <= tolerance else ""
    which = f"one of {stacks} stacks" if stacks > 1 else "the one regular stack"
    return (
        f"{which} of its series, {len(run)} slices from {places[run[0]]:.4g} to {places[run[-1]]:.4g} mm:"
        f" there is a gap of {steps[odd]:.4g} mm after {places[odd]:.4g} mm{slices}; the usual step is {usual:.4g} mm"
    )


def _usual(steps: NDArray[np.float64], tolerance: float) -> float:
    """The step that most others are like; of two equally frequent ones the smaller."""
    like = [(int((np.abs(steps - step) <= tolerance * step).sum()), -float(step)) for step in steps]
    return -max(like)[1]


def _runs(places: Sequence[float], tolerance: float) -> list[list[int]]:
    """Indices of neighbours at the usual step; what is left between them is looked at again with a step of its own."""
    if len(places) < 2:
        return [list(range(len(places)))]
    steps = np.diff(places)
    usual = _usual(steps, tolerance)
    runs: list[list[int]] = [[0]]
    for index, step in enumerate(steps, start=1):
        if abs(step - usual) <= tolerance * usual:
            runs[-1].append(index)
        else:
            runs.append([index])
    return _with_rests_again(places, runs, tolerance)


def _with_rests_again(places: Sequence[float], runs: list[list[int]], tolerance: float) -> list[list[int]]:
    done: list[list[int]] = []
    rest: list[int] = []
    for run in [*runs, []]:
        if len(run) == 1:
            rest += run
            continue
        if len(rest) >= FEWEST_PLANES and len(rest) < len(places):
            done += [[rest[index] for index in again] for again in _runs([places[i] for i in rest], tolerance)]
        else:
            done += [[index] for index in rest]
        rest = []
        done += [run] if run else []
    return done


def _aside_mm(planes: Sequence[Plane], normal: NDArray[np.float64]) -> float:
    """How far planes lie from the straight line from the first to the last, within their own plane."""
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    share = (along - along[0]) / (along[-1] - along[0])
    away = positions - positions[0] - share[:, None] * (positions[-1] - positions[0])
    return float(np.linalg.norm(away, axis=1).max())


def _stack(planes: list[Plane], normal: NDArray[np.float64], notes: Notes) -> Stack:
    positions = np.array([plane.position for plane in planes])
    per_plane = (positions[-1] - positions[0]) / (len(planes) - 1)
    step = float(per_plane @ normal)
    cosines = np.array(planes[0].cosines)
    across = per_plane - step * normal
    shift = (float(across @ cosines[3:]), float(across @ cosines[:3]))  # down the rows, along the columns
    pixel = planes[0].spacing or (1.0, 1.0)
    farthest = max(abs(shift[axis]) * (len(planes) - 1) / pixel[axis] for axis in (0, 1))
    return Stack(tuple(planes), step, shift if farthest > _TILT_PX else (0.0, 0.0), notes)
