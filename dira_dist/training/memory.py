"""How much memory a step takes, counted without taking it: tensors on the meta device have shapes and no numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dira_dist.config import per_axis
from dira_dist.objectives import GlobalBatch, adversarial_loss, restorative_loss
from dira_dist.training.networks import Networks
from dira_dist.training.step import LossWeights, Objectives


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive after each operation inside, each storage once.

    What a process or a device holds also has the allocator's slack and the kernels' scratch in it; this has neither, is
    the same at every run, and is what autograd and the recipe are answerable for.

    Args:
        apart: tensors that do not count.

    Attributes:
        peak_bytes: the most there were at one moment.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes: int = 0
        self._apart = {tensor.untyped_storage()._cdata for tensor in apart}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        for tensor in tree_leaves((arguments, result)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._apart:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result


def activation_bytes(networks: Networks, weights: LossWeights, samples: int, image_size: int | Sequence[int]) -> int:
    """The most that the U-Net's step takes in float32 beside what lasts: views, activations, gradients.

    Args:
        networks: on the meta device; gradient checkpointing and what learns are as they are set.
        weights: of the stage; what weighs 0 is not computed.
        samples: of one worker.
        image_size: side of the views in pixels, or one for each axis.
    """
    lasting = [*networks.parameters(), *networks.buffers()]
    shape = (samples, networks.unet.config.in_channels, *per_axis(image_size, 2))
    with LiveTensors(lasting) as live:
        _loss(networks.train(), weights, *(torch.empty(shape, device="meta") for _ in range(2))).backward()
    networks.zero_grad()
    return int(live.peak_bytes)


def _loss(networks: Networks, weights: LossWeights, view_1: Tensor, view_2: Tensor) -> Tensor:
    discriminative, restoration = Objectives(networks, weights)(view_1, view_2, GlobalBatch((len(view_1),)))
    losses = [] if discriminative is None else [discriminative]
    if weights.restorative > 0:
        losses.append(restorative_loss(restoration, view_1[:, :1]))
    if weights.adversarial > 0:
        losses.append(adversarial_loss(networks.discriminator(restoration), "lsgan"))
    return torch.stack(losses).sum()
