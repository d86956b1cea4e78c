"""The training step on cubes: views, losses, methods and stages of 2D, with a third axis."""

import copy
import itertools
from functools import partialmethod
from typing import Any

import pytest
import torch
from cube_sets import ball_cube
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import estimate_memory
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet3d import UNet3dConfig
from dira_dist.objectives import METHODS, AdversarialConfig, adversarial_loss, discriminator_loss, restorative_loss
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.memory import LiveTensors
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.training.step import TrainStep
from dira_dist.views import Views, ViewsConfig, make_views

SMALL: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 7, "outputs": 8},
    "barlow_twins": {"projector_width": 16},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(4, 8, 8, 8)))
SIZE = (16, 16, 16)


def networks(method: str = "moco_v2", **model: Any) -> PretrainNetworks:
    section = METHODS[method].model_validate({"name": method, **SMALL[method]})
    return build_networks(UNet3dConfig(**{"width": 4, "levels": 3, **model}), section, ADVERSARIAL, seed=0)


def step_of(objective: Any = "dira", found: PretrainNetworks | None = None, **settings: Any) -> TrainStep[Views]:
    return pretrain_step(found or networks(), objective, adversarial=ADVERSARIAL, total_steps=10, **settings)


def views(batch: int = 3, epoch: int = 0, dtype: torch.dtype = torch.float32) -> Views:
    cubes = torch.stack([torch.from_numpy(ball_cube(number, (20, 18, 16))[0]) for number in range(batch)])[:, None]
    made = make_views(
        cubes,
        torch.tensor([[20, 18, 16]] * batch),
        torch.arange(batch),
        torch.full((batch,), epoch),
        seed=0,
        image_size=SIZE,
        in_channels=1,
        config=ViewsConfig(),
    )
    assert made.view_2 is not None and made.target is not None
    return Views(made.view_1.to(dtype), made.view_2.to(dtype), made.target.to(dtype), made.sample_ids, made.distortion)


@pytest.mark.parametrize("objective", ["di", "dir", "dira"])
@pytest.mark.parametrize("method", SMALL)
def test_every_method_learns_from_cubes_in_every_stage(method: str, objective: str) -> None:
    found = networks(method)
    before = copy.deepcopy(found.state_dict())
    result = step_of(objective, found)(views(), 0)
    assert result.finite
    parts = {"di": 1, "dir": 2, "dira": 4}[objective]
    assert len(result.losses) == parts + 1, "each part's, the discriminator's, and the total"
    changed = {name.split(".")[0] for name, weight in found.state_dict().items() if differs(weight, before[name])}
    assert changed == {"unet", "method"} | ({"discriminator"} if objective == "dira" else set())
    decoder = any(
        differs(w, before[n]) for n, w in found.state_dict().items() if n.startswith("unet.decoder") and "run" not in n
    )
    assert decoder == (objective != "di")


def differs(value: Any, other: Any) -> bool:
    return not torch.equal(value, other) if isinstance(value, Tensor) else value != other


def loop_mean(values: Tensor) -> float:
    """Of a (B, 1, X, Y, Z) map, one voxel after another."""
    total = 0.0
    for place in itertools.product(*map(range, values.shape)):
        total += float(values[place])
    return total / values.numel()


def test_losses_of_cubes_are_those_of_the_loops() -> None:
    drawn = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 1, 2, 3, 4, generator=drawn, dtype=torch.float64) for _ in range(2))
    sigmoid = torch.sigmoid
    close = pytest.approx
    assert float(restorative_loss(one, other)) == close(loop_mean((one - other) ** 2))
    assert float(adversarial_loss(one, "lsgan")) == close(loop_mean((one - 1) ** 2))
    assert float(adversarial_loss(one, "bce")) == close(loop_mean(-sigmoid(one).log()))
    assert float(adversarial_loss(one, "hinge")) == close(loop_mean(-one))
    wanted = {
        "lsgan": ((one - 1) ** 2, other**2),
        "bce": (-sigmoid(one).log(), -(1 - sigmoid(other)).log()),
        "hinge": ((1 - one).clamp_min(0), (1 + other).clamp_min(0)),
    }
    for kind, (real, restored) in wanted.items():
        assert float(discriminator_loss(one, other, kind)) == close((loop_mean(real) + loop_mean(restored)) / 2)


def test_a_step_reports_what_the_networks_give() -> None:
    """Restoration and scores of the networks as they were before the step, their losses written out."""
    found = networks().double()
    unet, discriminator = copy.deepcopy(found.unet), copy.deepcopy(found.discriminator)
    batch = views(dtype=torch.float64)
    result = step_of("dira", found)(batch, 0)
    with torch.no_grad():
        _, restoration = unet.train()(batch.view_1)
        real, restored = discriminator(batch.target), discriminator(restoration)
    assert real.shape == (3, 1, 2, 2, 2)
    assert float(result.losses["restorative"]) == pytest.approx(float(((restoration - batch.target) ** 2).mean()))
    assert float(result.losses["adversarial"]) == pytest.approx(float(((restored - 1) ** 2).mean()))
    wanted = ((real - 1) ** 2).mean() / 2 + (restored**2).mean() / 2
    assert float(result.losses["discriminator"]) == pytest.approx(float(wanted))
    torch.testing.assert_close(result.output, restoration)


def two_steps(step: TrainStep[Views]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    losses = []
    for number in range(2):
        result = step(views(epoch=number), number)
        losses.append({name: float(value) for name, value in result.losses.items()})
    return losses, step.state_dict()


def test_checkpointing_changes_nothing() -> None:
    plain, recomputed = (two_steps(step_of("dira", networks(gradient_checkpointing=on))) for on in (False, True))
    assert plain[0] == recomputed[0]
    assert not [n for n, w in plain[1]["networks"].items() if differs(w, recomputed[1]["networks"][n])]


def test_a_step_goes_on_from_its_state_bit_for_bit() -> None:
    unbroken, first, second = (step_of() for _ in range(3))
    expected, end = two_steps(unbroken)
    first(views(epoch=0), 0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    result = second(views(epoch=1), 1)
    assert {name: float(value) for name, value in result.losses.items()} == expected[1]
    assert not [n for n, w in end["networks"].items() if differs(w, second.state_dict()["networks"][n])]


def test_bf16_computes_losses_in_float32_near_fp32() -> None:
    exact, coarse = (step_of(precision=precision)(views(), 0) for precision in ("fp32", "bf16"))
    assert coarse.finite and all(loss.dtype == torch.float32 for loss in coarse.losses.values())
    for name, loss in exact.losses.items():
        torch.testing.assert_close(coarse.losses[name], loss, rtol=0.1, atol=0.02, msg=name)


def test_a_compiled_step_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    eager, compiled = (
        step_of("dir", networks(gradient_checkpointing=True), execution=ExecutionConfig(compile=on))(views(), 0)
        for on in (False, True)
    )
    for name, loss in eager.losses.items():
        torch.testing.assert_close(compiled.losses[name], loss, rtol=1e-4, atol=1e-5, msg=name)


def job(**changes: Any) -> Any:
    values = {
        "kind": "pretrain",
        "name": "cubes",
        "data": {"train": "/nowhere", "image_size": [32, 32, 16], "global_batch": 8},
        "model": {"name": "unet3d", "width": 8, "levels": 3},
        "method": {"name": "moco_v2", "queue_size": 64},
        "stages": [{"objective": "dira", "steps": 2}],
        "precision": "fp32",
    }
    return load_job(values | changes).job


def test_the_estimate_of_memory_is_what_a_step_takes() -> None:
    found = job()
    with LiveTensors() as live:
        step = pretrain_step(found.build_task().build(), "dira", total_steps=2)
        batch = Views(*(torch.rand(8, 1, 32, 32, 16) for _ in range(3)), torch.arange(8))
        for number in range(2):
            step(batch, number)
    assert sum(estimate_memory(found).values()) == pytest.approx(live.peak_bytes, rel=0.15)


def test_checkpointing_spares_the_u_nets_activations() -> None:
    """Where the discriminator, whose own step nothing spares, is as narrow as the U-Net."""
    narrow = {"discriminator": {"channels": [8, 16, 32, 64]}}
    usual = job(adversarial=narrow)
    spared = job(adversarial=narrow, model={**usual.model.model_dump(), "gradient_checkpointing": True})
    passing = "activations and gradients"
    assert estimate_memory(spared)[passing] < 0.6 * estimate_memory(usual)[passing]


def test_checkpointing_halves_what_a_step_takes_at_the_published_depth() -> None:
    usual = job(
        data={"train": "/x", "image_size": [64, 64, 32], "global_batch": 8},
        model={"name": "unet3d", "width": 16},
        stages=[{"objective": "dir", "steps": 2}],
    )
    spared = usual.model_copy(update={"model": usual.model.model_copy(update={"gradient_checkpointing": True})})
    passing = "activations and gradients"
    assert estimate_memory(spared)[passing] < 0.5 * estimate_memory(usual)[passing]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": "/x", "image_size": [34, 32, 16]}}, r"data.image_size is \(34, 32, 16\).*multiples of 4"),
        ({"data": {"train": "/x", "image_size": [32, 32]}}, r"\[32, 32\] has 2 axes, the images have 3"),
        ({"model": {"name": "unet4d"}}, r"model: found .*allowed: a name among unet, unet3d"),
        ({"model": {"name": "unet3d", "encoder": "resnet18"}}, r"model.encoder: .*goes with model.name: unet"),
        ({"model": {"width": 8}}, r"model.width: .*goes with model.name: unet3d"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        job(**changes)
