"""SimSiam: each view predicts the other's projection, which stands still.

Chen & He, *Exploring Simple Siamese Representation Learning* (CVPR 2021).
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dira_dist.models.heads import simsiam_predictor, simsiam_projector
from dira_dist.models.precision import at_least_float32, without_autocast
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import Method, MethodInputs, MethodSection


class SimSiamConfig(MethodSection):
    """SimSiam, with its paper's settings: SGD at 0.05 for each 256 images of a batch (Chen & He 2021, section 3).

    Of the encoder's initialisation there (appendix A) one thing is left to choice: ``model.zero_init_residual``.
    """

    min_local_batch: ClassVar[int] = 2
    own_optimizer: ClassVar[Mapping[str, object]] = {"name": "sgd", "lr": 0.05, "lr_batch": 256}

    name: Literal["simsiam"] = "simsiam"
    outputs: int = Field(2048, ge=1, description="length of projections and predictions")
    bottleneck: int = Field(512, ge=1, description="width inside the predictor")

    @property
    def least_batch(self) -> int:
        """The smallest that the paper tries."""
        return 64

    @property
    def why_least_batch(self) -> str:
        return f"whose paper shows it to work from {self.least_batch} on"

    def build(self, encoder: nn.Module, features: int) -> "SimSiam":
        return SimSiam(self, features)


def negative_cosine(predictions: Tensor, projections: Tensor) -> Tensor:
    r"""Mean negative cosine similarity; the projections stand still.

    .. math:: D(p, z) = - \frac{p}{\lVert p \rVert_2} \cdot \frac{z}{\lVert z \rVert_2}

    Chen & He (2021), equations 1 and 3.

    Args:
        predictions: (B, D).
        projections: (B, D), detached here.

    Returns:
        ().
    """
    return -F.cosine_similarity(predictions, projections.detach(), dim=1).mean()


def simsiam_loss(predictions_1: Tensor, predictions_2: Tensor, projections_1: Tensor, projections_2: Tensor) -> Tensor:
    r"""The symmetric loss.

    .. math:: L = \tfrac{1}{2} D(p_1, \mathrm{stopgrad}(z_2)) + \tfrac{1}{2} D(p_2, \mathrm{stopgrad}(z_1))

    Chen & He (2021), equation 4.

    Args:
        predictions_1: (B, D), of the first view; ``predictions_2`` of the second.
        projections_1: (B, D), of the first view; ``projections_2`` of the second.

    Returns:
        ().
    """
    return 0.5 * (negative_cosine(predictions_1, projections_2) + negative_cosine(predictions_2, projections_1))


class SimSiam(Method):
    """Projector and predictor; both views pass the encoder that learns."""

    def __init__(self, config: SimSiamConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.projector = simsiam_projector(features, config.outputs)
        self.predictor = simsiam_predictor(config.outputs, config.bottleneck)

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.pooled is not None and inputs.second_view is not None
        projections = [self.projector(each) for each in (inputs.pooled, inputs.encode(inputs.second_view))]
        predictions = [self.predictor(each) for each in projections]
        with without_autocast(inputs.pooled):
            loss = simsiam_loss(*map(at_least_float32, predictions), *map(at_least_float32, projections))
            return batch.local_weight * loss

    def constant_rate_parts(self) -> Iterable[nn.Module]:
        """The predictor has to follow the newest representations, and learns better without decay (section 4.2)."""
        return (self.predictor,)
