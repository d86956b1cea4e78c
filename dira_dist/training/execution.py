"""How a step is computed: layout in memory, compilation, and several workers."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dira_dist.config import MAY_CHANGE, RequestError, Section
from dira_dist.objectives.collectives import is_distributed
from dira_dist.training.networks import Networks
from dira_dist.training.torch_internals import BatchNorm, Dropout


class ExecutionConfig(Section):
    """How a step is computed. `sync_batchnorm`, and `micro_batch` where batch norms learn, change what is computed by
    more than rounding."""

    compile: bool = Field(False, description="compile the networks with torch.compile", json_schema_extra=MAY_CHANGE)
    channels_last: bool = Field(True, description="keep images and weights with channels last in memory")
    sync_batchnorm: bool = Field(False, description="batch norms over the global batch; on GPUs only")
    gradient_compression: Literal["none", "bf16"] = Field(
        "none", description="bf16: halve the bytes of gradients between workers"
    )
    micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="most samples of a worker that pass the networks at once: gradients add up over its share of the "
        "batch, memory is that of a part; left out: all of them",
    )


_NEWER = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEWER else "broadcast_buffers": False}
"""The setting's name since torch 2.15, and before."""


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of axes of images and kernels, in 2D and 3D."""


def laid_out(tensor: Tensor, execution: ExecutionConfig) -> Tensor:
    """Images or kernels in the layout that ``execution`` asks for; anything else contiguous."""
    last = execution.channels_last and tensor.ndim in _CHANNELS_LAST
    return tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.ndim] if last else torch.contiguous_format)


def prepare(networks: Networks, device: torch.device, execution: ExecutionConfig) -> None:
    """Moves the networks to the device and makes them what ``execution`` asks, in place. May be called again.

    Raises:
        RequestError: synchronised batch norm without a GPU, where torch has none.
    """
    if execution.sync_batchnorm and is_distributed():
        if device.type == "cpu":
            raise RequestError("execution.sync_batchnorm is true and the workers have no GPU: leave it false on CPUs")
        for part in networks.trainable_parts():
            if not any(isinstance(module, nn.SyncBatchNorm) for module in part.modules()):
                _synchronise_batch_norms(part)  # a second time, at the next stage, it would lose activations
    torch.backends.cudnn.benchmark = True  # images of a job have one size, so the fastest kernels are looked for once
    networks.to(device)
    for weight in networks.parameters():
        weight.data = laid_out(weight.data, execution)
    if execution.compile:
        for module in networks.compiled_parts():
            module.compile()


def _synchronise_batch_norms(part: nn.Module) -> None:
    """In place. timm's and not torch's, which would lose the activation inside timm's batch norms."""
    from timm.layers.norm_act import convert_sync_batchnorm  # seconds to import, and no job file needs it

    convert_sync_batchnorm(part)


def distribute(module: nn.Module, execution: ExecutionConfig) -> nn.Module:
    """The module with its gradients averaged over the workers; without other workers the module itself.

    Buffers are not broadcast: batch-norm statistics are each worker's own and the queue is equal by construction.
    Every parameter that requires a gradient gets one, so none is looked for.
    """
    if not is_distributed():
        return module
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **_NO_BUFFERS)
    if execution.gradient_compression == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def synchronised(module: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Inside, forward and backward passes of what :func:`distribute` gave average the gradients only ``when``.

    Gradients of passes before add up on each worker, and are averaged with those of the pass that is.
    """
    if when or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    kept: AbstractContextManager[None] = module.no_sync()
    return kept


def passes_alone(network: nn.Module) -> bool:
    """Whether nothing of what a sample becomes in training depends on what passes with it: its micro-batch is its own.

    Batch norms that learn see their neighbours, and dropout draws by place.
    """
    from timm.layers.drop import DropPath

    return not any(
        (isinstance(module, BatchNorm) and module.training)
        or (isinstance(module, Dropout) and module.p > 0)
        or (isinstance(module, DropPath) and bool(module.drop_prob))
        for module in network.modules()
    )
