"""Each loss against a plain statement in loops, on random input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dira_dist.objectives.adversarial import adversarial_loss, discriminator_loss
from dira_dist.objectives.barlow_twins import EPSILON, barlow_twins_loss, cross_correlation
from dira_dist.objectives.moco_v2 import enqueue, info_nce_loss
from dira_dist.objectives.restorative import restorative_loss
from dira_dist.objectives.simsiam import simsiam_loss

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(seeds, sizes, st.integers(1, 9), sizes, st.floats(0.05, 2))
def test_info_nce(seed: int, batch: int, queue_size: int, outputs: int, temperature: float) -> None:
    queries, keys, queue = (
        F.normalize(_random(seed + i, n, outputs), dim=1) for i, n in enumerate((batch, batch, queue_size))
    )
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(float(query @ key) / temperature)
        others = sum(math.exp(float(query @ other) / temperature) for other in queue)
        total -= math.log(own / (own + others))
    assert float(info_nce_loss(queries, keys, queue, temperature)) == pytest.approx(total / batch, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.lists(st.integers(1, 17), min_size=1, max_size=6))
def test_enqueue_keeps_the_newest_for_any_queue_and_batch(size: int, batches: list[int]) -> None:
    queue, position, told = torch.full((size, 1), -1.0), 0, 0
    ring = [-1.0] * size
    for batch in batches:
        keys = torch.arange(told, told + batch, dtype=torch.float32)[:, None]
        position = enqueue(queue, position, keys)
        for key in range(told, told + batch):
            ring[key % size] = float(key)
        told += batch
        assert queue[:, 0].tolist() == ring
        assert position == told % size


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(2, 6), sizes, st.floats(0, 1))
def test_barlow_twins(seed: int, batch: int, features: int, off_diagonal: float) -> None:
    first, second = _random(seed, batch, features), _random(seed + 1, batch, features)
    total = 0.0
    for i in range(features):
        for j in range(features):
            a = [float(x) for x in first[:, i] - first[:, i].mean()]
            b = [float(x) for x in second[:, j] - second[:, j].mean()]
            variance_a, variance_b = sum(x * x for x in a) / batch, sum(x * x for x in b) / batch
            product = sum(x * y for x, y in zip(a, b, strict=True)) / batch
            c = product / math.sqrt((variance_a + EPSILON) * (variance_b + EPSILON))
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    assert float(barlow_twins_loss(cross_correlation(first, second, batch), off_diagonal)) == pytest.approx(total)


def test_cross_correlation_of_a_view_with_itself_is_one_on_the_diagonal() -> None:
    view = _random(0, 64, 5) * 7 + 3
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(cross_correlation(view, view, 64).diagonal(), ones, rtol=EPSILON, atol=0)


@settings(deadline=None, max_examples=20)
@given(seeds, sizes, sizes)
def test_simsiam(seed: int, batch: int, outputs: int) -> None:
    p1, p2, z1, z2 = (_random(seed + i, batch, outputs) for i in range(4))
    total = 0.0
    for i in range(batch):
        for p, z in ((p1[i], z2[i]), (p2[i], z1[i])):
            total -= 0.5 * float(p @ z) / (float(p.norm()) * float(z.norm()))
    assert float(simsiam_loss(p1, p2, z1, z2)) == pytest.approx(total / batch)


def test_simsiam_projections_stand_still() -> None:
    p1, p2, z1, z2 = (_random(i, 3, 4).requires_grad_() for i in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert p1.grad is not None and p2.grad is not None
    assert z1.grad is None and z2.grad is None


@settings(deadline=None, max_examples=20)
@given(seeds, sizes, st.integers(1, 4))
def test_restorative(seed: int, batch: int, side: int) -> None:
    restoration, target = _random(seed, batch, 1, side, side), _random(seed + 1, batch, 1, side, side)
    errors = [(float(a) - float(b)) ** 2 for a, b in zip(restoration.flatten(), target.flatten(), strict=True)]
    assert float(restorative_loss(restoration, target)) == pytest.approx(sum(errors) / len(errors))


def _log_sigmoid(score: float) -> float:
    return -math.log(1 + math.exp(-score))


FOOLED = {
    "lsgan": lambda s: (s - 1) ** 2,
    "bce": lambda s: -_log_sigmoid(s),
    "hinge": lambda s: -s,
}
TOLD = {
    "lsgan": (lambda s: (s - 1) ** 2, lambda s: s**2),
    "bce": (lambda s: -_log_sigmoid(s), lambda s: -_log_sigmoid(-s)),
    "hinge": (lambda s: max(0.0, 1 - s), lambda s: max(0.0, 1 + s)),
}


@pytest.mark.parametrize("kind", ["lsgan", "bce", "hinge"])
@settings(deadline=None, max_examples=15)
@given(seeds, sizes)
def test_adversarial(kind: str, seed: int, batch: int) -> None:
    real, restored = 2 * _random(seed, batch, 1, 2, 2), 2 * _random(seed + 1, batch, 1, 2, 2)
    real_scores, restored_scores = real.flatten().tolist(), restored.flatten().tolist()
    on_real, on_restored = TOLD[kind]
    fooled = sum(map(FOOLED[kind], restored_scores)) / len(restored_scores)
    told = 0.5 * (sum(map(on_real, real_scores)) + sum(map(on_restored, restored_scores))) / len(real_scores)
    assert float(adversarial_loss(restored, kind)) == pytest.approx(fooled)
    assert float(discriminator_loss(real, restored, kind)) == pytest.approx(told)


@pytest.mark.parametrize("kind", ["lsgan", "bce", "hinge"])
def test_adversarial_losses_are_float32_at_half_precision(kind: str) -> None:
    scores = torch.randn(2, 1, 3, 3, dtype=torch.bfloat16)
    assert adversarial_loss(scores, kind).dtype == torch.float32
    assert discriminator_loss(scores, scores, kind).dtype == torch.float32


@pytest.mark.parametrize("workers", [2, 4, 32])
def test_barlow_twins_whole_gradient_is_so_many_times_the_published_codes(workers: int) -> None:
    """Why the rate of biases and norms, which no one adapts, is the published one divided by the published workers.

    There each worker adds up the others' terms of the cross-correlation without a gradient, and the workers' gradients
    are averaged. The projections are normalised over the global batch, with gradients, as synchronised norms do.
    """
    images, weights = _random(0, 64, 5), _random(1, 5, 3).requires_grad_()
    views = [images + 0.3 * _random(seed, 64, 5) for seed in (2, 3)]

    def projections() -> list[Tensor]:
        centred = [(view @ weights) - (view @ weights).mean(0) for view in views]
        return [each / (each.square().mean(0) + EPSILON).sqrt() for each in centred]

    whole = barlow_twins_loss(cross_correlation(*(view @ weights for view in views), 64), 0.1)
    (true,) = torch.autograd.grad(whole, weights)
    averaged = torch.zeros_like(true)
    for rows in torch.arange(64).chunk(workers):
        first, second = projections()
        own = first[rows].T @ second[rows] / 64
        summed = own + (first.T @ second / 64 - own).detach()
        averaged += torch.autograd.grad(barlow_twins_loss(summed, 0.1), weights)[0] / workers
    torch.testing.assert_close(averaged * workers, true, rtol=1e-6, atol=0)
