"""What the objectives use of PyTorch that is not public, with its reason."""

from collections.abc import Sequence

import torch
from torch import Tensor


def lerp_each(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """``target.lerp_(end, weight)`` for each pair, in one kernel on a GPU; ``torch.optim`` uses the same call."""
    torch._foreach_lerp_(list(targets), list(ends), weight)
