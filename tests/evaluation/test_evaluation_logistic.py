"""The fit against scikit-learn's, and folds that keep groups together."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dira_dist.evaluation.logistic import (
    PLAIN_STRENGTH,
    STRENGTHS,
    choose_and_fit,
    choose_strength,
    fit_logistic,
    group_folds,
)


def noisy(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard features ``(N, 6)``, and which of three classes each sample has, by the first three with noise."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(samples, 6)).astype(np.float32)
    classes = (inputs[:, :3] + 2 * generator.normal(size=(samples, 3))).argmax(axis=1)
    return inputs, np.eye(3, dtype=bool)[classes]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_fit_is_scikit_learns(strength: float) -> None:
    inputs, labels = noisy(300)
    found = fit_logistic(inputs, labels, strength, exclusive=True)
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(inputs, labels.argmax(axis=1))
    assert found[:-1] == pytest.approx(model.coef_.T, abs=5e-3)
    each = fit_logistic(inputs, labels, strength, exclusive=False)
    for column in range(3):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(inputs, labels[:, column])
        assert each[:-1, column] == pytest.approx(model.coef_[0], abs=5e-3)
        assert each[-1, column] == pytest.approx(model.intercept_[0], abs=5e-3)
    begun = fit_logistic(inputs, labels, strength, exclusive=False, start=each + 0.3)
    assert begun == pytest.approx(each, abs=1e-2), "wherever it begins"


def test_a_label_that_all_or_none_have_is_the_answer_for_everyone() -> None:
    inputs, labels = noisy(60)
    labels[:, 0], labels[:, 1] = True, False
    model = choose_and_fit(inputs, labels, np.arange(60), exclusive=False)
    found = model.probabilities(inputs)
    assert (found[:, 0] == 1).all()
    assert (found[:, 1] == 0).all()
    assert np.ptp(found[:, 2]) > 0
    nothing = choose_and_fit(inputs, labels[:, :2], np.arange(60), exclusive=False)
    assert nothing.probabilities(inputs).tolist() == [[1, 0]] * 60


def test_features_are_standardised_by_those_that_are_learned_from() -> None:
    inputs, labels = noisy(100)
    stretched = inputs * np.float32([1, 100, 1e-3, 1, 1, 0]) + np.float32(5)
    plain = choose_and_fit(np.hstack([inputs[:, :5], inputs[:, :1] * 0]), labels, np.arange(100), exclusive=True)
    other = choose_and_fit(stretched, labels, np.arange(100), exclusive=True)
    expected = plain.probabilities(np.hstack([inputs[:, :5], inputs[:, :1] * 0]))
    assert other.probabilities(stretched) == pytest.approx(expected, abs=1e-2)


def test_no_group_is_on_both_sides_of_a_fold_and_every_class_can_be_learned() -> None:
    _, labels = noisy(120)
    groups = np.repeat(np.arange(30), 4)
    labels[:] = labels[groups * 4]  # one class for each group
    labels[:116, 2], labels[116:] = False, [False, False, True]  # of the last class there is one group
    labels[:116, 0] = ~labels[:116, 1]
    folds = group_folds(labels, groups, exclusive=True)
    assert len(folds) == 4, "the fold that holds the last class out cannot learn it"
    for learned, held in folds:
        assert not set(groups[learned]) & set(groups[held])
        assert labels[learned].any(axis=0).all()
    assert len(group_folds(labels, groups, exclusive=False)) == 5


def test_too_few_groups_leave_the_plain_strength() -> None:
    inputs, labels = noisy(8)
    assert choose_strength(inputs, labels, np.zeros(8, dtype=np.int64), exclusive=True) == PLAIN_STRENGTH
    assert group_folds(np.eye(3, dtype=bool), np.arange(3), exclusive=True) == []


def test_noise_is_regularised_more_than_a_signal() -> None:
    inputs, labels = noisy(150)
    generator = np.random.default_rng(3)
    clear = np.eye(3, dtype=bool)[inputs[:, :3].argmax(axis=1)]
    chance = np.eye(3, dtype=bool)[generator.integers(0, 3, 150)]
    strengths = [choose_strength(inputs, each, np.arange(150), exclusive=True) for each in (chance, labels, clear)]
    assert strengths == sorted(strengths)
    assert strengths[0] < strengths[2]
