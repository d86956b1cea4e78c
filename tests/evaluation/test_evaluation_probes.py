"""Probes against scikit-learn and loops written down independently."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.probes import (
    bootstrap_interval,
    encode_labels,
    knn_probe,
    label_subset,
    linear_probe,
    probe_metric_names,
    probe_metrics,
    shared_classes,
    weighted_auroc,
)

SETS = {"binary": ["ill", "well"], "multiclass": ["a", "b", "c"]}


def labelled(names: list[str], count: int, seed: int, spread: float = 1.2) -> tuple[Tensor, list[Any]]:
    """Features around one centre per class, and the classes."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, len(names), count)
    centres = np.random.default_rng(99).normal(size=(len(names), 8))
    features = centres[classes] + spread * generator.normal(size=(count, 8))
    return torch.from_numpy(features).float(), [names[index] for index in classes]


def findings(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Features, and any number of findings for each."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 8))
    signs = features[:, :3] + 0.5 * generator.normal(size=(count, 3)) > 0.3
    words = ["Effusion", "Mass", "Nodule"]
    return torch.from_numpy(features).float(), [
        "|".join(w for w, s in zip(words, row, strict=True) if s) for row in signs
    ]


def test_labels_are_read_as_what_they_are() -> None:
    binary = encode_labels([0, 1, 1], [1, 0])
    assert (binary.kind, binary.classes) == ("binary", ("0", "1"))
    assert binary.train.tolist() == [[True, False], [False, True], [False, True]]
    assert encode_labels([True, False], [False, True]).classes == ("False", "True")
    several = encode_labels(["a", "b", "c"], ["c", "a", "b"])
    assert (several.kind, several.classes) == ("multiclass", ("a", "b", "c"))
    many = encode_labels(["a|b", "", "b", "c"], [["a"], ["b", "a"], [], ["c", "b"]])
    assert (many.kind, many.classes) == ("multilabel", ("a", "b", "c"))
    assert many.train.tolist() == [
        [True, True, False],
        [False, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_a_label_that_cannot_be_evaluated_is_left_out_of_many_and_refused_alone() -> None:
    many = encode_labels(["a|b", "b", ""], ["a", "", "a"])  # b is never there in val
    assert many.classes == ("a",)
    with pytest.raises(RequestError, match=r"'finding' has one class only \(ill\)"):
        encode_labels(["ill", "ill"], ["ill"], "finding")
    with pytest.raises(RequestError, match=r"c does not stand beside another class"):
        encode_labels(["a", "b", "c"], ["a", "b", "b"])
    with pytest.raises(RequestError, match="2 samples"):
        encode_labels(["a", None], ["b", None])


def test_samples_of_classes_that_one_set_lacks_are_left_out() -> None:
    train, val = shared_classes(["a", "b", "c", "a", "d"], ["b", "e", "a", "c"])
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3], [0, 2, 3])
    kept = shared_classes(["a|b", "b", ""], ["a", "", "a"])
    assert [places.tolist() for places in kept] == [[0, 1, 2], [0, 1, 2]], "with several at once no sample goes"
    with pytest.raises(RequestError, match=r"'finding': probe.train holds ill, well and probe.val ill; .*two classes"):
        shared_classes(["ill", "well"], ["ill"], "finding")


def test_a_class_that_the_val_set_lacks_leaves_the_figures_of_the_others() -> None:
    """A rare class that a split by patient has put into one part; scikit-learn on the rest says the same."""
    names = ["a", "b", "c", "rare", "late"]
    train_x, train_y = labelled(names, 200, 0)
    val_x, val_y = labelled(names, 120, 1)
    train = [place for place, name in enumerate(train_y) if name != "late"]
    val = [place for place, name in enumerate(val_y) if name != "rare"]
    config = ProbeConfig(train="a", val="b", label="f", label_fractions=(1.0,), bootstrap=20)
    found = probe_metrics(config, train_x[train], [train_y[i] for i in train], val_x[val], [val_y[i] for i in val])
    assert list(found) == probe_metric_names(config)
    ours, theirs = ([i for i, name in enumerate(labels) if name in "abc"] for labels in (train_y, val_y))
    scaler = StandardScaler().fit(train_x[ours].numpy())
    model = LogisticRegression(max_iter=1000)
    model.fit(scaler.transform(train_x[ours].numpy()), [train_y[i] for i in ours])
    inputs, truth = scaler.transform(val_x[theirs].numpy()), [val_y[i] for i in theirs]
    area = roc_auc_score(truth, model.predict_proba(inputs), multi_class="ovr", average="macro")
    assert found["probe/auroc"] == pytest.approx(area, rel=1e-4)
    assert found["probe/accuracy"] == pytest.approx(accuracy_score(truth, model.predict(inputs)))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_knn_is_the_vote_of_neighbours_weighted_by_similarity(kind: str) -> None:
    train_x, train_y = labelled(SETS[kind], 120, 0)
    val_x, val_y = labelled(SETS[kind], 60, 1)
    targets = encode_labels(train_y, val_y)
    found = knn_probe(train_x, val_x, targets, k=11, temperature=0.1)
    unit_train, unit_val = (
        x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (train_x, val_x)
    )
    votes = np.zeros((60, len(SETS[kind])))
    for i in range(60):
        similarity = unit_train @ unit_val[i]
        for j in np.argsort(-similarity)[:11]:
            votes[i, SETS[kind].index(train_y[j])] += math.exp(similarity[j] / 0.1)
    expected = [SETS[kind][index] for index in votes.argmax(axis=1)]
    assert found.accuracy == pytest.approx(accuracy_score(val_y, expected))
    shares = votes / votes.sum(axis=1, keepdims=True)
    if kind == "binary":
        area = roc_auc_score([y == "well" for y in val_y], shares[:, 1])
    else:
        area = roc_auc_score(val_y, shares, multi_class="ovr", average="macro")
    assert found.auroc == pytest.approx(area)
    assert 0.6 < found.auroc < 1


def test_every_setting_of_knn_changes_something_and_extremes_hold() -> None:
    train_x, train_y = labelled(SETS["binary"], 120, 0)
    val_x, val_y = labelled(SETS["binary"], 60, 1)
    targets = encode_labels(train_y, val_y)
    base = knn_probe(train_x, val_x, targets, k=11, temperature=0.1).auroc
    assert knn_probe(train_x, val_x, targets, k=3, temperature=0.1).auroc != base
    assert knn_probe(train_x, val_x, targets, k=11, temperature=1.0).auroc != base
    assert math.isfinite(knn_probe(train_x, val_x, targets, k=10_000, temperature=1e-4).auroc)


def test_the_linear_probe_is_scikit_learns_logistic_regression() -> None:
    train_x, train_y = labelled(SETS["multiclass"], 150, 0)
    val_x, val_y = labelled(SETS["multiclass"], 80, 1)
    found = linear_probe(train_x, val_x, encode_labels(train_y, val_y))
    scaler = StandardScaler().fit(train_x.numpy())
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(train_x.numpy()), train_y)
    scores = model.predict_proba(scaler.transform(val_x.numpy()))
    assert found.accuracy == pytest.approx(accuracy_score(val_y, model.predict(scaler.transform(val_x.numpy()))))
    assert found.auroc == pytest.approx(roc_auc_score(val_y, scores, multi_class="ovr"), rel=1e-4)


def test_several_findings_at_once_are_evaluated_one_by_one() -> None:
    train_x, train_y = findings(200, 0)
    val_x, val_y = findings(100, 1)
    targets = encode_labels(train_y, val_y)
    found = linear_probe(train_x, val_x, targets)
    areas, right = [], []
    for column, word in enumerate(("Effusion", "Mass", "Nodule")):
        model = LogisticRegression(max_iter=1000).fit(train_x.numpy(), [word in y for y in train_y])
        scores = model.predict_proba(val_x.numpy())[:, 1]
        areas.append(roc_auc_score(targets.val[:, column], scores))
        right.append(((scores > 0.5) == targets.val[:, column]).mean())
    assert found.auroc == pytest.approx(np.mean(areas), abs=5e-3)  # standardisation regularises a little differently
    assert found.accuracy == pytest.approx(np.mean(right), abs=0.02)
    assert knn_probe(train_x, val_x, targets).auroc > 0.75


def test_features_without_information_score_by_chance_and_perfect_ones_perfectly() -> None:
    _, train_y = labelled(SETS["binary"], 300, 0)
    _, val_y = labelled(SETS["binary"], 300, 1)
    targets = encode_labels(train_y, val_y)
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    assert abs(linear_probe(noise, other, targets).auroc - 0.5) < 0.1
    truth = torch.from_numpy(targets.train).float(), torch.from_numpy(targets.val).float()
    assert linear_probe(*truth, targets).auroc == 1
    assert knn_probe(*truth, targets).accuracy == 1


def test_a_share_of_the_labels_holds_every_class_and_grows() -> None:
    labels = np.zeros((200, 3), bool)
    labels[np.arange(200), np.r_[[0, 1], np.full(198, 2)]] = True
    small, large = label_subset(labels, 0.05), label_subset(labels, 0.5)
    assert labels[small].any(axis=0).all()
    assert 10 <= len(small) <= 12
    assert len(set(small) - set(large)) <= 2  # but those added for a class
    assert not np.array_equal(small, label_subset(labels, 0.05, seed=1))
    assert np.array_equal(label_subset(labels, 1.0), np.arange(200))


def test_fewer_labels_make_a_worse_probe() -> None:
    train_x, train_y = labelled(SETS["multiclass"], 400, 0, spread=1.5)
    val_x, val_y = labelled(SETS["multiclass"], 200, 1, spread=1.5)
    targets = encode_labels(train_y, val_y)
    assert linear_probe(train_x, val_x, targets, fraction=0.02).auroc < linear_probe(train_x, val_x, targets).auroc


def test_the_weighted_auroc_is_scikit_learns_with_sample_weights() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 50) / 5.0  # many ties
    truth = generator.random(50) > 0.6
    weights = generator.integers(0, 4, (20, 50))
    found = weighted_auroc(scores, truth, weights)
    expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    assert found == pytest.approx(expected)
    assert np.isnan(weighted_auroc(scores, truth, truth[None].astype(int))).all()


def test_the_bootstrap_interval_is_that_of_explicit_resamples() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((80, 1)) > 0.5
    scores = truth + generator.normal(size=(80, 1))
    low, high = bootstrap_interval(scores, truth, 2000)
    areas = []
    for _ in range(800):
        drawn = generator.integers(0, 80, 80)
        if 0 < truth[drawn].sum() < 80:
            areas.append(roc_auc_score(truth[drawn, 0], scores[drawn, 0]))
    assert (low, high) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=0.02)
    assert low < roc_auc_score(truth, scores) < high
    assert bootstrap_interval(scores, truth, 50) == bootstrap_interval(scores, truth, 50)


def test_the_metrics_carry_the_configured_fractions_and_interval() -> None:
    train_x, train_y = labelled(SETS["binary"], 100, 0)
    val_x, val_y = labelled(SETS["binary"], 60, 1)
    config = ProbeConfig(train="a", val="b", label="finding", label_fractions=(0.1, 0.25), bootstrap=50)
    metrics = probe_metrics(config, train_x, train_y, val_x, val_y)
    bases = ("probe/auroc", "probe/auroc_10pct", "probe/auroc_25pct")
    assert set(metrics) == {"probe/knn_accuracy", "probe/knn_auroc"} | {
        name for base in bases for name in (base, f"{base}_low", f"{base}_high", base.replace("auroc", "accuracy"))
    }
    assert all(metrics[f"{base}_low"] <= metrics[base] <= metrics[f"{base}_high"] for base in bases)
    assert list(metrics) == probe_metric_names(config)
    plain = ProbeConfig(train="a", val="b", label="f", bootstrap=0)
    named = list(probe_metrics(plain, train_x, train_y, val_x, val_y))
    assert named == probe_metric_names(plain)
    assert {f"probe/auroc{share}" for share in ("_1pct", "_10pct", "_25pct", "")} <= set(named)
