"""From labels as tables have them to targets."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dira_dist.config import RequestError
from dira_dist.training.finetune.labels import UNCERTAIN, LabelCoding, settled
from dira_dist.training.finetune.masks import MaskCoding, SeenMasks
from dira_dist.training.finetune.recipe import Classify, Segment

NAN = math.nan


def coding_of(values: list[Any], label: str = "finding", **settings: Any) -> LabelCoding:
    return LabelCoding.of(settled(Classify(label=label, **settings), {"train": [{label: value} for value in values]}))


def encoded(coding: LabelCoding, values: list[Any]) -> list[list[float]]:
    return coding.encode([{"finding": value} for value in values]).tolist()


def test_one_class_for_each_image() -> None:
    coding = coding_of(["NORMAL", "VIRUS", "BACTERIA", "VIRUS"])
    assert (coding.kind, coding.classes) == ("multiclass", ("BACTERIA", "NORMAL", "VIRUS"))
    assert encoded(coding, ["VIRUS", "NORMAL"]) == [[0, 0, 1], [0, 1, 0]]
    assert np.isnan(encoded(coding, [None, "TUBERCULOSIS", "VIRUS|NORMAL"])).all(), "not one of the classes"


def test_several_findings_at_once() -> None:
    for values in (["Mass|Effusion", "Nodule"], [["Mass", "Effusion"], ["Nodule"]]):
        coding = coding_of(values)
        assert (coding.kind, coding.classes) == ("multilabel", ("Effusion", "Mass", "Nodule"))
        assert encoded(coding, values) == [[1, 1, 0], [0, 0, 1]]


def test_chosen_classes_leave_others_as_none_of_them() -> None:
    coding = coding_of(["Mass|Effusion", "No Finding"], classes=("Mass",))
    assert (coding.kind, encoded(coding, ["Mass|Effusion", "No Finding"])) == ("multilabel", [[1], [0]])


@pytest.mark.parametrize(
    "values", [[1, 0, -1, None], [1.0, 0.0, -1.0, None], ["1", "0", "-1", ""], [True, False, -1, ""]]
)
def test_a_number_is_one_output(values: list[Any]) -> None:
    coding = coding_of(values)
    assert (coding.kind, coding.classes) == ("binary", ("finding",))
    np.testing.assert_array_equal(encoded(coding, values), [[1], [0], [UNCERTAIN], [NAN]])


def test_a_label_for_each_finding_as_in_chexpert() -> None:
    samples = [{"Edema": 1, "Effusion": -1}, {"Edema": 0}, {"Effusion": 1.0}]
    coding = LabelCoding.of(settled(Classify(label=("Edema", "Effusion")), {"train": samples}))
    assert (coding.kind, coding.classes) == ("multilabel", ("Edema", "Effusion"))
    np.testing.assert_array_equal(coding.encode(samples), [[1, UNCERTAIN], [0, NAN], [NAN, 1]])


def test_a_grade_is_a_class() -> None:
    coding = coding_of([0, 1, 2, 3])
    assert (coding.kind, coding.classes) == ("multiclass", ("0", "1", "2", "3"))


@pytest.mark.parametrize(
    ("task", "samples", "message"),
    [
        ({"label": "fibrosis"}, [{"finding": "a"}], "no sample of the train set has 'fibrosis'; known there: finding"),
        ({"label": "finding", "classes": ("c",)}, [{"finding": "a"}], "no sample of any set has 'c'.* found: a"),
        ({"label": ("a", "b"), "classes": ("x",)}, [{"a": 1, "b": 0}], "1 names for 2 labels"),
    ],
)
def test_what_nobody_has_is_refused(task: dict[str, Any], samples: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        settled(Classify(**task), {"train": samples})


def test_a_number_that_is_no_answer_is_refused() -> None:
    coding = LabelCoding("binary", ("finding",), ("finding",))
    with pytest.raises(RequestError, match="finding is 7 of some sample; allowed are 1, 0, -1"):
        coding.encode([{"finding": 7}])


def test_outputs_of_a_segmenter() -> None:
    assert MaskCoding.of(Segment()).outputs == ("foreground",)
    several = MaskCoding.of(Segment(classes=("liver", "tumour")))
    assert (several.outputs, several.measured) == (("background", "liver", "tumour"), slice(1, None))
    regions = MaskCoding.of(Segment(regions={"whole": (1, 2), "core": (2,)}))
    assert (regions.kind, regions.outputs, regions.values) == ("regions", ("whole", "core"), ((1, 2), (2,)))


def test_every_mask_that_is_learned_from_is_looked_at() -> None:
    seen = SeenMasks(MaskCoding.of(Segment(classes=("liver", "tumour"))))
    seen.check("data.train")
    for highest in (1, 2):
        seen.note(torch.tensor([[-1, 0, highest]], dtype=torch.int16))
        seen.check("data.train")
    seen.note(torch.tensor([[0, 7]], dtype=torch.int16))
    seen.note(torch.tensor([[0, 1]], dtype=torch.int16))
    with pytest.raises(RequestError, match=r"data\.train: masks with values 7; the highest .* is 2"):
        seen.check("data.train")
    regions = SeenMasks(MaskCoding.of(Segment(regions={"core": (2,)})))
    regions.note(torch.tensor([7]))
    regions.check("data.train")  # a part that no region is of
