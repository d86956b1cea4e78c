"""Phantoms: a function of seed and number, with lesions where the boxes say and organs where the masks say."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dira_dist.quickstart.phantom import CLEAR, FINDINGS, ORGANS, PATTERNS, Phantom, make_phantom, write_archive


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(3, number, 64) for number in range(48)]


def test_equal_arguments_give_equal_phantoms_and_unlike_ones_do_not() -> None:
    first, second = make_phantom(1, 7, 64), make_phantom(1, 7, 64)
    assert (first.image == second.image).all() and (first.organs == second.organs).all()
    assert (first.boxes, first.findings, first.patient) == (second.boxes, second.findings, second.patient)
    assert (first.image != make_phantom(2, 7, 64).image).any()
    assert (first.image != make_phantom(1, 8, 64).image).any()


def test_primary_findings_are_balanced_and_every_lesion_has_its_box(phantoms: list[Phantom]) -> None:
    assert Counter(phantom.finding for phantom in phantoms) == dict.fromkeys(FINDINGS, 8)
    for phantom in phantoms:
        assert phantom.findings[0] == phantom.finding
        assert Counter(box.finding for box in phantom.boxes) == Counter(set(phantom.findings) - {"normal"})
        for box in phantom.boxes:
            assert box.width > 1 and box.height > 1
            assert box.x >= 0 and box.x + box.width <= 64 and box.y >= 0 and box.y + box.height <= 64
    assert any(len(phantom.findings) == 2 for phantom in phantoms)


def test_two_images_of_a_patient_share_a_patient_and_nobody_else_does(phantoms: list[Phantom]) -> None:
    assert set(Counter(phantom.patient for phantom in phantoms).values()) == {2}
    assert phantoms[0].patient == phantoms[1].patient != phantoms[2].patient


def test_it_shows_a_chest(phantoms: list[Phantom]) -> None:
    """Air around is black, lungs are darker than heart and abdomen, and each organ has a plausible share."""
    for phantom in phantoms:
        shares = np.bincount(phantom.organs.ravel(), minlength=len(ORGANS)) / phantom.organs.size
        assert (shares[1:] > 0.02).all() and shares[1:].sum() < 0.75
        grey = phantom.image.astype(float)
        assert grey[:6, :6].mean() < 60
        healthy = phantom.finding == "normal"
        if healthy:
            lungs, heart = (phantom.organs == 1) | (phantom.organs == 2), phantom.organs == 3
            assert grey[lungs].mean() + 40 < grey[heart].mean()
            assert np.argwhere(phantom.organs == 1)[:, 1].mean() < np.argwhere(phantom.organs == 2)[:, 1].mean()


def _against_mirror(phantom: Phantom, left: int, right: int, top: int, bottom: int) -> float:
    """Mean grey of a box less that of the same place in the other half of the chest."""
    half = phantom.image.astype(float)[top:bottom]
    return float(half[:, left:right].mean() - half[:, 64 - right : 64 - left].mean())


@pytest.mark.parametrize("finding", ["nodule", "consolidation"])
def test_an_opacity_is_brighter_than_the_other_lung(phantoms: list[Phantom], finding: str) -> None:
    found = [(phantom, box) for phantom in phantoms for box in phantom.boxes if box.finding == finding]
    differences = [_against_mirror(p, b.x, b.x + b.width, b.y, b.y + b.height) for p, b in found]
    assert np.mean(differences) > 4


def test_free_air_is_darker_than_the_other_lung(phantoms: list[Phantom]) -> None:
    """In the outer fourth of its box, where the collapsed lung does not reach."""
    differences = []
    for phantom in phantoms:
        for box in (box for box in phantom.boxes if box.finding == "pneumothorax"):
            rim = max(1, box.width // 4)
            left = box.x if box.x + box.width / 2 < 32 else box.x + box.width - rim
            differences.append(_against_mirror(phantom, left, left + rim, box.y, box.y + box.height))
    assert np.mean(differences) < -4


def test_a_large_heart_is_large(phantoms: list[Phantom]) -> None:
    areas: dict[bool, list[int]] = {True: [], False: []}
    for phantom in phantoms:
        areas["cardiomegaly" in phantom.findings].append(int((phantom.organs == ORGANS.index("heart")).sum()))
    assert np.median(areas[True]) > 1.5 * np.median(areas[False])


def test_each_patient_has_one_pattern_and_all_are_as_frequent() -> None:
    found = [make_phantom(3, number, 32, PATTERNS) for number in range(16)]
    assert [each.pattern for each in found[::2]] == [each.pattern for each in found[1::2]]
    assert Counter(each.pattern for each in found) == dict.fromkeys(PATTERNS, 4)


def test_a_pattern_is_in_the_lungs_alone_and_hardly_brightens_them() -> None:
    """Against the same phantom without it."""
    brighter = []
    for number in range(32):
        ours, clear = make_phantom(3, number, 96, PATTERNS), make_phantom(3, number, 96)
        assert clear.pattern == CLEAR and (ours.organs == clear.organs).all()
        change = ours.image.astype(float) - clear.image.astype(float)
        if ours.pattern == CLEAR:
            assert not change.any()
            continue
        lungs = (ours.organs == 1) | (ours.organs == 2)
        assert change[lungs].std() > 3 * change[~lungs].std()
        brighter.append(change[lungs].mean())
    assert abs(np.mean(brighter)) < 8


def test_it_looks_the_same_at_any_size() -> None:
    """Lesions and anatomy do not move with the resolution; noise and vessels differ."""
    large, small = make_phantom(0, 5, 128), make_phantom(0, 5, 64)
    shrunk = np.asarray(Image.fromarray(large.organs).resize((64, 64), Image.Resampling.NEAREST))
    assert (shrunk == small.organs).mean() > 0.95


def test_an_archive_lies_as_users_lay_theirs(tmp_path: Path) -> None:
    write_archive(tmp_path, 7, seed=2, size_px=64, patterns=PATTERNS)
    with (tmp_path / "labels.csv").open() as file:
        labels = list(csv.DictReader(file))
    with (tmp_path / "boxes.csv").open() as file:
        boxes = list(csv.DictReader(file))
    assert [row["image"] for row in labels] == sorted(path.name for path in (tmp_path / "images").iterdir())
    for number, row in enumerate(labels):
        phantom = make_phantom(2, number, 64, PATTERNS)
        assert (row["patient"], row["finding"], row["findings"], row["pattern"]) == (
            phantom.patient,
            phantom.finding,
            "|".join(phantom.findings),
            phantom.pattern,
        )
        assert (np.asarray(Image.open(tmp_path / "images" / row["image"])) == phantom.image).all()
        assert (np.asarray(Image.open(tmp_path / "masks" / row["image"])) == phantom.organs).all()
        mine = [box for box in boxes if box["image"] == row["image"]]
        assert [(box["finding"], int(box["x"])) for box in mine] == [(box.finding, box.x) for box in phantom.boxes]
