"""What a step is said to take beforehand, beside what it takes."""

from typing import Any

import pytest
import torch

from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import estimate_memory
from dira_dist.training.memory import LiveTensors
from dira_dist.training.pretrain.networks import build_networks
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
