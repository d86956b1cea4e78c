"""Rubik's cube as a method: which order the pieces of the first view are in, and which of them are turned.

Zhuang et al., *Self-supervised Feature Learning for 3D Medical Images by Playing a Rubik's Cube* (MICCAI 2019). There
each piece passes an encoder of its own sight, and their features stand side by side; here the whole view passes, and
the deepest map is averaged over each piece's place.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.precision import at_least_float32, without_autocast
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import Method, MethodInputs, MethodSection, Need
from dira_dist.views.distortions import DistortionSection
from dira_dist.views.distortions import Rubik as RubikDistortion

_POOLS = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class RubikConfig(MethodSection):
    """Rubik's cube, beside ``views.distortion: {name: rubik}``, whose orders and pieces these are."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps", "distortion"})

    own_optimizer: ClassVar[Mapping[str, object]] = {
        "name": "adamw",
        "lr": 1e-4,
        "momentum": 0.5,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "schedule": "constant",
    }
    published_batches: ClassVar[tuple[int, int]] = (8, 16)

    name: Literal["rubik"] = "rubik"
    orders: int = Field(1000, ge=2, description="orders to tell apart; as many as the distortion draws from")
    pieces: int = Field(8, ge=4, description="pieces of a view: the distortion's grid in each axis, 8 of 2 x 2 x 2")
    hidden: int = Field(1024, ge=1, description="width inside the head that tells the order")
    order_weight: float = Field(1.0, ge=0, description="of the order's cross-entropy")
    turn_weight: float = Field(1.0, ge=0, description="of the turns' binary cross-entropy")

    @property
    def distortion_labels(self) -> Mapping[str, tuple[int, ...]]:
        return {"order": (), "turned": (self.pieces,)}

    def check_distortion(self, distortion: DistortionSection[Any], axes: int) -> None:
        if not isinstance(distortion, RubikDistortion):
            raise RequestError(
                f"method.name is rubik and views.distortion.name {distortion.name}: it tells the order of pieces that "
                "this distortion does not move; set views.distortion.name to rubik, or take another method"
            )
        wanted = {"pieces": distortion.pieces(axes), "orders": distortion.order_count(axes)}
        for key, number in wanted.items():
            if getattr(self, key) != number:
                raise RequestError(
                    f"method.{key}: found {getattr(self, key)}, and the distortion, a grid of {distortion.grid} in "
                    f"each of {axes} axes and at most {distortion.orders} orders, has {number}; set method.{key} to it"
                )

    def build(self, encoder: nn.Module, features: int) -> "Rubik":
        return Rubik(self, features)


def rubik_losses(order_logits: Tensor, turn_logits: Tensor, order: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of the order, and binary cross-entropy of the turns, mean over samples and pieces.

    .. math:: L_p = -\sum_k l_k \log p_k, \qquad L_r = -\sum_g \big( t_g \log q_g + (1 - t_g) \log (1 - q_g) \big)

    Zhuang et al. (2019), section 2.2; of the turns their mean.

    Args:
        order_logits: (B, K).
        turn_logits: (B, G).
        order: (B,) int64, numbers of the orders.
        turned: (B, G) int64, 1 for a turned piece.

    Returns:
        (), ().
    """
    turns = F.binary_cross_entropy_with_logits(turn_logits, turned.to(turn_logits.dtype))
    return F.cross_entropy(order_logits, order), turns


class Rubik(Method):
    """Two heads on the features of all pieces side by side."""

    def __init__(self, config: RubikConfig, features: int) -> None:
        super().__init__()
        self.config = config
        side_by_side = config.pieces * features
        self.order_head = nn.Sequential(
            nn.Linear(side_by_side, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, config.orders)
        )
        self.turn_head = nn.Linear(side_by_side, config.pieces)

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.maps is not None and inputs.distortion is not None
        pieces = self._pieces(inputs.maps[-1])
        logits = self.order_head(pieces), self.turn_head(pieces)
        with without_autocast(pieces):
            order_logits, turn_logits = map(at_least_float32, logits)
            order, turns = rubik_losses(
                order_logits, turn_logits, inputs.distortion["order"], inputs.distortion["turned"]
            )
            return batch.local_weight * (self.config.order_weight * order + self.config.turn_weight * turns)

    def _pieces(self, deepest: Tensor) -> Tensor:
        """(B, F, *S) to (B, G * F): the mean over each piece's place, pieces in the distortion's order."""
        axes = deepest.ndim - 2
        grid = round(self.config.pieces ** (1 / axes))
        assert grid**axes == self.config.pieces, "a job whose pieces make no grid is refused"
        averaged: Tensor = _POOLS[axes](at_least_float32(deepest), grid)
        return torch.flatten(averaged.flatten(2).transpose(1, 2), 1)
