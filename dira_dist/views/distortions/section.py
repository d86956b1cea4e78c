"""What a distortion is. Each family lives in one file of this package, chosen by its section's name."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict
from torch import Tensor

from dira_dist.config import Section
from dira_dist.views.randomness import PerView

NAMED = ConfigDict(json_schema_extra={"required": ["name"]})
"""Of a distortion that a job has to name: for editors, which could not tell one without a name from DiRA's."""

DrawnT = TypeVar("DrawnT", bound=PerView)


class DistortionSection(Section, Generic[DrawnT]):
    """Settings of a distortion. A subclass names it: ``name: Literal["..."] = "..."``.

    What is random of a view is a function of its key, so that batch, worker and device do not matter.
    """

    name: str

    def draw(self, keys: Tensor, sides_px: Sequence[int]) -> DrawnT:
        """Parameters of the views with the (V, B) keys, whose sides are `sides_px` along each axis."""
        raise NotImplementedError

    def align(self, views: Tensor, drawn: DrawnT) -> Tensor:
        """What happens to input and target alike, (N, C, *S) to the same: nothing, unless a distortion says so."""
        return views

    def distort(self, views: Tensor, drawn: DrawnT) -> Tensor:
        """(N, C, *S) contiguous views in [0, 1], which may be written into, to distorted ones."""
        raise NotImplementedError

    def labels(self, drawn: DrawnT) -> dict[str, Tensor]:
        """What a method may learn to tell of the first view, by name, each (B, ...)."""
        return {}

    def check_size(self, sides_px: Sequence[int]) -> None:
        """Refuses views that cannot be distorted so.

        Raises:
            RequestError: says what was found and what is allowed.
        """


def name_of(distortion: Any) -> Any:
    """The name in a section of a job file, or of a section that was read; DiRA's own where none is given."""
    return distortion.get("name", "dira") if isinstance(distortion, Mapping) else getattr(distortion, "name", None)
