"""The restorative objective: the distorted view becomes the undistorted one."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dira_dist.config import Section

RestorativeLoss = Literal["mse", "mae"]


class RestorativeConfig(Section):
    """The restorative part: its loss."""

    loss: RestorativeLoss = Field("mse", description="mse: mean squared error per pixel; mae: mean absolute error")


def restorative_loss(restoration: Tensor, target: Tensor, kind: RestorativeLoss = "mse") -> Tensor:
    r"""Mean squared error per pixel, or the mean absolute one, as Haghighi et al. (DART 2022) have it in 3D.

    .. math:: L_{res} = E_x \, \mathrm{dist}\big(G_\theta(T(x)), x\big), \qquad \mathrm{dist} = L_2

    Haghighi et al., *DiRA* (CVPR 2022), section 3.2, equation 2.

    Args:
        restoration: (B, 1, *S), the U-Net's output, in [0, 1].
        target: (B, 1, *S), the undistorted view with the geometry of the network's input, in [0, 1].

    Returns:
        (), float32 or wider.
    """
    return F.mse_loss(restoration, target) if kind == "mse" else F.l1_loss(restoration, target)
