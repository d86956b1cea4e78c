"""Evaluation of networks on cubes: figures against loops, pictures of three slices, and a whole evaluation."""

import itertools
import math

import numpy as np
import pytest
import torch
from cube_sets import write_cubes
from torch import Tensor

from dira_dist.evaluation import evaluator as evaluator_module
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.evaluator import Evaluator, PatchScores
from dira_dist.evaluation.pictures import evaluation_pictures, orthogonal_slices, restoration_grid, score_maps
from dira_dist.evaluation.rank import representation_health
from dira_dist.evaluation.restoration import psnr, ssim
from dira_dist.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dira_dist.models.unet3d import UNet3dBackbone, UNet3dConfig
from dira_dist.views import ViewsConfig

CPU = torch.device("cpu")


def pair(sides: tuple[int, ...] = (12, 13, 12)) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, *sides, generator=drawn)
    return (target + 0.2 * torch.randn(target.shape, generator=drawn)).clamp(0, 1), target


def test_psnr_of_a_cube_is_that_of_the_loop() -> None:
    restored, target = pair()
    for number, found in enumerate(psnr(restored, target)):
        error = [
            (float(a) - float(b)) ** 2
            for a, b in zip(restored[number].flatten(), target[number].flatten(), strict=True)
        ]
        assert float(found) == pytest.approx(10 * math.log10(len(error) / sum(error)), rel=1e-5)


def test_ssim_of_a_cube_is_that_of_the_loop() -> None:
    """Wang et al. (2004), equation 13, with a Gaussian window of 11 voxels along each of three axes, edges mirrored."""
    restored, target = pair((7, 8, 6))
    padded = [torch.nn.functional.pad(each.double(), (5,) * 6, mode="reflect") for each in (restored, target)]
    line = [math.exp(-((k - 5) ** 2) / (2 * 1.5**2)) for k in range(11)]
    window = torch.tensor(line, dtype=torch.float64) / sum(line)
    window = window[:, None, None] * window[:, None] * window
    for number, found in enumerate(ssim(restored, target)):
        values = []
        for place in itertools.product(*map(range, target.shape[2:])):
            part = (number, 0, *(slice(start, start + 11) for start in place))
            x, y = (each[part] for each in padded)
            mean_x, mean_y = float((window * x).sum()), float((window * y).sum())
            spread_x, spread_y = (float((window * v * v).sum()) - m * m for v, m in ((x, mean_x), (y, mean_y)))
            common = float((window * x * y).sum()) - mean_x * mean_y
            top = (2 * mean_x * mean_y + 0.01**2) * (2 * common + 0.03**2)
            values.append(top / ((mean_x**2 + mean_y**2 + 0.01**2) * (spread_x + spread_y + 0.03**2)))
        assert float(found) == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_three_slices_are_seen_as_a_radiologist_sees_them() -> None:
    x, y, z = (torch.arange(side, dtype=torch.float32) for side in (4, 6, 3))
    number = (100 * x[:, None, None] + 10 * y[:, None] + z)[None, None].numpy()
    (found,) = orthogonal_slices(number)
    assert found.shape == (1, 6, 4 + 4 + 6)
    axial, coronal, sagittal = np.split(found[0], (4, 8), axis=1)
    for column, row in itertools.product(range(4), range(6)):
        assert axial[row, column] == 100 * column + 10 * row + 1, "left to the right, back below"
    for column, row in itertools.product(range(4), range(3)):
        assert coronal[row, column] == 100 * column + 10 * 3 + (2 - row), "head above"
    for column, row in itertools.product(range(6), range(3)):
        assert sagittal[row, column] == 100 * 2 + 10 * column + (2 - row)
    assert not coronal[3:].any() and not sagittal[3:].any()


def test_score_maps_of_cubes_tell_the_mean_of_all_patches() -> None:
    target = np.random.default_rng(0).random((2, 1, 16, 16, 8)).astype(np.float32)
    scores = np.zeros((2, 1, 4, 4, 2), np.float32)
    scores[0, :, 0] = 1  # a quarter of them, beside the middle slices
    bright = score_maps(target, target, scores, scores)
    dark = score_maps(target, target, 0 * scores, 0 * scores)
    assert bright.shape == dark.shape and not np.array_equal(bright, dark)
    assert restoration_grid(target, target, target).shape[1] == bright.shape[1]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("cubes")
    addresses = {name: str(folder / name) for name in ("train", "val")}
    for name, first in (("train", 0), ("val", 100)):
        write_cubes(addresses[name], 24, first=first)
    return addresses


@pytest.fixture(scope="module")
def network() -> UNet3dBackbone:
    torch.manual_seed(0)
    return UNet3dConfig(width=4, levels=3).build()


def evaluator(sets: dict[str, str]) -> Evaluator:
    probe = ProbeConfig(**sets, label="size", bootstrap=20, label_fractions=(1.0,), k=5)
    return Evaluator(sets["val"], probe, ViewsConfig(), seed=0, image_size=(16, 16, 16), dims=3)


def test_networks_on_cubes_are_evaluated_whole(
    sets: dict[str, str], network: UNet3dBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=(4, 8, 8, 8)), dims=3)
    found = evaluator(sets).evaluate(network, CPU, discriminator)
    assert {"val/psnr", "val/ssim", "val/rankme", "probe/auroc"} <= set(found.metrics)
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.metrics["probe/auroc"] > 0.9, "a large ball is told from a small one without training"
    assert found.features is not None and found.features.features.shape == (24, 16)
    assert found.restorations is not None and found.restorations.target.shape == (8, 1, 16, 16, 16)
    assert found.scores is not None and found.scores.target.shape == (8, 1, 2, 2, 2)
    assert set(evaluation_pictures(found)) == {"restorations", "discriminator scores", "probe features"}
    monkeypatch.setattr(evaluator_module, "BATCH_VOXELS", 5 * 16**3)
    few = evaluator(sets).evaluate(network, CPU)
    for name, value in found.metrics.items():
        assert few.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert few.restorations is not None
    assert torch.allclose(few.restorations.restored, found.restorations.restored, atol=1e-5), "the same eight cubes"
    assert isinstance(found.scores, PatchScores)


def test_rank_is_counted_over_pooled_cubes(network: UNet3dBackbone) -> None:
    with torch.no_grad():
        features = network.eval()(torch.rand(32, 1, 16, 16, 16), False)[0]
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    wanted = math.exp(-(shares * np.log(shares)).sum())
    assert representation_health(features).as_metrics()["val/rankme"] == pytest.approx(wanted, rel=1e-3)
