"""Gradient checkpointing for any network: activations of a segment are computed again in the backward pass, not kept.

Chen et al., *Training Deep Nets with Sublinear Memory Cost* (2016). A network is cut into segments by measuring, on the
meta device, how many activation elements each of its modules makes; the chosen modules then recompute themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dira_dist.models.torch_internals import BatchNorm

LARGEST_SEGMENT = 0.5
"""A module that makes more than this share of the activations is opened and its children are taken instead."""


def segments(network: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the modules to recompute as a whole, outermost first; ``[""]`` (all of it) where no module will do.

    Args:
        network: the network, best on the meta device.
        run: calls the network once.

    A module counts only where it is called: DenseNet's ``features``, say, is a mere holder. Single layers are left out,
    since recomputing one layer frees nothing.
    """
    elements = _elements_made(network, run)
    limit = LARGEST_SEGMENT * elements[""]
    chosen: list[str] = []
    for name, module in network.named_modules():
        inside_chosen = any(name.startswith(f"{outer}.") for outer in chosen)
        if name and not inside_chosen and _is_composite(module) and 0 < elements[name] <= limit:
            chosen.append(name)
    covered = sum(elements[name] for name in chosen)
    return chosen if 2 * covered > elements[""] else [""]


def recompute(module: nn.Module) -> None:
    """Makes ``module`` recompute its activations in the backward pass, in place.

    Only its class changes, to a subclass: names in the state dict, ``isinstance`` and ``copy.deepcopy`` stay as they
    were, which a wrapper or a replaced bound method would break.
    """
    module.__class__ = _recomputing(type(module))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, and leave their running statistics alone.

    Momentum 0 and not ``track_running_stats=False``: the latter saves fewer tensors for the backward pass, and
    checkpointing compares what is saved in both passes.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, kept, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else counter.clone()  # synchronised norms want one to count
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plain = partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        if torch.compiler.is_compiling():  # the compiler's recomputation never replays a buffer's update
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, context_fn=partial(_contexts, self), **kwargs)

    return cast(type[nn.Module], type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_statistics(module)


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _elements_made(network: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """For each *called* module the number of elements its layers put out; ``""`` is the network itself."""
    made: Counter[str] = Counter()
    called: set[str] = {""}

    def note(name: str, module: nn.Module, output: object) -> None:
        called.add(name)
        if not _is_composite(module) and isinstance(output, Tensor):
            for outer in _with_ancestors(name):
                made[outer] += output.numel()

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in network.named_modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return Counter({name: count for name, count in made.items() if name in called})


def _with_ancestors(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
