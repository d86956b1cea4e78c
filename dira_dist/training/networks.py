"""What a task trains, as the machinery of a step sees it."""

from collections.abc import Iterable

from torch import nn


class Networks(nn.Module):
    """All modules of a task under one roof: one state dict, one device, one mode.

    A subclass says which of them learn; the rest of this floor asks nothing else of it.
    """

    def trainable_parts(self) -> Iterable[nn.Module]:
        """Modules that ever learn, whose batch norms may be synchronised."""
        return self.children()

    def compiled_parts(self) -> Iterable[nn.Module]:
        """Modules worth compiling, each on its own."""
        return self.children()
