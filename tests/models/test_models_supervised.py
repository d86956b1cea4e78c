"""Classifiers and segmenters: what they start from, which layers learn and how fast, and other libraries' names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.backbone import built_on_meta
from dira_dist.models.fine_tuned_files import exported_network
from dira_dist.models.supervised import (
    HEADS,
    Classifier,
    Segmenter,
    SupervisedNetwork,
    load_start,
    parameter_depths,
)
from dira_dist.models.unet import UNet, UNetConfig

SMALL = (8, 8, 8, 8, 8)
CLASSES = 3


def config_of(encoder: str = "resnet18", in_channels: int = 1) -> UNetConfig:
    return UNetConfig(encoder=encoder, in_channels=in_channels, decoder_channels=SMALL)


def classifier(encoder: str = "resnet18", in_channels: int = 1, seed: int = 0, **settings: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(config_of(encoder, in_channels), CLASSES, **settings)


def segmenter(encoder: str = "resnet18", in_channels: int = 1, seed: int = 0, **settings: Any) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(config_of(encoder, in_channels), CLASSES, **settings)


def pretrained(in_channels: int = 1) -> UNet:
    torch.manual_seed(7)
    network = UNet(config_of(in_channels=in_channels))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.05)
            elif name.endswith("running_var"):
                tensor.uniform_(1, 1.1)
    return network.eval()


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network.eval()(x)
    return found


def state_with(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in state.items()}


def test_a_classifier_is_a_linear_layer_on_the_pooled_features() -> None:
    network, unet, x = classifier().eval(), pretrained(), torch.rand(2, 1, 64, 64)
    load_start(network, unet.state_dict(), "encoder")
    with torch.no_grad():
        pooled, _ = unet(x, restore=False)
        assert torch.equal(network(x), network.head(pooled))


def test_a_segmenter_is_the_unet_with_a_last_layer_of_its_own() -> None:
    network, unet, x = segmenter().eval(), pretrained(), torch.rand(2, 1, 64, 64)
    load_start(network, unet.state_dict(), "encoder_decoder")
    maps: list[Tensor] = []
    hook = unet.segmentation_head.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    with torch.no_grad():
        unet(x)
        hook.remove()
        assert torch.equal(network(x), network.segmentation_head(maps[0]))
    assert logits_of(network, x).shape == (2, CLASSES, 64, 64)


def test_fresh_layers_come_from_the_seed_and_dropout_is_of_the_features() -> None:
    for make in (classifier, segmenter):
        first, same, other = (make(seed=seed).state_dict() for seed in (1, 1, 2))
        heads = [name for name in first if name.startswith(HEADS) and name.endswith("weight")]
        assert heads
        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not any(torch.equal(first[name], other[name]) for name in heads)
    network = classifier(dropout=0.9).train()
    network.set_trainable(encoder=False)
    x = torch.rand(2, 1, 64, 64)
    assert not torch.equal(network(x), network(x)), "of a probe, too"
    assert torch.equal(logits_of(network, x), logits_of(network, x))


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.backbone.", "encoder_q.backbone."])
@pytest.mark.parametrize(
    ("make", "parts"), [(classifier, "encoder"), (segmenter, "encoder"), (segmenter, "encoder_decoder")]
)
def test_a_start_accounts_for_every_key(make: Callable[..., SupervisedNetwork], parts: str, prefix: str) -> None:
    network, unet = make(), pretrained()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    weights = state_with(prefix, unet.state_dict())
    report = load_start(network, weights, parts)
    wanted = ("encoder.", "decoder.") if parts == "encoder_decoder" else ("encoder.",)
    for name, weight in network.state_dict().items():
        taken = name.startswith(wanted)
        assert (name in report.used) == taken and (name in report.drawn) != taken
        assert torch.equal(weight, unet.state_dict()[name] if taken else before[name]), name
    assert len(report.used) + len(report.left_behind) == len(weights)
    assert set(report.left_behind) == {f"{prefix}{name}" for name in unet.state_dict() if not name.startswith(wanted)}
    assert report.left_behind[f"{prefix}segmentation_head.0.weight"] == "a last layer, which is always drawn anew"
    text = "\n".join(report.lines())
    assert f"{len(report.used)} weights taken over" in text and f"drawn anew: {len(report.drawn)}" in text


def test_encoders_of_other_houses_are_starts() -> None:
    x, theirs = torch.rand(2, 3, 64, 64), torchvision.models.resnet18(weights=None)
    unet = smp.Unet("resnet18", encoder_weights=None, classes=5)
    theirs.fc = nn.Identity()
    for state, of_encoder in (
        (torchvision.models.resnet18(weights=None).state_dict(), None),
        (timm.create_model("resnet18").state_dict(), None),
        (unet.state_dict(), unet.encoder.state_dict()),
    ):
        network = classifier(in_channels=3)
        report = load_start(network, state, "encoder")
        plain = of_encoder or {name: weight for name, weight in state.items() if not name.startswith("fc.")}
        theirs.load_state_dict(plain)
        assert (logits_of(network, x) - logits_of(nn.Sequential(theirs, network.head), x)).abs().max() <= 1e-5
        assert len(report.used) + len(report.left_behind) == len(state)


def test_grey_and_colour_starts_answer_alike_to_a_grey_image() -> None:
    grey = torch.rand(2, 1, 64, 64)
    for own, started in ((1, 3), (3, 1)):
        unet, network = pretrained(in_channels=started), classifier(in_channels=own)
        load_start(network, unet.state_dict(), "encoder")
        with torch.no_grad():
            pooled, _ = unet(grey.expand(-1, started, -1, -1), restore=False)
            expected = network.head(pooled)
        assert torch.allclose(logits_of(network, grey.expand(-1, own, -1, -1)), expected, atol=1e-5)


def test_a_start_that_does_not_fit_is_refused_with_the_remedy() -> None:
    state = pretrained().state_dict()
    encoder = {name: weight for name, weight in state.items() if name.startswith("encoder.")}
    half = {name: weight for name, weight in state.items() if not name.startswith("encoder.layer4.")}
    fifth = {name: weight for name, weight in state.items() if not name.startswith("decoder.blocks.4.")}
    wide = UNet(UNetConfig(encoder="resnet18", decoder_channels=(16, 8, 8, 8, 8))).state_dict()
    cases: list[tuple[str, Mapping[str, Tensor], str]] = [
        ("encoder", {"a": torch.ones(1)}, "the weights fit none of its weights: give those of the same encoder"),
        ("encoder", {}, "fit none of its weights"),
        ("encoder", half, r"lack 25 of the 120 .*encoder\.layer4.*set model to theirs"),
        ("encoder", {**state, "layer9.weight": torch.ones(1)}, r"layer9\.weight"),
        ("encoder", timm.create_model("resnet34", in_chans=1).state_dict(), r"layer1\.2"),
        (
            "encoder_decoder",
            encoder,
            "start.parts: encoder_decoder, and the weights have no decoder: set it to encoder",
        ),
        ("encoder_decoder", fifth, r"such as decoder\.blocks\.4"),
        ("encoder_decoder", wide, "decoder channels"),
    ]
    for parts, weights, words in cases:
        with pytest.raises(RequestError, match=words):
            load_start(segmenter(), weights, parts)
            pytest.fail(words)


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_a_frozen_network_learns_its_last_layer_alone(make: Callable[..., SupervisedNetwork]) -> None:
    network, x = make(), torch.rand(4, 1, 64, 64)
    network.set_trainable(encoder=False)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(x).sum().backward()
    with_gradient = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert with_gradient and all(name.startswith(HEADS) for name in with_gradient)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.set_trainable(encoder=True)
    network(x).sum().backward()
    unused = network.unused_parameters()
    for name, weight in network.named_parameters():
        assert (weight.grad is not None) == (name not in unused), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_frozen_encoder_draws_nothing() -> None:
    network, x = classifier("efficientnet-b0"), torch.rand(2, 1, 64, 64)  # whose blocks are left out at random
    network.train()
    assert not torch.equal(network(x), network(x))
    network.set_trainable(encoder=False)
    assert network.training
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_norms_that_stay_keep_their_statistics_while_all_else_learns(make: Callable[..., SupervisedNetwork]) -> None:
    x = torch.rand(4, 1, 64, 64)
    for stay in (True, False):
        network = make(norms_stay=stay)
        network.set_trainable(encoder=True)
        network.eval().train()
        before = {name: tensor.clone() for name, tensor in network.named_buffers()}
        network(x).sum().backward()
        moved = {name for name, tensor in network.named_buffers() if not torch.equal(tensor, before[name])}
        assert any(name.startswith("encoder.") for name in moved) != stay
        assert any(name.startswith("decoder.") for name in moved) == isinstance(network, Segmenter)
        assert network.get_submodule("encoder.bn1").weight.grad is not None, "their slopes learn"


@pytest.mark.parametrize(
    ("encoder", "stages"),
    [
        ("resnet18", ("conv1", "layer1", "layer2", "layer3", "layer4")),
        ("tu-resnet18", ("model.conv1", "model.layer1", "model.layer2", "model.layer3", "model.layer4")),
        ("se_resnet50", ("layer0", "layer1", "layer2", "layer3", "layer4")),
        ("tu-convnext_atto", ("model.stem_1", "model.stages_0", "model.stages_1", "model.stages_2", "model.stages_3")),
        ("mit_b0", ("patch_embed1", "block1", "block2", "block3", "block4")),
        ("densenet121", ("features.norm0", "features.denseblock1", "features.transition1", "features.denseblock2")),
        ("timm-efficientnet-b0", ("bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3")),
        ("efficientnet-b0", ("_bn0", "_blocks.0", "_blocks.1", "_blocks.2")),
    ],
)
def test_depths_rise_by_one_from_the_stem_to_the_last_layer(encoder: str, stages: tuple[str, ...]) -> None:
    for build in (lambda: Segmenter(config_of(encoder), 2), lambda: Classifier(config_of(encoder), 2)):
        network: SupervisedNetwork = built_on_meta(build)
        depths = parameter_depths(network)
        assert depths.keys() == {name for name, _ in network.named_parameters()}
        assert sorted(set(depths.values())) == list(range(max(depths.values()) + 1))
        for depth, stage in enumerate(stages):
            assert {place for name, place in depths.items() if name.startswith(f"encoder.{stage}.")} == {depth}
        heads = {place for name, place in depths.items() if name.startswith(HEADS)}
        assert heads == {max(depths.values())}
        assert sum(place == max(depths.values()) for place in depths.values()) == 2, "weight and bias alone"
        decoder = [place for name, place in depths.items() if name.startswith("decoder.")]
        deepest = max(place for name, place in depths.items() if name.startswith("encoder."))
        assert all(place > deepest for place in decoder) and decoder == sorted(decoder)


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("encoder", "library"),
    [
        ("resnet18", "torchvision"),
        ("tu-resnet18", "torchvision"),
        ("mobilenet_v2", "torchvision"),
        ("tu-resnet26", "timm"),
        ("densenet121", "smp"),
        ("tu-convnext_atto", "smp"),
    ],
)
def test_a_classifier_is_loaded_elsewhere_with_its_last_layer(encoder: str, library: str, in_channels: int) -> None:
    network = classifier(encoder, in_channels)
    found, exported = exported_network(network.eval())
    assert found == library
    x = torch.rand(2, in_channels, 64, 64)
    names: dict[str, Any] = {"x": x}
    exec("\n".join(exported.construction), names)
    names["model"].load_state_dict(exported.state, strict=True)
    with torch.no_grad():
        answer = eval(exported.features.partition("#")[0], names | {"model": names["model"].eval()})
    assert (answer - logits_of(network, x)).abs().max() <= 1e-5


def test_a_textbooks_classifier_of_torchvision_takes_the_weights() -> None:
    network, x = classifier(in_channels=3), torch.rand(2, 3, 64, 64)
    model = torchvision.models.resnet18(num_classes=CLASSES)
    model.load_state_dict(exported_network(network.eval())[1].state, strict=True)
    assert (logits_of(model, x) - logits_of(network, x)).abs().max() <= 1e-5


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18", "vgg11_bn"])
def test_a_segmenter_is_a_unet_of_segmentation_models(encoder: str, in_channels: int, tmp_path: Path) -> None:
    network, x = segmenter(encoder, in_channels), torch.rand(2, in_channels, 64, 64)
    library, exported = exported_network(network.eval())
    assert library == "smp"
    model = smp.Unet(encoder, encoder_weights=None, decoder_channels=SMALL, in_channels=in_channels, classes=CLASSES)
    model.load_state_dict(exported.state, strict=True)
    assert (logits_of(model, x) - logits_of(network, x)).abs().max() <= 1e-5
    torch.save(exported.state, tmp_path / "unet.pt")
    names: dict[str, Any] = {}
    exec(exported.loading_lines(tmp_path / "unet.pt"), names)
    assert (logits_of(names["model"], x) - logits_of(network, x)).abs().max() <= 1e-5
