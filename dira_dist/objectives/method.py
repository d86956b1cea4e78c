"""What a discriminative method is. Each lives in one file of this package, found by its section's name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dira_dist.config import Section
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.views.distortions import DistortionSection

Encode = Callable[[Tensor], Tensor]
"""The encoder that learns, with its pooling: a view (B, C, *S) to features (B, F), float32."""

Need = Literal["pooled", "maps", "second_view", "labels", "distortion"]
"""What a method may ask of a step; what nobody asks for is not made."""


@dataclass(frozen=True)
class MethodInputs:
    """What a step gives to a method: what the method's ``needs`` name, and None in the other places.

    Attributes:
        encode: the encoder that made features and maps.
        pooled: (B, F), features of the first view, averaged over its positions.
        maps: feature maps of the first view, the input's resolution first and the deepest last.
        second_view: (B, C, *S), another view of the same samples, not encoded yet.
        labels: of the samples, by name, as they stand in the shards.
        distortion: what was drawn to distort the first view, by name, each (B, ...).
        passes: in how many parts a network takes the batch, one after the other, so that memory is enough for a part.
            ``encode`` sees to it by itself; a method minds it where it runs images through a network of its own.
    """

    encode: Encode
    pooled: Tensor | None = None
    maps: list[Tensor] | None = None
    second_view: Tensor | None = None
    labels: tuple[Mapping[str, Any], ...] | None = None
    distortion: Mapping[str, Tensor] | None = None
    passes: int = 1


class Method(nn.Module):
    """A discriminative method: its heads, its memory and its loss.

    What the method learns are its parameters that require gradients. What it remembers from step to step changes in
    :meth:`after_optimizer_step` alone, so that a step that is thrown away, or a validation, leaves no trace.
    """

    def forward(self, inputs: MethodInputs, batch: GlobalBatch) -> Tensor:
        """The loss, scaled so that its mean over the workers is the loss over the global batch.

        Args:
            inputs: what the method needs.
            batch: how the samples of this step lie on the workers.

        Returns:
            (), float32 or wider.
        """
        raise NotImplementedError

    def after_optimizer_step(self, encoder: nn.Module) -> None:
        """Called after an optimiser step that reached the weights; ``encoder`` is the one that learns."""

    def constant_rate_parts(self) -> Iterable[nn.Module]:
        """Parts whose learning rate follows no schedule."""
        return ()

    def compiled_parts(self) -> Iterable[nn.Module]:
        """Modules of the method worth compiling, besides the U-Net."""
        return ()


class MethodSection(Section):
    """Settings of a method. A subclass names it: ``name: Literal["..."] = "..."``."""

    needs: ClassVar[frozenset[Need]] = frozenset({"pooled", "second_view"})
    """What the method asks of a step."""

    min_local_batch: ClassVar[int] = 1
    """Samples that each worker must have: 2 where a batch norm over samples has to find a variance."""

    own_optimizer: ClassVar[Mapping[str, object]] = {}
    """Settings of the section `optimizer` that take the place of its defaults, unless a job names another optimiser."""

    published_batches: ClassVar[tuple[int, int]] = (256, 256)
    """Smallest and largest global batch that the optimiser's rate is published for, as it stands."""

    name: str

    @property
    def example_labels(self) -> Mapping[str, Any] | None:
        """Labels as some sample may have them, for an estimate of memory; None leaves the method's own part out of it.

        With these the loss is computed on the meta device, where no tensor has numbers to ask for.
        """
        return None

    @property
    def distortion_labels(self) -> Mapping[str, tuple[int, ...]]:
        """Labels of the distortion that it asks for, by name, with the shape that they have for a sample."""
        return {"kind": ()}

    def check_labels(self, labels: Mapping[str, tuple[str, ...] | None]) -> None:
        """Refuses a set without the samples' labels that it needs.

        Args:
            labels: of the set, by name, with their values where the set's index has them.

        Raises:
            RequestError: says what was found and what is allowed.
        """

    def check_distortion(self, distortion: DistortionSection[Any], axes: int) -> None:
        """Refuses views whose distortion does not say what it needs.

        Raises:
            RequestError: says what was found and what is allowed.
        """

    @property
    def least_batch(self) -> int:
        """Smallest global batch that the loss can be estimated from; a smaller one is warned of."""
        return 1

    @property
    def why_least_batch(self) -> str:
        """Why that is so, as a part of a sentence."""
        return ""

    def build(self, encoder: nn.Module, features: int) -> Method:
        """The method for an encoder of so many pooled features; weights drawn from torch's global generator."""
        raise NotImplementedError
