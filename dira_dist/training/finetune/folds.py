"""Cross-validation: which samples of the training set a fit learns from, and which it holds out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dira_dist.data.selection import draw_folds
from dira_dist.data.splitmix import Int64s
from dira_dist.training.finetune.recipe import FinetuneRecipe

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOut:
    """The usable samples of a training set, parted.

    Attributes:
        learned: ``(L,)`` places in the set of those that are learned from, or that a share of is drawn of.
        held_out: ``(H,)`` places of those that take the place of ``val``; none where ``val`` is a set of its own.
    """

    learned: Int64s
    held_out: Int64s | None = None


def hold_out(recipe: FinetuneRecipe, groups: Sequence[str], classes: Bools, usable: Int64s) -> HeldOut:
    """Parts the usable samples into the fold that the recipe names and the others, by group.

    The folds hang on the recipe's seed, ``data.folds`` and the set alone, so that every fit deals them out alike.

    Args:
        recipe: settled.
        groups: of the N samples of the training set.
        classes: ``(N, K)`` whether each sample holds each class.
        usable: ``(U,)`` places of those of which a label is known.

    Raises:
        RequestError: there are fewer groups than folds.
    """
    folds, fold = recipe.data.folds, recipe.data.fold
    if folds is None:
        return HeldOut(usable)
    assert fold is not None, "all folds together are no fit"
    numbers = draw_folds([groups[place] for place in usable.tolist()], classes[usable], folds, recipe.seed) + 1
    return HeldOut(usable[numbers != fold], usable[numbers == fold])


def notes_on_folds(
    folds: int, names: Sequence[str], groups: Sequence[str], classes: Bools, usable: Int64s
) -> Iterator[str]:
    """Classes that cannot be in every fold.

    Args:
        folds: how many.
        names: of the K classes.
        groups: of the N samples of the training set.
        classes: ``(N, K)`` whether each sample holds each class.
        usable: places of the samples that are dealt out.
    """
    for column, name in enumerate(names):
        holders = {groups[place] for place in usable[classes[usable, column]].tolist()}
        if len(holders) < folds:
            yield (
                f"data.folds: {name} is held by {len(holders)} groups (patients), fewer than the {folds} folds: some "
                "folds have none to be judged by; fewer folds, or more patients with it, would do"
            )
