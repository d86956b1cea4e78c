"""A fine-tuning step that takes its samples part by part beside one that takes them at once, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dira_dist.objectives import GlobalBatch
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.finetune.losses import FinetuneLosses
from dira_dist.training.finetune.networks import FinetuneNetworks
from dira_dist.training.finetune.recipe import Classify, Segment
from dira_dist.views import LabelledViews

NO_AUTOCAST = torch.autocast("cpu", enabled=False)


class PlainNetwork(nn.Module):
    """Pixels to logits, of each sample by itself."""

    def __init__(self, outputs: int, pooled: bool, dims: int) -> None:
        super().__init__()
        self.layer = (nn.Conv2d, nn.Conv3d)[dims - 2](1, outputs, 3, padding=1)
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layer(images)
        return maps.flatten(2).mean(2) if self.pooled else maps


def _found(
    task: Classify | Segment, views: LabelledViews, outputs: int, micro_batch: int | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss, its gradients, and the logits."""
    torch.manual_seed(0)
    network = PlainNetwork(outputs, isinstance(task, Classify), views.images.ndim - 2).double()
    weights = torch.linspace(1, 2, outputs, dtype=torch.float64) if isinstance(task, Classify) else None
    losses = FinetuneLosses(
        FinetuneNetworks(network),  # type: ignore[arg-type]
        task,
        weights,
        ExecutionConfig(micro_batch=micro_batch),
    )
    found, logits = losses.backward(views, GlobalBatch((len(views),)), NO_AUTOCAST)
    assert logits is not None
    return found["supervised"], [weight.grad for weight in network.parameters()], logits


def _assert_alike(task: Classify | Segment, views: LabelledViews, outputs: int) -> None:
    tolerance = 1e-6 if getattr(task, "loss", "") == "focal" else 1e-10  # MONAI computes that one in float32
    expected = _found(task, views, outputs, None)
    for micro_batch in (1, 3):
        found = _found(task, views, outputs, micro_batch)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert float(expected[0]) > 0 and all(float(gradient.norm()) > 0 for gradient in expected[1])


def _views(dims: int, **more: Any) -> LabelledViews:
    generator = torch.Generator().manual_seed(1)
    shape = (7, 1, *(6,) * dims)
    images = torch.rand(shape, generator=generator, dtype=torch.float64)
    masks = torch.randint(-1, 3, (7, *shape[2:]), generator=generator, dtype=torch.int16)
    return LabelledViews(images, masks, torch.arange(7), **more)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("imbalance", ["weights", "focal"])
def test_classifiers_average_over_what_is_known_in_the_whole_batch(dims: int, exclusive: bool, imbalance: str) -> None:
    """Unknown labels lie unevenly: an average of the parts' averages would be another loss."""
    truth = torch.eye(3)[torch.arange(7) % 3]
    truth[:3, slice(None) if exclusive else 1] = torch.nan
    names = ("a", "b", "c")
    task = Classify(label="x", classes=names, exclusive=exclusive, imbalance=imbalance)
    _assert_alike(task, _views(dims, targets=truth), 3)


@pytest.mark.parametrize("loss", ["dice_ce", "dice", "focal", "tversky"])
@pytest.mark.parametrize("outputs", [{"classes": ("a", "b")}, {"regions": {"a": (1, 2), "b": (2,)}}, {}])
def test_segmenters_average_over_images(loss: str, outputs: dict[str, Any]) -> None:
    task = Segment(loss=loss, **outputs)
    _assert_alike(task, _views(2), 3 if "classes" in outputs else 2 if outputs else 1)


def test_a_segmenter_of_volumes() -> None:
    _assert_alike(Segment(classes=("a", "b")), _views(3), 3)
