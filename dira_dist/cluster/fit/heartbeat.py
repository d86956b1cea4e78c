"""A worker's heartbeat: a thread that reports its phase and step, and learns whether the run is to stop."""

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import ray
import torch
from torch import distributed

from dira_dist.background import Background
from dira_dist.cluster.fit.coordinator import WAITING_FOR_DATA, Coordinator, CoordinatorClient, StopRequest
from dira_dist.objectives.collectives import is_distributed

EVERY_S = 1.0

T = TypeVar("T")


class Heartbeat(Background):
    """Reports one worker to the coordinator, every second, while a ``with`` block runs.

    Args:
        coordinator: the job's.
        rank: of the worker.
        device: where collectives take their tensors.
    """

    def __init__(self, coordinator: CoordinatorClient, rank: int, device: torch.device) -> None:
        super().__init__("heartbeat", join_timeout_s=0)  # a call that waits must not hold up a worker that ends
        self._coordinator, self._rank, self._device = coordinator, rank, device
        self._phase, self._step, self._since_s = "starting", 0, time.monotonic()
        self._request: StopRequest = ""

    def at(self, phase: str, step: int) -> None:
        """The worker is now in this phase, after so many optimiser steps."""
        self._phase, self._step, self._since_s = phase, step, time.monotonic()

    def requested(self) -> bool:
        """Whether any worker knows of a request to stop: the same answer on all of them; a collective."""
        if not is_distributed():
            return self._request != ""
        requested_anywhere = torch.tensor([float(self._request != "")], device=self._device)
        distributed.all_reduce(requested_anywhere, op=distributed.ReduceOp.MAX)
        return bool(requested_anywhere.item())

    @contextmanager
    def watched(self, stream: AbstractContextManager[Iterator[T]], step: int) -> Iterator[Iterator[T]]:
        """The same stream, open, reporting when the worker waits for it and when it computes."""
        with stream as batches:
            yield self._reported(batches, step)

    def _reported(self, batches: Iterator[T], step: int) -> Iterator[T]:
        while True:
            self.at(WAITING_FOR_DATA, step)
            batch = next(batches)
            self.at("computing", step)
            yield batch
            step += 1

    def _run(self) -> None:
        node = socket.gethostname()
        while not self._ended.wait(EVERY_S):
            try:
                doing_s = time.monotonic() - self._since_s
                self._request = self._coordinator.call(
                    Coordinator.beat, self._rank, node, self._phase, self._step, doing_s
                )
            except ray.exceptions.RayError:
                continue  # the coordinator is gone with its driver, and Ray is about to end this worker
