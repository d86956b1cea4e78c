"""Weights go to other libraries and come from them: exactly, strictly, with every key accounted for."""

import argparse
import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.export import export, save_feature_program, save_weights, weights_digest, with_channels
from dira_dist.models.pretrained import import_weights
from dira_dist.models.unet import UNet, UNetConfig

SMALL = (8, 8, 8, 8, 8)


def trained(encoder: str, in_channels: int = 1, seed: int = 0) -> UNet:
    """A U-Net with weights and batch statistics of its own, as after some training."""
    torch.manual_seed(seed)
    network = UNet(UNetConfig(encoder=encoder, in_channels=in_channels, decoder_channels=SMALL))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


def load_by_the_printed_lines(lines: str, features: str, x: Tensor) -> tuple[nn.Module, Tensor]:
    names: dict[str, Any] = {"x": x}
    exec(lines, names)
    with torch.no_grad():
        return names["model"], eval(features, names)


@pytest.mark.parametrize(("target", "ending"), [(1, "safetensors"), (3, "pt")])
@pytest.mark.parametrize("source", [1, 3])
@pytest.mark.parametrize("library", ["torchvision", "timm", "smp"])
def test_a_resnet_gives_the_same_features_everywhere(
    library: Any, source: int, target: int, ending: str, tmp_path: Path
) -> None:
    network = trained("resnet18", source)
    exported = export(network.state_dict(), "resnet18", library, target)
    path = tmp_path / f"weights.{ending}"
    save_weights(exported.state, path)
    grey = torch.rand(3, 1, 64, 64)
    model, features = load_by_the_printed_lines(
        exported.loading_lines(path), exported.features, grey.expand(-1, target, -1, -1)
    )
    with torch.no_grad():
        expected = network(grey.expand(-1, source, -1, -1))[0]
    assert (features - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert exported.left_out == ()
    assert {"torchvision": torchvision.models.ResNet, "timm": timm.models.ResNet, "smp": smp.Unet}[library] is type(
        model
    )


def test_the_torchvision_resnet_of_a_textbook_loads_it_strictly() -> None:
    for name in ("resnet18", "resnet50"):
        network = trained(name, 3)
        model = getattr(torchvision.models, name)(weights=None)
        model.fc = nn.Identity()
        model.load_state_dict(export(network.state_dict(), name, "torchvision", 3).state, strict=True)
        x = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(model.eval()(x), network(x)[0])


@pytest.mark.parametrize(
    ("encoder", "libraries"),
    [
        ("densenet121", ("torchvision", "smp")),
        ("mobilenet_v2", ("torchvision", "smp")),
        ("tu-resnet18", ("torchvision", "timm", "smp")),
        ("tu-convnext_atto", ("timm", "smp")),
        ("timm-efficientnet-b0", ("timm", "smp")),
        ("se_resnet50", ("smp",)),
    ],
)
def test_each_encoder_goes_where_it_is_known_and_is_refused_elsewhere(
    encoder: str, libraries: tuple[str, ...], tmp_path: Path
) -> None:
    network = trained(encoder)
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("encoder.")}
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = network.pooled(network.encode(x))
    for library in ("torchvision", "timm", "smp"):
        if library not in libraries:
            with pytest.raises(RequestError) as refused:
                export(own, encoder, library, 1)
            assert f"possible for this encoder: {', '.join(libraries)}" in str(refused.value)
            continue
        exported = export(own, encoder, library, 1)
        save_weights(exported.state, tmp_path / "weights.safetensors")
        lines = exported.loading_lines(tmp_path / "weights.safetensors")
        _, features = load_by_the_printed_lines(lines, exported.features, x)
        assert (features - expected).abs().max() <= 1e-5 * max(1e-6, float(expected.abs().max()))


def test_segmentation_models_load_the_whole_unet(tmp_path: Path) -> None:
    network = trained("resnet18")
    exported = export(network.state_dict(), "resnet18", "smp", 1)
    save_weights(exported.state, tmp_path / "unet.pt")
    x = torch.rand(2, 1, 64, 64)
    model, _ = load_by_the_printed_lines(exported.loading_lines(tmp_path / "unet.pt"), "0", x)
    with torch.no_grad():
        assert torch.allclose(model(x), network(x)[1], atol=1e-6)


def test_channels_are_converted_there_and_back() -> None:
    for encoder in ("resnet18", "mobileone_s0", "tu-convnext_atto"):
        state = trained(encoder).state_dict()
        back = with_channels(with_channels(state, encoder, 3), encoder, 1)
        assert all(torch.allclose(back[name], tensor, atol=1e-6) for name, tensor in state.items())
    one = with_channels(trained("resnet18", 3).state_dict(), "resnet18", 1)["encoder.conv1.weight"]
    three = trained("resnet18", 3).state_dict()["encoder.conv1.weight"]
    assert torch.allclose(one[:, 0], three[:, 0] + three[:, 1] + three[:, 2], atol=1e-6)


@pytest.mark.parametrize("library", ["torchvision", "timm", "smp"])
def test_a_network_of_other_channels_keeps_them(library: Any) -> None:
    network = trained("resnet18", 4)
    exported = export(network.state_dict(), "resnet18", library, 4)
    names: dict[str, Any] = {}
    exec("\n".join(exported.construction), names)
    names["model"].load_state_dict(exported.state)
    x = torch.rand(2, 4, 64, 64)
    with torch.no_grad():
        features = eval(exported.features, names | {"x": x, "model": names["model"].eval()})
        assert torch.allclose(features, network(x)[0], atol=1e-5)
    with pytest.raises(RequestError, match="found 3, of a network that takes 4; allowed: 4"):
        export(network.state_dict(), "resnet18", library, 3)
    with pytest.raises(RequestError, match="found 4, of a network that takes 3; allowed: 1 "):
        export(trained("resnet18", 3).state_dict(), "resnet18", library, 4)


def test_an_export_shares_no_memory_with_the_network() -> None:
    network = trained("resnet18")
    exported = export(network.state_dict(), "resnet18", "torchvision", 1)
    exported.state["conv1.weight"].zero_()
    assert network.encoder.conv1.weight.abs().sum() > 0


def test_exporting_draws_no_random_numbers() -> None:
    network = trained("resnet18")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    export(network.state_dict(), "resnet18", "timm", 3)
    assert torch.equal(torch.rand(1), expected)


def test_a_file_of_weights_is_whole_and_checked(tmp_path: Path) -> None:
    state = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.int64)}
    digest = save_weights(state, tmp_path / "new" / "w.safetensors", {"names": "smp"})
    path = tmp_path / "new" / "w.safetensors"
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("w.safetensors.sha256").read_text() == f"{digest}  w.safetensors\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["w.safetensors", "w.safetensors.sha256"]
    with pytest.raises(RequestError, match=r"\.safetensors, \.pt or \.pth"):
        save_weights(state, tmp_path / "w.bin")


WRITE_WEIGHTS = """
import sys, torch
from pathlib import Path
from dira_dist.models.export import save_weights
words = {name: name.upper() for name in sys.argv[2].split(",")}
state = {name: torch.arange(3.0) for name in sys.argv[2].split(",")}
print(save_weights(state, Path(sys.argv[1]), words))
"""


def test_equal_weights_are_equal_bytes_in_every_process(tmp_path: Path) -> None:
    words = ["names", "encoder", "format", "version", "in_channels", "image_size"]
    state = {name: torch.arange(3.0) for name in words}
    path = tmp_path / "w.safetensors"
    digests = set()
    for turn in range(50):
        shuffled = random.Random(turn).sample(words, len(words))
        metadata = {name: name.upper() for name in shuffled}
        digests.add(save_weights({name: state[name] for name in shuffled}, path, metadata))
    other = [sys.executable, "-c", WRITE_WEIGHTS, str(tmp_path / "other.safetensors"), ",".join(reversed(words))]
    digests.add(subprocess.run(other, check=True, capture_output=True, text=True).stdout.strip())
    assert len(digests) == 1
    assert path.read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    with safe_open(path, "pt") as file:
        assert file.metadata() == {name: name.upper() for name in words}
        assert torch.equal(file.get_tensor("format"), state["format"])


def test_the_digest_of_weights_is_of_their_values_alone() -> None:
    state = {"a": torch.ones(2, 2), "b": torch.zeros(3)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    assert weights_digest(state) != weights_digest({**state, "a": torch.full((2, 2), 1.5)})
    assert weights_digest(state) != weights_digest({**state, "a": torch.ones(4)})


def test_the_feature_program_takes_any_number_of_images(tmp_path: Path) -> None:
    network = trained("resnet18", 3)
    save_feature_program(network.state_dict(), network.config, 48, tmp_path / "f.pt2")
    program = torch.export.load(tmp_path / "f.pt2").module()
    for count in (1, 5):
        x = torch.rand(count, 3, 48, 48)
        with torch.no_grad():
            assert torch.allclose(program(x), network(x)[0], atol=1e-6)


def equal_encoders(network: UNet, other: UNet) -> bool:
    theirs = other.encoder.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in network.encoder.state_dict().items())


def encoder_as(prefix: str, network: UNet) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.encoder.state_dict().items()}


def test_a_published_unet_is_taken_whole(tmp_path: Path) -> None:
    source, target = trained("resnet18", 3), trained("resnet18", 3, seed=1)
    torch.save(source.state_dict(), tmp_path / "unet.pth")
    report = import_weights(target, tmp_path / "unet.pth")
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    assert (dict(report.left_behind), report.missing) == ({}, ())


def test_a_published_training_checkpoint_is_taken_with_a_word_on_every_other_key(tmp_path: Path) -> None:
    source, target = trained("resnet18", 3), trained("resnet18", 3, seed=1)
    model = {f"module.encoder_q.backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    rest = {f"module.encoder_k.backbone.{name}": tensor + 1 for name, tensor in source.state_dict().items()}
    for part in ("q", "k"):
        rest |= {f"module.encoder_{part}.fc.{i}.weight": torch.ones(2, 2) for i in (0, 2)}
    rest |= {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.zeros(1)}
    settings = argparse.Namespace(arch="resnet18", lr=0.03)
    torch.save({"epoch": 3, "state_dict": {**rest, **model}, "args": settings}, tmp_path / "checkpoint.pth")
    report = import_weights(target, tmp_path / "checkpoint.pth")
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    assert set(report.used.values()) == set(model)
    assert set(report.left_behind) == set(rest)
    assert "moving average" in report.left_behind["module.encoder_k.backbone.encoder.conv1.weight"]
    assert "projection head" in report.left_behind["module.encoder_q.fc.0.weight"]
    text = "\n".join(report.lines())
    assert f"{len(model)} weights loaded" in text
    assert "queue of keys" in text


@pytest.mark.parametrize(
    ("under", "prefix", "extra"),
    [
        (
            "state_dict",
            "module.encoder_q.",
            ("module.encoder_q.fc.0.weight", "module.queue", "module.encoder_k.conv1.weight"),
        ),
        ("state_dict", "", ("fc.weight", "fc.bias")),
        ("state_dict", "module.encoder.", ("module.encoder.fc.0.weight", "module.predictor.0.weight")),
        ("model", "module.backbone.", ("module.projector.0.weight", "module.bn.running_mean")),
        ("state_dict", "backbone.", ()),
    ],
    ids=["moco", "torchvision", "simsiam", "barlow twins", "plain"],
)
def test_encoders_of_other_houses_leave_the_decoder_as_it_is(
    under: str, prefix: str, extra: tuple[str, ...], tmp_path: Path
) -> None:
    source, target = trained("resnet18", 3), trained("resnet18", 1, seed=1)
    before = {name: tensor.clone() for name, tensor in target.decoder.state_dict().items()}
    state = encoder_as(prefix, source) | {name: torch.ones(2, 2) for name in extra}
    torch.save({"epoch": 3, under: state}, tmp_path / "encoder.pth.tar")
    report = import_weights(target, tmp_path / "encoder.pth.tar")
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(target(grey)[0], source(grey.expand(-1, 3, -1, -1))[0], atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.decoder.state_dict().items())
    assert set(report.left_behind) == set(extra)
    assert set(report.used.values()) | set(report.left_behind) == set(state)
    assert {name.partition(".")[0] for name in report.missing} == {"decoder", "segmentation_head"}


def test_a_timm_encoder_is_taken_by_its_own_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("convnext_atto", in_chans=3).eval()
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    target = trained("tu-convnext_atto", 3)
    report = import_weights(target, tmp_path / "timm.pth")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(target(x)[0], source.forward_features(x).mean((-2, -1)), atol=1e-5)
    assert all(name.startswith("head.") for name in report.left_behind)


def test_a_pulled_file_is_a_start_again(tmp_path: Path) -> None:
    source = trained("resnet18", 3)
    for library in ("torchvision", "timm", "smp"):
        target = trained("resnet18", 3, seed=1)
        save_weights(export(source.state_dict(), "resnet18", library, 3).state, tmp_path / f"{library}.safetensors")
        import_weights(target, tmp_path / f"{library}.safetensors")
        assert equal_encoders(target, source)


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    target = trained("resnet18", 3)
    state = encoder_as("", trained("resnet18", 3))
    cases = {
        "a key nobody knows": ({**state, "layer9.weight": torch.ones(1)}, r"layer9\.weight"),
        "half an encoder": ({n: t for n, t in state.items() if not n.startswith("layer4.")}, r"encoder\.layer4"),
        "another encoder": (timm.create_model("resnet34").state_dict(), r"layer1\.2"),
        "another width": (timm.create_model("resnet50").state_dict(), "keys|shape"),
        "nothing of it": ({"a": torch.ones(1)}, "none of its 1 keys"),
    }
    for name, (weights, words) in cases.items():
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(RequestError, match=words):
            import_weights(target, tmp_path / "w.pth")
            pytest.fail(name)
