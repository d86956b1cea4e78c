"""Losses of fine-tuning: what labels and masks ask of a network's outputs.

A loss is this worker's term, whose mean over the workers is the loss over the global batch; see
:mod:`dira_dist.objectives.collectives`. Classification averages over what is known in the global batch, segmentation
over its images. All is computed in float32.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dira_dist.config import RequestError
from dira_dist.models.precision import at_least_float32
from dira_dist.objectives.collectives import GlobalBatch, mean_over_workers

ClassKind = Literal["binary", "multiclass", "multilabel"]
MaskKind = Literal["binary", "multiclass", "regions"]
SegmentationLoss = Literal["dice_ce", "dice", "focal", "tversky"]
Uncertain = Literal["ignore", "ones", "zeros", "smooth"]

UNCERTAIN = -1.0
SMOOTHED = (0.55, 0.85)
"""What an uncertain label is learned as: uniform between the two (U-Ones with label smoothing; Pham et al.,
*Interpreting chest X-rays via CNNs that exploit hierarchical disease dependencies*, Neurocomputing 2021)."""
NO_LABEL = -1
_SMOOTH = 1.0  # pixel, as published; far below it an empty image would cost everything or nothing
_TVERSKY = (0.3, 0.7)
_SHOWN = 5


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    kind: ClassKind,
    batch: GlobalBatch,
    weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    known_entries: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of what is known, over the global batch.

    .. math:: L = - \frac{1}{|K|} \sum_{(i, c) \in K} w_c\, t_{ic}\, (1 - p_{ic})^\gamma \log p_{ic}
                  + (1 - t_{ic})\, p_{ic}^\gamma \log (1 - p_{ic})

    with :math:`p` the sigmoid of the logits, and :math:`K` the known entries. Of classes that exclude each other
    :math:`p` is the softmax, only the first summand counts, and :math:`K` are the samples whose class is known.
    :math:`\gamma > 0` is the focal loss (Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, equation 4).

    Args:
        logits: (B, K).
        targets: (B, K) in [0, 1]; NaN where nothing is known. Of classes that exclude each other a row is known whole.
        kind: of the classes.
        batch: how the global batch lies on the workers.
        weights: (K,) of the positive term; none: 1.
        focal_gamma: 0 for plain cross-entropy.
        known_entries: of the global batch, see :func:`count_known`, where these are a part of a worker's samples.

    Returns:
        A scalar; 0, with gradients of 0, where nothing of the global batch is known.
    """
    logits, known = at_least_float32(logits), _known(targets, kind)
    truth = targets.nan_to_num(0.0).to(logits.dtype)
    positive = torch.ones_like(truth) if weights is None else weights.to(logits.dtype).expand_as(truth)
    if kind == "multiclass":
        log_p = functional.log_softmax(logits, dim=1)
        terms = -(positive * truth * _focus(log_p, focal_gamma) * log_p).sum(1)
    else:
        log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        terms = -(positive * truth * _focus(log_p, focal_gamma) * log_p)
        terms = terms - (1 - truth) * _focus(log_q, focal_gamma) * log_q
    count = count_known(targets, kind) if known_entries is None else known_entries
    return torch.where(known, terms, torch.zeros_like(terms)).sum() / count.clamp_min(1 / batch.world_size)


def count_known(targets: Tensor, kind: ClassKind) -> Tensor:
    """How many entries of the global batch are known, as the mean over the workers; a collective.

    Args:
        targets: (B, K) of all of this worker's samples; NaN where nothing is known.
        kind: of the classes.
    """
    return mean_over_workers(_known(targets, kind).sum().float())


def _known(targets: Tensor, kind: ClassKind) -> Tensor:
    """(B, K) bool, or (B,) of classes that exclude each other."""
    known = ~targets.isnan()
    return known.all(1) if kind == "multiclass" else known


def _focus(log_p: Tensor, gamma: float) -> Tensor | float:
    """How much a sample counts that is given its truth with probability p.

    The slope of a power below 1 is infinite at 0, which 1 - p is in float32 of a sample without doubt.
    """
    doubt = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return 1.0 if gamma == 0 else doubt.pow(gamma)


def positive_weights(targets: npt.NDArray[np.float32], kind: ClassKind, cap: float = 20.0) -> npt.NDArray[np.float64]:
    """How much positives of each class count, so that rare classes are not drowned.

    Args:
        targets: (N, K) 1, 0, or NaN where nothing is known.
        kind: of the classes.
        cap: the most, and one over it the least.

    Returns:
        (K,) negatives over positives; of classes that exclude each other the inverse of their frequency, 1 where all
        are equally frequent.
    """
    positives, negatives = np.nansum(targets == 1, axis=0), np.nansum(targets == 0, axis=0)
    if kind == "multiclass":
        present = np.maximum(1, (positives > 0).sum())
        found = positives.sum() / (present * np.maximum(positives, 1))
    else:
        found = negatives / np.maximum(positives, 1)
    return np.asarray(np.clip(found.astype(np.float64), 1 / cap, cap))


def resolve_uncertain(targets: Tensor, rule: Uncertain, drawn: Tensor) -> Tensor:
    """Targets with what labellers were not sure of made what it is learned as (Irvin et al., AAAI 2019, section 3).

    Args:
        targets: (B, K) with :data:`UNCERTAIN` where they were not.
        rule: see :class:`dira_dist.training.finetune.recipe.Classify`.
        drawn: (B, K) uniform in [0, 1), for ``smooth``.
    """
    low, high = SMOOTHED
    made = {
        "ignore": torch.full_like(targets, torch.nan),
        "ones": torch.ones_like(targets),
        "zeros": torch.zeros_like(targets),
        "smooth": low + (high - low) * drawn.to(targets.dtype),
    }
    return torch.where(targets == UNCERTAIN, made[rule], targets)


def mask_targets(masks: Tensor, kind: MaskKind, values: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What each output is to be, and where it is known.

    Args:
        masks: (B, *S) int, :data:`NO_LABEL` where nobody has labelled.
        kind: of the outputs.
        values: of the mask that make each output; of ``binary`` none, for whatever is not 0 does.

    Returns:
        (B, K, *S) float32 of 0 and 1, and (B, *S) bool.
    """
    valid = masks != NO_LABEL
    if kind == "binary":
        return (masks > 0)[:, None].float(), valid
    outputs = [torch.isin(masks, masks.new_tensor(list(each))) for each in values]
    return torch.stack(outputs, 1).float(), valid


def check_mask_values(masks: Tensor, highest: int | None, place: str) -> None:
    """Refuses masks with values that no output stands for, of which the losses would learn that nothing is there.

    Args:
        masks: any shape, int.
        highest: value that a mask may have; none where any will do.
        place: whose masks they are, for the message.

    Raises:
        RequestError: names the values.
    """
    beyond = [] if highest is None else masks[masks > highest].unique().tolist()
    if beyond:
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        raise RequestError(
            f"{place}: masks with values {', '.join(map(str, beyond[:_SHOWN]))}{more}; the highest that the task has a "
            f"class or region for is {highest}: name all of them in task.classes or task.regions, or make the masks of "
            "the set anew"
        )


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    loss: SegmentationLoss,
    kind: MaskKind,
    batch: GlobalBatch,
) -> Tensor:
    """A loss of MONAI's, of each image by itself, and their mean over the global batch.

    Of what nobody has labelled nothing is asked. One pixel is added to numerator and denominator of Dice and Tversky,
    so that empty against empty costs nothing. ``dice_ce`` is the sum of Dice and cross-entropy (of outputs that may
    overlap binary cross-entropy), ``tversky`` weighs what is missed more than what is invented (0.7 to 0.3; Salehi et
    al., MLMI 2017).

    Args:
        logits: (B, K, *S).
        targets: (B, K, *S) of 0 and 1.
        valid: (B, *S) bool.
        loss: which.
        kind: of the outputs; those of ``multiclass`` exclude each other, and the first is the background.
        batch: how the global batch lies on the workers.
    """
    logits = at_least_float32(logits)
    targets, known = targets.to(logits.dtype), valid[:, None].to(logits.dtype)
    exclusive = kind == "multiclass"
    if loss == "focal":
        return batch.local_weight * _focal(logits, targets, known, exclusive)
    chance = logits.softmax(1) if exclusive else logits.sigmoid()
    found = _overlap(chance * known, targets * known, loss, exclusive)
    if loss == "dice_ce":
        found = found + _cross_entropy(logits, targets, known, exclusive)
    return batch.local_weight * found


def _overlap(chance: Tensor, targets: Tensor, loss: SegmentationLoss, exclusive: bool) -> Tensor:
    settings: dict[str, Any] = {"include_background": not exclusive, "smooth_nr": _SMOOTH, "smooth_dr": _SMOOTH}
    if loss == "tversky":
        found: Tensor = _monai().TverskyLoss(alpha=_TVERSKY[0], beta=_TVERSKY[1], **settings)(chance, targets)
    else:
        found = _monai().DiceLoss(**settings)(chance, targets)
    return found


def _monai() -> Any:
    """MONAI's losses: seconds and hundreds of megabytes to import, so where they are used alone."""
    return importlib.import_module("monai.losses")


def _cross_entropy(logits: Tensor, targets: Tensor, known: Tensor, exclusive: bool) -> Tensor:
    if exclusive:
        terms = -(targets * functional.log_softmax(logits, 1)).sum(1, keepdim=True)
    else:
        terms = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _mean_of_images(terms, known)


def _focal(logits: Tensor, targets: Tensor, known: Tensor, exclusive: bool) -> Tensor:
    terms: Tensor = _monai().FocalLoss(use_softmax=exclusive, reduction="none")(logits, targets)
    return _mean_of_images(terms, known)


def _mean_of_images(terms: Tensor, known: Tensor) -> Tensor:
    """The mean over the images of each one's mean over its known pixels and its outputs."""
    axes = tuple(range(1, terms.ndim))
    pixels = (known.expand_as(terms)).sum(axes).clamp_min(1)
    return ((terms * known).sum(axes) / pixels).mean()
