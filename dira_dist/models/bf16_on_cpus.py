"""Where PyTorch's half precision on CPUs is wrong, and float32 is computed in its place."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dira_dist.models.precision import at_least_float32, without_autocast

FAULTY_VOXELS = 2
"""Voxels of a side up to which the gradient of a 3D convolution's weights reads memory that nobody has written.

Seen with torch 2.15 and kernels of 3 x 3 x 3 in bfloat16: of stride 1 where the first side has 2 voxels, whatever the
others have; of stride 2 where any has 1, and there it now and then writes where it should not and ends the process.
"""


def avoid_faulty_bf16(module: nn.Module) -> None:
    """Makes a convolution, or a module of convolutions, compute in float32 on CPUs where its maps are too small.

    Only its class changes, as in :func:`dira_dist.models.checkpointing.recompute`. The last of its inputs is looked at:
    of a join of two maps that is the larger one.
    """
    module.__class__ = _avoiding(type(module))


def is_faulty(size: tuple[int, ...], stride: tuple[int, ...] = (1, 1, 1)) -> bool:
    """Whether bfloat16 is not to be trusted for maps (B, C, X, Y, Z) of this size, on CPUs."""
    sides = size[2:] if max(stride) > 1 else size[2:3]
    return min(sides) <= FAULTY_VOXELS


def _avoiding(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *maps: Tensor) -> Any:
        given = maps[-1]
        is_cast = given.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not is_cast or not is_faulty(given.shape, _stride(self)):
            return kind.forward(self, *maps)
        with without_autocast(given):
            return kind.forward(self, *(at_least_float32(each) for each in maps))

    return cast(type[nn.Module], type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}))


def _stride(module: nn.Module) -> tuple[int, ...]:
    return module.stride if isinstance(module, nn.Conv3d) else (1, 1, 1)
