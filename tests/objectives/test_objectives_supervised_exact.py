"""Losses of labels and masks: each against loops over classes and pixels, at its extremes, and on two workers."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.supervised import (
    NO_LABEL,
    ClassKind,
    MaskKind,
    SegmentationLoss,
    check_mask_values,
    classification_loss,
    mask_targets,
    segmentation_loss,
)

KINDS: tuple[ClassKind, ...] = ("binary", "multiclass", "multilabel")
MASK_KINDS: tuple[MaskKind, ...] = ("binary", "multiclass", "regions")
LOSSES: tuple[SegmentationLoss, ...] = ("dice_ce", "dice", "focal", "tversky")
VALUES: dict[MaskKind, list[tuple[int, ...]]] = {
    "binary": [],
    "multiclass": [(0,), (1,), (2,)],
    "regions": [(1, 2), (2,)],
}
SHARES = (3, 2)
NAN = math.nan


def labelled(kind: ClassKind, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets; of some samples nothing is known, of others not all."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, 1 if kind == "binary" else 3, generator=generator)
    if kind == "multiclass":
        targets = torch.eye(3)[torch.randint(3, (samples,), generator=generator)]
        targets[torch.rand(samples, generator=generator) < 0.3] = NAN
    else:
        targets = (torch.rand(logits.shape, generator=generator) < 0.4).float()
        targets[torch.rand(logits.shape, generator=generator) < 0.3] = NAN
    return logits, targets


def masked(kind: MaskKind, images: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and what is known of them: parts of the masks are unlabelled, the last one is empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (images, 5, 4), generator=generator).to(torch.int16)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = NO_LABEL
    masks[-1] = 0
    targets, valid = mask_targets(masks, kind, VALUES[kind])
    return 2 * torch.randn(targets.shape, generator=generator), targets, valid


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def classification_sum(
    kind: ClassKind, logits: Tensor, targets: Tensor, weights: list[float], gamma: float
) -> tuple[float, int]:
    """The sum over what is known, and how much that is."""
    total, count = 0.0, 0
    for row, truths in zip(logits.double().tolist(), targets.tolist(), strict=True):
        if kind == "multiclass":
            if not any(map(math.isnan, truths)):
                place = truths.index(1)
                p = math.exp(row[place]) / sum(map(math.exp, row))
                total, count = total - weights[place] * (1 - p) ** gamma * math.log(p), count + 1
            continue
        for x, truth, weight in zip(row, truths, weights, strict=True):
            if not math.isnan(truth):
                p = sigmoid(x)
                total -= weight * truth * (1 - p) ** gamma * math.log(p)
                total -= (1 - truth) * p**gamma * math.log(1 - p)
                count += 1
    return total, count


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_classification_is_the_mean_over_what_is_known(kind: ClassKind, seed: int, samples: int, gamma: float) -> None:
    logits, targets = labelled(kind, samples, seed)
    weights = torch.tensor([0.5, 3.0, 1.5][: logits.shape[1]])
    for given_weights, used in ((None, [1.0] * 3), (weights, weights.tolist())):
        total, count = classification_sum(kind, logits, targets, used[: logits.shape[1]], gamma)
        found = classification_loss(
            logits, targets, kind=kind, batch=GlobalBatch((samples,)), weights=given_weights, focal_gamma=gamma
        )
        assert float(found) == pytest.approx(total / max(count, 1), rel=1e-4, abs=1e-5)


def test_plain_classification_is_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, one = torch.randn(6, 3, generator=generator), GlobalBatch((6,))
    classes = torch.randint(3, (6,), generator=generator)
    soft = torch.rand(6, 3, generator=generator)  # as smoothed uncertain labels are
    weights = torch.tensor([0.5, 1.0, 4.0])
    torch.testing.assert_close(
        classification_loss(logits, torch.eye(3)[classes], kind="multiclass", batch=one),
        torch.nn.functional.cross_entropy(logits, classes),
    )
    torch.testing.assert_close(
        classification_loss(logits, soft, kind="multilabel", batch=one, weights=weights),
        torch.nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights),
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 5.0])
def test_gradients_are_finite_however_sure_the_network_is(kind: ClassKind, gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [30.0, -30.0], [0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0]] * 4)
    loss = classification_loss(logits, targets, kind=kind, batch=GlobalBatch((4,)), focal_gamma=gamma)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_a_half_precision_network_is_judged_in_float32() -> None:
    logits, targets = labelled("multilabel", 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = classification_loss(logits.bfloat16(), targets, kind="multilabel", batch=GlobalBatch((4,)))
        masks = masked("regions", 2)
        painted = segmentation_loss(
            masks[0].bfloat16(), *masks[1:], loss="dice_ce", kind="regions", batch=GlobalBatch((2,))
        )
    assert loss.dtype == painted.dtype == torch.float32


def test_values_that_no_output_stands_for_are_named() -> None:
    masks = torch.tensor([[0, 2, 7], [NO_LABEL, 3, 7]], dtype=torch.int16)
    with pytest.raises(RequestError, match=r"the train set: masks with values 3, 7; the highest .* is 2: name all"):
        check_mask_values(masks, 2, "the train set")
    check_mask_values(masks, 7, "the train set")
    check_mask_values(masks, None, "the train set")
    with pytest.raises(RequestError, match="1, 2, 3, 4, 5 and 4 more"):
        check_mask_values(torch.arange(10), 0, "the val set")


def overlap_of_image(kind: MaskKind, logits: Tensor, targets: Tensor, valid: Tensor, loss: str) -> float:
    """The mean over the outputs, of those that exclude each other without the background."""
    chances = logits.double().softmax(0) if kind == "multiclass" else logits.double().sigmoid()
    found = []
    for place in range(1 if kind == "multiclass" else 0, len(chances)):
        both = missed = invented = 0.0
        pixels = zip(chances[place].flatten(), targets[place].flatten(), valid.flatten(), strict=True)
        for chance, truth, known in ((float(p), float(t), bool(k)) for p, t, k in pixels):
            if known:
                both += chance * truth
                missed += (1 - chance) * truth
                invented += chance * (1 - truth)
        if loss == "tversky":
            found.append(1 - (both + 1) / (both + 0.3 * invented + 0.7 * missed + 1))
        else:
            found.append(1 - (2 * both + 1) / (2 * both + missed + invented + 1))
    return sum(found) / len(found)


def pixels_of_image(kind: MaskKind, logits: Tensor, targets: Tensor, valid: Tensor, loss: str) -> float:
    """The mean over known pixels, and over outputs where each has a term of its own."""
    total, count, gamma = 0.0, 0, 2 if loss == "focal" else 0
    for place in [tuple(each) for each in valid.nonzero().tolist()]:
        x = [float(each[place]) for each in logits]
        truth = [float(each[place]) for each in targets]
        if kind == "multiclass":
            p = [math.exp(each) / sum(map(math.exp, x)) for each in x]
            terms = [-t * (1 - q) ** gamma * math.log(q) for t, q in zip(truth, p, strict=True)]
        else:
            p = [sigmoid(each) for each in x]
            terms = [
                -t * (1 - q) ** gamma * math.log(q) - (1 - t) * q**gamma * math.log(1 - q)
                for t, q in zip(truth, p, strict=True)
            ]
        total += sum(terms)
        count += 1 if kind == "multiclass" and loss != "focal" else len(terms)
    return total / max(count, 1)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_segmentation_is_the_mean_over_images_of_loops_over_pixels(kind: MaskKind, loss: SegmentationLoss) -> None:
    for seed in range(3):
        logits, targets, valid = masked(kind, 3, seed)
        total = 0.0
        for image in zip(logits, targets, valid, strict=True):
            total += overlap_of_image(kind, *image, loss) if loss != "focal" else 0.0
            total += pixels_of_image(kind, *image, loss) if loss in ("focal", "dice_ce") else 0.0
        found = segmentation_loss(logits, targets, valid, loss=loss, kind=kind, batch=GlobalBatch((3,)))
        assert float(found) == pytest.approx(total / 3, rel=1e-4)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_nobody_labelled_does_not_count(kind: MaskKind, loss: SegmentationLoss) -> None:
    logits, targets, valid = masked(kind, 3)
    valid[0] = False
    logits.requires_grad_()
    first = segmentation_loss(logits, targets, valid, loss=loss, kind=kind, batch=GlobalBatch((3,)))
    first.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[~valid[:, None].expand_as(logits)] == 0).all()
    other, others = logits.detach().clone(), targets.clone()
    other[~valid[:, None].expand_as(other)] = 5.0
    others[~valid[:, None].expand_as(others)] = 1.0
    again = segmentation_loss(other, others, valid, loss=loss, kind=kind, batch=GlobalBatch((3,)))
    assert torch.equal(first.detach(), again)


@pytest.mark.parametrize("loss", ["dice", "tversky", "dice_ce", "focal"])
def test_nothing_found_where_nothing_is_costs_nothing(loss: SegmentationLoss) -> None:
    empty, valid = torch.zeros(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)
    right, wrong = (
        segmentation_loss(torch.full((1, 1, 8, 8), x), empty, valid, loss=loss, kind="binary", batch=GlobalBatch((1,)))
        for x in (-40.0, 40.0)
    )
    assert float(right) == pytest.approx(0, abs=1e-6)
    assert float(wrong) > 0.9


def test_segmentation_takes_volumes() -> None:
    masks = torch.randint(-1, 3, (2, 4, 5, 6)).to(torch.int16)
    for kind in MASK_KINDS:
        targets, valid = mask_targets(masks, kind, VALUES[kind])
        for loss in LOSSES:
            found = segmentation_loss(
                torch.zeros_like(targets), targets, valid, loss=loss, kind=kind, batch=GlobalBatch((2,))
            )
            assert found.isfinite()


def every_loss(batch: GlobalBatch) -> dict[str, dict[str, Tensor]]:
    """This worker's losses of its part of a global batch, and their gradients."""
    first = sum(batch.sizes[: batch.rank])
    rows = slice(first, first + batch.local_size)
    found = {}
    for kind in KINDS:
        logits, targets = labelled(kind, batch.samples, seed=3)
        targets[: SHARES[0]] = NAN if kind == "binary" else targets[: SHARES[0]]  # a worker that knows nothing
        own = logits[rows].clone().requires_grad_()
        loss = classification_loss(own, targets[rows], kind=kind, batch=batch, focal_gamma=1.5)
        found[kind] = _with_gradient(loss, own)
    for mask_kind in MASK_KINDS:
        for name in LOSSES:
            logits, targets, valid = masked(mask_kind, batch.samples)
            own = logits[rows].clone().requires_grad_()
            loss = segmentation_loss(own, targets[rows], valid[rows], loss=name, kind=mask_kind, batch=batch)
            found[f"{mask_kind} {name}"] = _with_gradient(loss, own)
    return found


def _with_gradient(loss: Tensor, own: Tensor) -> dict[str, Tensor]:
    (gradient,) = torch.autograd.grad(loss, own)
    return {"loss": loss.detach(), "gradient": gradient}


def test_two_workers_of_unequal_shares_learn_what_one_does(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path), str(rank)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(messages)
    workers: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = every_loss(GlobalBatch((sum(SHARES),)))
    for name, wanted in alone.items():
        mean = (workers[0][name]["loss"] + workers[1][name]["loss"]) / 2
        torch.testing.assert_close(mean, wanted["loss"], msg=name)
        # What DistributedDataParallel makes of gradients is their mean: each sample's own, over the number of workers.
        gradient = torch.cat([worker[name]["gradient"] for worker in workers]) / 2
        torch.testing.assert_close(gradient, wanted["gradient"], msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=own_rank, world_size=2)
    torch.save(every_loss(GlobalBatch(SHARES, own_rank)), place / f"{own_rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
