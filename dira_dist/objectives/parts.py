"""DiRA's three parts, and which of them a stage computes. Whoever needs to know asks here.

Haghighi et al., *DiRA* (CVPR 2022), section 3.4 and equation 4: ``L = w_dis * L_dis + w_res * L_res + w_adv * L_adv``;
its stages are ``di``, ``dir`` and ``dira``. ``re`` and ``rea`` are restoration alone, without and with an adversary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from dira_dist.config import RequestError, Section

Objective = Literal["di", "dir", "dira", "re", "rea"]
Part = Literal["discriminative", "restorative", "adversarial"]

DISCRIMINATIVE: Part = "discriminative"
RESTORATIVE: Part = "restorative"
ADVERSARIAL: Part = "adversarial"
OPPONENT = "discriminator"
"""The loss that the adversary itself minimises; it has no weight, for it is not the U-Net's."""

LOSSES: tuple[str, ...] = (*get_args(Part), OPPONENT)
"""Names of the losses that a stage may report, in DiRA's order."""
SHORT_NAMES: Mapping[str, str] = dict(zip(LOSSES, ("di", "re", "adv", "D"), strict=True))
"""For a line that shows them side by side."""
OBJECTIVE_HELP = "di: discriminative; dir: and restorative; dira: and adversarial; re, rea: without discriminative"

_PARTS: dict[Objective, tuple[Part, ...]] = {
    "di": (DISCRIMINATIVE,),
    "dir": (DISCRIMINATIVE, RESTORATIVE),
    "dira": (DISCRIMINATIVE, RESTORATIVE, ADVERSARIAL),
    "re": (RESTORATIVE,),
    "rea": (RESTORATIVE, ADVERSARIAL),
}


class LossWeights(Section):
    """Weights of the three parts, as published. What weighs 0 is not computed."""

    discriminative: float = Field(1.0, ge=0, description="of the discriminative method's loss")
    restorative: float = Field(10.0, ge=0, description="of the restoration's mean squared error")
    adversarial: float = Field(0.001, ge=0, description="of the adversarial loss")


PUBLISHED_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class ActiveParts:
    """The parts that are computed, with their weights.

    Attributes:
        weights: of each part that is computed, all above 0.
    """

    weights: Mapping[Part, float]

    @property
    def discriminates(self) -> bool:
        """The method's loss is computed."""
        return DISCRIMINATIVE in self.weights

    @property
    def restores(self) -> bool:
        """The decoder runs: its restoration is compared with the target, or judged by an adversary."""
        return RESTORATIVE in self.weights or self.plays

    @property
    def plays(self) -> bool:
        """A discriminator learns, and is played against."""
        return ADVERSARIAL in self.weights

    @property
    def names(self) -> tuple[Part, ...]:
        """The parts, in DiRA's order."""
        return tuple(part for part in get_args(Part) if part in self.weights)


def active_parts(objective: Objective, weights: LossWeights = PUBLISHED_WEIGHTS) -> ActiveParts:
    """What a stage of this objective computes: those of its parts that weigh something.

    Raises:
        RequestError: nothing is left to learn.
    """
    parts = _PARTS[objective]
    active: dict[Part, float] = {part: weight for part in parts if (weight := getattr(weights, part)) > 0}
    if not active:
        raise RequestError(
            f"stage {objective} has only the parts {', '.join(parts)} and each weighs 0: give one a weight above 0"
        )
    return ActiveParts(active)


def together(stages: Iterable[ActiveParts]) -> ActiveParts:
    """What any of these stages computes, with the last weights; nothing where there is no stage."""
    return ActiveParts({part: weight for stage in stages for part, weight in stage.weights.items()})


def objectives_with(part: str) -> tuple[Objective, ...]:
    """The objectives that have a part."""
    return tuple(objective for objective, parts in _PARTS.items() if part in parts)
