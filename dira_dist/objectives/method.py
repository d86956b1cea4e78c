"""What a discriminative method is. Each lives in one file of this package, found by its section's name."""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from dira_dist.config import Section
from dira_dist.objectives.collectives import GlobalBatch

Encode = Callable[[Tensor], Tensor]
"""The encoder that learns, with its pooling: a view (B, C, *S) to features (B, F), float32."""


class Method(nn.Module):
    """A discriminative method: its heads, its memory and its loss between two views.

    What the method learns are its parameters that require gradients. What it remembers from step to step changes in
    :meth:`commit` alone, so that a step that is thrown away, or a validation, leaves no trace.
    """

    def forward(self, features: Tensor, view_2: Tensor, encode: Encode, batch: GlobalBatch) -> Tensor:
        """The loss, scaled so that its mean over the workers is the loss over the global batch.

        Args:
            features: (B, F), pooled features of the first view.
            view_2: (B, C, *S), the second view, not encoded yet.
            encode: the encoder that made ``features``.
            batch: how the samples of this step lie on the workers.

        Returns:
            (), float32 or wider.
        """
        raise NotImplementedError

    def commit(self, encoder: nn.Module) -> None:
        """Called after an optimiser step that reached the weights; ``encoder`` is the one that learns."""

    def compiled_parts(self) -> Iterable[nn.Module]:
        """Modules of the method worth compiling, besides the U-Net."""
        return ()


class MethodSection(Section):
    """Settings of a method. A subclass names it: ``name: Literal["..."] = "..."``."""

    smallest_share: ClassVar[int] = 1
    """Samples that each worker must have: 2 where a batch norm over samples has to find a variance."""

    own_optimizer: ClassVar[Mapping[str, object]] = {}
    """Settings of the section `optimizer` that take the place of its defaults, unless a job names an optimiser."""

    name: str

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
