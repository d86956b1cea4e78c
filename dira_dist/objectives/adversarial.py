"""The adversarial objective: a patch discriminator tells restored from real crops, and the U-Net learns to fool it.

Haghighi et al., *DiRA* (CVPR 2022), section 3.3, equation 3, with the least squares of the published run or a choice.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dira_dist.config import Section
from dira_dist.models.discriminator import DiscriminatorConfig
from dira_dist.models.precision import at_least_float32

AdversarialLoss = Literal["lsgan", "bce", "hinge"]


class AdversarialConfig(Section):
    """The adversarial part: its loss, the discriminator and how that learns."""

    loss: AdversarialLoss = Field(
        "lsgan", description="lsgan: least squares; bce: binary cross-entropy; hinge: hinge loss"
    )
    discriminator: DiscriminatorConfig = Field(DiscriminatorConfig(), description="the patch discriminator")
    lr: float = Field(2e-4, gt=0, description="learning rate of the discriminator's Adam, constant")
    betas: tuple[float, float] = Field((0.5, 0.999), description="betas of the discriminator's Adam")


def adversarial_loss(restored: Tensor, kind: AdversarialLoss = "lsgan") -> Tensor:
    """What the U-Net minimises: its restorations' scores should be those of real images.

    * ``lsgan``: ``mean((s - 1)^2)``. Mao et al., *Least Squares GAN* (ICCV 2017), equation 9.
    * ``bce``: ``mean(-log sigmoid(s))``. Goodfellow et al., *GAN* (NeurIPS 2014), section 3, its non-saturating form.
    * ``hinge``: ``mean(-s)``. Miyato et al., *Spectral Normalization for GANs* (ICLR 2018), equation 17.

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

    * ``lsgan``: ``(s_real - 1)^2`` and ``s_restored^2``. Mao et al. (2017), equation 9.
    * ``bce``: ``-log sigmoid(s_real)`` and ``-log(1 - sigmoid(s_restored))``. Goodfellow et al. (2014), equation 1.
    * ``hinge``: ``max(0, 1 - s_real)`` and ``max(0, 1 + s_restored)``. Miyato et al. (2018), equation 16.

    Args:
        real: (B, 1, *P), scores of the targets' patches.
        restored: (B, 1, *P), scores of the detached restorations' patches.

    Returns:
        (), float32 or wider.
    """
    real, restored = at_least_float32(real), at_least_float32(restored)
    if kind == "lsgan":
        return 0.5 * ((real - 1).square().mean() + restored.square().mean())
    if kind == "bce":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(restored).mean())
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + restored).mean())
