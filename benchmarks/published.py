"""The published recipe of DiRA with MoCo-v2, stated plainly: what the project's step is measured and tested against."""

import copy

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUEUE, OUTPUTS, TEMPERATURE, MOMENTUM = 65_536, 128, 0.2, 0.999
WEIGHTS = {"discriminative": 1.0, "restorative": 10.0, "adversarial": 0.001}


class PublishedNetwork(nn.Module):
    """U-Net and projection head in one forward pass, as the recipe has them for queries and for keys."""

    def __init__(self, encoder: str, in_channels: int) -> None:
        super().__init__()
        self.backbone = smp.Unet(encoder, encoder_weights=None, in_channels=in_channels, activation="sigmoid")
        features = self.backbone.encoder.out_channels[-1]
        self.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, OUTPUTS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone.encoder(image)
        restored = self.backbone.segmentation_head(self.backbone.decoder(features))
        return F.normalize(self.fc(features[-1].mean(dim=(2, 3))), dim=1), restored


class PublishedStep:
    """The recipe from its description: eager, float32, and with its waste.

    The key encoder runs its decoder for nothing; the U-Net's step leaves gradients on the discriminator that are
    cleared unused; the discriminator looks at real and restored images in two passes.
    """

    def __init__(
        self, encoder: str, in_channels: int, device: str, *, queue: int = QUEUE, lr: float = 0.03, plays: bool = True
    ) -> None:
        self.query = PublishedNetwork(encoder, in_channels).to(device)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.discriminator = _published_discriminator().to(device)
        self.queue = F.normalize(torch.randn(OUTPUTS, queue, device=device), dim=0)
        self.position, self.plays = 0, plays
        self.optimizer = torch.optim.SGD(self.query.parameters(), lr, momentum=0.9, weight_decay=1e-4)
        self.player = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.999))

    def __call__(self, view_1: Tensor, view_2: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name and the restoration; without a discriminator to play against (`plays`) it is stage `dir`."""
        queries, restored = self.query(view_1)
        losses = {"discriminative": self._tell_apart(queries, view_2), "restorative": F.mse_loss(restored, target)}
        if self.plays:
            losses["adversarial"] = (self.discriminator(restored) - 1).square().mean()
        total = sum((WEIGHTS[name] * loss for name, loss in losses.items()), start=restored.new_zeros(()))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        if self.plays:
            losses["discriminator"] = self._play(target, restored.detach())
        return {name: loss.detach() for name, loss in (losses | {"total": total}).items()}, restored.detach()

    def _tell_apart(self, queries: Tensor, view_2: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            keys, _ = self.key(view_2)
        own = torch.einsum("nc,nc->n", queries, keys)[:, None]
        logits = torch.cat([own, torch.einsum("nc,ck->nk", queries, self.queue.clone().detach())], dim=1) / TEMPERATURE
        self._enqueue(keys)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def _play(self, target: Tensor, restored: Tensor) -> Tensor:
        self.player.zero_grad()
        real = (self.discriminator(target) - 1).square().mean()
        loss: Tensor = 0.5 * (real + self.discriminator(restored).square().mean())
        loss.backward()
        self.player.step()
        return loss

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        self.queue[:, self.position : self.position + len(keys)] = keys.T
        self.position = (self.position + len(keys)) % self.queue.shape[1]


def _published_discriminator() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, 2, 1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 3, 1, 1))
