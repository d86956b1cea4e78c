"""What is said of two starts, on figures whose answer is known."""

import numpy as np
import pytest

from dira_dist.quickstart.few_labels import PRETRAINED, RANDOM, StartsCompared

PATIENTS = [f"patient-{number // 2}" for number in range(40)]


def _compared(gains: list[float], spread: float = 0.01) -> StartsCompared:
    """A gain for each draw, and images about it."""
    random = np.random.default_rng(0)
    before = random.uniform(0.7, 0.8, (len(gains), len(PATIENTS)))
    noise = random.normal(0, spread, before.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    return StartsCompared({RANDOM: before, PRETRAINED: before + noise + np.array(gains)[:, None]}, PATIENTS)


def test_a_gain_in_all_draws_and_patients_is_sure() -> None:
    compared = _compared([0.05, 0.04, 0.06])
    assert compared.gain.value == pytest.approx(0.05)
    assert 0.03 < compared.gain.low < 0.05 < compared.gain.high < 0.07
    assert compared.is_sure
    assert "pretraining pays: +0.050" in "\n".join(compared.lines())


@pytest.mark.parametrize(("gains", "spread"), [([0.05, 0.06, -0.01], 0.01), ([0.01, 0.01, 0.01], 0.2), ([-0.05], 0.01)])
def test_a_draw_that_loses_and_patients_that_differ_are_not(gains: list[float], spread: float) -> None:
    compared = _compared(gains, spread)
    assert not compared.is_sure
    assert "no gain to be sure of" in "\n".join(compared.lines())


def test_the_interval_is_over_patients_and_not_over_images() -> None:
    """Twice the images of each patient tell nothing new."""
    once = _compared([0.05], 0.05)
    twice = StartsCompared(
        {start: np.repeat(found, 2, axis=1) for start, found in once.dice.items()},
        [patient for patient in PATIENTS for _ in range(2)],
    )
    assert twice.gain.high - twice.gain.low == pytest.approx(once.gain.high - once.gain.low, rel=0.05)
