"""How much memory a step takes, counted without taking it: tensors on the meta device have shapes and no numbers."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from dira_dist.training.torch_internals import StorageWeakRef, TorchDispatchMode, storage_id, tree_leaves


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
        self._apart = {storage_id(tensor) for tensor in apart}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        for tensor in tree_leaves((arguments, result)):
            if isinstance(tensor, Tensor):
                storage, key = tensor.untyped_storage(), storage_id(tensor)
                if key not in self._apart:
                    self._alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result


def activation_bytes(lasting: Iterable[Tensor], step: Callable[[], object]) -> int:
    """The most that losses and their backward passes take beside what lasts: inputs, activations, gradients.

    Args:
        lasting: weights and buffers.
        step: makes its inputs, computes the losses and leaves the gradients, on the meta device.
    """
    with LiveTensors(lasting) as live:
        step()
    return int(live.peak_bytes)
