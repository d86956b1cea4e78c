"""MoCo-v2: a query must find its key among the keys of earlier batches.

He et al., *Momentum Contrast for Unsupervised Visual Representation Learning* (CVPR 2020), and Chen et al., *Improved
Baselines with Momentum Contrastive Learning* (2020).
"""

import copy
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dira_dist.models.heads import moco_projector
from dira_dist.models.precision import at_least_float32, average_over_positions, without_autocast
from dira_dist.objectives.collectives import GlobalBatch, RowExchange, gather_rows
from dira_dist.objectives.method import Method, MethodInputs, MethodSection
from dira_dist.objectives.torch_internals import lerp_each


class MoCoV2Config(MethodSection):
    """MoCo-v2, with the published settings."""

    published_batches: ClassVar[tuple[int, int]] = (16, 256)

    name: Literal["moco_v2"] = "moco_v2"
    queue_size: int = Field(65_536, ge=1, description="keys of earlier batches to tell a query's own key from")
    momentum: float = Field(0.999, ge=0, le=1, description="of the key encoder's moving average")
    temperature: float = Field(0.2, gt=0, description="divides the similarities")
    outputs: int = Field(128, ge=1, description="length of queries and keys")

    def build(self, encoder: nn.Module, features: int) -> "MoCoV2":
        return MoCoV2(self, encoder, features)


def info_nce_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of finding a query's own key among it and the queue.

    .. math:: L_q = -\log \frac{\exp(q \cdot k_+ / \tau)}{\exp(q \cdot k_+ / \tau) + \sum_j \exp(q \cdot k_j / \tau)}

    He et al. (2020), equation 1; the mean over the batch.

    Args:
        queries: (B, D), of unit length.
        keys: (B, D), of unit length, without gradients: row i belongs to query i.
        queue: (K, D), of unit length, without gradients.

    Returns:
        ().
    """
    own = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


@torch.no_grad()
def enqueue(queue: Tensor, position: int, keys: Tensor) -> int:
    """Writes ``keys`` (N, D) over the oldest of ``queue`` (K, D), for any N and K; returns where the next will go."""
    size, added = len(queue), len(keys)
    newest = keys[-size:]
    rows = torch.arange(position + added - len(newest), position + added, device=queue.device) % size
    queue[rows] = newest.to(queue.dtype)
    return (position + added) % size


class MoCoV2(Method):
    """Query and key projector, key encoder without a decoder, and the queue.

    The key encoder's moving average is taken in :meth:`after_optimizer_step`. The published order, before the keys of
    the *next* step, is the same arithmetic, for no weights change between the two; at the very first step it averages
    equal weights.

    The queue's order is that of the global batches, so it does not depend on how many workers there are.
    """

    queue: Tensor

    def __init__(self, config: MoCoV2Config, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.config = config
        self.projector = moco_projector(features, config.outputs)
        self.key = KeyNetwork(encoder, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.outputs), dim=1))
        self.keys_seen = 0
        self._pending: Tensor | None = None

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.pooled is not None and inputs.second_view is not None
        queries = _unit_length(self.projector(inputs.pooled))
        keys = self._keys(inputs.second_view, batch, inputs.passes)
        if self.training:
            self._pending = gather_rows(keys, batch)
        with without_autocast(queries):
            return batch.local_weight * info_nce_loss(queries, keys, self.queue, self.config.temperature)

    @torch.no_grad()
    def after_optimizer_step(self, encoder: nn.Module) -> None:
        """The moving average of the key encoder (He et al. 2020, equation 2), and the step's keys into the queue."""
        assert self._pending is not None, "after_optimizer_step() follows a forward pass in training mode"
        self.key.follow(encoder, self.projector, self.config.momentum)
        enqueue(self.queue, self.keys_seen % len(self.queue), self._pending)
        self.keys_seen += len(self._pending)
        self._pending = None

    def get_extra_state(self) -> dict[str, int]:
        """A number on the host, for reading it from the device would stop the step."""
        return {"keys_seen": self.keys_seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.keys_seen = state["keys_seen"]

    def compiled_parts(self) -> Iterable[nn.Module]:
        return (self.key,)

    @torch.no_grad()
    def _keys(self, view: Tensor, batch: GlobalBatch, passes: int) -> Tensor:
        """(B, D). Computed among other samples than their queries: else the batch norms tell the query's batch.

        That is "shuffle BN", over the workers and, on each of them, over what passes at once.
        """
        if (batch.world_size == 1 and passes == 1) or not self.training:
            return self._keys_of(view, passes)
        exchange = RowExchange.draw(batch, self.keys_seen, view.device)
        return exchange.unshuffle(self._keys_of(exchange.shuffle(_as_sent(view)), passes))

    def _keys_of(self, view: Tensor, passes: int) -> Tensor:
        parts = view.tensor_split(min(passes, len(view)))
        return torch.cat([_unit_length(self.key(part)) for part in parts])


class KeyNetwork(nn.Module):
    """A copy of encoder and projector that follows them slowly and learns nothing itself: (B, C, *S) to (B, D)."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False)

    def forward(self, view: Tensor) -> Tensor:
        features: list[Tensor] = self.encoder(view)
        keys: Tensor = self.projector(average_over_positions(features[-1]))
        return keys

    @torch.no_grad()
    def follow(self, encoder: nn.Module, projector: nn.Module, momentum: float) -> None:
        """``key = momentum * key + (1 - momentum) * query`` for every parameter, in a few fused calls."""
        leaders: list[Tensor] = [*encoder.parameters(), *projector.parameters()]
        followers: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        lerp_each(followers, leaders, 1 - momentum)


def _unit_length(rows: Tensor) -> Tensor:
    return F.normalize(at_least_float32(rows), dim=1)


def _as_sent(view: Tensor) -> Tensor:
    """Under autocast the first convolution rounds its input anyway: rounded before it is sent, it is half the bytes."""
    kind = view.device.type
    rounds = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # the meta device knows none
    return view.to(torch.get_autocast_dtype(kind)) if rounds else view
