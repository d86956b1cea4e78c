"""Folds by patient: each fit sees what the others hold out, and what is pooled is what they said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.config import RequestError
from dira_dist.data.samples import SampleTable
from dira_dist.evaluation.classification import ClassPredictions
from dira_dist.evaluation.segmentation import SegmentationCase
from dira_dist.training.finetune.folds import hold_out, notes_on_folds
from dira_dist.training.finetune.networks import build_networks, joined
from dira_dist.training.finetune.pooled import pool, pooled_cases, pooled_predictions
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe
from dira_dist.training.finetune.report_tables import cases_csv, predictions_csv, read_calibration
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.task import recipe_of

CLASSIFY = {"name": "classify", "label": "finding", "classes": ["a", "b", "c"], "exclusive": True}
SEGMENT = {"name": "segment", "regions": {"x": [1], "y": [2]}}


def recipe(task: dict[str, Any] = CLASSIFY, **data: Any) -> FinetuneRecipe:
    found = recipe_of(
        {
            "kind": "finetune",
            "name": "a",
            "data": {"train": "t", "folds": 3, "image_size": 32, **data},
            "task": task,
            "model": {"encoder": "tu-test_resnet", "in_channels": 1, "decoder_channels": [8, 8, 8, 8, 8]},
            "report": {"bootstrap": 100},
        }
    )
    assert isinstance(found, FinetuneRecipe)
    return found


def table(groups: list[str]) -> SampleTable:
    count = len(groups)
    return SampleTable(
        keys=tuple(f"k{place}" for place in range(count)),
        labels=({},) * count,
        split_groups=tuple(groups),
        columns=tuple({"sex": "FM"[place % 2]} for place in range(count)),
        has_mask=np.ones(count, dtype=bool),
        boxes=((),) * count,
        spacing_mm=(None,) * count,
        first_byte=np.zeros(count, dtype=np.int64),
        end_byte=np.zeros(count, dtype=np.int64),
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.booleans()), min_size=12, max_size=60),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_folds_are_disjoint_cover_all_and_share_no_patient(
    samples: list[tuple[int, bool, bool]], folds: int, seed: int
) -> None:
    groups = [f"p{patient}" for patient, _, _ in samples]
    classes = np.array([[held, not held] for _, held, _ in samples])
    usable = np.flatnonzero([known for _, _, known in samples])
    fits = [recipe(folds=folds, fold=fold).model_copy(update={"seed": seed}) for fold in range(1, folds + 1)]
    if (count := len({groups[place] for place in usable})) < folds:
        with pytest.raises(RequestError, match=rf"{count} groups \(patients\) cannot fill {folds} folds"):
            hold_out(fits[0], groups, classes, usable)
        return
    held_out: list[int] = []
    for fit in fits:
        parts = hold_out(fit, groups, classes, usable)
        assert parts.held_out is not None
        assert sorted([*parts.learned, *parts.held_out]) == usable.tolist()
        assert not {groups[place] for place in parts.learned} & {groups[place] for place in parts.held_out}
        held_out += parts.held_out.tolist()
    assert sorted(held_out) == usable.tolist(), "each fit dealt them out alike"


def test_folds_have_like_shares_of_each_class() -> None:
    groups = [f"p{place // 2}" for place in range(600)]
    classes = np.stack([np.arange(600) % 10 < 2, np.arange(600) % 20 < 1], axis=1)
    for fold in (1, 2, 3):
        parts = hold_out(recipe(fold=fold), groups, classes, np.arange(600))
        assert parts.held_out is not None
        assert abs(len(parts.held_out) - 200) <= 6
        assert np.abs(classes[parts.held_out].sum(axis=0) - [40, 10]).max() <= 2


def test_other_seeds_hold_out_others() -> None:
    groups, classes = [f"p{place}" for place in range(30)], np.ones((30, 1), dtype=bool)
    found = [
        hold_out(recipe(fold=1).model_copy(update={"seed": seed}), groups, classes, np.arange(30)).held_out
        for seed in (0, 1)
    ]
    assert found[0] is not None and found[1] is not None and set(found[0]) != set(found[1])


def test_a_class_of_fewer_patients_than_folds_is_said() -> None:
    classes = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], dtype=bool)
    said = list(notes_on_folds(3, ["often", "rare"], ["p", "q", "r", "r"], classes, np.arange(4)))
    assert len(said) == 1 and said[0].startswith("data.folds: rare is held by 1 groups (patients), fewer than the 3 ")


def _of_folds(train: SampleTable) -> list[tuple[ClassPredictions, Any]]:
    """What three classifiers say of every third sample, in an order of their own."""
    draw = np.random.default_rng(0)
    found = []
    for fold in range(3):
        places = draw.permutation(np.arange(fold, len(train), 3))
        chances = draw.dirichlet([1, 1, 1], len(places))
        truth = np.eye(3, dtype=np.float32)[draw.integers(0, 3, len(places))]
        keys = [train.keys[place] for place in places]
        groups = [train.groups[place] for place in places]
        found.append((ClassPredictions(keys, groups, np.log(chances), truth, ["a", "b", "c"], "multiclass"), chances))
    return found


def test_pooled_predictions_are_what_each_fold_said() -> None:
    train = table([f"p{place // 2}" for place in range(60)])
    said = _of_folds(train)
    files = [{"predictions-val.csv": predictions_csv(each, chances).encode()} for each, chances in said]
    task = recipe().task
    assert isinstance(task, Classify)
    found = pooled_predictions(task, train, files)
    assert found.keys == list(train.keys) and found.groups == list(train.groups)
    assert [each["sex"] for each in found.columns] == [each["sex"] for each in train.columns]
    chances = np.exp(found.logits) / np.exp(found.logits).sum(axis=1, keepdims=True)
    for each, own in said:
        for key, truth, expected in zip(each.keys, each.targets, own, strict=True):
            row = found.keys.index(key)
            np.testing.assert_allclose(chances[row], expected, atol=1e-11)
            assert found.targets[row].tolist() == truth.tolist()
    with pytest.raises(AssertionError, match="folds do not overlap"):
        pooled_predictions(task, train, [files[0], files[0]])


def test_the_report_takes_pooled_predictions_as_calibrated() -> None:
    train = table([f"p{place // 2}" for place in range(60)])
    files = [{"predictions-val.csv": predictions_csv(each, own).encode()} for each, own in _of_folds(train)]
    found = pool(recipe(), FinetuneSamples(per_epoch=1), train, files)
    report = json.loads(found.report.files["report.json"])
    assert read_calibration(found.report.files) == {"slopes": [1.0] * 3, "intercepts": [0.0] * 3}
    assert report["sets"]["val"]["per_image"]["a"]["groups"] == 30, "intervals by patient"
    assert "val/auroc" in found.figures and "figures out of fold" in found.report.files["report.md"].decode()


def test_pooled_masks_are_those_of_each_fold() -> None:
    train, draw = table([f"p{place}" for place in range(6)]), np.random.default_rng(0)
    names = ("dice", "iou", "volume error", "presence", "chance")
    said = [
        [
            SegmentationCase(
                train.keys[place], train.groups[place], figures={n: draw.random(2).tolist() for n in names}
            )
            for place in (fold + 3, fold)
        ]
        for fold in range(3)
    ]
    said[1][0].figures["dice"][1] = np.nan  # type: ignore[index]
    files = [{"cases-val.csv": cases_csv(cases, ["x", "y"]).encode()} for cases in said]
    found = pooled_cases(recipe(SEGMENT), train, files)
    assert [case.key for case in found] == list(train.keys)
    given_ = {case.key: case for cases in said for case in cases}
    for case in found:
        assert list(case.figures) == list(names) and case.group == given_[case.key].group
        for name in names:
            np.testing.assert_allclose(case.figures[name], given_[case.key].figures[name], rtol=1e-5)


def test_the_networks_of_all_folds_are_joined_by_their_names(tmp_path: Path) -> None:
    """A recipe of all folds builds what the states of its folds fill to the last weight."""
    states = []
    for fold in (1, 2, 3):
        member = build_networks(recipe(fold=fold))
        for weight in member.parameters():
            torch.nn.init.constant_(weight, fold)
        states.append(member.state_dict())
    calibrations = [{"slopes": [fold] * 3, "intercepts": [0.0] * 3} for fold in (1.0, 2.0, 3.0)]
    ensemble = build_networks(recipe())
    ensemble.load_state_dict(joined(recipe(), states, calibrations), strict=True)
    weights = dict(ensemble.named_parameters())
    assert {weights[f"network.members.{place}.head.bias"][0].item() for place in range(3)} == {1.0, 2.0, 3.0}
    assert ensemble.get_buffer("network.slopes").tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    segmenters = build_networks(recipe(SEGMENT))
    plain = [build_networks(recipe(SEGMENT, fold=fold)).state_dict() for fold in (1, 2, 3)]
    segmenters.load_state_dict(joined(recipe(SEGMENT), plain, [{}, {}, {}]), strict=True)
    assert segmenters.get_buffer("network.slopes").tolist() == [[1.0] * 2] * 3, "masks are not calibrated"
