"""Each thing that goes wrong while a run runs is told once, with a remedy; what a sound run reports is not."""

import math

import pytest
import torch

from dira_dist.objectives.adversarial import AdversarialLoss, discriminator_loss
from dira_dist.training.pretrain.running_guards import UNDECIDED_LOSS, WON_REPORTS, PretrainGuards

HEALTHY = {"val/rankme": 40.0, "val/feature_std": 0.3, "val/collapsed": 0.0}


def probed(auroc: float, low: float = 0.02, few: float = 0.7) -> dict[str, float]:
    """Figures of an evaluation with an interval, and the same of few labels with their spread."""
    return {
        **HEALTHY,
        "probe/auroc": auroc,
        "probe/auroc_low": auroc - low,
        "probe/auroc_high": auroc + low,
        "probe/auroc_1pct": few,
        "probe/auroc_1pct_low": few - low,
        "probe/auroc_1pct_high": few + low,
        "probe/auroc_1pct_spread": 0.04,
    }


def losses(guards: PretrainGuards, *values: float, first_step: int = 1, name: str = "discriminative") -> list[str]:
    """Reports of a loss, one for each step."""
    found = []
    for step, value in enumerate(values, first_step):
        found += guards.reported(step, {f"train/loss/{name}": value})
    return found


def test_a_sound_run_is_not_warned_of() -> None:
    guards = PretrainGuards("lsgan")
    assert guards.evaluated("untrained", 0, probed(0.86)) == []
    assert losses(guards, 3.0, 6.2, 6.0, 5.5) == []
    assert losses(guards, *[0.2, 0.15, 0.1] * 4, name="discriminator") == []
    assert guards.evaluated("1-di", 4, probed(0.87, few=0.72)) == []
    assert guards.evaluated("2-dira", 8, probed(0.865, few=0.71) | {"val/rankme": 30.0}) == []


def test_a_probe_that_falls_while_the_loss_falls() -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, probed(0.866))
    assert losses(guards, 3.0, 6.2, 5.6) == []
    (text,) = guards.evaluated("1-di", 3, probed(0.82))
    assert "at 1-di the probe has fallen while the loss fell: probe/auroc is 0.820, and was 0.866" in text
    assert "optimizer.lr" in text
    assert guards.evaluated("2-dir", 4, probed(0.8)) == [], "once"


def test_few_labels_show_it_first() -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, probed(0.866, few=0.773))
    losses(guards, 8.0, 5.6)
    (text,) = guards.evaluated("1-di", 2, probed(0.864, few=0.631))
    assert "probe/auroc_1pct is 0.631, and was 0.773" in text


@pytest.mark.parametrize(
    ("now", "reports"),
    [
        (probed(0.8), [5.0, 6.0]),  # the loss rises too, which everybody sees
        (probed(0.8), [6.0, 5.99]),  # it stands
        (probed(0.8), []),  # nothing is known of it
        (probed(0.83), [6.0, 5.0]),  # the intervals over patients overlap
        (probed(0.866, low=0.001, few=0.665), [6.0, 5.0]),  # within the spread over draws
        ({**HEALTHY}, [6.0, 5.0]),  # no probe
    ],
)
def test_what_is_no_fall(now: dict[str, float], reports: list[float]) -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, probed(0.866))
    losses(guards, *reports)
    assert guards.evaluated("1-di", 2, now) == []


def test_an_evaluation_is_held_against_the_reports_before_its_checkpoint() -> None:
    """Evaluations come late: here after the whole training."""
    guards = PretrainGuards("lsgan")
    losses(guards, 6.0, 6.0, 6.0, 5.0)
    guards.evaluated("untrained", 0, probed(0.866))
    assert guards.evaluated("step-3", 3, probed(0.8)) == [], "the loss fell after it"
    assert len(guards.evaluated("1-di", 4, probed(0.8))) == 1


def test_a_loss_below_zero_falls_too() -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, probed(0.866))
    losses(guards, -0.2, -0.9)
    assert len(guards.evaluated("1-di", 2, probed(0.8))) == 1


def test_where_only_restoration_is_trained_its_loss_counts() -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, {"probe/auroc": 0.9})
    losses(guards, 0.1, 0.05, name="restorative")
    assert guards.evaluated("step-1", 1, {"probe/auroc": 0.86}) == [], "without intervals a small fall may be chance"
    (text,) = guards.evaluated("1-re", 2, {"probe/auroc": 0.84})
    assert "0.840, and was 0.900" in text


@pytest.mark.parametrize(("name", "words"), [("val/rankme", "effective rank"), ("val/feature_std", "spread")])
def test_dimensions_that_are_lost(name: str, words: str) -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, HEALTHY)
    assert guards.evaluated("1-di", 5, HEALTHY | {name: HEALTHY[name] * 3}) == []
    assert guards.evaluated("2-dir", 8, HEALTHY | {name: HEALTHY[name] * 1.6}) == []
    (text,) = guards.evaluated("3-dira", 9, HEALTHY | {name: HEALTHY[name] * 1.4})
    assert text.startswith("at 3-dira the features lose dimensions")
    assert words in text and "barlow_twins" in text


def test_a_collapse_is_told_of_what_was_trained_alone() -> None:
    dead = {"val/collapsed": 1.0, "val/rankme": 1.2, "val/feature_std": 0.3}
    assert PretrainGuards("lsgan").evaluated("untrained", 0, dead) == []
    (text,) = PretrainGuards("lsgan").evaluated("1-di", 7, dead)
    assert "at 1-di the encoder hardly tells its inputs apart (val/rankme 1.2, val/feature_std 0.3)" in text


@pytest.mark.parametrize("kind", list(UNDECIDED_LOSS))
def test_a_discriminator_that_has_won(kind: AdversarialLoss) -> None:
    best = {"lsgan": 0.5, "bce": 0.0, "hinge": 0.0}[kind]
    same = torch.full((2, 1, 3, 3), best)
    undecided = float(discriminator_loss(same, same, kind))
    assert undecided == pytest.approx(UNDECIDED_LOSS[kind])
    guards = PretrainGuards(kind)
    won = undecided / 100
    assert losses(guards, *[won] * (WON_REPORTS - 1), undecided, name="discriminator") == []
    assert losses(guards, *[won] * (WON_REPORTS - 1), name="discriminator") == [], "not in a row"
    (text,) = losses(guards, won, won, name="discriminator")
    assert "the discriminator has won" in text and "adversarial.lr" in text


def test_figures_that_could_not_be_measured_say_nothing() -> None:
    guards = PretrainGuards("lsgan")
    guards.evaluated("untrained", 0, probed(math.nan) | {"val/rankme": math.nan})
    losses(guards, 6.0, 5.0)
    assert guards.evaluated("1-di", 2, probed(0.4)) == []
    assert guards.evaluated("2-dir", 3, {}) == []
