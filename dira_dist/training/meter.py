"""What a run measures of itself: losses, speed and memory since the last report, over all workers."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from dira_dist.metrics import (
    BAD_SAMPLES,
    DATA_WAIT_SHARE,
    IMAGES_PER_S,
    MEMORY_PEAK_BYTES,
    SAMPLE_FINGERPRINT,
    SKIPPED_STEPS,
    STEP_S,
    WITHDRAWN_SAMPLES,
    WORKERS,
)
from dira_dist.objectives.collectives import is_distributed


class Meter:
    """Gathers per-step figures on the device and hands out means over steps and workers.

    Losses stay on the device until :meth:`summary`, so that measuring does not make the device wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget everything and begin now: what went before, such as opening a stream, is not a step's time."""
        self._sums: dict[str, Tensor] = {}
        self._steps = self._skipped = self._images = self._bad_samples = self._withdrawn = self._fingerprint = 0
        self._wait_s = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        began = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def count(
        self,
        figures: Mapping[str, Tensor],
        *,
        images: int,
        bad_samples: int,
        fingerprint: int,
        finite: bool,
        withdrawn_samples: int = 0,
    ) -> None:
        """Take in one step.

        Args:
            figures: scalar tensors by their names in :mod:`dira_dist.metrics`, the same on every worker.
            images: this worker's samples of the step.
            bad_samples: those of them that stand in the place of a corrupt one.
            fingerprint: which samples they are, see :func:`dira_dist.data.order.fingerprint`.
            finite: whether the step reached the weights; the figures of one that did not are left out.
            withdrawn_samples: those of them that stand in the place of one that was withdrawn from the set.
        """
        self._steps += 1
        self._images += images
        self._bad_samples += bad_samples
        self._withdrawn += withdrawn_samples
        self._fingerprint += fingerprint
        if not finite:
            self._skipped += 1
            return
        for name, value in figures.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().float()

    def summary(self) -> dict[str, float]:
        """Means since the last summary, the same on every worker; a collective where a process group exists.

        Seconds, images/s and bytes carry their unit in the name; ``data_wait_share`` is that of the slowest worker;
        ``sample_fingerprint`` tells which samples there were: two runs have seen the same ones up to a step where the
        sums of their fingerprints up to it are equal.
        """
        elapsed = time.perf_counter() - self._started
        finite_steps = max(1, self._steps - self._skipped)
        counted = [self._images, self._bad_samples, self._withdrawn, self._fingerprint]
        counts = torch.tensor(counted, dtype=torch.float64).to(self._device)
        worst = [self._wait_s / elapsed, elapsed, _peak_memory_bytes(self._device)]
        worst_of_all = torch.tensor(worst, dtype=torch.float64, device=self._device)
        if is_distributed():
            distributed.all_reduce(counts)
            distributed.all_reduce(worst_of_all, op=distributed.ReduceOp.MAX)
        wait_share, elapsed, memory = worst_of_all.tolist()
        images, bad_samples, withdrawn, fingerprint = counts.tolist()
        report = {
            **{name: float(total) / finite_steps for name, total in sorted(self._sums.items())},
            IMAGES_PER_S.name: images / elapsed,
            STEP_S.name: elapsed / max(1, self._steps),
            DATA_WAIT_SHARE.name: wait_share,
            MEMORY_PEAK_BYTES.name: memory,
            SKIPPED_STEPS.name: float(self._skipped),
            BAD_SAMPLES.name: bad_samples,
            WITHDRAWN_SAMPLES.name: withdrawn,
            SAMPLE_FINGERPRINT.name: fingerprint,
            WORKERS.name: float(distributed.get_world_size()) if is_distributed() else 1.0,
        }
        self.restart()
        return report


def _peak_memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocator, or on the CPU of the process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
