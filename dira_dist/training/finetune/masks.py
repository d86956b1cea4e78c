"""From the values of a mask to the outputs of a segmenter."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dira_dist.objectives.supervised import check_mask_values
from dira_dist.training.finetune.recipe import Segment

Kind = Literal["binary", "multiclass", "regions"]
BACKGROUND, FOREGROUND = "background", "foreground"


@dataclass(frozen=True)
class MaskCoding:
    """How the masks of a task become targets.

    Attributes:
        kind: binary (one output: whatever is not 0), multiclass (values that exclude each other, 0 among them), or
            regions, which may overlap.
        outputs: names of the K outputs; of multiclass with the background first.
        values: of the mask that make each output.
    """

    kind: Kind
    outputs: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, task: Segment) -> "MaskCoding":
        if task.regions is not None:
            return cls("regions", tuple(task.regions), tuple(task.regions.values()))
        if task.classes is None:
            return cls("binary", (FOREGROUND,), ())
        names = (BACKGROUND, *task.classes)
        return cls("multiclass", names, tuple((value,) for value in range(len(names))))

    @property
    def measured(self) -> slice:
        """The outputs that figures are given of: all but the background."""
        return slice(1, None) if self.kind == "multiclass" else slice(None)

    def check(self, masks: Tensor, place: str) -> None:
        """Refuses masks with values that are no class's. Regions need not name all that is there.

        Args:
            masks: any shape, int.
            place: whose they are, for the message.

        Raises:
            RequestError: names the values.
        """
        check_mask_values(masks, len(self.outputs) - 1 if self.kind == "multiclass" else None, place)


class SeenMasks:
    """The highest value of the masks that were learned from, looked at where waiting for a device costs nothing.

    Args:
        coding: of the task.
    """

    def __init__(self, coding: MaskCoding) -> None:
        self._coding = coding
        self._highest: Tensor | None = None

    def note(self, masks: Tensor) -> None:
        """Masks of a batch, any shape, int; on their device, without waiting for it."""
        highest = masks.amax()
        self._highest = highest if self._highest is None else torch.maximum(self._highest, highest)

    def check(self, place: str) -> None:
        """See :meth:`MaskCoding.check`."""
        if self._highest is not None:
            self._coding.check(self._highest, place)
