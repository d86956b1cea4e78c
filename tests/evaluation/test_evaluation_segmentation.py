"""Figures of masks against MONAI and surface-distance, which the code itself does not use."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU, SurfaceDiceMetric
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from surface_distance import compute_robust_hausdorff, compute_surface_dice_at_tolerance, compute_surface_distances

from dira_dist.evaluation.report import case_table, case_tables
from dira_dist.evaluation.report_pictures import case_pictures
from dira_dist.evaluation.segmentation import SegmentationCase, case_figures, val_figures


def blobs(seed: int, shape: tuple[int, ...], outputs: int = 2) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return np.stack([ndimage.gaussian_filter(random.normal(size=shape), 3) > 0.01 for _ in range(outputs)])


@pytest.mark.parametrize("shape", [(40, 56), (20, 24, 28)])
def test_overlap_is_that_of_monai(shape: tuple[int, ...]) -> None:
    said, truth = blobs(0, shape), blobs(1, shape)
    found = case_figures(said, truth, np.ones(shape, dtype=bool), None, surfaces=False)
    pair = [torch.from_numpy(mask[None].astype(np.float32)) for mask in (said, truth)]
    assert found["dice"] == pytest.approx(DiceMetric(reduction="none")(*pair)[0].tolist())
    assert found["iou"] == pytest.approx(MeanIoU(reduction="none")(*pair)[0].tolist())
    assert all(math.isnan(value) for value in found["hd95"])
    volumes = [mask.reshape(2, -1).sum(1) for mask in (said, truth)]
    assert found["volume_error"] == pytest.approx((volumes[0] / volumes[1] - 1).tolist())


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.parametrize(("shape", "spacing"), [((40, 56), (0.7, 1.3)), ((20, 24, 28), (2.5, 0.8, 1.0))])
def test_surfaces_are_those_of_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Masks that touch the edges of the image among them."""
    said, truth = blobs(0, shape), blobs(1, shape)
    found = case_figures(said, truth, np.ones(shape, dtype=bool), spacing, tolerance=1.5)
    pair = [torch.from_numpy(mask[None].astype(np.float32)) for mask in (said, truth)]
    distance = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")
    share = SurfaceDiceMetric([1.5, 1.5], include_background=True, reduction="none")
    assert found["hd95"] == pytest.approx(distance(*pair, spacing=list(spacing))[0].tolist(), rel=1e-5)
    assert found["surface_dice"] == pytest.approx(share(*pair, spacing=list(spacing))[0].tolist(), rel=1e-5)


def test_a_small_piece_far_off_is_not_hidden() -> None:
    """Between a twentieth and a tenth of one surface: over both surfaces together it would be less than 5 %."""
    truth = np.zeros((1, 200, 200), dtype=bool)
    truth[0, 20:70, 20:70] = True
    said = truth.copy()
    said[0, 150:154, 150:154] = True
    assert case_figures(said, truth, np.ones((200, 200), dtype=bool), None)["hd95"][0] > 100


@pytest.mark.filterwarnings("ignore:Please import")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8)])
def test_surfaces_are_close_to_those_of_surface_distance(spacing: tuple[float, ...]) -> None:
    """It weighs pieces of a surface by area and puts them between the voxels; here voxels at the border are counted."""
    truth = np.zeros((40, 60, 60), dtype=bool)
    truth[10:30, 20:45, 15:40] = True
    said = np.roll(truth, (1, 3, -2), (0, 1, 2))
    found = case_figures(said[None], truth[None], np.ones(truth.shape, dtype=bool), spacing, tolerance=2.0)
    theirs = compute_surface_distances(truth, said, spacing)
    assert found["hd95"][0] == pytest.approx(compute_robust_hausdorff(theirs, 95), abs=max(spacing))
    assert found["surface_dice"][0] == pytest.approx(compute_surface_dice_at_tolerance(theirs, 2.0), abs=0.1)


def test_a_shift_of_a_square_is_its_distance_in_mm() -> None:
    truth = np.zeros((1, 60, 60), dtype=bool)
    truth[0, 20:40, 20:40] = True
    found = case_figures(np.roll(truth, 5, 1), truth, np.ones((60, 60), dtype=bool), (0.5, 3.0))
    assert found["hd95"] == [2.5] and found["dice"] == [pytest.approx(0.75)]


def test_what_is_empty_or_unknown() -> None:
    nothing, something = np.zeros((1, 9, 9), dtype=bool), np.zeros((1, 9, 9), dtype=bool)
    something[0, 2:5, 2:5] = True
    valid = np.ones((9, 9), dtype=bool)
    both = case_figures(nothing, nothing, valid, None)
    assert math.isnan(both["dice"][0]) and math.isnan(both["iou"][0]) and math.isnan(both["surface_dice"][0])
    invented = case_figures(something, nothing, valid, None)
    assert invented["dice"] == [0] and invented["surface_dice"] == [0] and math.isnan(invented["hd95"][0])
    missed = case_figures(nothing, something, valid, None)
    assert missed["dice"] == [0] and missed["volume_error"] == [-1]
    unseen = valid.copy()
    unseen[2:5, 2:5] = False
    assert math.isnan(case_figures(something, nothing, unseen, None)["dice"][0]), "nobody has labelled there"


def cases() -> list[SegmentationCase]:
    made = []
    for number in range(12):
        said, truth = blobs(number, (24, 24)), blobs(number // 2, (24, 24))
        if number == 3:
            truth[1] = said[1] = False
        figures = case_figures(said, truth, np.ones((24, 24), dtype=bool), None)
        picture = {"image": np.zeros((24, 24), dtype=np.uint8), "predicted": said, "truth": truth}
        made.append(SegmentationCase(f"k{number}", f"p{number // 2}", {"sex": "F"}, figures, **picture))
    return made


def test_means_leave_out_what_is_not_defined_and_count_it() -> None:
    made = cases()
    found = val_figures(made, ("a", "b"))
    of_a, of_b = ([case.figures["dice"][place] for case in made] for place in (0, 1))
    assert found["val/dice/a"] == pytest.approx(np.mean(of_a))
    assert found["val/dice/b"] == pytest.approx(np.nanmean(of_b))
    assert found["val/dice"] == pytest.approx((np.mean(of_a) + np.nanmean(of_b)) / 2)
    table = case_table(made, ("a", "b"), 100)
    assert table["b"]["dice"]["cases"] == 11 and table["b"]["with"] == 11
    assert table["mean"]["dice"]["value"] == pytest.approx(found["val/dice"])
    assert table["b"]["presence_sensitivity"]["value"] == 1 and table["b"]["presence_specificity"]["value"] == 1
    assert table["a"]["dice"]["low"] < table["a"]["dice"]["value"] < table["a"]["dice"]["high"]
    assert list(case_tables(made, ("a", "b"), draws=10, subgroups=("sex",))["subgroups"]["sex"]) == ["F"]


def test_presence_is_ranked_by_the_largest_probability_where_the_truth_is_known() -> None:
    random, valid = np.random.default_rng(0), np.ones((6, 6), dtype=bool)
    valid[0, 0] = False
    made, largest, there = [], [], []
    for number in range(20):
        truth, chances = np.zeros((1, 6, 6), dtype=bool), 0.9 * random.random((1, 6, 6))
        truth[0, 3, 3] = number % 3 == 0
        chances[0, 0, 0] = 1.0  # nobody knows what is there
        chances[0, 3, 3] += 0.1 * truth[0, 3, 3]
        figures = case_figures(chances > 0.5, truth, valid, None, chances=chances)
        made.append(SegmentationCase(f"k{number}", f"p{number}", figures=figures))
        largest.append(chances[0].ravel()[1:].max())
        there.append(number % 3 == 0)
    assert [case.figures["chance"][0] for case in made] == pytest.approx(largest)
    row = case_table(made, ("a",), 100)["a"]["presence_auroc"]
    assert row["value"] == pytest.approx(roc_auc_score(there, largest)) and row["cases"] == 20
    assert row["low"] < row["value"] < row["high"]
    assert case_table(made[1:3], ("a",), 50)["a"]["presence_auroc"]["value"] is None, "nothing is there in either"
    assert case_table(cases(), ("a", "b"), 50)["b"]["presence_auroc"]["cases"] == 0, "without probabilities"


def test_the_worst_and_the_best_are_drawn() -> None:
    made = cases()
    picture = case_pictures(made)["cases"]
    assert picture.ndim == 3 and picture.dtype == np.uint8 and picture.std() > 10
    assert case_pictures([]) == {}
    empty = [replace(case, figures={**case.figures, "dice": [math.nan, math.nan]}) for case in made]
    assert case_pictures(empty) == {}, "nothing is there, and nothing is said to be"
    assert np.array_equal(case_pictures([*made, *empty])["cases"], picture)


def test_distances_in_mm_and_in_pixels_have_no_mean() -> None:
    made = []
    for number, spacing in enumerate([(0.5, 0.5), (0.5, 0.5), None]):
        said, truth = blobs(number, (24, 24)), blobs(number + 5, (24, 24))
        figures = case_figures(said, truth, np.ones((24, 24), dtype=bool), spacing)
        made.append(SegmentationCase(f"k{number}", f"p{number}", figures=figures))
    row = case_table(made, ("a", "b"), 50)["a"]
    assert row["hd95"]["unit"] == "mm" and row["hd95"]["cases"] == 2 and row["dice"]["cases"] == 3
    assert row["hd95"]["value"] == pytest.approx(np.mean([case.figures["hd95"][0] for case in made[:2]]))
    alone = case_table(made[2:], ("a", "b"), 50)["a"]["hd95"]
    assert alone["unit"] == "px" and alone["value"] == made[2].figures["hd95"][0] and alone["low"] is None
