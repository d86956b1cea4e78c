"""What a run has to tell its MLflow run, and the files that hold it in the run's folder until the server has taken it.

    {storage}/{name}/outbox/{run}/00000001764341000000000000-3fa9c1.json

The names begin with a time, so that what several processes leave behind is delivered in the order in which it was told.
"""

import base64
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dira_dist.data.store import RetryPolicy, StoreError, open_store
from dira_dist.formats import FileFormat, FormatError
from dira_dist.runs.folder import OUTBOX

log = logging.getLogger(__name__)

Kind = Literal["file", "table", "picture", "tags", "dataset", "checkpoint", "removal", "status"]
# A storage that is away holds no delivery back for longer: what cannot be kept is delivered all the same.
_SHORT_RETRY, _AWAY_S = RetryPolicy(timeout_s=3.0), 30.0


@dataclass(frozen=True)
class Delivery:
    """One thing to do on the server; doing it twice must leave what doing it once leaves.

    Attributes:
        kind: what is done.
        values: what it is done with, as JSON knows it.
        content: bytes of a file or of pixels, in base64.
    """

    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    content: str = ""

    @classmethod
    def of_bytes(cls, kind: Kind, values: dict[str, Any], content: bytes) -> "Delivery":
        return cls(kind, values, base64.b64encode(content).decode())

    @property
    def content_bytes(self) -> bytes:
        return base64.b64decode(self.content)


FORMAT = FileFormat(Delivery, version=1)


class Kept(NamedTuple):
    """A delivery, and the key of the file that holds it meanwhile; empty where none does."""

    delivery: Delivery
    key: str = ""


class DeliveryFolder:
    """The deliveries of one MLflow run that wait in its folder.

    Args:
        address: of the folder.
        run_id: the MLflow run.
    """

    def __init__(self, address: str, run_id: str) -> None:
        self._store = open_store(address, _SHORT_RETRY)
        self._prefix = f"{OUTBOX}/{run_id}/"
        self._token = secrets.token_hex(4)  # of this process: its own deliveries are on their way already
        self._last_ns = 0
        self._away_until_s = 0.0

    def keep(self, delivery: Delivery) -> Kept:
        """Write a delivery down before it is tried; where the storage does not take it, it is tried without."""
        if time.monotonic() < self._away_until_s:
            return Kept(delivery)
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        key = f"{self._prefix}{self._last_ns:024d}-{self._token}.json"
        try:
            self._store.write_bytes(key, FORMAT.dump(delivery))
        except OSError as error:
            log.warning("what MLflow has not taken yet is kept in memory only: %s", error)
            self._away_until_s = time.monotonic() + _AWAY_S
            return Kept(delivery)
        return Kept(delivery, key)

    def remove(self, kept: Kept) -> None:
        """After its delivery. One that stays is delivered again, which changes nothing."""
        if kept.key:
            try:
                self._store.delete(kept.key)
            except OSError as error:
                log.warning("%s was delivered and could not be removed: %s", self._store.join(kept.key), error)

    def left_behind(self) -> Iterator[Kept]:
        """What other processes wrote down and did not deliver, oldest first. What runs that are gone left goes.

        Raises:
            StoreError: the storage is away.
        """
        for found in list(self._store.list(f"{OUTBOX}/")):
            if not found.key.startswith(self._prefix):
                self._store.delete(found.key)
            elif self._token not in found.key and (kept := self._read(found.key)):
                yield kept

    def _read(self, key: str) -> Kept | None:
        try:
            return Kept(FORMAT.load(self._store.read_bytes(key), self._store.join(key)), key)
        except FormatError as error:  # it stays, for the version that knows it
            log.warning("not delivered: %s", error)
        except StoreError as error:  # taken by its own process in this moment, or it waits for the next start
            log.warning("not delivered yet: %s", error)
        return None
