"""Grad-CAM against the same with two hooks and loops, in two and three dimensions; and the way back to the image."""

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.config import RequestError
from dira_dist.models.backbone import Backbone, BackboneSection
from dira_dist.models.saliency import as_share, heat_maps, in_image
from dira_dist.models.supervised import Classifier
from dira_dist.models.unet import UNetConfig
from dira_dist.views.labelled import labelled_views


class CubesConfig(BackboneSection):
    """Two stages of convolutions over cubes."""

    dims = 3
    name: Literal["cubes"] = "cubes"

    def build(self) -> "Cubes":
        return Cubes()


class CubesEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, 2, 1), nn.Conv3d(4, 6, 3, 2, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        middle = self.first(images)
        return [images, middle, self.second(functional.relu(middle))]


class Cubes(Backbone):
    channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CubesEncoder()


def planes() -> tuple[Classifier, list[nn.Module], Tensor]:
    torch.manual_seed(1)
    network = Classifier(UNetConfig(encoder="resnet18", in_channels=1), 3).eval()
    nn.init.normal_(network.head.weight)
    encoder: Any = network.encoder
    return network, [encoder.layer3, encoder.layer4], torch.rand(2, 1, 96, 64)


def cubes() -> tuple[Classifier, list[nn.Module], Tensor]:
    torch.manual_seed(1)
    network = Classifier(CubesConfig(), 3).eval()
    encoder: Any = network.encoder
    return network, [encoder.first, encoder.second], torch.rand(2, 1, 12, 8, 10)


def plain_map(network: Classifier, layer: nn.Module, image: Tensor, output: int) -> np.ndarray:
    """One image, one output: what the layer gives forward and gets back, and loops over channels and positions."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, made: seen.update(forward=made)),
        layer.register_full_backward_hook(lambda _, __, made: seen.update(backward=made[0])),
    ]
    network(image[None])[0, output].backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad()
    features, gradients = (seen[name][0].detach().double().numpy() for name in ("forward", "backward"))
    found = np.zeros(features.shape[1:])
    for channel in range(len(features)):
        weight = 0.0
        for place in itertools.product(*map(range, found.shape)):
            weight += gradients[(channel, *place)] / found.size
        for place in itertools.product(*map(range, found.shape)):
            found[place] += weight * features[(channel, *place)]
    return np.maximum(found, 0)


def plain_enlarged(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear between the centres of the coarse pixels, even beyond the outermost."""
    large = np.zeros(shape)
    for place in itertools.product(*map(range, shape)):
        ways = []
        for at, side, length in zip(place, shape, small.shape, strict=True):
            position = min(max((at + 0.5) * length / side - 0.5, 0), length - 1)
            first = min(int(position), length - 1)
            ways.append([(first, 1 - (position - first)), (min(first + 1, length - 1), position - first)])
        for corner in itertools.product(*ways):
            weight = np.prod([share for _, share in corner])
            large[place] += weight * small[tuple(index for index, _ in corner)]
    return large


@pytest.mark.parametrize("make", [planes, cubes])
def test_maps_are_those_of_two_hooks_and_loops(make: Any) -> None:
    network, layers, images = make()
    network.head.weight.requires_grad_(False)  # what is frozen is looked at all the same
    for place, layer in enumerate(layers):
        stages: Any = ("before_last", "last")[place]
        found = heat_maps(network, images, [2, 1], stages)
        for image, output, one in zip(images, (2, 1), found, strict=True):
            assert one.max() > 0
            wanted = plain_enlarged(plain_map(network, layer, image, output), tuple(image.shape[1:]))
            np.testing.assert_allclose(one.numpy(), wanted, rtol=1e-3, atol=1e-5 * max(1e-3, wanted.max()))
    assert all(weight.grad is None for weight in network.parameters() if not weight.requires_grad)


def test_both_stages_are_the_geometric_mean_of_their_shares() -> None:
    network, _, images = planes()
    fine, coarse = (as_share(heat_maps(network, images, [1, 1], stages)) for stages in ("before_last", "last"))  # type: ignore[arg-type]
    torch.testing.assert_close(heat_maps(network, images, [1, 1], "both"), (fine * coarse).sqrt())
    assert not torch.equal(fine, coarse)


def test_nothing_that_speaks_for_a_class_is_no_heat_and_no_division_by_zero() -> None:
    network, _, images = planes()
    with torch.no_grad():
        network.head.weight[0] = -network.head.weight[0].abs()  # features are at least 0
    for stages in ("last", "both"):
        found = heat_maps(network, images, [0, 0], stages)  # type: ignore[arg-type]
        assert torch.equal(found, torch.zeros_like(found)) and torch.equal(as_share(found), found)
    assert heat_maps(network, images, [1, 1]).amax() > 0


def test_each_map_depends_on_its_own_image_and_leaves_no_trace() -> None:
    network, _, images = planes()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    both = heat_maps(network, images, [1, 2])
    torch.testing.assert_close(both[1:], heat_maps(network, images[1:], [2]), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(both, heat_maps(network, images, [1, 2]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_encoders_with_tokens_have_their_last_stage_alone() -> None:
    torch.manual_seed(0)
    network = Classifier(UNetConfig(encoder="mit_b0", in_channels=3), 2).eval()
    images = torch.rand(1, 3, 64, 64)
    assert heat_maps(network, images, [0]).shape == (1, 64, 64)
    with pytest.raises(RequestError, match=r"no module whose output is the stage before the last.*set it to last"):
        heat_maps(network, images, [0], "both")


@pytest.mark.parametrize("fit", ["crop", "fit"])
@pytest.mark.parametrize("size", [(64, 64), (90, 64), (61, 119), (32, 32), (20, 31)])
def test_a_spot_of_the_image_comes_back_to_where_it_was(fit: Any, size: tuple[int, int]) -> None:
    """A bright spot goes through the frame like an image, and back like a map."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    wanted = (size[0] * 0.5 + 2.5, size[1] * 0.5 - 3.5)
    spot = np.exp(-((rows + 0.5 - wanted[0]) ** 2 + (columns + 0.5 - wanted[1]) ** 2) / (2 * (min(size) / 10) ** 2))
    image = torch.from_numpy((spot * 255).astype(np.uint8))[None, None]
    none = torch.zeros(1, dtype=torch.int64)
    views = labelled_views(image, torch.tensor([size]), none, none, seed=0, image_size=(48, 32), in_channels=1, fit=fit)
    back = in_image(views.images[:, 0], size, fit)[0].double().numpy()
    assert back.shape == size
    found = [(back * (axis + 0.5)).sum() / back.sum() for axis in (rows, columns)]
    np.testing.assert_allclose(found, wanted, atol=0.35)


def test_what_a_cropped_frame_does_not_show_has_no_heat() -> None:
    back = in_image(torch.ones(1, 32, 32), (32, 64), "crop")[0]
    assert back[:, 16:48].min() == 1 and back[:, :16].max() == back[:, 48:].max() == 0
    cube = in_image(torch.ones(1, 8, 8, 8), (8, 8, 16), "crop")[0]
    assert cube[..., 4:12].min() == 1 and cube.sum() == 8 * 8 * 8
