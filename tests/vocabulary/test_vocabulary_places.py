"""Where words lie and in whom, against statements written out in loops."""

from math import dist, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.config import RequestError
from dira_dist.vocabulary.places import (
    TRIES,
    choose_apart,
    nearest_volumes,
    other_size,
    patients_per_word,
    place_of,
    references_of,
    start_at,
    starts_tried,
)

SIDES = st.tuples(*[st.integers(4, 60)] * 3)
SHARES = st.tuples(*[st.floats(0, 1)] * 3)


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(2, 40), st.integers(0, 200))
def test_each_patient_is_a_reference_once_before_any_comes_again(seed: int, count: int, word: int) -> None:
    patients = [f"p{number:03d}" for number in range(count)]
    turn = word // count
    found = [references_of(each, patients, seed) for each in range(turn * count, (turn + 1) * count)]
    assert sorted(first for first, *_ in found) == patients
    own = references_of(word, patients, seed)
    assert own == found[word % count] and len(set(own)) == len(own) == min(3, count)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9), st.integers(0, 99), SIDES, SIDES, SHARES.map(lambda shares: [each / 2.5 for each in shares]))
def test_starts_lie_within_the_margins_and_a_place_leads_back_to_its_start(
    seed: int, word: int, volume: tuple[int, int, int], cube: tuple[int, int, int], margin: list[float]
) -> None:
    starts = list(starts_tried(word, volume, cube, margin, seed))
    assert len(starts) == TRIES and starts == list(starts_tried(word, volume, cube, margin, seed))
    for start in starts:
        for first, side, has, share in zip(start, cube, volume, margin, strict=True):
            outside = int(share * has)
            if has - 2 * outside >= side:
                assert outside <= first and first + side <= has - outside
            else:
                assert first == (has - side) // 2
        assert start_at(place_of(start, volume, cube), volume, cube) == start


@settings(deadline=None)
@given(SHARES, SIDES, SIDES)
def test_a_cube_lies_in_the_volume_with_its_centre_as_near_to_the_place_as_can_be(
    place: tuple[float, float, float], volume: tuple[int, int, int], cube: tuple[int, int, int]
) -> None:
    for first, share, has, side in zip(start_at(place, volume, cube), place[::-1], volume, cube, strict=True):
        if side > has:
            assert first == (has - side) // 2
        else:
            off = {start: abs(start + side / 2 - share * has) for start in range(has - side + 1)}
            assert off[first] <= min(off.values()) + 1e-9


@settings(deadline=None)
@given(st.lists(st.lists(SHARES, min_size=1, max_size=6), min_size=1, max_size=6), st.floats(0, 0.5))
def test_a_word_keeps_away_from_those_before_it(tried: list[list[tuple[float, float, float]]], apart: float) -> None:
    plain: list[tuple[float, float, float]] = []
    for places in tried:
        for place in places:
            if all(dist(place, other) >= apart for other in plain):
                plain.append(place)
                break
        else:
            with pytest.raises(RequestError, match=rf"tried for word {len(plain)} .* fewer words"):
                choose_apart(tried, apart)
            break
    chosen = choose_apart(tried[: len(plain)], apart)
    assert [places[number] for places, number in zip(tried, chosen, strict=False)] == plain
    if len(plain) == len(tried):
        assert choose_apart(tried, apart) == chosen, "the number of words changes none before"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.data())
def test_the_nearest_are_the_nearest_volumes_of_the_nearest_patients(
    seed: int, count: int, data: st.DataObject
) -> None:
    volumes = 12
    features = np.random.default_rng(seed).standard_normal((volumes, 3)).astype(np.float32)
    patients = data.draw(st.lists(st.sampled_from("abcdefg"), min_size=volumes, max_size=volumes))
    among = sorted(data.draw(st.sets(st.integers(0, volumes - 1), min_size=1)))
    reference = data.draw(st.sampled_from(among))
    distance = [
        sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(features[reference], row, strict=True))) for row in features
    ]
    plain = []
    for patient in set(patients):
        own = [each for each in among if patients[each] == patient]
        if own:
            plain.append(min(own, key=lambda each: distance[each]))
    plain.sort(key=lambda each: distance[each])
    found = nearest_volumes(features, reference, patients, among, count)
    assert found == plain[:count] and found[0] == reference


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), SIDES, SIDES, st.floats(1, 2), st.floats(0, 0.5), st.data())
def test_other_sizes_stay_within_what_is_asked_for(
    seed: int, word: int, cube: tuple[int, int, int], volume: tuple[int, int, int], scale: float, shift: float,
    data: st.DataObject,
) -> None:  # fmt: skip
    start = start_at(data.draw(SHARES), volume, cube)
    draw = (seed, word, data.draw(st.integers(-(2**63), 2**63 - 1)), 1)
    found, sides = other_size(start, cube, volume, scale, shift, draw)
    assert (found, sides) == other_size(start, cube, volume, scale, shift, draw)
    assert found[0] == start[0] and sides[0] == cube[0], "z stays"
    assert max(1, round(cube[2] / scale)) <= sides[2] <= round(cube[2] * scale)
    for axis in (1, 2):
        if sides[axis] > volume[axis]:
            assert found[axis] == (volume[axis] - sides[axis]) // 2
            continue
        assert 0 <= found[axis] <= volume[axis] - sides[axis]
        moved = abs(found[axis] + sides[axis] / 2 - start[axis] - cube[axis] / 2)
        touches = found[axis] in (0, volume[axis] - sides[axis])
        assert touches or moved <= round(shift * cube[axis]) + 0.5


def test_sizes_and_shifts_are_drawn_over_all_that_is_allowed() -> None:
    found = [other_size((0, 40, 40), (32, 64, 64), (40, 150, 150), 1.25, 0.15625, (0, 0, n, 1)) for n in range(2000)]
    widths = {sides[2] for _, sides in found}
    assert widths == set(range(51, 81)) and all(sides[1] == sides[2] for _, sides in found)
    for axis in (1, 2):
        moves = {start[axis] - 40 - (64 - sides[axis]) // 2 for start, sides in found}
        assert moves == set(range(-10, 11)), "ten voxels of 64, as published"


def test_how_many_patients_a_word_has() -> None:
    assert patients_per_word(None, {"train": 445, "val": 178}) == {"train": 200, "val": 80}
    assert patients_per_word(None, {"all": 34}) == {"all": 15}
    assert patients_per_word(None, {"train": 3, "val": 1}) == {"train": 2, "val": 1}
    assert patients_per_word(30, {"train": 60, "val": 10}) == {"train": 30, "val": 5}
    with pytest.raises(RequestError, match="nearest 9: part train has 8 patients; give 8 or fewer"):
        patients_per_word(9, {"train": 8, "val": 2})
    with pytest.raises(RequestError, match="part all: 1 patient in it, and a word is what several have in common"):
        patients_per_word(None, {"all": 1})
