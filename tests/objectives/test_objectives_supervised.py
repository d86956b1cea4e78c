"""Losses of labels and masks against sums written as loops."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dira_dist.objectives import GlobalBatch
from dira_dist.objectives.supervised import (
    classification_loss,
    mask_targets,
    positive_weights,
    resolve_uncertain,
    segmentation_loss,
)

NAN = math.nan
ALONE = GlobalBatch((6,))


def random_case(kind: str, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, classes, generator=generator, dtype=torch.float64)
    if kind == "multiclass":
        targets = torch.eye(classes)[torch.randint(classes, (6,), generator=generator)]
        targets[2] = NAN
    else:
        targets = torch.randint(2, (6, classes), generator=generator).float()
        targets[1, 0] = targets[4] = NAN
        targets[0, 0] = 0.7  # smoothed
    return logits, targets


def plain_loss(logits: Tensor, targets: Tensor, kind: str, weights: list[float], gamma: float) -> float:
    total, count = 0.0, 0
    for row, truth in zip(logits.tolist(), targets.tolist(), strict=True):
        if kind == "multiclass":
            if any(math.isnan(each) for each in truth):
                continue
            bottom = sum(math.exp(each) for each in row)
            for place, each in enumerate(row):
                p = math.exp(each) / bottom
                total -= weights[place] * truth[place] * (1 - p) ** gamma * math.log(p)
            count += 1
            continue
        for place, each in enumerate(row):
            if not math.isnan(truth[place]):
                p = 1 / (1 + math.exp(-each))
                total -= weights[place] * truth[place] * (1 - p) ** gamma * math.log(p)
                total -= (1 - truth[place]) * p**gamma * math.log(1 - p)
                count += 1
    return total / count


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, [3.0, 0.5, 1.0]])
@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_classification_is_the_sum_over_what_is_known(kind: Any, weights: list[float] | None, gamma: float) -> None:
    classes = 1 if kind == "binary" else 3
    logits, targets = random_case(kind, classes)
    given = None if weights is None else torch.tensor(weights[:classes])
    found = classification_loss(logits, targets, kind=kind, batch=ALONE, weights=given, focal_gamma=gamma)
    assert float(found) == pytest.approx(plain_loss(logits, targets, kind, weights or [1.0] * 3, gamma), rel=1e-5)


def test_what_is_not_known_has_no_gradient_and_nothing_known_costs_nothing() -> None:
    logits, targets = random_case("multilabel", 3)
    logits.requires_grad_()
    classification_loss(logits, targets, kind="multilabel", batch=ALONE).backward()
    assert logits.grad is not None
    assert ((logits.grad == 0) == targets.isnan()).all()
    nothing = classification_loss(logits, torch.full_like(targets, NAN), kind="multilabel", batch=ALONE)
    nothing.backward()
    assert float(nothing.detach()) == 0


def _loss_of_part(rank: int, shares: tuple[int, ...]) -> float:
    logits, targets = random_case("multilabel", 3)
    rows = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    batch = GlobalBatch(shares, rank)
    return float(classification_loss(logits[rows], targets[rows], kind="multilabel", batch=batch))


def _worker(rank: int, shares: tuple[int, ...], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{len(shares)}", rank=rank, world_size=len(shares))
    Path(folder, f"{rank}.txt").write_text(repr(_loss_of_part(rank, shares)))
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [(4, 2)])
def test_the_mean_over_workers_is_the_loss_of_the_whole(shares: tuple[int, ...], tmp_path: Path) -> None:
    """However unevenly what is known lies on them."""
    torch.multiprocessing.spawn(_worker, (shares, str(tmp_path)), nprocs=len(shares))
    parts = [float((tmp_path / f"{rank}.txt").read_text()) for rank in range(len(shares))]
    assert np.mean(parts) == pytest.approx(_loss_of_part(0, (6,)), rel=1e-6)
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)


def test_weights_of_rare_classes_are_capped() -> None:
    targets = np.array([[1, 0], [0, 0], [0, 0], [NAN, 1]], dtype=np.float32)
    assert positive_weights(targets, "multilabel").tolist() == [2.0, 3.0]
    assert positive_weights(targets, "multilabel", cap=2.5).tolist() == [2.0, 2.5]
    rows = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]
    assert positive_weights(rows, "multiclass", cap=100).tolist() == pytest.approx([4 / (2 * 3), 4 / 2, 4 / 2])


def test_uncertain_labels_by_each_rule() -> None:
    targets, drawn = torch.tensor([[1.0, -1.0, NAN]]), torch.tensor([[0.1, 0.5, 0.9]])
    found = {
        rule: resolve_uncertain(targets, rule, drawn)[0].tolist() for rule in ("ones", "zeros", "smooth", "ignore")
    }  # type: ignore[arg-type]
    for rule, value in (("ones", 1.0), ("zeros", 0.0), ("smooth", 0.7), ("ignore", NAN)):
        assert found[rule][:2] == pytest.approx([1.0, value], nan_ok=True)
        assert math.isnan(found[rule][2])


def test_masks_become_outputs() -> None:
    masks = torch.tensor([[[0, 1], [2, -1]]], dtype=torch.int16)
    regions, valid = mask_targets(masks, "regions", [[1, 2], [2]])
    assert regions.tolist() == [[[[0, 1], [1, 0]], [[0, 0], [1, 0]]]]
    assert valid.tolist() == [[[True, True], [True, False]]]
    assert mask_targets(masks, "binary", [])[0].tolist() == [[[[0, 1], [1, 0]]]]


def _plain_dice(chances: Tensor, targets: Tensor, known: Tensor) -> float:
    """One minus twice the overlap over the sum, of each output of each image; the mean."""
    terms = []
    for chance, target, each in zip(chances, targets, known, strict=True):
        for one, other in zip(chance, target, strict=True):
            overlap = sum(
                float(a * b) for a, b, k in zip(one.flatten(), other.flatten(), each.flatten(), strict=True) if k
            )
            both = sum(
                float(a + b) for a, b, k in zip(one.flatten(), other.flatten(), each.flatten(), strict=True) if k
            )
            terms.append(1 - (2 * overlap + 1) / (both + 1))
    return float(np.mean(terms))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regions"])
def test_dice_is_of_each_image_and_of_what_is_known(kind: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(3, (3, 5, 6), generator=generator).short()
    masks[0, :2] = -1
    masks[2] = 0
    values = {"binary": [], "multiclass": [[0], [1], [2]], "regions": [[1, 2], [2]]}[kind]
    targets, valid = mask_targets(masks, kind, values)
    logits = torch.randn(targets.shape, generator=generator)
    settings: dict[str, Any] = {"kind": kind, "batch": GlobalBatch((3,))}
    chances = logits.softmax(1)[:, 1:] if kind == "multiclass" else logits.sigmoid()
    shown = targets[:, 1:] if kind == "multiclass" else targets
    dice = segmentation_loss(logits, targets, valid, loss="dice", **settings)
    assert float(dice) == pytest.approx(_plain_dice(chances, shown, valid), rel=1e-4)

    both = segmentation_loss(logits, targets, valid, loss="dice_ce", **settings)
    entropy = []
    for row, target, known in zip(logits, targets, valid, strict=True):
        if kind == "multiclass":
            terms = -(target * row.log_softmax(0)).sum(0)[known]
        else:
            terms = torch.nn.functional.binary_cross_entropy_with_logits(
                row[:, known], target[:, known], reduction="none"
            )
        entropy.append(float(terms.mean()))
    assert float(both - dice) == pytest.approx(np.mean(entropy), rel=1e-4)


@pytest.mark.parametrize("loss", ["dice_ce", "dice", "focal", "tversky"])
def test_what_nobody_has_labelled_changes_nothing(loss: Any) -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.int16)
    masks[:, 2:5, 2:5], masks[:, 6:] = 1, -1
    targets, valid = mask_targets(masks, "binary", [])
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    settings: dict[str, Any] = {"loss": loss, "kind": "binary", "batch": GlobalBatch((2,))}
    found = segmentation_loss(logits, targets, valid, **settings)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 6:] == 0).all() and (logits.grad[:, :, :6] != 0).any()
    right = torch.where(targets > 0, 20.0, -20.0)
    assert float(segmentation_loss(right, targets, valid, **settings)) < 1e-3
    nothing, everywhere = mask_targets(torch.zeros(2, 8, 8, dtype=torch.int16), "binary", [])
    empty = segmentation_loss(torch.full((2, 1, 8, 8), -20.0), nothing, everywhere, **settings)
    assert float(empty) < 1e-2, "empty against empty costs nothing"
