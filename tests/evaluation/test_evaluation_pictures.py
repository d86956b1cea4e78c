"""Pictures show what they say they show."""

import numpy as np
import pytest
import torch

from dira_dist.evaluation.evaluator import Evaluation, LabelledFeatures, PatchScores, Restorations
from dira_dist.evaluation.pictures import (
    CAPTION_PX,
    GAP_PX,
    evaluation_pictures,
    feature_scatter,
    loss_curves,
    principal_components,
    restoration_grid,
    score_maps,
)

CELL = 64


def cell(picture: np.ndarray, row: int, column: int, captions: bool) -> np.ndarray:
    top = CAPTION_PX + row * (CELL + GAP_PX + (CAPTION_PX if captions else 0))
    left = GAP_PX + column * (CELL + GAP_PX) + column // 4 * GAP_PX
    return picture[top : top + CELL, left : left + CELL].astype(int)


@pytest.mark.parametrize("captions", [(), ("first", "second")])
def test_the_grid_shows_input_restoration_target_and_difference(captions: tuple[str, ...]) -> None:
    target = np.full((2, 1, 32, 32), 0.5, np.float32)
    restored, distorted = target.copy(), np.repeat(target, 3, axis=1)
    distorted[0, :, :16] = 0
    restored[0, :, :16] = 0.1  # too dark above
    restored[1, :, :, 16:] = 0.9  # too bright on the right
    picture = restoration_grid(distorted, restored, target, captions=captions, cell_px=CELL)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    shown = [[cell(picture, 0, 4 * image + column, bool(captions)) for column in range(4)] for image in range(2)]
    assert shown[0][0][5].max() <= 2
    assert abs(shown[0][0][60].mean() - 128) < 3
    assert abs(shown[0][1][5].mean() - 26) < 3
    assert abs(shown[1][2].mean() - 128) < 3
    red, blue = (lambda pixels: pixels[..., 0].mean()), (lambda pixels: pixels[..., 2].mean())
    assert blue(shown[0][3][:28]) > red(shown[0][3][:28]) + 40
    assert red(shown[1][3][:, 36:]) > blue(shown[1][3][:, 36:]) + 40
    assert abs(red(shown[0][3][40:]) - blue(shown[0][3][40:])) < 5


def test_the_grid_shows_at_most_so_many_rows() -> None:
    images = np.ones((5, 1, 16, 16), np.float32)
    short = restoration_grid(images, images, images, rows=2, cell_px=CELL)
    assert short.shape[0] == CAPTION_PX + 2 * (CELL + GAP_PX) + GAP_PX
    assert [cell(short, row, column, False).min() for row in (0, 1) for column in (0, 4)] == [255] * 4
    three = restoration_grid(images[:3], images[:3], images[:3], cell_px=CELL)
    assert three.shape == short.shape
    assert cell(three, 1, 4, False).max() < 50  # the second block's second place stays empty


def test_the_grid_keeps_the_shape_of_an_image_that_is_no_square() -> None:
    wide = np.zeros((1, 1, 16, 32), np.float32)
    assert restoration_grid(wide, wide, wide, cell_px=CELL).shape[0] == CAPTION_PX + CELL // 2 + GAP_PX + GAP_PX


def test_score_maps_are_brighter_where_the_discriminator_believes() -> None:
    images, low, high = np.zeros((1, 1, 32, 32)), np.zeros((1, 1, 4, 4)), np.ones((1, 1, 4, 4))
    picture = score_maps(images, images, high, low)
    width = picture.shape[1] // 4
    assert picture[100, width : 2 * width].mean() > picture[100, 3 * width :].mean() + 50


def test_score_maps_show_each_loss_on_its_own_scale() -> None:
    images, scores = np.zeros((1, 1, 32, 32)), np.full((1, 1, 4, 4), 0.0)
    shown = {loss: score_maps(images, images, scores, scores, loss=loss) for loss in ("lsgan", "bce", "hinge")}
    assert np.array_equal(shown["bce"], shown["hinge"])  # 0 is undecided for both
    assert shown["bce"].mean() > shown["lsgan"].mean()  # and "restored" for least squares


def test_charts_are_pictures_with_something_in_them() -> None:
    steps = range(50)
    curves = {name: (list(steps), [1 / (step + 1) for step in steps]) for name in ("a", "b", "c", "d")}
    chart = loss_curves(curves, {0: "di", 20: "dir"})
    empty = loss_curves({}, {})
    assert chart.dtype == np.uint8
    assert chart.shape[1] > chart.shape[0] > 400  # two rows of three
    assert chart.min() < 100
    assert empty.ndim == 3


def test_the_scatter_separates_what_the_features_separate() -> None:
    generator = np.random.default_rng(0)
    features = np.concatenate([generator.normal(0, 1, (40, 8)), generator.normal(6, 1, (40, 8))])
    points, shares = principal_components(features)
    covariance = np.cov(features.T, bias=True)
    values = np.linalg.eigvalsh(covariance)[::-1]
    assert points.var(axis=0) == pytest.approx(values[:2])
    assert shares == pytest.approx(tuple(values[:2] / values.sum()))
    assert abs(points[:40, 0].mean() - points[40:, 0].mean()) > 10
    assert feature_scatter(features, ["ill"] * 40 + ["well"] * 40, "probe").shape[2] == 3


def test_rare_classes_share_a_colour() -> None:
    features = np.random.default_rng(0).normal(size=(60, 4))
    many = [f"class {number % 20:02}" for number in range(60)]
    folded = [name if name <= "class 06" else "others" for name in many]
    assert np.array_equal(feature_scatter(features, many), feature_scatter(features, folded))
    assert not np.array_equal(feature_scatter(features, many), feature_scatter(features, ["one"] * 60))


def test_a_evaluation_has_a_picture_of_all_that_it_holds() -> None:
    images = torch.rand(3, 1, 32, 32)
    restorations, scores = (
        Restorations(images, images, images),
        PatchScores(torch.ones(3, 1, 4, 4), torch.rand(3, 1, 4, 4)),
    )
    features = LabelledFeatures(torch.rand(10, 6), ["ill", "well"] * 5)
    assert evaluation_pictures(Evaluation({})) == {}
    assert set(evaluation_pictures(Evaluation({}, restorations))) == {"restorations"}
    pictures = evaluation_pictures(Evaluation({}, restorations, scores, features))
    assert set(pictures) == {"restorations", "discriminator scores", "probe features"}
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures.values())


def test_principal_components_do_not_depend_on_the_order_and_take_collapsed_features() -> None:
    features = np.random.default_rng(1).normal(size=(20, 5))
    points, _ = principal_components(features)
    turned, _ = principal_components(features[::-1])
    assert turned[::-1] == pytest.approx(points)
    points, shares = principal_components(np.ones((4, 3)))
    assert shares == (0, 0)
    assert not points.any()
    assert principal_components(np.arange(3.0)[:, None])[0].shape == (3, 2)
