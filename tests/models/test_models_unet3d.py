"""The 3D U-Net: the published dimensions, its refusals, checkpointing, and its life outside this package."""

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models import unet3d_network
from dira_dist.models.backbone import built_on_meta
from dira_dist.models.export import save_weights
from dira_dist.models.fine_tuned_files import exported_network
from dira_dist.models.supervised import Classifier, Segmenter, parameter_depths
from dira_dist.models.unet3d import UNet3dBackbone, UNet3dConfig
from dira_dist.training.execution import ExecutionConfig, prepare
from dira_dist.training.networks import Networks

SMALL: dict[str, Any] = {"width": 4, "levels": 3}


def small(**changes: Any) -> UNet3dBackbone:
    torch.manual_seed(0)
    return UNet3dConfig(**{**SMALL, **changes}).build()


def cubes(count: int = 2, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, 16, 16, 8, generator=torch.Generator().manual_seed(seed))


def test_it_has_the_published_weights() -> None:
    """Counted in the published network: 7,027,776 in the encoder, 12,045,889 in decoder and head."""
    network = built_on_meta(UNet3dConfig().build)
    assert [tuple(weight.shape[:2]) for weight in network.encoder.parameters() if weight.ndim == 5] == [
        *((32, 1), (64, 32), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 256))
    ]
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in network.named_children()}
    assert counts["encoder"] == 7_027_776
    assert counts["decoder"] + counts["segmentation_head"] == 12_045_889
    assert network.channels == 512


def plain(state: dict[str, Tensor], volumes: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Pooled features and restoration, written down layer by layer from the state dict, in training mode."""

    def layer(values: Tensor, conv: str, norm: str) -> Tensor:
        values = F.conv3d(values, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        mean, spread = values.mean((0, 2, 3, 4), keepdim=True), values.var((0, 2, 3, 4), False, keepdim=True)
        scale, shift = (state[f"{norm}.{each}"].view(1, -1, 1, 1, 1) for each in ("weight", "bias"))
        return ((values - mean) / (spread + 1e-5).sqrt() * scale + shift).relu()

    def block(values: Tensor, name: str) -> Tensor:
        return layer(layer(values, f"{name}.0", f"{name}.1"), f"{name}.3", f"{name}.4")

    maps = [block(volumes, "encoder.blocks.0.mix")]
    for level in range(1, levels):
        b, c, *sides = maps[-1].shape
        pairs = maps[-1].view(b, c, *(n for side in sides for n in (side // 2, 2)))
        maps.append(block(pairs.amax((3, 5, 7)), f"encoder.blocks.{level}.mix"))
    found = maps[-1]
    for place, skip in enumerate(reversed(maps[:-1])):
        name = f"decoder.blocks.{place}"
        weight, bias = state[f"{name}.join.enlarge.weight"], state[f"{name}.join.enlarge.bias"]
        doubled = found.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        larger = torch.zeros(len(found), weight.shape[1], *doubled.shape[2:], dtype=found.dtype)
        for x in range(2):
            for y in range(2):
                for z in range(2):
                    corner = (slice(None), slice(None), slice(x, None, 2), slice(y, None, 2), slice(z, None, 2))
                    larger[corner] = torch.einsum("bcxyz,cd->bdxyz", doubled[corner], weight[..., x, y, z])
        larger = larger + bias.view(1, -1, 1, 1, 1)
        joined = layer(torch.cat([larger, skip], 1), f"{name}.join.conv", f"{name}.join.norm")
        found = layer(joined, f"{name}.mix.0", f"{name}.mix.1")
    head = state["segmentation_head.0.weight"][..., 0, 0, 0]
    logits = torch.einsum("bcxyz,dc->bdxyz", found, head) + state["segmentation_head.0.bias"].view(1, -1, 1, 1, 1)
    return maps[-1].mean((2, 3, 4)), logits.sigmoid()


@pytest.mark.parametrize("levels", [2, 3])
def test_it_computes_what_the_layers_say(levels: int) -> None:
    network, volumes = small(levels=levels).double(), cubes().double()
    found = network(volumes)
    for one, other in zip(found, plain(network.state_dict(), volumes, levels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_an_answer_does_not_depend_on_its_batch_mates(norm: str) -> None:
    """The published batch norm does not stop to use its batch in evaluation, so that its answers do."""
    network = small(norm=norm)
    network(cubes(4, seed=1))
    network.eval()
    with torch.no_grad():
        alone, beside = network(cubes(1))[1], network(torch.cat([cubes(1), 1 - cubes(1)]))[1]
    torch.testing.assert_close(beside[:1], alone, rtol=1e-5, atol=1e-6)
    kinds = {"batch": nn.BatchNorm3d, "group": nn.GroupNorm, "instance": nn.InstanceNorm3d}
    assert sum(isinstance(each, kinds[norm]) for each in network.modules()) == 2 * (3 + 2)


@pytest.mark.parametrize(("levels", "size", "nearest"), [(4, (64, 60, 32), [64, 64, 32]), (5, 40, [32, 32, 32])])
def test_sizes_that_the_levels_do_not_halve_are_refused_with_the_nearest(levels: int, size: Any, nearest: Any) -> None:
    config = UNet3dConfig(levels=levels)
    with pytest.raises(RequestError, match=rf"multiples of {2 ** (levels - 1)}\b") as refused:
        config.check_image_size(size)
    assert str(nearest) in str(refused.value)
    config.check_image_size(tuple(nearest))


def test_a_single_voxel_at_the_deepest_level_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\[64, 64, 64\]"):
        UNet3dConfig(levels=6).check_image_size(32)
    UNet3dConfig(levels=6).check_image_size((64, 32, 32))


@pytest.mark.parametrize("wrong", [{"width": 5}, {"levels": 1}, {"norm": "layer"}, {"encoder": "resnet18"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UNet3dConfig(**wrong)


@pytest.mark.parametrize("restore", [True, False])
def test_unused_parameters_are_those_without_gradients(restore: bool) -> None:
    network = small()
    pooled, restoration = network(cubes(), restore)
    (pooled.sum() + (0 if restoration is None else restoration.sum())).backward()
    without = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert network.config.unused_parameters(restore) == without


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_checkpointing_changes_neither_gradients_nor_statistics(norm: str, autocast: bool) -> None:
    whole, recomputing = small(norm=norm), small(norm=norm, gradient_checkpointing=True)
    for network in (whole, recomputing):
        for seed in range(2):  # twice, for the statistics
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                pooled, restoration = network(cubes(seed=seed))
            (pooled.square().sum() + restoration.sum()).backward()
    for (name, weight), other in zip(whole.named_parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad), name
    for (name, buffer), other in zip(whole.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_bf16_restores_in_float32_near_fp32() -> None:
    network = small().eval()
    with torch.no_grad():
        exact = network(cubes())[1]
        with torch.autocast("cpu", torch.bfloat16):
            pooled, coarse = network(cubes())
    assert pooled.dtype == coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("part", ["encoder.blocks.1", "decoder.blocks.1.join"])
def test_bf16_gradients_of_small_maps_are_those_of_fp32(part: str) -> None:
    """Maps of 2 voxels along the first side, where PyTorch's own gradients on CPUs are of memory that nobody wrote."""
    drawn = torch.Generator().manual_seed(0)
    shapes = [(4, 16, 4, 8, 8)] if part.startswith("encoder") else [(4, 32, 1, 8, 8), (4, 16, 2, 16, 16)]
    maps = [torch.rand(shape, generator=drawn) for shape in shapes]
    gradients = []
    for autocast in (False, True):
        block = small(norm="group", width=16).get_submodule(part)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = block(*maps)
        found.float().square().sum().backward()
        gradients.append({name: weight.grad for name, weight in block.named_parameters() if weight.ndim == 5})
    exact, coarse = gradients
    for name, gradient in exact.items():
        torch.testing.assert_close(coarse[name], gradient, rtol=0, atol=0.1 * float(gradient.abs().max()), msg=name)


def test_channels_last_changes_the_layout_alone() -> None:
    class One(Networks):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

    network = small().eval()
    with torch.no_grad():
        expected = network(cubes())[1]
        prepare(One(network), torch.device("cpu"), ExecutionConfig())
        kernel = network.encoder.blocks[1].mix[0].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
        found = network(cubes().contiguous(memory_format=torch.channels_last_3d))[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


LOADED = """
import sys, torch
assert not any(name.startswith("dira_dist") for name in sys.modules)
{lines}
x = torch.load("x.pt")
with torch.no_grad():
    torch.save([{features}, model(x).sigmoid()], "found.pt")
assert "dira_dist" not in sys.modules
"""


def test_its_weights_load_without_this_package(tmp_path: Path) -> None:
    network = small(in_channels=2)
    network(cubes(4, 2))
    network.eval()
    exported = network.config.export(network.state_dict(), "torch", 2)
    save_weights(exported.state, tmp_path / "weights.pt")
    for code in exported.code:
        shutil.copyfile(code, tmp_path / code.name)
    torch.save(cubes(channels=2), tmp_path / "x.pt")
    script = LOADED.format(lines=exported.loading_lines("weights.pt"), features=exported.features)
    (tmp_path / "load.py").write_text(script)
    subprocess.run([sys.executable, "load.py"], cwd=tmp_path, env={}, check=True)
    with torch.no_grad():
        expected = network(cubes(channels=2))
    for one, other in zip(torch.load(tmp_path / "found.pt"), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_other_libraries_and_channels_are_refused() -> None:
    network = small()
    with pytest.raises(RequestError, match=r"format 'smp'.*possible for this network: torch"):
        network.config.export(network.state_dict(), "smp", 1)
    with pytest.raises(RequestError, match="input channels: found 3, of a network that takes 1"):
        network.config.export(network.state_dict(), "torch", 3)


def run_lines(lines: tuple[str, ...]) -> Any:
    """The model that lines of construction make."""
    space: dict[str, Any] = {}
    sys.modules["unet3d_network"] = unet3d_network
    try:
        exec("\n".join(lines), space)
    finally:
        del sys.modules["unet3d_network"]
    return space["model"]


@pytest.mark.parametrize("kind", [Classifier, Segmenter])
def test_classifiers_and_segmenters_stand_on_it(kind: type[Classifier | Segmenter]) -> None:
    network = kind(UNet3dConfig(**SMALL), 3)
    found = network(cubes())
    assert found.shape == ((2, 3) if kind is Classifier else (2, 3, 16, 16, 8))
    found.sum().backward()
    without = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert without <= network.unused_parameters()
    library, exported = exported_network(network.eval())
    model = run_lines(exported.construction).eval()
    model.load_state_dict(exported.state)
    with torch.no_grad():
        answer = eval(exported.features, {"model": model, "x": cubes()})
        torch.testing.assert_close(answer, network(cubes()))
    assert library == "torch"


def test_layers_are_counted_from_the_input() -> None:
    depths = parameter_depths(Segmenter(UNet3dConfig(**SMALL), 2))
    blocks = [*(f"encoder.blocks.{k}" for k in range(3)), *(f"decoder.blocks.{k}" for k in range(2))]
    found = [{depth for name, depth in depths.items() if name.startswith(block)} for block in blocks]
    assert all(len(depth) == 1 for depth in found)
    assert all(min(one) < min(other) for one, other in pairwise(found))
    assert depths["segmentation_head.0.weight"] == max(depths.values())
