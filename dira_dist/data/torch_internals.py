"""What the loader uses of PyTorch that is not public, with its reason."""

from collections.abc import Iterator
from typing import Any, cast


def shut_down_workers(batches: Iterator[Any]) -> None:
    """End the processes of a ``DataLoader``'s iterator now; publicly only its ``__del__`` does, at an unknown time."""
    cast(Any, batches)._shutdown_workers()
