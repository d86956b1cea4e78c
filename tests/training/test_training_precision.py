"""Precision: which devices have bf16, what `auto` settles on, and that a training in bf16 is within noise of fp32."""

import numpy as np
import pytest
import torch

from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import AdversarialConfig
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.quickstart.phantom import make_phantom
from dira_dist.training.precision import Precision, every_core_has_bf16, native_bf16, settle
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import ViewsConfig, make_views

ZEN_4 = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16 avx512_vnni\nbogomips\t: 5200\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\nvmx flags\t: vnmi bf16\n"
CASCADE_LAKE = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_vnni\nvmx flags\t: vnmi bf16\n"
GRAVITON_3 = "processor\t: 0\nBogoMIPS\t: 2100\nFeatures\t: fp asimd sve svebf16 i8mm bf16\nCPU part\t: 0xd40\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize("cpuinfo", [ZEN_4, SAPPHIRE_RAPIDS, GRAVITON_3, ZEN_4 + ZEN_4])
def test_processors_that_multiply_bf16(cpuinfo: str) -> None:
    assert every_core_has_bf16(cpuinfo)


@pytest.mark.parametrize("cpuinfo", [CASCADE_LAKE, GRAVITON_2, GRAVITON_3 + GRAVITON_2, "model name: bf16\n", ""])
def test_processors_that_do_not_or_not_on_every_core(cpuinfo: str) -> None:
    assert not every_core_has_bf16(cpuinfo)


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="torch tells of x86-64 alone")
def test_this_processor_is_seen_as_torch_sees_it() -> None:
    seen = torch.cpu.get_capabilities()
    assert native_bf16(torch.device("cpu")) == (seen["avx512_bf16"] or seen["amx_bf16"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_it_from_capability_8_on() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    assert native_bf16(device) == (torch.cuda.get_device_capability(device) >= (8, 0))


def test_a_device_that_is_neither_processor_nor_gpu_has_none() -> None:
    assert not native_bf16(torch.device("meta"))


def test_auto_is_what_every_worker_has() -> None:
    assert settle([True, True]) == "bf16"
    assert settle([True, False]) == "fp32"


PARTS = ("discriminative", "restorative", "adversarial", "discriminator")
ADVERSARIAL = AdversarialConfig(discriminator=DiscriminatorConfig(channels=(8, 16, 16, 16)))


def _mean_losses(precision: Precision, seed: int, steps: int = 20) -> list[float]:
    """Of a small `dira` training on the same images and views whatever the seed, over its steps."""
    images = torch.from_numpy(np.stack([make_phantom(0, number, 48).image for number in range(8)]))[:, None]
    model = UNetConfig(encoder="tu-test_resnet", decoder_channels=(32, 16, 16, 8, 8))
    networks = build_networks(model, MoCoV2Config(queue_size=64, outputs=32, momentum=0.99), ADVERSARIAL, seed=seed)
    step = pretrain_step(networks, "dira", adversarial=ADVERSARIAL, precision=precision, total_steps=steps)
    sizes_px, ids, sums = torch.full((8, 2), 48), torch.arange(8), torch.zeros(len(PARTS))
    for number in range(steps):
        epoch = torch.full((8,), number)
        views = make_views(images, sizes_px, ids, epoch, seed=0, image_size=32, in_channels=1, config=ViewsConfig())
        losses = step(views, number).losses
        sums += torch.stack([losses[part] for part in PARTS])
    return (sums / steps).tolist()


def test_bf16_changes_the_losses_less_than_another_seed_does() -> None:
    single, half = (np.array([_mean_losses(precision, seed) for seed in range(3)]) for precision in ("fp32", "bf16"))
    assert np.isfinite(half).all()
    assert (half != single).all(), "rounded otherwise"
    by_rounding, by_seed = np.abs(half - single).max(axis=0), np.ptp(single, axis=0)
    for part, rounded, seeded in zip(PARTS, by_rounding, by_seed, strict=True):
        assert rounded < seeded, part
