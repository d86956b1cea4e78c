"""Projection and prediction heads of the discriminative methods: ``(B, features)`` to ``(B, outputs)``."""

from torch import nn


def moco_projector(features: int, outputs: int) -> nn.Sequential:
    """Linear - ReLU - Linear. Chen et al., *Improved Baselines with Momentum Contrastive Learning*, 2020."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, outputs))


def barlow_twins_projector(features: int, width: int) -> nn.Sequential:
    """Three linear layers, the first two with batch norm and ReLU. Zbontar et al., *Barlow Twins* (ICML 2021), 2.2."""
    return nn.Sequential(
        *_linear_norm_relu(features, width), *_linear_norm_relu(width, width), nn.Linear(width, width, bias=False)
    )


def simsiam_projector(features: int, outputs: int) -> nn.Sequential:
    """Three linear layers, each with batch norm, the last without ReLU or affine. Chen & He, *SimSiam* (2021), 3."""
    return nn.Sequential(
        *_linear_norm_relu(features, features),
        *_linear_norm_relu(features, features),
        nn.Linear(features, outputs, bias=False),  # the batch norm after it would cancel a bias
        nn.BatchNorm1d(outputs, affine=False),
    )


def simsiam_predictor(features: int, bottleneck: int) -> nn.Sequential:
    """Two linear layers with a bottleneck, batch norm and ReLU between. Chen & He, *SimSiam* (2021), section 3."""
    return nn.Sequential(*_linear_norm_relu(features, bottleneck), nn.Linear(bottleneck, features))


def _linear_norm_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
