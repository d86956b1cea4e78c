"""A thread that works beside a ``with`` block: begun with it, asked to end with it, waited for at its end."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Base of what does its work in a thread of its own.

    A subclass writes :meth:`_run`, which returns soon after ``self._ended`` is set.

    Args:
        name: of the thread, for debuggers.
        join_timeout_s: how long the end of the block waits for the thread; None is without end, 0 not at all.
    """

    def __init__(self, name: str, join_timeout_s: float | None = None) -> None:
        self._ended = threading.Event()
        self._join_timeout_s = join_timeout_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """The work."""

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, and wait for it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._join_timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
