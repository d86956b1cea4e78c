"""From the values of a mask to the outputs of a segmenter."""

from dataclasses import dataclass
from typing import Literal

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

    @property
    def highest(self) -> int | None:
        """The highest value that a mask may have; none where any will do."""
        return None if self.kind == "binary" else max(value for each in self.values for value in each)
