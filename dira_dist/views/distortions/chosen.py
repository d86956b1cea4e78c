"""Kernels for some of a batch's views."""

from collections.abc import Callable

import torch
from torch import Tensor


def where_chosen(views: Tensor, chosen: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Views (N, C, *S) of which those `chosen` (N,) are what the kernel makes of them.

    A CPU works on those alone, for nobody waits for its answer; a device on all, for its answer would be waited for.

    Args:
        views: written into.
        chosen: which of them.
        kernel: of some views and their row numbers (M,), to as many of the same shape.
    """
    if views.device.type == "cpu":
        rows = torch.tensor([row for row, wanted in enumerate(chosen.tolist()) if wanted], dtype=torch.int64)
        return views.index_copy_(0, rows, kernel(views[rows], rows)) if len(rows) else views
    rows = torch.arange(len(views), device=views.device)
    return torch.where(chosen.view(-1, *(1,) * (views.ndim - 1)), kernel(views, rows), views)
