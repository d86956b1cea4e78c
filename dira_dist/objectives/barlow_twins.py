"""Barlow Twins: each feature of one view agrees with itself in the other view, and with no other feature.

Zbontar et al., *Barlow Twins: Self-Supervised Learning via Redundancy Reduction* (ICML 2021).
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dira_dist.models.heads import barlow_twins_projector
from dira_dist.models.precision import at_least_float32, without_autocast
from dira_dist.objectives.collectives import GlobalBatch, sum_over_workers
from dira_dist.objectives.method import Method, MethodInputs, MethodSection

EPSILON = 1e-5
"""Added to variances, as batch norm does."""


PUBLISHED_WORKERS = 32
"""GPUs of the published runs (section 2.2), whose mean over workers its rates were tuned with."""


class BarlowTwinsConfig(MethodSection):
    """Barlow Twins, with its paper's settings: LARS at 0.2 for each 256 images of a batch (section 2.2).

    Its loss adds up the square of the width; the first gradients are about a thousand times MoCo's, which plain SGD
    would have the encoder follow out of all bounds.

    Biases and norms, which LARS does not adapt, have the paper's 0.0048 *divided by 32*. The paper's figure belongs to
    its code's gradient: there the cross-correlation is summed over the W = 32 workers without a gradient, so that each
    worker has the gradient through its own samples alone; these add up to the gradient of the loss, and DDP takes
    their mean, 1/W of it. Here it is the whole (see :func:`sum_over_workers`): with the paper's figure the first step
    of a batch of 64 at the full rate moves a weight of a norm, which is 1, by 0.45. Weights that LARS adapts feel no
    difference but for their decay, which is next to nothing beside these gradients either way.
    """

    min_local_batch: ClassVar[int] = 2
    own_optimizer: ClassVar[Mapping[str, object]] = {
        "name": "lars",
        "lr": 0.2,
        "lr_batch": 256,
        "bias_lr_factor": 0.0048 / 0.2 / PUBLISHED_WORKERS,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
    }

    name: Literal["barlow_twins"] = "barlow_twins"
    projector_width: int = Field(8192, ge=1, description="width of the three layers of the projector")
    off_diagonal: float = Field(0.0051, ge=0, description="weight of the correlations between features")

    @property
    def least_batch(self) -> int:
        """B samples of unrelated features correlate with variance 1/B, which costs D^2/B times the weight in all.

        What can be gained is D, on the diagonal; from here on chance is at most half of that.
        """
        return max(2, math.ceil(2 * self.off_diagonal * self.projector_width))

    @property
    def why_least_batch(self) -> str:
        return f"whose {self.projector_width} x {self.projector_width} correlations are then mostly chance"

    def build(self, encoder: nn.Module, features: int) -> "BarlowTwins":
        return BarlowTwins(self, features)


def cross_correlation(projections_1: Tensor, projections_2: Tensor, samples: int) -> Tensor:
    r"""Correlation over the *global* batch of each feature of one view with each of the other.

    .. math:: C_{ij} = \frac{\sum_b z^A_{b,i} z^B_{b,j}}{\sqrt{\sum_b (z^A_{b,i})^2} \sqrt{\sum_b (z^B_{b,j})^2}}

    with z centred along the batch. Zbontar et al. (2021), equation 2. The means go first, on their own: raw moments
    would cancel badly in float32. No gradient passes through them, for sums of centred values do not change with the
    centre; so what is summed with gradients leads every worker to the same loss, as :func:`sum_over_workers` asks.

    Args:
        projections_1: (B, D), this worker's.
        projections_2: (B, D), row i from the same image as in ``projections_1``.
        samples: size of the global batch.

    Returns:
        (D, D), the same on every worker.
    """
    views = (projections_1, projections_2)
    centred_1, centred_2 = (view - sum_over_workers(view.detach().sum(dim=0)) / samples for view in views)
    products = sum_over_workers(centred_1.T @ centred_2) / samples
    variances = sum_over_workers(torch.stack([centred_1, centred_2]).square().sum(dim=1)) / samples
    deviation_1, deviation_2 = (variances + EPSILON).sqrt()
    correlation: Tensor = products / (deviation_1[:, None] * deviation_2)
    return correlation


def barlow_twins_loss(correlation: Tensor, off_diagonal: float) -> Tensor:
    r"""Distance of the cross-correlation from the identity.

    .. math:: L_{BT} = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2

    Zbontar et al. (2021), equation 1.

    Args:
        correlation: (D, D).
        off_diagonal: lambda.

    Returns:
        ().
    """
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * others


class BarlowTwins(Method):
    """The projector; both views pass the encoder that learns."""

    def __init__(self, config: BarlowTwinsConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.projector = barlow_twins_projector(features, config.projector_width)

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.pooled is not None and inputs.second_view is not None
        projections_1 = at_least_float32(self.projector(inputs.pooled))
        projections_2 = at_least_float32(self.projector(inputs.encode(inputs.second_view)))
        with without_autocast(inputs.pooled):
            correlation = cross_correlation(projections_1, projections_2, batch.samples)
            return barlow_twins_loss(correlation, self.config.off_diagonal)
