"""Pretraining that goes wrong while it runs: a discriminator that has won, lost dimensions, a probe that falls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dira_dist.metrics import COLLAPSED, FEATURE_STD, LOSS, PROBE_AUROC, RANKME
from dira_dist.objectives.adversarial import AdversarialLoss
from dira_dist.objectives.parts import DISCRIMINATIVE, OPPONENT, RESTORATIVE
from dira_dist.training.running_guards import RunningGuards

UNDECIDED_LOSS: dict[AdversarialLoss, float] = {"lsgan": 0.25, "bce": math.log(2), "hinge": 1.0}
"""The discriminator's loss where it tells nothing: the best single score for real and restored patches alike.

That of a critic has no such value, and no end: it cannot win."""
WON_SHARE = 0.05
"""Of that loss: below it the discriminator tells nearly every patch."""
WON_REPORTS = 5
"""Reports in a row for which that holds, before it is told."""
COLLAPSED_SHARE = 0.5
"""Of the highest rank or spread so far: below it dimensions are being lost."""
LOSS_FALL = 0.01
"""Share of its highest value by which a loss counts as fallen."""
PROBE_FALL = 0.05
"""Fall of an AUROC that is told where the evaluations have no intervals."""

_LOSSES = (LOSS.of(DISCRIMINATIVE), LOSS.of(RESTORATIVE))
_HEALTH = {RANKME.name: "effective rank", FEATURE_STD.name: "spread per dimension"}


@dataclass
class PretrainGuards(RunningGuards):
    """Watches one run.

    Attributes:
        adversarial: the kind of adversarial loss that is trained; none where there is no discriminator.
    """

    adversarial: AdversarialLoss | None = None
    _reported: set[str] = field(default_factory=set)
    _won_reports: int = 0
    _losses: dict[str, dict[int, float]] = field(default_factory=lambda: {name: {} for name in _LOSSES})
    _evaluations: dict[int, Mapping[str, float]] = field(default_factory=dict)

    def reported(self, step: int, figures: Mapping[str, float]) -> list[str]:
        for name in _LOSSES:
            if name in figures:
                self._losses[name][step] = figures[name]
        return self._once("won", self._discriminator_has_won(figures))

    def evaluated(self, label: str, step: int, figures: Mapping[str, float]) -> list[str]:
        found, figures = [], {name: value for name, value in figures.items() if math.isfinite(value)}
        if step > 0:
            found += self._once("collapse", _collapse(label, figures))
            for name in _HEALTH:
                found += self._once(name, self._lost_dimensions(label, name, figures))
            found += self._once("probe", self._probe_falls(label, step, figures))
        self._evaluations[step] = figures
        return found

    def _once(self, guard: str, text: str) -> list[str]:
        if not text or guard in self._reported:
            return []
        self._reported.add(guard)
        return [text]

    def _discriminator_has_won(self, figures: Mapping[str, float]) -> str:
        loss = figures.get(LOSS.of(OPPONENT))
        if loss is None or self.adversarial not in UNDECIDED_LOSS:
            return ""
        share = loss / UNDECIDED_LOSS[self.adversarial]
        self._won_reports = self._won_reports + 1 if share < WON_SHARE else 0
        if self._won_reports < WON_REPORTS:
            return ""
        return (
            f"the discriminator has won: over {WON_REPORTS} reports its loss stayed below {WON_SHARE:.0%} of an "
            f"undecided one's (now {loss:.2g}), so that restorations learn nothing from it any more; lower "
            "adversarial.lr, give it fewer adversarial.discriminator.channels, or let the stage dir before it restore "
            "for longer"
        )

    def _lost_dimensions(self, label: str, name: str, figures: Mapping[str, float]) -> str:
        highest = max((each[name] for each in self._evaluations.values() if name in each), default=math.nan)
        if name not in figures or not figures[name] < COLLAPSED_SHARE * highest:
            return ""
        return (
            f"at {label} the features lose dimensions: their {_HEALTH[name]} ({name}) is {figures[name]:.3g}, and was "
            f"{highest:.3g}; {_AGAINST_COLLAPSE}"
        )

    def _probe_falls(self, label: str, step: int, figures: Mapping[str, float]) -> str:
        """The first probe that is worse than at its best before, while the loss went down since then."""
        for name in filter(_is_probe, figures):
            found = {at: each[name] for at, each in self._evaluations.items() if at < step and name in each}
            if not found:
                continue
            best = max(found, key=lambda at: found[at])
            before = self._evaluations[best]
            if _is_below(name, figures, before) and self._loss_fell(best, step):
                return (
                    f"at {label} the probe has fallen while the loss fell: {name} is {figures[name]:.3f}, and was "
                    f"{before[name]:.3f}; what is learned does not help to tell these classes apart: lower "
                    "optimizer.lr, make views gentler (views.crop, views.jitter), or take the best checkpoint so far"
                )
        return ""

    def _loss_fell(self, first_step: int, last_step: int) -> bool:
        """From its highest value between two steps; MoCo's is low at first, as long as its queue holds noise."""
        for losses in self._losses.values():
            between = [losses[step] for step in sorted(losses) if first_step < step <= last_step]
            if between:
                return between[-1] < max(between) - LOSS_FALL * abs(max(between))
        return False


_AGAINST_COLLAPSE = (
    "raise optimizer.warmup_epochs or lower optimizer.lr, raise the batch, or take a method that holds dimensions "
    "apart (method: {name: barlow_twins})"
)


def _collapse(label: str, figures: Mapping[str, float]) -> str:
    if not figures.get(COLLAPSED.name):
        return ""
    shown = ", ".join(f"{name} {figures[name]:.3g}" for name in _HEALTH if name in figures)
    return f"at {label} the encoder hardly tells its inputs apart ({shown}); {_AGAINST_COLLAPSE}"


def _is_probe(name: str) -> bool:
    return PROBE_AUROC.covers(name) and not name.endswith(("_low", "_high", "_spread"))


def _is_below(name: str, now: Mapping[str, float], before: Mapping[str, float]) -> bool:
    """Whether an AUROC has fallen for sure: beyond both intervals over patients and the spread over draws of labels.

    Several figures are compared at every evaluation, each with its best so far: less would be told by chance.
    """
    if f"{name}_high" not in now or f"{name}_low" not in before:
        return now[name] < before[name] - PROBE_FALL
    spread = max(each.get(f"{name}_spread", 0.0) for each in (now, before))
    return now[f"{name}_high"] < before[f"{name}_low"] and now[name] < before[name] - spread
