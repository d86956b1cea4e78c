"""One driver for one run: a heartbeat beside ``run.json``, so that a second driver keeps away.

Two drivers of one run would remove each other's checkpoints. Who drives is written on one condition: that what stands
there is still what was read. So of two that start in the same moment, one finds that it came second. A driver that was
killed leaves its sign behind: where its process could be seen it is seen to be gone at once, elsewhere (on another
machine, or in another container of the same) the sign is watched for a while.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console

from dira_dist.background import Background
from dira_dist.config import RequestError
from dira_dist.data.store import ChangedObjectError, MissingObjectError, Store
from dira_dist.formats import FileFormat, FormatError
from dira_dist.runs.folder import DRIVER

BEAT_S = 10.0
GONE_AFTER_S = 3.5 * BEAT_S
ENDS_WITHIN_S = 3.0
_NO_VERSION = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class Driver:
    """Who drives a run.

    Attributes:
        token: drawn by each driver.
        host: of its process.
        pid: of its process.
        began_s: when that process began, in seconds since its system did: no clock that is set changes it.
        beats: heartbeats so far.
        machine: the system as it was booted, and the space of process numbers in it; empty where that is not known.
    """

    token: str
    host: str
    pid: int
    began_s: float
    beats: int = 0
    machine: str = ""

    @classmethod
    def here(cls) -> "Driver":
        """This process."""
        machine, pid = _machine(), os.getpid()
        began_s = _began_s(pid) if machine else 0.0
        return cls(secrets.token_hex(8), socket.gethostname(), pid, began_s, machine=machine)

    @property
    def is_alive(self) -> bool | None:
        """Whether the process is there; none where it cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            return _began_s(self.pid) == self.began_s and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return False


def _began_s(pid: int) -> float:
    """When a process began, in seconds since the system did; psutil's own figure moves with the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5); the second one, a name, may hold blanks


def _machine() -> str:
    """Tells systems, and in them spaces of process numbers, from each other; empty where there is no ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


_OTHER_VERSION = "if no process of another version of dira-dist drives this run any more, remove the file"
FORMAT = FileFormat(
    Driver,
    version=2,
    upgrades={1: lambda values: {**values, "machine": ""}},  # so that its heartbeats are watched
    remedies={None: _OTHER_VERSION},
)


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
        self._version: str | None = None

    def start(self) -> None:
        other, self._version = self._read()
        if other is not None and self._lives(other):
            raise self._refusal(other)
        self._claim()
        self._try_conditions()
        super().start()

    def _claim(self) -> None:
        """Writes who drives, unless another did since it was read."""
        with suppress(ChangedObjectError):
            self._write()
        found, self._version = self._read()
        if found is None or not self._is_own(found):
            raise self._refusal(found)

    def _refusal(self, other: Driver | None) -> RequestError:
        who = f"process {other.pid} on {other.host}" if other is not None else "a process that has ended since"
        return RequestError(
            f"{self._store.address}: this run is being driven by {who}; wait for its end, stop it, or give this job "
            "another name"
        )

    def _try_conditions(self) -> None:
        """Says so where the storage writes whatever the condition, by which two at once are not told apart."""
        for condition in (None, _NO_VERSION):
            try:
                self._version = self._store.write_version(DRIVER, FORMAT.dump(self._own), condition)
            except ChangedObjectError:
                continue
            header = "If-None-Match" if condition is None else "If-Match"
            self._say(
                f"{self._store.address}: this storage does not obey {header}, so that two drivers that start in the "
                "same moment are not told apart: start one at a time"
            )

    def stop(self) -> None:
        super().stop()
        with suppress(OSError, FormatError):  # the next driver sees that this process is gone
            if self._is_own(self._read()[0]):
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
            now, self._version = self._read()
            if now is None:
                return False
            if now != other:
                return True
        return False

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found, self._version = self._read()
                if found is not None and not self._is_own(found):
                    self._lost(found)
                    return
                self._own = replace(self._own, beats=self._own.beats + 1)
                self._write()
            except (OSError, FormatError):
                continue  # one that took over in between is read next time; one that would, meets the same storage

    def _is_own(self, found: Driver | None) -> bool:
        return found is not None and found.token == self._own.token

    def _read(self) -> tuple[Driver | None, str | None]:
        """Who drives, and the mark of what says so."""
        try:
            content, version = self._store.read_version(DRIVER)
        except MissingObjectError:
            return None, None
        return FORMAT.load(content, self._store.join(DRIVER)), version

    def _write(self) -> None:
        self._version = self._store.write_version(DRIVER, FORMAT.dump(self._own), self._version)
