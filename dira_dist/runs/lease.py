"""One driver for one run: a heartbeat beside ``run.json``, so that a second driver keeps away.

Two drivers of one run would remove each other's checkpoints. A driver that was killed leaves its sign behind: on the
same machine its process is seen to be gone at once, on another one the sign is watched for a while.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psutil
from rich.console import Console

from dira_dist.background import Background
from dira_dist.config import RequestError
from dira_dist.data.store import Store
from dira_dist.formats import FileFormat, FormatError
from dira_dist.runs.folder import DRIVER, read_file

BEAT_S = 10.0
GONE_AFTER_S = 3.5 * BEAT_S
ENDS_WITHIN_S = 3.0


@dataclass(frozen=True)
class Driver:
    """Who drives a run.

    Attributes:
        token: drawn by each driver.
        host: of its process.
        pid: of its process.
        began_s: when that process began, as the system counts.
        beats: heartbeats so far.
    """

    token: str
    host: str
    pid: int
    began_s: float
    beats: int = 0

    @classmethod
    def here(cls) -> "Driver":
        """This process."""
        return cls(secrets.token_hex(8), socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @property
    def is_alive(self) -> bool | None:
        """Whether the process is there; none where only its own machine knows."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            there = process.create_time() == self.began_s and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        return bool(there)


_OTHER_VERSION = "if no process of another version of dira-dist drives this run any more, remove the file"
FORMAT = FileFormat(Driver, version=1, remedies={None: _OTHER_VERSION})


@contextmanager
def sole_driver(store: Store, console: Console) -> Iterator[None]:
    """Drive the run, or the search, of a folder while the block runs.

    Whoever finds that another driver has taken it over, having stood still for long, stops as at SIGTERM.

    Raises:
        RequestError: on entering, another driver is alive.
        StoreError: on entering, the storage is away.
    """

    def say(line: str) -> None:
        console.print(f"warning: {line}", markup=False, highlight=False)

    def lost(other: Driver) -> None:
        say(f"process {other.pid} on {other.host} has taken this run over; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    with Lease(store, say=say, lost=lost):
        yield


class Lease(Background):
    """Drives a run while a ``with`` block runs.

    Args:
        store: of the run's folder.
        say: shows a line, while another driver is watched for heartbeats.
        lost: called in a thread, with who it is, if another driver took the run over while this one stood still.

    Raises:
        RequestError: on entering, another driver is alive.
        StoreError: on entering, the storage is away.
    """

    def __init__(self, store: Store, *, say: Callable[[str], None], lost: Callable[[Driver], None]) -> None:
        super().__init__("lease")
        self._store, self._say, self._lost = store, say, lost
        self._own = Driver.here()

    def start(self) -> None:
        other = self._read()
        if other is not None and self._lives(other):
            raise RequestError(
                f"{self._store.address}: this run is being driven by process {other.pid} on {other.host}; wait for its "
                "end, stop it, or give this job another name"
            )
        self._write()
        super().start()

    def stop(self) -> None:
        super().stop()
        with suppress(OSError, FormatError):  # the next driver sees that this process is gone
            if self._is_own(self._read()):
                self._store.delete(DRIVER)

    def _lives(self, other: Driver) -> bool:
        if other.is_alive is None:
            return self._beats(other)
        until_s = time.monotonic() + ENDS_WITHIN_S  # one that was killed a moment ago may be ending still
        while other.is_alive and time.monotonic() < until_s:
            time.sleep(0.1)
        return bool(other.is_alive)

    def _beats(self, other: Driver) -> bool:
        """Whether a driver elsewhere gives another heartbeat."""
        who = f"process {other.pid} on {other.host}"
        self._say(f"{who} drove this run and may do so still; watching for {GONE_AFTER_S:g} s")
        until_s = time.monotonic() + GONE_AFTER_S
        while time.monotonic() < until_s:
            time.sleep(min(1.0, GONE_AFTER_S / 10))
            now = self._read()
            if now is None:
                return False
            if now != other:
                return True
        return False

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found = self._read()
                if found is not None and not self._is_own(found):
                    self._lost(found)
                    return
                self._own = replace(self._own, beats=self._own.beats + 1)
                self._write()
            except (OSError, FormatError):
                continue  # a driver that would take over meets the same storage

    def _is_own(self, found: Driver | None) -> bool:
        return found is not None and found.token == self._own.token

    def _read(self) -> Driver | None:
        return read_file(self._store, DRIVER, FORMAT)

    def _write(self) -> None:
        self._store.write_bytes(DRIVER, FORMAT.dump(self._own))
