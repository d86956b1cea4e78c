"""The adversarial objective: a patch discriminator tells restored from real crops, and the U-Net learns to fool it.

Haghighi et al., *DiRA* (CVPR 2022), section 3.3, equation 3, with the least squares of the published run or a choice.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dira_dist.config import Section
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.precision import at_least_float32, without_autocast

AdversarialLoss = Literal["lsgan", "bce", "hinge", "wgan_gp"]


class AdversarialConfig(Section):
    """The adversarial part: its loss, the discriminator and how that learns."""

    loss: AdversarialLoss = Field(
        "lsgan",
        description="lsgan: least squares; bce: binary cross-entropy; hinge: hinge loss; wgan_gp: Wasserstein distance "
        "with a gradient penalty",
    )
    gradient_penalty: float = Field(10.0, ge=0, description="weight of the penalty of wgan_gp")
    conditional: bool = Field(
        False, description="the discriminator sees each image beside the distorted one that was restored"
    )
    discriminator: DiscriminatorConfig = Field(DiscriminatorConfig(), description="the patch discriminator")
    lr: float = Field(2e-4, gt=0, description="learning rate of the discriminator's Adam, constant")
    betas: tuple[float, float] = Field((0.5, 0.999), description="betas of the discriminator's Adam")


def adversarial_loss(restored: Tensor, kind: AdversarialLoss = "lsgan") -> Tensor:
    """What the U-Net minimises: its restorations' scores should be those of real images.

    * ``lsgan``: ``mean((s - 1)^2)``. Mao et al., *Least Squares GAN* (ICCV 2017), equation 9.
    * ``bce``: ``mean(-log sigmoid(s))``. Goodfellow et al., *GAN* (NeurIPS 2014), section 3, its non-saturating form.
    * ``hinge``: ``mean(-s)``. Miyato et al., *Spectral Normalization for GANs* (ICLR 2018), equation 17.
    * ``wgan_gp``: ``mean(-s)``. Gulrajani et al., *Improved Training of Wasserstein GANs* (NeurIPS 2017), algorithm 1.

    Args:
        restored: (B, 1, *P), scores of the restorations' patches.

    Returns:
        (), float32 or wider.
    """
    scores = at_least_float32(restored)
    if kind == "lsgan":
        return (scores - 1).square().mean()
    return F.softplus(-scores).mean() if kind == "bce" else -scores.mean()


def discriminator_loss(real: Tensor, restored: Tensor, kind: AdversarialLoss = "lsgan") -> Tensor:
    """What the discriminator minimises: half the sum of the mean losses on real and on restored patches.

    A critic's, of ``wgan_gp``, is the whole sum; the penalty comes on top, see :func:`gradient_penalty`.

    * ``lsgan``: ``(s_real - 1)^2`` and ``s_restored^2``. Mao et al. (2017), equation 9.
    * ``bce``: ``-log sigmoid(s_real)`` and ``-log(1 - sigmoid(s_restored))``. Goodfellow et al. (2014), equation 1.
    * ``hinge``: ``max(0, 1 - s_real)`` and ``max(0, 1 + s_restored)``. Miyato et al. (2018), equation 16.
    * ``wgan_gp``: ``-s_real`` and ``s_restored``. Gulrajani et al. (2017), equation 3.

    Args:
        real: (B, 1, *P), scores of the targets' patches.
        restored: (B, 1, *P), scores of the detached restorations' patches.

    Returns:
        (), float32 or wider.
    """
    real, restored = at_least_float32(real), at_least_float32(restored)
    if kind == "lsgan":
        return 0.5 * ((real - 1).square().mean() + restored.square().mean())
    if kind == "wgan_gp":
        return restored.mean() - real.mean()
    if kind == "bce":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(restored).mean())
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + restored).mean())


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    r"""How far the slope of an image's mean score is from 1, squared: a critic's slope is to be 1 everywhere.

    .. math:: E_{\hat x} \big( \lVert \nabla_{\hat x} D(\hat x) \rVert_2 - 1 \big)^2

    Gulrajani et al. (2017), equation 3, without its weight; an image's score is the mean over its patches.

    Args:
        scores: (B, 1, *P), of the images, with a graph back to them.
        images: (B, C, *S), each somewhere between a real and a restored one.

    Returns:
        (), with a graph.
    """
    slopes = torch.autograd.grad(scores.flatten(1).mean(1).sum(), images, create_graph=True)[0]
    steepness: Tensor = slopes.flatten(1).norm(dim=1)
    return (steepness - 1).square().mean()


def discriminator_input(images: Tensor, distorted: Tensor | None) -> Tensor:
    """What a discriminator sees: (B, C, *S) images, where it is conditional each beside its distorted input."""
    return images if distorted is None else torch.cat([images, distorted], 1)


class Opponent(nn.Module):
    """The discriminator's own loss in one forward pass, so that gradients of workers may be averaged around it.

    Args:
        discriminator: scores of patches. Its norms have to keep samples apart: real and restored pass together.
        config: the adversarial part's settings.
    """

    def __init__(self, discriminator: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator, self.config = discriminator, config

    def forward(self, target: Tensor, restoration: Tensor, distorted: Tensor | None, mix: Tensor | None) -> Tensor:
        """Mean loss over the samples: ().

        Args:
            target: (B, C, *S).
            restoration: (B, C, *S), detached.
            distorted: (B, D, *S) of a conditional discriminator, else None.
            mix: (B,) in [0, 1), where between restoration and target the slope is looked at; of ``wgan_gp`` alone.
        """
        beside = None if distorted is None else torch.cat([distorted, distorted])
        scores = self.discriminator(discriminator_input(torch.cat([target, restoration]), beside))
        real, restored = scores.chunk(2)
        loss = discriminator_loss(real, restored, self.config.loss)
        if self.config.loss != "wgan_gp" or self.config.gradient_penalty == 0:
            return loss
        assert mix is not None, "make_views draws it"
        return loss + self.config.gradient_penalty * self._penalty(target, restoration, distorted, mix)

    def _penalty(self, target: Tensor, restoration: Tensor, distorted: Tensor | None, mix: Tensor) -> Tensor:
        with without_autocast(target):
            real = at_least_float32(target)
            share = mix.to(real.dtype).view(-1, *(1,) * (target.ndim - 1))
            between = torch.lerp(at_least_float32(restoration), real, share).requires_grad_()
            beside = None if distorted is None else at_least_float32(distorted)
            return gradient_penalty(self.discriminator(discriminator_input(between, beside)), between)
