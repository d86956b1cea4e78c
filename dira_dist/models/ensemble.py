"""Several networks of one task that answer as one, such as those of the folds of a cross-validation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.models.backbone import BackboneSection
from dira_dist.models.supervised import Classifier, Segmenter

MEMBERS = "members."
"""How names of an ensemble's weights begin; no other network has such ones."""


class Ensemble(nn.Module):
    """The mean of the members' calibrated probabilities, as the logit that stands for it.

    Shapes: images ``(B, in_channels, *S)`` to logits ``(B, K)`` or ``(B, K, *S)``. Softmax (of outputs that exclude
    each other) or sigmoid of them is that mean, so that an ensemble is used like any network, and needs no calibration.

    Args:
        members: networks with the same outputs.
        outputs: how many they have, K.
        exclusive: whether the outputs are one another's alternatives.

    Attributes:
        slopes, intercepts: ``(M, K)`` calibration of each member's logits; 1 and 0 until they are set.
    """

    slopes: Tensor
    intercepts: Tensor

    def __init__(self, members: Sequence[Classifier | Segmenter], outputs: int, *, exclusive: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("slopes", torch.ones(len(members), outputs))
        self.register_buffer("intercepts", torch.zeros(len(members), outputs))
        self._exclusive = exclusive

    @property
    def parts(self) -> list[Classifier | Segmenter]:
        """The members."""
        return [member for member in self.members if isinstance(member, Classifier | Segmenter)]

    @property
    def config(self) -> BackboneSection:
        """Of the network that each member is."""
        return self.parts[0].config

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the mean."""
        logits = torch.stack([member(images).float() for member in self.members])
        shape = (len(self.members), 1, -1, *(1,) * (logits.ndim - 3))
        return mean_logits(logits * self.slopes.view(shape) + self.intercepts.view(shape), exclusive=self._exclusive)


def mean_logits(logits: Tensor, *, exclusive: bool) -> Tensor:
    """The logits ``(B, K, *S)`` whose probabilities are the means of those of ``(M, B, K, *S)`` logits.

    In logarithms, so that a mean close to 0 or 1 keeps its digits.
    """
    if exclusive:
        return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
    return functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)
