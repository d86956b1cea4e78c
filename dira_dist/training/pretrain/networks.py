"""The networks of a pretraining, the same on every worker and through all stages."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dira_dist.models.backbone import Backbone, BackboneSection, built_on_meta
from dira_dist.models.discriminator import PatchDiscriminator
from dira_dist.models.weights import load_weights, read_weights
from dira_dist.objectives import AdversarialConfig, Method, MethodSection
from dira_dist.objectives.method import Need
from dira_dist.objectives.parts import ActiveParts, LossWeights, active_parts
from dira_dist.training.networks import Networks


class PretrainNetworks(Networks):
    """U-Net, discriminative method (its heads, key encoder and queue) and discriminator.

    Args:
        unet: encoder and decoder.
        method: None where no stage discriminates.
        discriminator: None where no stage plays against one.
        needs: what the method asks of a step.
        min_local_batch: samples that the method needs on each worker.
    """

    def __init__(
        self,
        unet: Backbone,
        method: Method | None = None,
        discriminator: PatchDiscriminator | None = None,
        *,
        needs: frozenset[Need] = frozenset(),
        min_local_batch: int = 1,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.method = method
        self.discriminator = discriminator
        self.needs, self.min_local_batch = needs, min_local_batch
        self._learnable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_parts(self) -> Iterator[nn.Module]:
        """U-Net and those parts of the method that ever learn: a key encoder has batch statistics of its own."""
        yield self.unet
        for name, part in () if self.method is None else self.method.named_children():
            if any(weight.startswith(f"method.{name}.") for weight in self._learnable):
                yield part

    def passed_by_parts(self, parts: ActiveParts) -> list[nn.Module]:
        """What a stage with ``execution.micro_batch`` shows a part of the batch at once: all but the method's heads."""
        unet = self.unet if parts.restores else self.unet.encoder
        if self.method is None or not parts.discriminates:
            return [unet]
        heads = list(self.trainable_parts())
        return [unet, *(each for each in self.method.children() if all(each is not head for head in heads))]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """U-Net, discriminator, and what the method names."""
        own = () if self.method is None else self.method.compiled_parts()
        return [module for module in (self.unet, self.discriminator, *own) if module is not None]

    def set_trainable(self, parts: ActiveParts) -> None:
        """Lets those parameters require gradients that will get one, so that no worker waits for any other."""
        unused = {f"unet.{name}" for name in self.unet.config.unused_parameters(parts.restores)}
        used = {"unet": True, "method": parts.discriminates, "discriminator": parts.plays}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._learnable and name not in unused and used[name.split(".")[0]])


def discriminator_channels(unet: Backbone, adversarial: AdversarialConfig) -> int:
    """Channels that a discriminator sees: the restoration's, and of a conditional one the input's."""
    return unet.restored_channels + (unet.config.in_channels if adversarial.conditional else 0)


ALL_PARTS = active_parts("dira", LossWeights())


def networks_on_meta(
    model: BackboneSection, method: MethodSection, adversarial: AdversarialConfig, parts: ActiveParts = ALL_PARTS
) -> PretrainNetworks:
    """The networks without memory for their weights, for what shapes alone tell."""
    model = model.model_copy(update={"init": None})
    return built_on_meta(partial(build_networks, model, method, adversarial, parts=parts, seed=0))


def build_networks(
    model: BackboneSection,
    method: MethodSection,
    adversarial: AdversarialConfig = AdversarialConfig(),  # noqa: B008 (sections are immutable)
    *,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
    parts: ActiveParts = ALL_PARTS,
) -> PretrainNetworks:
    """Networks with weights drawn from ``seed`` alone, on the CPU.

    U-Net, method and discriminator are drawn in this order from one generator, also those that no stage computes and
    that are let go at once: so leaving a part out changes no weight of another.

    Args:
        model: of encoder and decoder.
        method: the discriminative part.
        adversarial: the adversarial part.
        seed: the job's.
        weights: what the U-Net starts from, in place of the file ``model.init``.
        parts: those of any stage; what none of them needs is not kept.

    Raises:
        RequestError: the encoder gives no feature maps for a U-Net, or the initial weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        unet = model.build()
        if weights is None and model.init is not None:
            weights = model.own_names(read_weights(model.init))
        if weights is not None:
            load_weights(unet, weights)
        built = method.build(unet.encoder, unet.channels)
        discriminator = PatchDiscriminator(
            adversarial.discriminator, unet.dims, discriminator_channels(unet, adversarial)
        )
    return PretrainNetworks(
        unet,
        built if parts.discriminates else None,
        discriminator if parts.plays else None,
        needs=method.needs,
        min_local_batch=method.min_local_batch,
    )
