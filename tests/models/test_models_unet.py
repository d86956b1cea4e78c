"""The U-Net over any encoder, its refusals, and gradient checkpointing."""

import copy
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dira_dist.models.unet import RESNETS, UNet, UNetConfig, check_image_size, on_meta, unused_parameters
from dira_dist.models.weights import load_weights, read_weights

FAMILIES = ("densenet121", "vgg11_bn", "mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-convnext_atto")


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("encoder", FAMILIES)
def test_any_encoder_restores_and_pools(encoder: str) -> None:
    network = UNet(UNetConfig(encoder=encoder, in_channels=1)).eval()
    with torch.no_grad():
        pooled, restoration = network(torch.rand(2, 1, 64, 64))
    assert restoration is not None
    assert pooled.shape == (2, network.channels)
    assert restoration.shape == (2, 1, 64, 64)
    assert restoration.min() >= 0 and restoration.max() <= 1


def test_same_output_and_names_as_segmentation_models_pytorch() -> None:
    ours = UNet(UNetConfig(encoder="resnet18", in_channels=3)).eval()
    theirs = smp.Unet("resnet18", encoder_weights=None, activation="sigmoid").eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(image)[1], theirs(image))


def test_without_restoring_the_decoder_does_not_run() -> None:
    network = UNet(UNetConfig(encoder="resnet18"))
    network.decoder.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    assert network(torch.rand(2, 1, 64, 64), restore=False)[1] is None


def test_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="resnet50"):
        UNetConfig(encoder="resnet5O")
    with pytest.raises(ValidationError, match="unknown encoder 'tu-resnet18x'"):
        UNetConfig(encoder="tu-resnet18x")


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "tu-test_resnet"])
def test_residual_blocks_start_as_the_identity_by_choice(encoder: str) -> None:
    def still(network: UNet) -> int:
        norms = (each for each in network.encoder.modules() if isinstance(each, nn.BatchNorm2d))
        return sum(not norm.weight.any() for norm in norms)

    blocks = {"resnet18": 8, "resnet50": 16, "tu-test_resnet": 4}[encoder]
    assert still(UNet(UNetConfig(encoder=encoder, zero_init_residual=True))) == blocks
    assert still(UNet(UNetConfig(encoder=encoder))) == (blocks if encoder.startswith("tu-") else 0), "timm's always do"


def test_an_encoder_without_residual_blocks_cannot_start_them_as_the_identity() -> None:
    with pytest.raises(ValidationError, match=r"vgg11_bn.*leave model.zero_init_residual out"):
        UNetConfig(encoder="vgg11_bn", zero_init_residual=True)


def test_encoder_without_a_pyramid_is_refused() -> None:
    with pytest.raises(RequestError, match="no pyramid of feature maps"):
        UNet(UNetConfig(encoder="tu-vit_tiny_patch16_224"))


@pytest.mark.parametrize("encoder", sorted(RESNETS))
def test_what_is_known_of_resnets_without_building_them_is_so(encoder: str) -> None:
    config = UNetConfig(encoder=encoder)
    assert config.encoder in smp.encoders.get_encoder_names()
    for size in (32, 96, 224, (32, 64)):
        check_image_size(config, size)
        height, width = (size, size) if isinstance(size, int) else size
        with torch.no_grad():
            restored = on_meta(config).eval()(torch.empty(1, 1, height, width, device="meta"))[1]
        assert restored is not None and restored.shape[2:] == (height, width)


def test_image_size_is_checked_without_arithmetic() -> None:
    check_image_size(UNetConfig(encoder="resnet18"), 70)
    with pytest.raises(RequestError, match=r"256 px.*224 px"):
        check_image_size(UNetConfig(encoder="tu-swin_tiny_patch4_window7_224"), 256)


def test_on_the_meta_device_with_one_channel() -> None:
    with torch.device("meta"):
        network = UNet(UNetConfig(encoder="resnet18", in_channels=1, gradient_checkpointing=True))
    assert network(torch.rand(2, 1, 64, 64, device="meta"))[1].shape == (2, 1, 64, 64)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0"])
@pytest.mark.parametrize("restore", [True, False])
def test_unused_parameters_are_those_without_gradients(encoder: str, restore: bool) -> None:
    config = UNetConfig(encoder=encoder)
    network = UNet(config)
    pooled, restoration = network(torch.rand(2, 1, 64, 64), restore)
    (pooled.sum() + (0 if restoration is None else restoration.sum())).backward()
    without = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert unused_parameters(config, restore) == without


@pytest.mark.parametrize(
    ("encoder", "autocast"), [("resnet18", False), ("resnet18", True), ("mobilenet_v2", False), ("tu-resnet18", True)]
)
def test_checkpointing_changes_neither_gradients_nor_statistics(encoder: str, autocast: bool) -> None:
    torch.manual_seed(0)
    plain = UNet(UNetConfig(encoder=encoder))
    recomputing = UNet(UNetConfig(encoder=encoder, gradient_checkpointing=True))
    recomputing.load_state_dict(plain.state_dict())
    image = torch.rand(2, 1, 64, 64)
    for network in (plain, recomputing):
        for _ in range(2):  # twice, for the statistics
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                pooled, restoration = network(image)
            (pooled.square().sum() + restoration.sum()).backward()
    expected, found = _gradients(plain), _gradients(recomputing)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6, msg=name)
    for name, buffer in plain.named_buffers():
        assert torch.equal(recomputing.get_buffer(name), buffer), name


def test_checkpointing_leaves_synchronised_statistics_alone() -> None:
    network = UNet(UNetConfig(encoder="tu-test_resnet", gradient_checkpointing=True))
    convert_sync_batchnorm(network)
    network(torch.rand(2, 1, 64, 64))[1].sum().backward()
    counters = {int(buffer) for name, buffer in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert counters == {1}


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = {}
    for checkpointing in (False, True):
        network = UNet(UNetConfig(encoder="resnet18", gradient_checkpointing=checkpointing))
        weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
        storages: dict[int, Tensor] = {}

        def keep(tensor: Tensor, storages: dict[int, Tensor] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.rand(2, 1, 64, 64))
        kept[checkpointing] = sum(t.untyped_storage().nbytes() for p, t in storages.items() if p not in weights)
    assert kept[True] < 0.45 * kept[False]


def test_checkpointed_network_can_be_copied() -> None:
    network = UNet(UNetConfig(encoder="resnet18", gradient_checkpointing=True))
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in copied.encoder.parameters():
            weight.zero_()
    pooled, _ = copied(torch.rand(2, 1, 64, 64), restore=False)
    assert torch.equal(pooled, torch.zeros_like(pooled)), "the copy runs on its own weights"
    assert network.state_dict().keys() == UNet(UNetConfig(encoder="resnet18")).state_dict().keys()


def test_decoder_channels_shape_the_decoder() -> None:
    network = UNet(UNetConfig(encoder="resnet18", decoder_channels=(64, 32, 16, 8, 4)))
    assert network.segmentation_head[0].in_channels == 4


def test_weights_of_torchvision_load_with_the_classifier_named_as_left_out() -> None:
    torch.manual_seed(0)
    donor = torchvision.models.resnet18()
    network = UNet(UNetConfig(encoder="resnet18", in_channels=3))
    loaded = load_weights(network, donor.state_dict())
    assert loaded.left_out == ("fc.bias", "fc.weight")
    image = torch.rand(1, 3, 64, 64)
    donor.fc = nn.Identity()
    with torch.no_grad():
        features = network.eval()(image, restore=False)[0]
        torch.testing.assert_close(features, donor.eval()(image))


def test_weights_of_timm_load() -> None:
    donor = timm.create_model("resnet18", pretrained=False)
    network = UNet(UNetConfig(encoder="tu-resnet18", in_channels=3))
    load_weights(network, donor.state_dict())
    assert torch.equal(network.encoder.model.conv1.weight, donor.conv1.weight)


def test_grey_and_rgb_answer_alike_to_a_grey_image() -> None:
    grey, rgb = (UNet(UNetConfig(encoder="resnet18", in_channels=channels)).eval() for channels in (1, 3))
    again = UNet(UNetConfig(encoder="resnet18", in_channels=3)).eval()
    load_weights(grey, rgb.state_dict())
    load_weights(again, grey.state_dict())
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = rgb(image.repeat(1, 3, 1, 1))[1]
        torch.testing.assert_close(grey(image)[1], expected)
        torch.testing.assert_close(again(image.repeat(1, 3, 1, 1))[1], expected)


def test_keys_are_refused_by_name() -> None:
    network = UNet(UNetConfig(encoder="resnet18"))
    state = network.state_dict()
    with pytest.raises(RequestError, match=r"keys that the network lacks: decoder\.extra"):
        load_weights(network, {**state, "decoder.extra": torch.zeros(1)})
    with pytest.raises(RequestError, match=r"lacks keys of the network: encoder\.conv1\.weight"):
        load_weights(network, {name: value for name, value in state.items() if name != "encoder.conv1.weight"})
    with pytest.raises(RequestError, match=r"shape"):
        load_weights(network, UNet(UNetConfig(encoder="resnet18", decoder_channels=(64, 32, 16, 8, 4))).state_dict())


def test_files_of_weights(tmp_path: Path) -> None:
    state = {"encoder.conv1.weight": torch.rand(2, 2)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        assert torch.equal(read_weights(tmp_path / name)["encoder.conv1.weight"], state["encoder.conv1.weight"])
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    for name, message in (("module.pt", "no plain file"), ("none.pt", "no file of weights")):
        with pytest.raises(RequestError, match=message):
            read_weights(tmp_path / name)


def test_discriminator_scores_patches_in_2d_and_3d() -> None:
    assert PatchDiscriminator(DiscriminatorConfig())(torch.rand(1, 1, 224, 224)).shape == (1, 1, 28, 28)
    small = DiscriminatorConfig(channels=(4, 8, 8, 8))
    assert PatchDiscriminator(small, dims=3)(torch.rand(1, 1, 32, 32, 16)).shape == (1, 1, 4, 4, 2)


def test_discriminator_keeps_samples_apart() -> None:
    network = PatchDiscriminator(DiscriminatorConfig(channels=(4, 8, 8, 8)))
    images = torch.rand(4, 1, 32, 32)
    torch.testing.assert_close(network(images)[2:], network(images[2:]))


def test_an_encoder_without_blocks_is_recomputed_as_a_whole() -> None:
    network = UNet(UNetConfig(encoder="vgg11_bn", gradient_checkpointing=True))
    passes = []
    network.encoder.features[0].register_forward_hook(lambda *_: passes.append(1))
    network(torch.rand(1, 1, 32, 32), restore=False)[0].sum().backward()
    assert len(passes) == 2
    counter = network.encoder.features[1].num_batches_tracked
    assert counter == 1, "the second pass leaves the statistics alone"
