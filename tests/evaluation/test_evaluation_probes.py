"""Probes against scikit-learn and loops written down independently; with labels by chance they score by chance."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.logistic import STRENGTHS
from dira_dist.evaluation.probes import (
    LabelledSet,
    Targets,
    apart,
    bootstrap_interval,
    choose_k,
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


def of_patients(names: list[str], patients: int, images: int, seed: int) -> tuple[Tensor, list[Any], list[str]]:
    """Images of patients who each have a class and a look of their own that tells nothing of it."""
    generator = np.random.default_rng(seed)
    classes = np.repeat(generator.integers(0, len(names), patients), images)
    looks = np.repeat(generator.normal(size=(patients, 40)), images, axis=0)
    features = looks + 0.1 * generator.normal(size=looks.shape)
    features[:, : len(names)] += 0.8 * np.eye(len(names))[classes]
    groups = [f"{seed}-{place // images}" for place in range(patients * images)]
    return torch.from_numpy(features).float(), [names[index] for index in classes], groups


def targets_of(train: tuple[Tensor, list[Any], list[str]], val: tuple[Tensor, list[Any], list[str]]) -> Targets:
    return encode_labels(train[1], val[1], train_groups=train[2], val_groups=val[2])


def alone(features: Tensor, labels: list[Any], side: str) -> LabelledSet:
    """Each sample a patient of its own."""
    return LabelledSet(features, labels, [f"{side}{place}" for place in range(len(labels))])


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
    sets = alone(train_x[train], [train_y[i] for i in train], "t"), alone(val_x[val], [val_y[i] for i in val], "v")
    found = probe_metrics(config, *sets)
    assert sorted(found) == sorted(probe_metric_names(config))
    ours, theirs = ([i for i, name in enumerate(labels) if name in "abc"] for labels in (train_y, val_y))
    truth = [val_y[i] for i in theirs]
    scores = slow_linear_probe(train_x[ours].numpy(), [train_y[i] for i in ours], np.arange(len(ours)), val_x[theirs])
    area = roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert found["probe/auroc"] == pytest.approx(area, rel=1e-3)
    assert found["probe/accuracy"] == pytest.approx(accuracy_score(truth, np.array(list("abc"))[scores.argmax(1)]))


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


def slow_linear_probe(train_x: np.ndarray, train_y: list[Any], groups: np.ndarray, val_x: Tensor) -> np.ndarray:
    """Probabilities by scikit-learn: every strength on every fold, and the least held-out cross-entropy of them all."""
    inputs, outputs = (StandardScaler().fit(train_x).transform(x) for x in (train_x, val_x.numpy()))
    names = sorted(set(train_y))
    y = np.array([names.index(name) for name in train_y])
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for learned, held in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(inputs, y, groups):
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=5000, tol=1e-6).fit(inputs[learned], y[learned])
            found = model.predict_proba(inputs[held])
            losses[strength] += log_loss(y[held], found, labels=range(len(names)), normalize=False)
    best = min(losses, key=lambda strength: losses[strength])
    assert STRENGTHS[0] < best < STRENGTHS[-1], "the test's own sets have their best inside"
    return LogisticRegression(C=best, max_iter=5000, tol=1e-6).fit(inputs, y).predict_proba(outputs)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_linear_probe_is_scikit_learns_with_the_best_strength_of_a_search_by_patient(kind: str) -> None:
    train, val = of_patients(SETS[kind], 60, 4, 0), of_patients(SETS[kind], 40, 2, 1)
    found = linear_probe(train[0], val[0], targets_of(train, val))
    numbers = np.unique(train[2], return_inverse=True)[1]
    scores = slow_linear_probe(train[0].numpy(), train[1], numbers, val[0])
    area = roc_auc_score(val[1], scores[:, 1] if kind == "binary" else scores, multi_class="ovr")
    assert found.auroc == pytest.approx(area, rel=1e-3)
    assert found.accuracy == pytest.approx(accuracy_score(val[1], np.array(SETS[kind])[scores.argmax(axis=1)]))


def test_a_search_that_parts_patients_regularises_more_than_one_that_does_not() -> None:
    """Images of one patient on both sides of a fold make learning looks by heart seem right."""
    train, val = of_patients(SETS["binary"], 60, 6, 0), of_patients(SETS["binary"], 60, 2, 1)
    fair = linear_probe(train[0], val[0], targets_of(train, val))
    fooled = linear_probe(train[0], val[0], encode_labels(train[1], val[1]))
    assert fair.auroc > fooled.auroc + 0.01


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
    assert found.auroc == pytest.approx(np.mean(areas), abs=5e-3)  # another regularisation, of standardised features
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


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_labels_by_chance_score_by_chance(kind: str) -> None:
    """Patients have looks, and labels that nothing tells: no choice of a probe may make something of it."""
    generator, areas = np.random.default_rng(0), []
    config = ProbeConfig(train="a", val="b", label="f", label_fractions=(0.1,), bootstrap=0, label_draws=3)
    for trial in range(6):
        sets = []
        for side in range(2):
            features, _, groups = of_patients(["x"], 50, 4, 2 * trial + side)
            drawn = generator.integers(0, 3, 50)
            words = {"binary": ["a", "b", "b"], "multiclass": ["a", "b", "c"], "multilabel": ["a|b", "b", ""]}[kind]
            sets.append(LabelledSet(features, [words[drawn[place // 4]] for place in range(200)], groups))
        found = probe_metrics(config, *sets)
        areas.append([found[name] for name in ("probe/auroc", "probe/auroc_10pct", "probe/knn_auroc")])
    assert np.mean(areas, axis=0) == pytest.approx(0.5, abs=0.06)


def test_a_share_of_the_labels_holds_every_class_and_grows() -> None:
    labels = np.zeros((200, 3), bool)
    labels[np.arange(200), np.r_[[0, 1], np.full(198, 2)]] = True
    small, large = label_subset(labels, 0.05), label_subset(labels, 0.5)
    assert labels[small].any(axis=0).all()
    assert 10 <= len(small) <= 12
    assert len(set(small) - set(large)) <= 2  # but those added for a class
    assert not np.array_equal(small, label_subset(labels, 0.05, seed=1))
    assert np.array_equal(label_subset(labels, 1.0), np.arange(200))


def test_a_share_of_the_labels_is_a_share_of_the_patients() -> None:
    labels, groups = np.ones((60, 1), bool), np.repeat(np.arange(20), 3)
    chosen = label_subset(labels, 0.25, groups=groups)
    assert len(chosen) == 15
    assert sorted(np.bincount(groups[chosen], minlength=20)) == [0] * 15 + [3] * 5


def test_draws_of_few_labels_give_their_mean_and_spread() -> None:
    train_x, train_y = labelled(SETS["multiclass"], 400, 0, spread=1.5)
    val_x, val_y = labelled(SETS["multiclass"], 200, 1, spread=1.5)
    targets = encode_labels(train_y, val_y)
    few = linear_probe(train_x, val_x, targets, fraction=0.02, draws=4, bootstrap=50)
    each = [linear_probe(train_x, val_x, targets, fraction=0.02, seed=seed) for seed in range(4)]
    assert few.auroc == pytest.approx(np.mean([one.auroc for one in each]))
    assert few.accuracy == pytest.approx(np.mean([one.accuracy for one in each]))
    assert few.spread == pytest.approx(np.std([one.auroc for one in each], ddof=1))
    assert few.low < few.auroc < few.high
    whole = linear_probe(train_x, val_x, targets, draws=4)
    assert few.auroc < whole.auroc
    assert math.isnan(whole.spread), "all labels can be drawn in one way only"


def test_the_number_of_neighbours_is_chosen_on_other_patients_of_the_training_set() -> None:
    train, val = of_patients(SETS["multiclass"], 40, 5, 0), of_patients(SETS["multiclass"], 20, 2, 1)
    targets = targets_of(train, val)
    areas, unit = {}, train[0].double().numpy() / np.linalg.norm(train[0].double().numpy(), axis=1)[:, None]
    for k in (1, 4, 15, 60):
        shares = []
        for place in range(200):
            others = [other for other in range(200) if train[2][other] != train[2][place]]
            nearest = sorted(others, key=lambda other: -unit[place] @ unit[other])[:k]
            votes = [
                sum(math.exp(unit[place] @ unit[other] / 0.1) for other in nearest if train[1][other] == name)
                for name in SETS["multiclass"]
            ]
            shares.append(np.array(votes) / sum(votes))
        areas[k] = roc_auc_score(train[1], np.array(shares), multi_class="ovr", average="macro")
    chosen = choose_k(train[0], targets, tuple(areas), 0.1)
    assert chosen == max(areas, key=lambda k: areas[k])
    assert choose_k(train[0], encode_labels(train[1], val[1]), tuple(areas), 0.1) < chosen, "one's own images are near"
    relabelled = encode_labels(train[1], val[1][::-1], train_groups=train[2], val_groups=val[2])
    assert choose_k(train[0], relabelled, tuple(areas), 0.1) == chosen, "whatever val says"
    assert choose_k(train[0], targets, (7,), 0.1) == 7


def test_of_patients_that_both_sets_hold_nothing_is_learned_and_that_is_told() -> None:
    kept, common = apart(["p", "q", "q", "r"], ["q", "s", "q", "r"])
    assert (kept.tolist(), common) == ([0], 0.75)
    assert [apart(["p"], ["q"])[0].tolist(), apart(["p"], ["q"])[1]] == [[0], 0.0]
    with pytest.raises(RequestError, match=r"every sample .* in probe.val, too \(2 samples.*--group-by patient"):
        apart(["p", "q"], ["p", "q", "r"])


def test_images_of_val_among_those_of_train_do_not_make_a_probe_better() -> None:
    """Random labels and half of val in train: learned by heart they would score far above chance."""
    generator = np.random.default_rng(0)
    features = torch.from_numpy(generator.normal(size=(300, 30))).float()
    labels = [("a", "b")[value] for value in generator.integers(0, 2, 300)]
    keys = [str(number) for number in range(300)]
    train, val = (LabelledSet(features[p], labels[p], keys[p]) for p in (slice(0, 250), slice(150, 300)))
    config = ProbeConfig(train="a", val="b", label="f", label_fractions=(1.0,), bootstrap=0)
    found = probe_metrics(config, train, val)
    assert found["probe/common_groups"] == pytest.approx(2 / 3)
    assert found["probe/auroc"] == pytest.approx(0.5, abs=0.12)
    assert found["probe/knn_auroc"] == pytest.approx(0.5, abs=0.12)


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


def test_the_interval_is_over_patients() -> None:
    """Images of one patient say the same, so that ten of each leave the interval as wide as one of each does."""
    generator = np.random.default_rng(0)
    truth = generator.random((60, 1)) > 0.5
    scores = truth + generator.normal(size=(60, 1))
    one = bootstrap_interval(scores, truth, 2000)
    ten = np.repeat(scores, 10, axis=0), np.repeat(truth, 10, axis=0)
    assert bootstrap_interval(*ten, 2000, groups=np.repeat(np.arange(60), 10)) == pytest.approx(one, abs=1e-9)
    low, high = bootstrap_interval(*ten, 2000)
    assert high - low < 0.5 * (one[1] - one[0])
    uneven = np.r_[np.zeros(30, int), np.arange(1, 31)]
    areas = []
    for _ in range(500):
        rows = np.concatenate([np.flatnonzero(uneven == group) for group in generator.integers(0, 31, 31)])
        if 0 < truth[rows].sum() < len(rows):
            areas.append(roc_auc_score(truth[rows, 0], scores[rows, 0]))
    found = bootstrap_interval(scores, truth, 2000, groups=uneven)
    assert found == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=0.03)


def test_the_metrics_carry_the_configured_fractions_and_interval() -> None:
    train, val = alone(*labelled(SETS["binary"], 100, 0), "t"), alone(*labelled(SETS["binary"], 60, 1), "v")
    config = ProbeConfig(train="a", val="b", label="finding", label_fractions=(0.1, 0.25), bootstrap=50, k=7)
    metrics = probe_metrics(config, train, val)
    few = ("probe/auroc_10pct", "probe/auroc_25pct")
    areas = ("probe/auroc", "probe/knn_auroc", *few)
    assert set(metrics) == {
        "probe/common_groups",
        "probe/knn_k",
        *areas,
        *(name.replace("auroc", "accuracy") for name in areas),
        *(f"{name}{end}" for name in areas for end in ("_low", "_high")),
        *(f"{name}_spread" for name in few),
    }
    assert all(metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] for name in areas)
    assert metrics["probe/knn_k"] == 7
    assert set(metrics) == set(probe_metric_names(config))
    plain = ProbeConfig(train="a", val="b", label="f", bootstrap=0, label_draws=1)
    named = set(probe_metrics(plain, train, val))
    assert named == set(probe_metric_names(plain))
    assert {f"probe/auroc{share}" for share in ("_1pct", "_10pct", "_25pct", "")} <= named
    assert not [name for name in named if name.endswith(("_low", "_spread"))]


@pytest.mark.parametrize("val", ["sets/a", "./sets/a/", "sets//a", "sets/b/../a"])
def test_a_set_is_not_judged_on_itself(val: str) -> None:
    with pytest.raises(ValueError, match=r"train and val are both .*split by patient"):
        ProbeConfig(train="sets/a", val=val, label="finding")
    assert ProbeConfig(train="s3://bucket/a", val="s3://bucket/b", label="finding").neighbours == (5, 20, 100)
