"""Where a classifier looks: Grad-CAM of a class's logit on the last stages of its encoder, in two or three dimensions.

Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization* (ICCV 2017),
equations 1 and 2: each channel ``A_k`` of a stage weighs as much as the mean over its Z positions of the logit's
gradient there, and the map is what speaks for the class, ``ReLU(sum_k (1/Z sum_i dy/dA_k,i) A_k)``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dira_dist.config import RequestError
from dira_dist.models.supervised import Classifier
from dira_dist.views.center_view import uncrop
from dira_dist.views.frame_view import unfit
from dira_dist.views.labelled import Fit

Stages = Literal["last", "before_last", "both"]


def heat_maps(network: Classifier, images: Tensor, outputs: Sequence[int], stages: Stages = "last") -> Tensor:
    """Grad-CAM of one output for each image, up-sampled to its frame.

    With ``both`` stages the map is the geometric mean of theirs, each as a share of its largest value: fine where the
    stage before the last is fine, and nothing where the last one sees nothing.

    Args:
        network: in evaluation mode.
        images: (B, in_channels, *S) float32, framed as the network was trained on them.
        outputs: of the network, by place, one for each image.
        stages: whose feature maps are looked at.

    Returns:
        (B, *S) float32, at least 0, in the unit of the logit, with ``both`` in [0, 1]; all 0 where nothing in the image
        speaks for the output.

    Raises:
        RequestError: the encoder has no module whose output is the stage before the last.
    """
    assert len(outputs) == len(images) > 0 and not network.training
    tapped = _Tapped(network)
    maps = [_grad_cam(tapped, layer, images, outputs) for layer in _layers(tapped, images, stages)]
    if len(maps) == 1:
        return maps[0]
    shares = [as_share(each) for each in maps]
    return (shares[0] * shares[1]).sqrt()


def as_share(maps: Tensor) -> Tensor:
    """(B, *S) maps as shares of the largest value of each; what is all 0 stays so."""
    largest = maps.flatten(1).amax(1).view(-1, *(1,) * (maps.ndim - 1))
    return torch.where(largest > 0, maps / largest.where(largest > 0, 1), 0)


def in_image(maps: Tensor, size_px: Sequence[int], fit: Fit) -> Tensor:
    """Maps of frames in the pixels of the images that were framed; 0 where the frame shows nothing of the image.

    Args:
        maps: (B, *S) of images of one size.
        size_px: of the images, along each axis.
        fit: how they were framed; what slides over an image has no frame.

    Returns:
        (B, *size_px).
    """
    assert fit != "slide", "of segmenters"
    back = unfit if fit == "fit" else uncrop
    return back(maps[:, None], size_px)[:, 0]


class _Tapped(nn.Module):
    """The network with a place to read its deepest feature map at, as it is pooled: encoders with tokens make it a map
    outside any module of theirs."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network, self.last = network, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.classify(self.last(self.network.encoder(images)[-1]))


def _grad_cam(network: _Tapped, layer: nn.Module, images: Tensor, outputs: Sequence[int]) -> Tensor:
    from captum.attr import LayerGradCam

    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):  # what is compiled knows of no hooks
        leaf = images.detach().requires_grad_()
        found: Tensor = LayerGradCam(network, layer).attribute(leaf, target=list(outputs), relu_attributions=True)
    smooth = "bilinear" if images.ndim == 4 else "trilinear"
    return functional.interpolate(found.detach().float(), images.shape[2:], mode=smooth, align_corners=False)[:, 0]


def _layers(network: _Tapped, images: Tensor, stages: Stages) -> list[nn.Module]:
    if stages == "last":
        return [network.last]
    before = _before_last(network.network.encoder, images[:1])
    return [before] if stages == "before_last" else [before, network.last]


@torch.no_grad()
def _before_last(encoder: nn.Module, image: Tensor) -> nn.Module:
    """The outermost module whose output is the feature map before the deepest.

    Raises:
        RequestError: there is none.
    """
    made: dict[nn.Module, object] = {}  # holds them, so that no two of them have one address
    inner = [module for module in encoder.modules() if module is not encoder]
    hooks = [module.register_forward_hook(lambda module, _, output: made.update({module: output})) for module in inner]
    try:
        with torch.compiler.set_stance("force_eager"):
            wanted = encoder(image)[-2]
    finally:
        for hook in hooks:
            hook.remove()
    found = next((module for module in inner if made.get(module) is wanted), None)
    if found is None:
        raise RequestError(
            "stages: this encoder has no module whose output is the stage before the last, as those with tokens do "
            "not: set it to last, or choose a convolutional encoder"
        )
    return found
