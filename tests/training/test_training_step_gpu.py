"""The step on a GPU that is not there: its tensors have shapes, types and a device, but no memory.

What was left on the CPU is found on any machine that way, and each number that the host reads from the device,
which is where a real step would wait.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet import UNetConfig, unused_parameters
from dira_dist.objectives import METHODS, AdversarialConfig
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.training.checkpoints import copied_to_host
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.step import TrainStep
from dira_dist.views import Views, ViewsConfig, make_views

GPU = "cuda"
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"}
MODEL = UNetConfig(encoder="tu-test_resnet", decoder_channels=(32, 16, 16, 8, 8))
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(8, 16, 16, 16)))

SMALL = {"moco_v2": {"queue_size": 7}, "barlow_twins": {"projector_width": 16}, "simsiam": {"outputs": 16}}


class Waits(TorchDispatchMode):
    """Counts what a host would wait for, and answers in the device's place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name in WAITS or len(_places(arguments)) > 1:
            self.found[name] += 1
        if name == "_local_scalar_dense":
            return True
        if name.startswith("_fused_"):  # optimisers' kernels, which have no shapes-only form; they give nothing back
            return None
        return operation(*arguments, **(named or {}))


def _places(arguments: Any) -> set[str]:
    """Where they lie; an index may come from the CPU, and single numbers may: the former is sent each time."""
    return {leaf.device.type for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.ndim > 0}


@pytest.fixture(autouse=True)
def _no_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    unused = {restore: unused_parameters(MODEL, restore) for restore in (False, True)}
    monkeypatch.setattr(UNetConfig, "unused_parameters", lambda _, restore: unused[restore])
    monkeypatch.setattr("dira_dist.training.pretrain.task.prepare", lambda *_: None)  # they are there already
    monkeypatch.setattr("dira_dist.training.pretrain.losses.distribute", lambda module, _: module)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.fixture(params=[1, 2])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobalBatch]:
    """The shares of one worker, or of two whose collectives send nothing."""
    found = GlobalBatch((4,) * request.param)
    answers = iter([found])  # the device would be waited for, so that it is asked once
    monkeypatch.setattr(GlobalBatch, "of", lambda *_: next(answers))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield found
    dist.destroy_process_group()


def _on_the_gpu(networks: PretrainNetworks) -> PretrainNetworks:
    for module in networks.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_empty(weight), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, _empty(buffer))
    return networks


def _empty(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=GPU)


def _views(channels: int) -> Views:
    numbers = torch.empty(4, dtype=torch.int64, device=GPU)
    return make_views(
        torch.empty(4, channels, 50, 40, dtype=torch.uint8, device=GPU),
        torch.empty(4, 2, dtype=torch.int64, device=GPU),
        numbers,
        numbers,
        seed=0,
        image_size=32,
        in_channels=1,
        config=ViewsConfig(),
    )


def _gradients_of(step: TrainStep, loss: Tensor) -> None:
    """In place of the backward pass, whose engine asks the driver for streams."""
    assert loss.requires_grad and loss.device.type == GPU and loss.dtype == torch.float32
    for weight in step.networks.parameters():
        if weight.requires_grad:
            weight.grad = torch.empty_like(weight)


@pytest.mark.parametrize(("checkpointing", "channels"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("method", SMALL)
def test_all_of_a_step_is_on_the_device_and_the_host_waits_for_it_once(
    method: str, checkpointing: bool, channels: int, batch: GlobalBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODEL.model_copy(update={"gradient_checkpointing": checkpointing})
    section = METHODS[method].model_validate({"name": method, **SMALL[method]})
    networks = build_networks(model, section, ADVERSARIAL, seed=0)
    with FakeTensorMode(), Waits() as waits:
        step = pretrain_step(_on_the_gpu(networks), "dira", precision="bf16", device=GPU, total_steps=10)
        monkeypatch.setattr(torch.autograd, "backward", lambda loss: _gradients_of(step, loss))
        step(_views(channels), 0)  # constant tables are made once for a device
        waits.found.clear()
        result = step(_views(channels), 1)
        assert waits.found == {"_local_scalar_dense": 1}, "to know whether the step is finite"
        assert {loss.device.type for loss in result.losses.values()} == {GPU}


def test_a_saved_state_goes_back_to_the_device(batch: GlobalBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = build_networks(MODEL, MoCoV2Config(queue_size=7), ADVERSARIAL, seed=0)
    with FakeTensorMode(), Waits():
        step = pretrain_step(_on_the_gpu(networks), "dira", device=GPU, total_steps=10)
        monkeypatch.setattr(torch.autograd, "backward", lambda loss: _gradients_of(step, loss))
        step(_views(1), 0)
        saved = copied_to_host(step.state_dict())
        step.load_state_dict(saved)
        kept = step.state_dict()["optimizers"]["discriminator"]["state"]
        assert {value.device.type for state in kept.values() for value in state.values()} == {GPU}
        step(_views(1), 1)
