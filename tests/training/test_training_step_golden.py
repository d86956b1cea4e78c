"""The recorded figures of the published modules, met by this project's."""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dira_dist.models.unet import UNetConfig
from dira_dist.objectives.moco_v2 import MoCoV2, MoCoV2Config
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.step import Networks, TrainStep, build_networks
from dira_dist.views import Views

FIGURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden.json"

STEP_0, LATER = 1e-4, 1e-2
GRADIENTS_STEP_0, GRADIENTS_LATER = 2e-3, 6e-2
"""Gradients pass 53 batch norms over batches of 4, and the recorded ones are float32: the same arithmetic in float64 is
9e-4 off them at step 0 and 3e-2 at step 1. On the recording machine's kernels this test finds 4e-5 and 1.2e-2."""


@pytest.fixture(params=["dira", "dir"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    if not FIGURES.is_file():
        pytest.skip(f"no recorded figures at {FIGURES}")
    cases = {case["mode"]: case for case in json.loads(FIGURES.read_text())}
    found: dict[str, Any] = cases[request.param]
    return found


@pytest.fixture
def _recorded_with_two_threads() -> Iterator[None]:
    """Convolutions choose other kernels on one thread, and round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _entry(seed: int, name: str, like: Tensor) -> Tensor:
    if name.endswith(("running_mean", "num_batches_tracked")):
        return torch.zeros_like(like)
    if name.endswith("running_var"):
        return torch.ones_like(like)
    drawn = torch.randn(like.shape, generator=_generator(f"s{seed}:{name}"))
    if like.ndim >= 2:
        return drawn * math.sqrt(2 / like[0].numel())
    return 1 + 0.1 * drawn if name.endswith("weight") else 0.1 * drawn


def _fill(module: nn.Module, published: str, seed: int) -> None:
    module.load_state_dict({name: _entry(seed, published + name, old) for name, old in module.state_dict().items()})


def _networks(case: dict[str, Any]) -> Networks:
    seed = case["seed"]
    networks = build_networks(
        UNetConfig(encoder="resnet50", in_channels=3), MoCoV2Config(queue_size=case["queue"]), seed=0
    )
    method = networks.method
    assert isinstance(method, MoCoV2)
    _fill(networks.unet, "backbone.", seed)
    _fill(method.projector, "fc.", seed)
    _fill(networks.discriminator, "disc.", seed)
    method.key.encoder.load_state_dict(networks.unet.encoder.state_dict())
    method.key.projector.load_state_dict(method.projector.state_dict())
    queue = torch.randn(128, case["queue"], generator=_generator(f"s{seed}:queue"))
    method.queue.copy_(F.normalize(queue, dim=0).T)
    return networks


def _views(case: dict[str, Any], step: int) -> Views:
    generator = torch.Generator().manual_seed(1000 * case["seed"] + step)
    shape = (case["batch"], 1, case["image_size"], case["image_size"])
    query, key, target = (torch.rand(shape, generator=generator) for _ in range(3))
    return Views(query.repeat(1, 3, 1, 1), key.repeat(1, 3, 1, 1), target, torch.arange(case["batch"]))


def _watch_gradients(networks: Networks) -> dict[str, float]:
    """Fills with each gradient's norm, under the published name, whenever it is made."""
    norms: dict[str, float] = {}
    parts = {"backbone.": networks.unet, "fc.": networks.method.projector}
    for published, module in parts.items():
        for name, weight in module.named_parameters():
            weight.register_post_accumulate_grad_hook(
                lambda weight, name=published + name: norms.__setitem__(name, float(weight.grad.norm()))
            )
    return norms


@pytest.mark.usefixtures("_recorded_with_two_threads")
def test_figures_of_the_published_modules(case: dict[str, Any]) -> None:
    networks = _networks(case)
    step = TrainStep(
        networks,
        case["mode"],
        optimizer=OptimizerConfig(lr=case["lr"], schedule="constant"),
        execution=ExecutionConfig(channels_last=False),
        total_steps=len(case["steps"]),
    )
    norms = _watch_gradients(networks)
    for recorded in case["steps"]:
        number = recorded["step"]
        result = step(_views(case, number), number)
        restoration = result.restoration
        assert result.finite and restoration is not None
        found = {name: float(value) for name, value in result.losses.items()}
        found |= {"reconstruction_mean": float(restoration.mean()), "reconstruction_std": float(restoration.std())}
        expected = {name: recorded[name] for name in found}
        assert found == pytest.approx(expected, rel=LATER if number else STEP_0)
        for part, norm in recorded["grad_norm"].items():
            own = math.sqrt(sum(value**2 for name, value in norms.items() if name.startswith(part)))
            assert own == pytest.approx(norm, rel=GRADIENTS_LATER if number else GRADIENTS_STEP_0), part
        scores = networks.discriminator(restoration)
        assert list(scores.shape[1:]) == recorded["patch_shape"]
