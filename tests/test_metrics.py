"""The catalogue of figures."""

import ast
from pathlib import Path

import pytest
import torch

from dira_dist import metrics
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.evaluator import reported_metrics
from dira_dist.metrics import (
    BEST,
    CATALOGUE,
    LOSS,
    PROBE_AUROC,
    RANKING,
    RANKME,
    TEST_FIGURE,
    TRIALS,
    UNIFORMITY,
    better,
    find,
)
from dira_dist.training.meter import Meter

PACKAGE = Path(metrics.__file__).parent


def test_names_are_told_apart_and_described() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    exported = [metric.prometheus for metric in CATALOGUE if metric.prometheus]
    assert len(set(exported)) == len(exported)
    assert all(metric.description for metric in CATALOGUE)


def test_what_training_and_evaluation_report_is_in_it() -> None:
    meter = Meter(torch.device("cpu"))
    meter.count({LOSS.of("total"): torch.tensor(1.0)}, images=1, bad_samples=0, fingerprint=0, finite=True)
    probe = ProbeConfig(train="a", val="b", label="finding", label_fractions=(0.1,))
    for name in [*meter.summary(), *reported_metrics("val", probe)]:
        assert find(name) is not None, name
    assert set(RANKING) <= set(reported_metrics("val", probe))


def test_the_nearest_entry_covers_a_name() -> None:
    assert find("train/loss/restorative") is LOSS
    assert LOSS.member("train/loss/restorative") == "restorative"
    assert find("probe/auroc_10pct_low") is PROBE_AUROC
    assert find(BEST.of(RANKME.name)) is BEST
    assert find("search/finished") is TRIALS
    assert find("val/nothing") is None
    assert find("val/rankme2") is None, "only a family covers longer names"


@pytest.mark.parametrize(("name", "way"), [(RANKME.name, "max"), (UNIFORMITY.name, "min"), ("unheard/of", "max")])
def test_which_way_is_better(name: str, way: str) -> None:
    assert better(name) == way


def test_no_name_is_spelt_a_second_time() -> None:
    """A name in a message or a docstring may be; one that stands alone in a string is a figure's name."""
    names = {metric.name for metric in CATALOGUE if "/" in metric.name}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "metrics.py":
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            found = {str(value) for value in constants} & names
            assert not found, f"{path}: take them from dira_dist.metrics"


def test_a_class_of_any_name_has_a_figure_that_a_tracker_takes() -> None:
    assert TEST_FIGURE.of("auroc/R&D (left)") == "test/auroc/R_D _left_"
    assert TEST_FIGURE.of("auroc/Oedème 3.5") == "test/auroc/Oedème 3.5"
