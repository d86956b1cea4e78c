"""Where half precision ends: losses, averages and normalisations are computed in float32, or wider if they come so."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it is of half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Matrix products inside are computed in their operands' precision, on the tensor's kind of device."""
    kind = tensor.device.type  # the meta device knows no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def average_over_positions(feature_map: Tensor) -> Tensor:
    """(B, C, *S) to (B, C): global average pooling."""
    return at_least_float32(feature_map.flatten(2)).mean(2)
