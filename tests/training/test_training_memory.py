"""What a step is said to take beforehand, beside what it takes."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import estimate_memory
from dira_dist.models.discriminator import PatchDiscriminator
from dira_dist.objectives import METHODS, GlobalBatch, Method
from dira_dist.objectives.collectives import is_distributed
from dira_dist.objectives.method import MethodInputs, Need
from dira_dist.objectives.parts import Objective, active_parts
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.memory import LiveTensors
from dira_dist.training.pretrain.memory import stage_activation_bytes
from dira_dist.training.pretrain.networks import PretrainNetworks, build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views


def _job(batch: int = 32, **more: Any) -> Any:
    return load_job(
        {
            "name": "a",
            "data": {"train": "x", "image_size": 64, "global_batch": batch},
            "model": {"encoder": "resnet18"},
            "stages": [{"objective": "di", "steps": 1}, {"objective": "dira", "steps": 1}],
            "precision": "fp32",
            **more,
        }
    ).job


def test_tensors_count_while_they_live_and_each_storage_once() -> None:
    with LiveTensors() as live:
        first = torch.ones(1000)
        first[:10].add_(1)
        del first
        torch.zeros(1500)
    assert live.peak_bytes == 6000


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["moco_v2", "barlow_twins", "simsiam"])
def test_the_estimate_is_close_to_what_a_step_takes(method: str, checkpointing: bool) -> None:
    settings = {"barlow_twins": {"projector_width": 256}, "moco_v2": {"queue_size": 4096}}.get(method, {})
    job = _job(
        model={"encoder": "resnet18", "gradient_checkpointing": checkpointing},
        method={"name": method, **settings},
        optimizer={"name": "sgd"},
    )
    with LiveTensors() as live:
        networks = build_networks(job.model, job.method, job.adversarial, seed=0)
        step = pretrain_step(networks, "dira", optimizer=job.optimizer, total_steps=3)
        views = Views(*(torch.rand(32, 1, 64, 64) for _ in range(3)), torch.arange(32))
        for number in range(2):
            step(views, number)
    assert sum(estimate_memory(job).values()) == pytest.approx(live.peak_bytes, rel=0.1)


def test_the_estimate_follows_the_job() -> None:
    usual = estimate_memory(_job())
    assert estimate_memory(_job(batch=128))["activations and gradients"] > 2 * usual["activations and gradients"]
    halved = estimate_memory(_job(precision="bf16"))
    assert 2 * halved["activations and gradients"] == pytest.approx(usual["activations and gradients"], abs=1)
    assert estimate_memory(_job(optimizer={"name": "adamw"}))["optimisers"] > 1.5 * usual["optimisers"]
    assert estimate_memory(_job(method={"name": "moco_v2", "queue_size": 10}))["key encoder and queue"] < (
        usual["key encoder and queue"] - 65_000 * 128 * 4
    )
    assert sum(estimate_memory(_job(resources={"workers": 4})).values()) < sum(usual.values())


def test_the_estimate_is_of_a_micro_batch() -> None:
    """Beside a step that is taken, whose features and views are the whole batch's.

    What is tried out on the meta device while a step is built would count as if it took memory, so it stays outside.
    """
    micro_batch = {"micro_batch": 4}
    job = _job(execution=micro_batch, method={"name": "moco_v2", "queue_size": 64})
    networks = build_networks(job.model, job.method, job.adversarial, seed=0)
    step = pretrain_step(
        networks, "dira", optimizer=job.optimizer, execution=ExecutionConfig(micro_batch=4), total_steps=3
    )
    with LiveTensors() as live:
        views = Views(*(torch.rand(32, 1, 64, 64) for _ in range(3)), torch.arange(32))
        for number in range(2):
            step(views, number)
    estimate = estimate_memory(job)
    assert sum(estimate.values()) == pytest.approx(live.peak_bytes, rel=0.1)
    whole = estimate_memory(_job(method={"name": "moco_v2", "queue_size": 64}))
    assert estimate["activations and gradients"] < 0.6 * whole["activations and gradients"]


def test_half_precision_halves_no_gradients() -> None:
    """They wait in float32 for the optimiser's step, however small what passes at once."""
    job = _job(batch=2, execution={"micro_batch": 1}, method={"name": "simsiam"}, precision="bf16")
    networks = build_networks(job.model, job.method, job.adversarial, seed=0)
    gradients = sum(weight.nbytes for weight in networks.parameters() if weight.requires_grad)
    assert estimate_memory(job)["activations and gradients"] == gradients


@pytest.mark.parametrize("precision", [None, "auto"])
def test_gpus_halve_what_passes_unless_told_otherwise(precision: str | None) -> None:
    def passing(gpus: bool, precision: str | None) -> int:
        return estimate_memory(_job(precision=precision, resources={"gpus_per_worker": int(gpus)}))[
            "activations and gradients"
        ]

    assert passing(True, precision) == passing(False, "bf16") < passing(True, "fp32") == passing(False, precision)


PLAYING = {
    "rubik": {
        "method": {"name": "rubik", "orders": 24, "pieces": 4},
        "views": {"distortion": {"name": "rubik"}},
        "adversarial": {"loss": "wgan_gp", "conditional": True},
    }
}
STAGES = [[{"objective": objective, "steps": 1}] for objective in ("di", "dir", "dira", "re", "rea")]


@pytest.mark.parametrize("stages", STAGES, ids=lambda stages: stages[0]["objective"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_estimated(method: str, stages: list[dict[str, Any]]) -> None:
    parts = estimate_memory(_job(batch=4, **PLAYING.get(method, {"method": {"name": method}}), stages=stages))
    assert all(math.isfinite(size) for size in parts.values())
    assert parts["activations and gradients"] > 0 and parts["weights"] > 0


class Greedy(Method):
    """Asks for everything that a method may ask for beside a second view."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, 1000)

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        assert inputs.second_view is None and inputs.pooled is None, "only what is asked for is given"
        assert inputs.maps is not None and inputs.labels is not None and inputs.distortion is not None
        pooled = inputs.maps[-1].mean((2, 3))
        age = torch.tensor([label["age"] for label in inputs.labels], device=pooled.device)
        wanted = age + inputs.distortion["kind"]
        return batch.local_weight * (self.head(pooled) - wanted[:, None]).square().mean()


@pytest.mark.parametrize("objective", ["di", "dira"])
def test_a_method_that_needs_labels_can_be_estimated(objective: Objective) -> None:
    job = _job()
    with torch.device("meta"):
        unet = job.model.build()
        needs = frozenset[Need]({"maps", "labels", "distortion"})
        discriminator = PatchDiscriminator(job.adversarial.discriminator, unet.dims, unet.restored_channels)
        networks = PretrainNetworks(unet, Greedy(unet.channels), discriminator, needs=needs)
    given = networks, active_parts(objective), job.adversarial, 4, (64, 64)
    encoded, whole = stage_activation_bytes(*given), stage_activation_bytes(*given, {"age": 3.0})
    assert 0 < encoded < whole
    assert networks.needs == needs and isinstance(networks.method, Greedy), "an estimate changes nothing"


@pytest.fixture
def two_workers() -> Iterator[None]:
    """A group of two, of which the other one answers to nothing."""
    store = FakeStore()
    torch.distributed.init_process_group("fake", store=store, rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


METHOD_SETTINGS = {"barlow_twins": {"projector_width": 256}, "moco_v2": {"queue_size": 64}}


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_among_others_estimates_as_one_alone(method: str, request: pytest.FixtureRequest) -> None:
    chosen = PLAYING.get(method, {"method": {"name": method, **METHOD_SETTINGS.get(method, {})}})
    job = _job(**chosen, execution={"gradient_compression": "bf16"})
    beforehand = estimate_memory(job)
    request.getfixturevalue("two_workers")
    assert is_distributed()
    assert estimate_memory(job) == beforehand
    assert is_distributed(), "the other worker is there again"
