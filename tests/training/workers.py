"""One gloo worker of the tests of the distributed step: ``python workers.py FOLDER RANK WORKERS``.

Everything that needs several processes runs in one start of them, since the start is what takes time. Findings go to
``FOLDER/{name}.{rank}.pt``; what they mean is asserted in the test module. The same functions, called without a process
group, give what one process finds.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm

from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import METHODS, AdversarialConfig
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import MethodInputs
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.step import TrainStep
from dira_dist.views import Views

METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 11, "outputs": 8, "momentum": 0.9},
    "barlow_twins": {"projector_width": 16},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}
SHARES = {2: {"even": (4, 4), "uneven": (5, 4)}, 4: {"even": (2, 2, 2, 2), "uneven": (3, 2, 2, 2)}}
QUEUE_STEPS = 50
NORM = "encoder.model.layer1.0.bn1.running_mean"
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(8, 16, 16, 16)))


def networks(method: str, checkpointing: bool = False) -> PretrainNetworks:
    model = UNetConfig(
        encoder="tu-test_resnet", decoder_channels=(32, 16, 16, 8, 8), gradient_checkpointing=checkpointing
    )
    section = METHODS[method].model_validate({"name": method, **METHOD_SETTINGS[method]})
    built = build_networks(model, section, ADVERSARIAL, seed=0)
    for norm in built.modules():
        if isinstance(norm, _BatchNorm) and norm.affine:  # this encoder's residual branches start at 0, gradients too
            torch.nn.init.ones_(norm.weight)
    return built


def share(samples: int, batch: GlobalBatch, seed: int = 0, dtype: torch.dtype = torch.float32, size: int = 32) -> Views:
    """This worker's part of a global batch that is the same for any number of workers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 1, size, size)
    whole = [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    start = sum(batch.sizes[: batch.rank])
    rows = slice(start, start + batch.local_size)
    return Views(*(images[rows] for images in whole), torch.arange(samples)[rows])


def exact_step(method: str, batch: GlobalBatch, steps: int = 2, **execution: Any) -> dict[str, Any]:
    """Losses, gradients and queue of `dira` in float64 with batch norms in evaluation mode."""
    step = pretrain_step(
        networks(method, checkpointing=method == "simsiam").double(),
        "dira",
        optimizer=OptimizerConfig(lr=1e-3, momentum=0.9, weight_decay=0, schedule="constant"),
        execution=ExecutionConfig(**execution),
        total_steps=steps,
    )
    for module in step.networks.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    losses = []
    for number in range(steps):
        result = step(share(batch.samples, batch, seed=number, dtype=torch.float64), number)
        losses.append({name: float(value) for name, value in result.losses.items()})
        if number == 0:  # after one step momentum is the gradient, and Adam's average half of it
            gradients = _first_moments(step)
    queue = getattr(step.networks.method, "queue", torch.zeros(0))
    return {"losses": losses, "gradients": gradients, "queue": queue.clone()}


def critic_step(batch: GlobalBatch, steps: int = 2, **execution: Any) -> dict[str, Any]:
    """The same of `rea` against a conditional critic with a gradient penalty."""
    config = AdversarialConfig(
        loss="wgan_gp", conditional=True, discriminator=DiscriminatorConfig(channels=(8, 16, 16, 16))
    )
    model = UNetConfig(encoder="tu-test_resnet", decoder_channels=(32, 16, 16, 8, 8))
    built = build_networks(model, METHODS["simsiam"].model_validate({"name": "simsiam"}), config, seed=0).double()
    step = pretrain_step(
        built,
        "rea",
        adversarial=config,
        optimizer=OptimizerConfig(lr=1e-3, momentum=0.9, weight_decay=0, schedule="constant"),
        execution=ExecutionConfig(**execution),
        total_steps=steps,
    )
    for module in built.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    losses, gradients = [], {}
    for number in range(steps):
        views = share(batch.samples, batch, seed=number, dtype=torch.float64)
        result = step(replace(views, mix=(views.sample_ids + 0.5) / batch.samples), number)
        losses.append({name: float(value) for name, value in result.losses.items()})
        gradients = gradients or _first_moments(step)
    return {"losses": losses, "gradients": gradients, "queue": torch.zeros(0)}


def averaged_elements(batch: GlobalBatch, micro_batch: int | None) -> int:
    """Elements of gradients that a step sends to the other workers, told by the hook that compresses them."""
    sent: list[int] = []

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.buffer().numel())
        future: torch.futures.Future[Tensor] = bf16_compress_hook(state, bucket)
        return future

    with patch("dira_dist.training.execution.bf16_compress_hook", hook):
        execution = ExecutionConfig(micro_batch=micro_batch, gradient_compression="bf16")
        step = pretrain_step(networks("simsiam"), "dira", execution=execution, total_steps=1)
        step(share(batch.samples, batch), 0)
    return sum(sent)


def _first_moments(step: TrainStep) -> dict[str, Tensor]:
    optimizers = step.state_dict()["optimizers"]
    found = {name: state["momentum_buffer"].clone() for name, state in optimizers["unet"]["state"].items()}
    return found | {name: 2 * state["exp_avg"] for name, state in optimizers["discriminator"]["state"].items()}


def queue_after_many_steps(batch: GlobalBatch) -> dict[str, Any]:
    step = pretrain_step(networks("moco_v2"), "di", total_steps=QUEUE_STEPS)
    for number in range(QUEUE_STEPS):
        step(share(batch.samples, batch, seed=number), number)
    own = step.networks.get_buffer(f"unet.{NORM}").clone()
    state = {name: value for name, value in step.state_dict()["networks"].items() if isinstance(value, Tensor)}
    return {"state": state, "own_statistics": own, "keys_seen": step.networks.method.keys_seen}


def shuffled_samples(batch: GlobalBatch) -> dict[str, Any]:
    """Which samples' keys this worker computes, told by each image's mean, in training and in evaluation."""
    step = pretrain_step(networks("moco_v2"), "di", total_steps=2)
    seen: list[list[float]] = []
    step.networks.method.key.register_forward_pre_hook(lambda _, view: seen.append(view[0].mean((1, 2, 3)).tolist()))
    views = share(batch.samples, batch)
    step(views, 0)
    step(views, 1)
    unet, method = step.networks.unet.eval(), step.networks.method.eval()
    with torch.no_grad():
        pooled = unet(views.view_1, False)[0]
        method(MethodInputs(lambda view: unet(view, False)[0], pooled, second_view=views.view_2), batch)
    return {"own": views.view_2.mean((1, 2, 3)).tolist(), "seen": seen}


def one_bad_worker(batch: GlobalBatch) -> dict[str, Any]:
    step = pretrain_step(networks("moco_v2"), "dira", total_steps=2)
    step(share(batch.samples, batch), 0)
    before = {name: value.clone() for name, value in step.networks.state_dict().items() if isinstance(value, Tensor)}
    views = share(batch.samples, batch, seed=1)
    if batch.rank == 1:
        views.view_1[0, 0, 0, 0] = float("nan")
    result = step(views, 1)
    after = step.networks.state_dict()
    return {"finite": result.finite, "unchanged": all(torch.equal(after[name], before[name]) for name in before)}


def three_stages(batch: GlobalBatch) -> dict[str, Any]:
    """Stages on the same networks, each step object replaced while the one before still lives."""
    trained, state, finite = networks("moco_v2"), None, []
    reduced: list[set[str]] = []
    for objective in ("di", "dir", "dira"):
        step = pretrain_step(trained, objective, total_steps=2)
        if state is not None:
            step.load_state_dict(state)
        finite += [step(share(batch.samples, batch, seed=number), number).finite for number in range(2)]
        reduced.append({name for name, weight in trained.named_parameters() if weight.requires_grad})
        state = step.state_dict()
    assert state is not None
    flat = {name: value for name, value in state["networks"].items() if isinstance(value, Tensor)}
    return {"finite": finite, "state": flat, "reduced": reduced}


def run(folder: Path, rank: int, workers: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{workers}", rank=rank, world_size=workers)
    even = GlobalBatch(SHARES[workers]["even"], rank)
    for kind, sizes in SHARES[workers].items():
        for method in METHOD_SETTINGS:
            _note(folder, f"{method}.{kind}.{workers}", rank, exact_step(method, GlobalBatch(sizes, rank)))
    _note(folder, f"queue.{workers}", rank, queue_after_many_steps(even))
    _note(folder, f"shuffled.{workers}", rank, shuffled_samples(even))
    if workers == 2:
        for kind, sizes in SHARES[workers].items():
            for method in METHOD_SETTINGS:
                parts = exact_step(method, GlobalBatch(sizes, rank), micro_batch=2)
                _note(folder, f"parts.{method}.{kind}.2", rank, parts)
        for kind, sizes in SHARES[workers].items():
            _note(folder, f"critic.{kind}.2", rank, critic_step(GlobalBatch(sizes, rank)))
        _note(folder, "critic.parts.2", rank, critic_step(even, micro_batch=2))
        sent = {size: averaged_elements(even, size) for size in (None, 2)}
        _note(folder, "sent.2", rank, sent)
        _note(folder, "bad.2", rank, one_bad_worker(even))
        _note(folder, "stages.2", rank, three_stages(even))
        _note(folder, "compressed.2", rank, exact_step("moco_v2", even, steps=1, gradient_compression="bf16"))
    dist.barrier()
    dist.destroy_process_group()


def _note(folder: Path, name: str, rank: int, found: dict[Any, Any]) -> None:
    torch.save(found, folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, place, most = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for count in (most, 2):
        if place < count:
            run(given, place, count)
