"""Label-free figures against their formulas written down independently, and the collapse alarm."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dira_dist.evaluation.rank import feature_std, rankme, representation_health, uniformity, view_distances


def gaussian(count: int = 200, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = gaussian().double() @ torch.diag(torch.linspace(0.1, 3, 16).double())
    eigenvalues = np.linalg.eigvalsh((features.T @ features).numpy())
    shares = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum() + 1e-7
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_counts_directions_of_equal_strength(rank: int) -> None:
    basis = torch.linalg.qr(gaussian(64, 16))[0][:, :rank]
    assert rankme(basis @ torch.linalg.qr(gaussian(16, 16, 1))[0][:rank]) == pytest.approx(rank, rel=1e-3)


def test_rankme_does_not_depend_on_scale_or_rotation() -> None:
    features, rotation = gaussian(), torch.linalg.qr(gaussian(16, 16, 2))[0]
    assert rankme(7 * features @ rotation) == pytest.approx(rankme(features), rel=1e-5)
    assert 14 < rankme(features) <= 16.01


def test_uniformity_and_alignment_are_their_formulas() -> None:
    features, other = gaussian(30), gaussian(30, seed=1)
    unit, unit_other = (
        x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (features, other)
    )
    distances = [((unit[i] - unit[j]) ** 2).sum() for i in range(30) for j in range(i)]
    assert uniformity(features) == pytest.approx(np.log(np.mean(np.exp(-2 * np.array(distances)))), rel=1e-9)
    assert view_distances(features, other).mean().item() == pytest.approx(
        ((unit - unit_other) ** 2).sum(axis=1).mean(), rel=1e-9
    )
    assert view_distances(features, other, alpha=1).mean().item() == pytest.approx(
        np.linalg.norm(unit - unit_other, axis=1).mean()
    )
    assert view_distances(features, 3 * features).mean().item() == pytest.approx(0, abs=1e-12)


def test_feature_std_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert feature_std(gaussian(5000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(50, 64)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "collapsed",
    [torch.ones(100, 32), torch.zeros(100, 32), torch.linspace(1, 9, 100)[:, None] * torch.ones(1, 32)],
    ids=["a point", "the origin", "a line"],
)
def test_a_collapsed_encoder_has_rank_one_and_raises_the_alarm(collapsed: Tensor) -> None:
    assert rankme(collapsed) == pytest.approx(1, abs=0.01)
    assert representation_health(collapsed).collapsed == 1.0


def test_a_healthy_encoder_raises_no_alarm() -> None:
    health = representation_health(gaussian())
    assert health.collapsed == 0.0
    assert set(health.as_metrics()) == {"val/rankme", "val/feature_std", "val/uniformity", "val/collapsed"}


def test_features_that_cannot_be_evaluated_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        rankme(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        rankme(torch.ones(3))
    with pytest.raises(ValueError, match="two or more"):
        uniformity(torch.ones(1, 4))
