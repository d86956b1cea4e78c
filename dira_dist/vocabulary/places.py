"""Where words lie, and in whom: arithmetic of (seed, word), of patients, and of their features.

Haghighi et al., *Transferable Visual Words* (IEEE TMI 2021), section III-A: a word is a place in a reference patient,
and the same place in the patients that look most like it. The published code takes the same *coordinate*, whatever the
sides of the other volume; here a place is given in shares of a volume's sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import dist, floor

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.ingest.cubes import Start, relative_place, span_of_starts
from dira_dist.data.ingest.grids import Sides
from dira_dist.data.splitmix import Drawn, drawn, key_of, permutation

TRIES = 50  # in a reference
_MOST_REFERENCES = 3
_MOST_NEAREST, _SHARE_NEAREST = 200, 0.45  # published: 200 of 445 patients

Place = tuple[float, float, float]
"""Of a cube's centre, as shares of a volume's sides x, y and z."""


def patients_per_word(asked: int | None, patients: Mapping[str, int]) -> dict[str, int]:
    """How many patients of each part a word is cut of; ``asked`` is meant of the first part.

    Raises:
        RequestError: a word would be of one patient, or of more than there are.
    """
    first, count = next(iter(patients.items()))
    if count < 2:
        raise RequestError(
            f"part {first}: {count} patient in it, and a word is what several have in common: take a set of more, or "
            "give the part a larger share of the split"
        )
    nearest = asked or max(2, min(_MOST_NEAREST, round(_SHARE_NEAREST * count)))
    if nearest > count:
        raise RequestError(f"nearest {nearest}: part {first} has {count} patients; give {count} or fewer")
    return {part: max(1, round(nearest * each / count)) for part, each in patients.items()}


def references_of(word: int, patients: Sequence[str], seed: int) -> list[str]:
    """The patients in whom a word is looked for, one after another: each is the first of a word before any comes again.

    Most words are found in the first; the others stand in where nothing there has a content that is kept.
    """
    turn, place = divmod(word, len(patients))
    order = permutation(len(patients), seed, Drawn.WORD, turn)
    return [patients[order[(place + ahead) % len(order)]] for ahead in range(min(_MOST_REFERENCES, len(order)))]


def starts_tried(word: int, volume: Sides, cube: Sides, margin: Sequence[float], seed: int) -> Iterator[Start]:
    """Starts of a word's cube in its reference, in the order in which they are tried.

    Args:
        word: its number.
        volume: its sides (D, H, W).
        cube: sides (D, H, W).
        margin: shares of the volume's sides (D, H, W) that no cube reaches into.
        seed: of the set.
    """
    spans = [span_of_starts(has, side, share) for has, side, share in zip(volume, cube, margin, strict=True)]
    for attempt in range(TRIES):
        first, second, third = (
            low + drawn(count, seed, Drawn.WORD_PLACE, word, attempt, axis) for axis, (low, count) in enumerate(spans)
        )
        yield first, second, third


def place_of(start: Start, volume: Sides, cube: Sides) -> Place:
    """See :data:`Place`."""
    x, y, z = relative_place(start, cube, volume)
    return x, y, z


def start_at(place: Place, volume: Sides, cube: Sides) -> Start:
    """Where a cube begins whose centre is to lie at a place: the nearest start of which it lies in the volume."""
    first, second, third = (
        _inside(floor(share * has - side / 2 + 0.5), side, has)
        for share, has, side in zip(place[::-1], volume, cube, strict=True)
    )
    return first, second, third


def _inside(start: int, side: int, has: int) -> int:
    """Moved so far that the cube lies in the volume; a longer one has the volume in its middle."""
    return min(max(start, 0), has - side) if side <= has else (has - side) // 2


def choose_apart(tried: Sequence[Sequence[Place]], apart: float) -> list[int]:
    """Of each word which of its places it gets: the first that lies far enough from those of all words before it.

    The number of words changes none of them.

    Args:
        tried: of each word, in order.
        apart: least distance, in shares.

    Raises:
        RequestError: a word has none.
    """
    found: list[Place] = []
    chosen: list[int] = []
    for word, places in enumerate(tried):
        far = (number for number, place in enumerate(places) if all(dist(place, other) >= apart for other in found))
        number = next(far, None)
        if number is None:
            raise RequestError(
                f"words {len(tried)}: {len(places)} of the places tried for word {word} ({TRIES} in each of a few "
                f"patients) have a content that is kept, and none of these lies {apart:g} (shares of a volume's sides) "
                "or more from all words before it: give fewer words, a smaller --apart, --margin or --cube, or another "
                "--content-filter"
            )
        found.append(places[number])
        chosen.append(number)
    return chosen


def nearest_volumes(
    features: npt.NDArray[np.float32], reference: int, patients: Sequence[str], among: Sequence[int], count: int
) -> list[int]:
    """The volumes of the patients who are nearest to a reference, nearest first: of each patient the nearest one.

    Args:
        features: (N, F) of all volumes.
        reference: its volume.
        patients: (N,) whom each is of.
        among: the volumes to choose of; of two equally near ones the earlier.
        count: how many patients.
    """
    own = features.astype(np.float64)
    distances = np.sqrt(((own - own[reference]) ** 2).sum(axis=1))
    of_patient: dict[str, int] = {}
    for volume in sorted(among, key=lambda each: float(distances[each])):
        of_patient.setdefault(patients[volume], volume)
    return list(of_patient.values())[:count]


def key_number(key: str) -> int:
    """A volume's key as a word of draws."""
    return key_of(*key.encode())


def other_size(
    start: Start, cube: Sides, volume: Sides, scale: float, shift: float, draw: Sequence[int]
) -> tuple[Start, Sides]:
    """Another cube about the same place: moved in x and y, and larger or smaller there; z stays.

    Args:
        start: of the word's own cube.
        cube: sides (D, H, W).
        volume: its sides (D, H, W).
        scale: times larger or smaller at most, the same along x and y.
        shift: share of the sides by which the centre moves at most.
        draw: words that the draw is made of: seed, word, volume and number of the cube.

    Returns:
        Its start and sides.
    """
    seed, *rest = draw

    def of(count: int, what: int) -> int:
        return drawn(count, seed, Drawn.WORD_SIZE, *rest, what)

    low, high = max(1, round(cube[2] / scale)), round(cube[2] * scale)
    width = low + of(high - low + 1, 0)
    sides = (cube[0], max(1, round(cube[1] * width / cube[2])), width)
    starts = [start[0]]
    for axis in (1, 2):
        most = round(shift * cube[axis])
        moved = start[axis] + (cube[axis] - sides[axis]) // 2 + of(2 * most + 1, axis) - most
        starts.append(_inside(moved, sides[axis], volume[axis]))
    return (starts[0], starts[1], starts[2]), sides
