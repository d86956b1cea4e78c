"""What the training uses of PyTorch that is not public, each with its reason."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "BatchNorm",
    "Dropout",
    "NormBase",
    "StorageWeakRef",
    "TorchDispatchMode",
    "copy_each",
    "storage_id",
    "tree_leaves",
]

# The one class that all norms with running statistics have in common, SyncBatchNorm and InstanceNorm included.
NormBase = _NormBase
# And the one of the batch norms among them.
BatchNorm = _BatchNorm
# And the one of dropout of any number of dimensions.
Dropout = _DropoutNd

# `TorchDispatchMode`, `tree_leaves` and `StorageWeakRef`: the only way to see every tensor that an operation makes, and
# when its memory is freed, without taking the memory. PyTorch's own memory trackers stand on the same three.


def storage_id(tensor: Tensor) -> int:
    """What tensors that share memory have in common; on the meta device ``data_ptr`` is 0 for all of them."""
    return int(tensor.untyped_storage()._cdata)


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``target.copy_(source)`` for each pair, in one kernel on a GPU; ``torch.optim`` uses the same call."""
    torch._foreach_copy_(list(targets), list(sources))
