"""The restorative objective: the distorted view becomes the undistorted one."""

import torch.nn.functional as F
from torch import Tensor


def restorative_loss(restoration: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared error per pixel.

    .. math:: L_{res} = E_x \, \mathrm{dist}\big(G_\theta(T(x)), x\big), \qquad \mathrm{dist} = L_2

    Haghighi et al., *DiRA* (CVPR 2022), section 3.2, equation 2.

    Args:
        restoration: (B, 1, *S), the U-Net's output, in [0, 1].
        target: (B, 1, *S), the undistorted view with the geometry of the network's input, in [0, 1].

    Returns:
        (), float32 or wider.
    """
    return F.mse_loss(restoration, target)
