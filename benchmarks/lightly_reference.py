"""MoCo-v2, Barlow Twins and SimSiam of lightly (MIT), trained from given weights on given views: a public yardstick.

    .venv/lightly/bin/python benchmarks/lightly_reference.py START VIEWS LOSSES TRAINED

It runs in the environment of `make lightly`, knows nothing of this project, and is started by `compare_lightly.py`. It
computes in the precision of the weights:

- START, safetensors: `encoder.*` by torchvision's names, `projector.*`, and of those methods that have them
  `predictor.*` and `queue` (K, D); its metadata hold the settings as JSON under `settings`.
- VIEWS, safetensors: `view_1` and `view_2`, (steps, B, 1, H, W) uint8.
- LOSSES, JSON: the loss of each step. TRAINED, safetensors: `encoder.*` after the last.

The encoder is torchvision's; heads, losses, memory bank and moving average are lightly's, put together as in its own
examples. In one process "shuffle BN" changes the order of a batch and nothing else, so it is left out.
"""

import copy
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    MoCoProjectionHead,
    ProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The entries of one module, under the names it knows itself."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def encoder(weights: Weights, name: str) -> nn.Module:
    """torchvision's network without its classifier: (B, C, H, W) to (B, F)."""
    own = part(weights, "encoder")
    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    network.fc = nn.Identity()
    stem = own["conv1.weight"]
    network.conv1 = nn.Conv2d(stem.shape[1], len(stem), stem.shape[2], stride=2, padding=3, bias=False)
    network.to(stem.dtype).load_state_dict(own)
    return network


def head(built: ProjectionHead, weights: Weights, name: str) -> ProjectionHead:
    """The head with the given weights; a bias that is not given is one that what follows cancels, and is 0."""
    own = part(weights, name)
    missing, unexpected = built.to(own["0.weight"].dtype).layers.load_state_dict(own, strict=False)
    assert not unexpected, unexpected
    with torch.no_grad():
        for each in missing:
            assert each.endswith("bias"), each
            built.layers.get_parameter(each).zero_()
    return built


class MoCo(nn.Module):
    """lightly's MoCo: a momentum encoder, and its NT-Xent loss with a memory bank."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, outputs = len(weights["projector.0.weight"]), len(weights["projector.2.weight"])
        self.backbone = encoder(weights, settings["encoder"])
        self.projection = head(MoCoProjectionHead(hidden, hidden, outputs), weights, "projector")
        self.momentum = settings["momentum"]
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_momentum = copy.deepcopy(self.projection)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_momentum)
        self.criterion = NTXentLoss(settings["temperature"], memory_bank_size=tuple(weights["queue"].shape))
        self.criterion.memory_bank.bank = weights["queue"].clone()

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection, self.projection_momentum, m=self.momentum)
        queries = self.projection(self.backbone(view_1))
        keys = self.projection_momentum(self.backbone_momentum(view_2)).detach()
        loss: Tensor = self.criterion(queries, keys)
        return loss


class BarlowTwins(nn.Module):
    """lightly's Barlow Twins."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        width, features = weights["projector.0.weight"].shape
        self.backbone = encoder(weights, settings["encoder"])
        self.projection = head(BarlowTwinsProjectionHead(features, width, width), weights, "projector")
        self.criterion = BarlowTwinsLoss(lambda_param=settings["off_diagonal"])

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*(self.projection(self.backbone(view)) for view in (view_1, view_2)))
        return loss


class SimSiam(nn.Module):
    """lightly's SimSiam, its symmetric loss."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, features = weights["projector.0.weight"].shape
        outputs, bottleneck = len(weights["projector.6.weight"]), len(weights["predictor.0.weight"])
        self.backbone = encoder(weights, settings["encoder"])
        self.projection = head(SimSiamProjectionHead(features, hidden, outputs), weights, "projector")
        self.prediction = head(SimSiamPredictionHead(outputs, bottleneck, outputs), weights, "predictor")
        self.criterion = NegativeCosineSimilarity()

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        z_1, z_2 = (self.projection(self.backbone(view)) for view in (view_1, view_2))
        p_1, p_2 = self.prediction(z_1), self.prediction(z_2)
        loss: Tensor = 0.5 * (self.criterion(p_1, z_2.detach()) + self.criterion(p_2, z_1.detach()))
        return loss


METHODS = {"moco_v2": MoCo, "barlow_twins": BarlowTwins, "simsiam": SimSiam}


def train(model: nn.Module, views: Weights, settings: Mapping[str, Any]) -> list[float]:
    """The loss of each step: SGD, its rate falling to 0 along a cosine, but for SimSiam's predictor (section 4.2)."""
    steps = len(views["view_1"])
    learned = {name: each for name, each in model.named_parameters() if each.requires_grad}
    steady = [each for name, each in learned.items() if name.startswith("prediction.")]
    falling = [each for name, each in learned.items() if not name.startswith("prediction.")]
    groups = [{"params": falling}, *([{"params": steady}] if steady else [])]
    optimizer = torch.optim.SGD(groups, settings["lr"], momentum=0.9, weight_decay=settings["weight_decay"])
    shares: list[Callable[[int], float]] = [lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)), lambda _: 1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares[: len(groups)])
    dtype, losses = falling[0].dtype, []
    for view_1, view_2 in zip(views["view_1"], views["view_2"], strict=True):
        loss = model(view_1.to(dtype) / 255, view_2.to(dtype) / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    start, views, losses, trained = map(Path, sys.argv[1:])
    with safe_open(start, framework="pt") as opened:
        settings = json.loads(opened.metadata()["settings"])
    model = METHODS[settings["method"]](load_file(start), settings).train()
    losses.write_text(json.dumps(train(model, load_file(views), settings)))
    backbone = model.get_submodule("backbone")
    save_file({f"encoder.{name}": value for name, value in backbone.state_dict().items()}, trained)


if __name__ == "__main__":
    main()
