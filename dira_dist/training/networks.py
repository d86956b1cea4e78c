"""The networks of a job, the same on every worker and through all stages."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dira_dist.models.discriminator import PatchDiscriminator
from dira_dist.models.unet import UNet, UNetConfig, built_on_meta, unused_parameters
from dira_dist.models.weights import load_weights, read_weights
from dira_dist.objectives import AdversarialConfig, Method, MethodConfig


class Networks(nn.Module):
    """U-Net, discriminative method (its heads, key encoder and queue) and discriminator."""

    def __init__(self, unet: UNet, method: Method, discriminator: PatchDiscriminator, min_local_batch: int = 1) -> None:
        super().__init__()
        self.unet = unet
        self.method = method
        self.discriminator = discriminator
        self.min_local_batch = min_local_batch
        self._learnable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_parts(self) -> Iterator[nn.Module]:
        """U-Net and those parts of the method that ever learn: a key encoder has batch statistics of its own."""
        yield self.unet
        for name, part in self.method.named_children():
            if any(weight.startswith(f"method.{name}.") for weight in self._learnable):
                yield part

    def set_trainable(self, *, discriminate: bool, restore: bool, fool: bool) -> None:
        """Lets those parameters require gradients that will get one, so that no worker waits for any other.

        Args:
            discriminate: the method's loss is computed.
            restore: the decoder runs.
            fool: the discriminator is played against.
        """
        unused = {f"unet.{name}" for name in unused_parameters(self.unet.config, restore)}
        used = {"unet": True, "method": discriminate, "discriminator": fool}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._learnable and name not in unused and used[name.split(".")[0]])


def networks_on_meta(model: UNetConfig, method: MethodConfig, adversarial: AdversarialConfig) -> Networks:
    """The networks without memory for their weights, for what shapes alone tell."""
    model = model.model_copy(update={"init": None})
    return built_on_meta(partial(build_networks, model, method, adversarial, seed=0))


def build_networks(
    model: UNetConfig,
    method: MethodConfig,
    adversarial: AdversarialConfig = AdversarialConfig(),  # noqa: B008 (sections are immutable)
    *,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> Networks:
    """Networks with weights drawn from ``seed`` alone, on the CPU.

    Args:
        weights: what the U-Net starts from, in place of the file ``model.init``.

    Raises:
        RequestError: the encoder gives no feature maps for a U-Net, or the initial weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        unet = UNet(model)
        if weights is None and model.init is not None:
            weights = read_weights(model.init)
        if weights is not None:
            load_weights(unet, weights)
        built = method.build(unet.encoder, unet.channels)
        return Networks(unet, built, PatchDiscriminator(adversarial.discriminator), method.min_local_batch)
