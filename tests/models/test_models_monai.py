"""MONAI's networks by name: the same numbers as MONAI's own, trained through all stages, and given back to MONAI."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.models import monai_networks
from dira_dist.models.choice import read_model
from dira_dist.models.export import save_weights
from dira_dist.models.fine_tuned_files import exported_network
from dira_dist.models.model_files import ModelFacts, network_of, read_facts, write_model_folder
from dira_dist.models.monai_networks import MonaiBackbone
from dira_dist.models.pretrained import import_weights
from dira_dist.models.supervised import Classifier, Segmenter, parameter_depths
from dira_dist.objectives import AdversarialConfig
from dira_dist.objectives.simsiam import SimSiamConfig
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views

SMALL: dict[str, dict[str, Any]] = {
    "segresnet": {"name": "segresnet", "init_filters": 8, "blocks_down": [1, 2, 1]},
    "basicunet": {"name": "basicunet", "features": [4, 4, 6, 8, 10, 5]},
    "dynunet": {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, [2, 2, 1]], "res_block": True},
}
SIZES = {"segresnet": (8, 16, 8), "basicunet": (32, 16, 16), "dynunet": (8, 16, 4)}
NAMES = tuple(SMALL)


def small(name: str, **changes: Any) -> MonaiBackbone:
    torch.manual_seed(0)
    network = read_model(SMALL[name] | changes).build()
    assert isinstance(network, MonaiBackbone)
    return network


def cubes(name: str, count: int = 2, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, *SIZES[name], generator=torch.Generator().manual_seed(0))


def made_by(lines: tuple[str, ...]) -> Any:
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    return space["model"]


@pytest.mark.parametrize("name", NAMES)
def test_features_and_restoration_are_those_of_monais_own(name: str) -> None:
    network = small(name, in_channels=2).eval()
    with torch.no_grad():
        pooled, restoration = network(cubes(name, channels=2))
        exported = network.config.export(network.state_dict(), "monai", 2)
        model = made_by(exported.construction).eval()
        model.load_state_dict(exported.state)
        torch.testing.assert_close(model(cubes(name, channels=2)).sigmoid(), restoration)
        features = eval(exported.features, {"torch": torch, "model": model, "x": cubes(name, channels=2)})
    torch.testing.assert_close(features, pooled)
    assert pooled.shape == (2, network.channels) and restoration is not None
    assert restoration.shape == (2, 2, *SIZES[name]), "each of several sequences is restored"


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_alone_is_monais_without_its_decoder(name: str) -> None:
    network = small(name).eval()
    of_encoder = {key: value for key, value in network.state_dict().items() if key.startswith("encoder.")}
    exported = network.config.export(of_encoder, "monai", 1)
    assert len(exported.state) == len(of_encoder)
    model = made_by(exported.construction).eval()
    model.load_state_dict(exported.state)
    with torch.no_grad():
        features = eval(exported.features, {"torch": torch, "model": model, "x": cubes(name)})
        torch.testing.assert_close(features, network(cubes(name), False)[0])


LOADED = """
import sys, torch
{lines}
x = torch.load("x.pt")
with torch.no_grad():
    torch.save({features}, "found.pt")
assert not any(name.startswith("dira_dist") for name in sys.modules)
"""


def test_its_weights_load_without_this_package(tmp_path: Path) -> None:
    network = small("dynunet").eval()
    exported = network.config.export(network.state_dict(), "monai", 1)
    save_weights(exported.state, tmp_path / "weights.safetensors")
    torch.save(cubes("dynunet"), tmp_path / "x.pt")
    script = LOADED.format(lines=exported.loading_lines("weights.safetensors"), features=exported.features)
    (tmp_path / "load.py").write_text(script)
    subprocess.run([sys.executable, "load.py"], cwd=tmp_path, env={}, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "found.pt"), network(cubes("dynunet"))[0])


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_monai_are_what_it_starts_from(name: str, tmp_path: Path) -> None:
    theirs = small(name)
    save_weights(theirs.config.export(theirs.state_dict(), "monai", 1).state, tmp_path / "monai.pt")
    torch.manual_seed(1)
    mine = theirs.config.build()
    report = import_weights(mine, tmp_path / "monai.pt")
    assert not report.missing and not report.left_behind
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, mine.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient_and_spares_memory(name: str) -> None:
    kept: list[int] = []
    gradients = []
    for on in (False, True):
        network, saved = small(name, gradient_checkpointing=on), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda each, s=saved: s.setdefault(id(each), each), lambda e: e):
            pooled, restoration = network(cubes(name))
        kept.append(sum(each.nbytes for each in {each.data_ptr(): each for each in saved.values()}.values()))
        (pooled.square().sum() + restoration.square().sum()).backward()
        gradients.append({key: weight.grad for key, weight in network.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][key]), key
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_through_the_three_stages(name: str) -> None:
    networks = build_networks(
        small(name).config,
        SimSiamConfig(),
        AdversarialConfig.model_validate({"discriminator": {"channels": [4, 8, 8, 8]}}),
        seed=0,
    )
    first, second = (torch.rand(4, 1, *SIZES[name], generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    views = Views(first, second, first.clone(), torch.arange(4))
    for objective in ("di", "dir", "dira"):
        before = {key: value.clone() for key, value in networks.unet.state_dict().items()}
        found = pretrain_step(networks, objective, total_steps=3)(views, 0)
        moved = {key for key, value in networks.unet.state_dict().items() if not torch.equal(value, before[key])}
        assert found.finite
        decoders = {key for key in moved if not key.startswith("encoder.")}
        assert any(key.startswith("encoder.") for key in moved)
        assert bool(decoders) == (objective != "di")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("restore", [True, False])
def test_unused_parameters_are_those_without_gradients(name: str, restore: bool) -> None:
    network = small(name)
    pooled, restoration = network(cubes(name), restore)
    (pooled.sum() + (0 if restoration is None else restoration.sum())).backward()
    without = {key for key, weight in network.named_parameters() if weight.grad is None}
    assert network.config.unused_parameters(restore) == without


@pytest.mark.parametrize("name", NAMES)
def test_classifiers_and_segmenters_stand_on_it(name: str) -> None:
    for kind, shape in ((Classifier, (2, 3)), (Segmenter, (2, 3, *SIZES[name]))):
        network = kind(small(name).config, 3).eval()
        library, exported = exported_network(network)
        assert library == "monai"
        model = made_by(exported.construction).eval()
        model.load_state_dict(exported.state)
        with torch.no_grad():
            answer = eval(exported.features, {"torch": torch, "model": model, "x": cubes(name)})
            torch.testing.assert_close(answer, network(cubes(name)))
        assert answer.shape == shape
        assert len(set(parameter_depths(network).values())) >= 4


def test_a_registered_model_says_how_monai_loads_it(tmp_path: Path) -> None:
    network = small("segresnet").eval()
    facts = ModelFacts(
        "ct", network.config.label, 1, SIZES["segresnet"], ("restorative",), True, network=network.config.model_dump()
    )
    folder = write_model_folder(tmp_path / "model", network.state_dict(), facts, job="name: ct")
    known = read_facts(folder)
    assert (known.encoder_names, known.dims, known.feature_channels) == ("monai", 3, 32)
    with safe_open(folder / "unet.safetensors", "pt") as file:
        assert file.metadata()["names"] == "dira-dist"
    lines = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    space: dict[str, Any] = {}
    exec(lines.replace("'encoder.safetensors'", repr(str(folder / "encoder.safetensors"))), space)
    program = torch.export.load(folder / "features.pt2").module()
    with torch.no_grad():
        expected = network(cubes("segresnet", 3), False)[0]
        torch.testing.assert_close(eval(known.features, space | {"x": cubes("segresnet", 3)}), expected)
    torch.testing.assert_close(program(cubes("segresnet", 3)), expected)
    again = network_of(known.network, known.encoder, known.in_channels).build()
    again.load_state_dict(load_file(folder / "unet.safetensors"))


def test_strided_convolutions_of_small_maps_are_right_in_bf16() -> None:
    gradients = []
    for autocast in (False, True):
        block = small("segresnet", init_filters=16).encoder.blocks[1]
        drawn = torch.rand(4, 16, 8, 4, 2, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = block(drawn)
        found.float().square().sum().backward()
        gradients.append({key: weight.grad for key, weight in block.named_parameters() if weight.ndim == 5})
    for key, gradient in gradients[0].items():
        assert (gradients[1][key] - gradient).abs().max() < 0.1 * gradient.abs().max(), key


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [("segresnet", (8, 6, 8), [8, 8, 8]), ("basicunet", 16, [32, 32, 32]), ("dynunet", (8, 8, 3), [8, 8, 4])],
)
def test_sizes_that_the_levels_do_not_divide_are_refused_with_the_nearest(name: str, size: Any, nearest: Any) -> None:
    config = read_model(SMALL[name])
    with pytest.raises(RequestError, match="multiples of") as refused:
        config.check_image_size(size)
    assert str(nearest) in str(refused.value)
    config.check_image_size(tuple(nearest))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "segresnet", "init_filters": 12}, "multiple of 8"),
        ({"name": "segresnet", "blocks_up": [1, 1]}, "one level fewer: give 3 numbers"),
        ({"name": "basicunet", "features": [4, 4]}, "features"),
        ({"name": "dynunet", "filters": [4, 8, 8], "strides": [2, 2, 2]}, "the first 1"),
        ({"name": "dynunet", "filters": [4, 8, 8], "strides": [1, 2]}, "one for each of the 3 levels"),
        ({"name": "swinunetr"}, "a name among unet, unet3d, segresnet, basicunet, dynunet"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_model(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_the_network(name: str) -> None:
    def shapes(**changes: Any) -> list[tuple[int, ...]]:
        return [tuple(weight.shape) for weight in small(name, **changes).parameters()]

    changes: dict[str, dict[str, Any]] = {
        "segresnet": {"init_filters": 16, "blocks_down": [1, 1, 1], "blocks_up": [2, 1]},
        "basicunet": {"features": [4, 4, 6, 8, 12, 5]},
        "dynunet": {"filters": [4, 6, 10], "strides": None, "res_block": False},
    }
    for key, value in changes[name].items():
        assert shapes(**{key: value}) != shapes(), key


def test_without_monai_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(monai_networks, "import_module", absent)
    with pytest.raises(RequestError, match="pip install monai"):
        small("segresnet")


def test_other_libraries_and_channels_are_refused() -> None:
    network = small("basicunet")
    with pytest.raises(RequestError, match=r"format 'smp'.*possible for this network: monai"):
        network.config.export(network.state_dict(), "smp", 1)
    with pytest.raises(RequestError, match="input channels: found 3, of a network that takes 1"):
        network.config.export(network.state_dict(), "monai", 3)
