"""How many trials a cluster holds at once. More would wait for each other; a trial that never fits would wait for ever.

Ray gives a fraction of a GPU out of one GPU, and several GPUs only as whole ones; CPUs come in any shares. A worker
never spans two nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

EPSILON = 1e-9


@dataclass(frozen=True)
class ResourceRequest:
    """What one process of a trial takes."""

    cpus: float
    gpus: float = 0.0


@dataclass
class Node:
    """A machine of the cluster and what is free on it.

    Attributes:
        cpus: free CPUs.
        gpus: the free part of each of its GPUs, between 0 and 1.
    """

    cpus: float
    gpus: list[float] = field(default_factory=list)

    def take(self, share: ResourceRequest) -> bool:
        """Give a share out if it is there."""
        if self.cpus + EPSILON < share.cpus or not self._take_gpus(share.gpus):
            return False
        self.cpus -= share.cpus
        return True

    def _take_gpus(self, gpus: float) -> bool:
        if gpus <= 0:
            return True
        wanted = [1.0] * round(gpus) if gpus >= 1 else [gpus]
        # the fullest that still holds it, so that whole ones stay whole
        order = sorted((free, place) for place, free in enumerate(self.gpus) if free + EPSILON >= wanted[0])
        if len(order) < len(wanted):
            return False
        for (_, place), part in zip(order, wanted, strict=False):
            self.gpus[place] -= part
        return True


def trials_that_fit(nodes: Sequence[tuple[float, int]], trial: Sequence[ResourceRequest], most: int = 10_000) -> int:
    """How many trials run side by side.

    Args:
        nodes: CPUs and GPUs of each node.
        trial: what each process of one trial takes.
        most: where counting ends.
    """
    free = [Node(cpus, [1.0] * gpus) for cpus, gpus in nodes]
    largest_first = sorted(trial, key=lambda share: (share.gpus, share.cpus), reverse=True)
    for count in range(most):
        if not all(any(node.take(share) for node in free) for share in largest_first):
            return count
    return most
