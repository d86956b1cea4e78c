"""A volume as three slices: which voxel is where, in true proportions, and boxes that follow."""

import numpy as np
import pytest

from dira_dist.evaluation.boxes import BoundingBox
from dira_dist.evaluation.planes import boxes_in_planes, fullest_place, three_planes
from dira_dist.evaluation.segmentation import case_figures

SIDES = (5, 4, 3)
VOLUME = np.arange(1, 61).reshape(SIDES)


def test_slices_stand_as_they_are_looked_at() -> None:
    picture = three_planes(VOLUME, (1, 2, 0))
    assert picture.shape == (4, 5 + 2 + 5 + 2 + 4)
    for y in range(4):
        assert picture[y, :5].tolist() == [VOLUME[x, y, 0] for x in range(5)]
    for row in range(3):  # the head, the largest z, is above
        assert picture[row, 7:12].tolist() == [VOLUME[x, 2, 2 - row] for x in range(5)]
        assert picture[row, 14:].tolist() == [VOLUME[1, y, 2 - row] for y in range(4)]
    assert not picture[3, 7:].any() and not picture[:, [5, 6, 12, 13]].any()


def test_anisotropic_voxels_are_repeated() -> None:
    plain, tall = three_planes(VOLUME, (1, 2, 0)), three_planes(VOLUME, (1, 2, 0), (1.0, 1.0, 3.0))
    assert tall.shape == (9, plain.shape[1]) and (tall[:4, :5] == plain[:, :5]).all()
    assert (tall[:9, 7:12] == np.repeat(plain[:3, 7:12], 3, axis=0)).all()


def test_the_place_is_where_most_of_the_masks_lies() -> None:
    masks = np.zeros((2, *SIDES), dtype=bool)
    assert fullest_place(masks) == (2, 2, 1)
    masks[0, 4, 1:3, 2], masks[1, 3, 1, 2] = True, True
    assert fullest_place(masks) == (4, 1, 2)


def test_a_box_lies_in_the_picture_where_its_voxels_lie() -> None:
    """Of each slice that cuts it, whatever the place."""
    box = BoundingBox((1, 0, 1), (3, 3, 3))
    inside = np.zeros(SIDES)
    inside[1:3, 0:3, 1:3] = 1
    for place in np.ndindex(*SIDES):
        picture = np.zeros_like(three_planes(inside, place))
        for found in boxes_in_planes([box], place, SIDES):
            rows, columns = (slice(int(a), int(b)) for a, b in zip(found.low, found.high, strict=True))
            picture[rows, columns] += 1
        assert (picture == three_planes(inside, place)).all(), place


def test_figures_of_a_volume_are_those_of_loops() -> None:
    """Distances in mm from each voxel of a surface to each of the other, one by one."""
    drawn, spacing, tolerance = np.random.default_rng(4), (0.7, 1.3, 2.5), 1.5
    truth, said = (drawn.random((1, 5, 6, 4)) > 0.6 for _ in range(2))
    found = case_figures(said, truth, np.ones(truth.shape[1:], dtype=bool), spacing, tolerance=tolerance)
    surfaces = [surface(mask[0]) for mask in (said, truth)]
    away = [
        [min(distance(a, b, spacing) for b in other) for a in one]
        for one, other in (surfaces, surfaces[::-1])
    ]  # fmt: skip
    common = sum(int(a and b) for a, b in zip(said.flat, truth.flat, strict=True))
    assert found["dice"] == [pytest.approx(2 * common / (said.sum() + truth.sum()))]
    assert found["iou"] == [pytest.approx(common / (said.sum() + truth.sum() - common))]
    assert found["hd95"] == [pytest.approx(max(np.percentile(each, 95) for each in away))]
    within = sum(each <= tolerance for side in away for each in side)
    assert found["surface_dice"] == [pytest.approx(within / sum(map(len, away)))]
    assert found["volume_error"] == [pytest.approx((said.sum() - truth.sum()) / truth.sum())]


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels of a mask with a face that touches what is none of it."""
    places = []
    for place in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                other = place.copy()
                other[axis] += step
                beyond = not 0 <= other[axis] < mask.shape[axis]
                if (beyond or not mask[tuple(other)]) and tuple(place) not in places:
                    places.append(tuple(place))
    return places


def distance(one: tuple[int, ...], other: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    return float(sum(((a - b) * step) ** 2 for a, b, step in zip(one, other, spacing, strict=True)) ** 0.5)
