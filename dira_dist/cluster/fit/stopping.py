"""Ctrl-C and SIGTERM: the workers save and stop, then the driver ends; a second signal ends it at once.

Where no worker trains, either of them is a ``KeyboardInterrupt``.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient
from dira_dist.config import JobFailedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.2
_GONE_AFTER_S = 15.0


class JobStoppedError(JobFailedError):
    """The job was asked to stop before its end; the message says how to go on."""


def fit_until_stopped(fit: Callable[[], object], coordinator: CoordinatorClient, start_timeout_s: float) -> bool:
    """Call ``fit``; when a signal comes, have the workers save and stop first.

    It runs in a thread, for Ray Train would take the main thread's signals and save nothing.

    Args:
        fit: blocks until the training has ended.
        coordinator: the job's.
        start_timeout_s: how long workers are waited for, each time that there are none.

    Returns:
        Whether a signal came before the end.

    Raises:
        KeyboardInterrupt: at the second signal.
        TimeoutError: no workers came.
        Exception: what ``fit`` raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:  # raised again in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    with _received_signals() as signals:
        while thread.is_alive() and not signals:
            thread.join(_POLL_S)
            waited_s = coordinator.call(Coordinator.without_workers_s)
            if waited_s > start_timeout_s:
                coordinator.send(Coordinator.request_stop, "stop")  # workers that start later end at once
                raise TimeoutError(f"workers were waited for for {waited_s:.0f} s")
        stopped = thread.is_alive()
        if stopped:
            _stop(thread, coordinator, signals)
    if raised:
        raise raised[0]
    return stopped


def _stop(fitting: threading.Thread, coordinator: CoordinatorClient, signals: list[int]) -> None:
    """Wait for the workers to save, as long as there are workers."""
    coordinator.send(Coordinator.warn, "stopping: the workers save first; the same signal again stops at once")
    coordinator.call(Coordinator.request_stop, "stop")
    alone_since_s = time.monotonic()
    while fitting.is_alive():
        fitting.join(_POLL_S)
        if len(signals) > 1:
            raise KeyboardInterrupt
        if coordinator.call(Coordinator.any_alive):
            alone_since_s = time.monotonic()
        elif time.monotonic() - alone_since_s > _GONE_AFTER_S:
            return  # no worker is alive, and none will be


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Either signal raises ``KeyboardInterrupt`` in the main thread, in the place of what Ray would do at them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """The signals that have come so far, in a list that grows. Only a main thread can hear them."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
