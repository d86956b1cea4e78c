"""A queue whose far end may be away for minutes: puts never block, deliveries are in order, nothing is sent twice."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from dira_dist.config import without_credentials
from dira_dist.data.retry import Backoff

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


class RefusedError(Exception):
    """The receiver will never take something in this batch; sending it again is useless."""


class ReceiverGoneError(RefusedError):
    """The receiver will never take anything again."""


class Outbox(Generic[ItemT]):
    """Items go in at once and are delivered in batches by a thread of the outbox's own.

    Args:
        name: what is delivered, for log messages.
        deliver: sends a batch. Raises :class:`RefusedError` for what can never be accepted; any other exception means
            "try the same batch again later", so a repeated delivery must have the effect of one.
        batch: most items in one delivery.
        capacity: most items kept while the receiver is away; beyond it the oldest are lost, and counted.
        linger_s: how long the first item of a batch waits for company.
        describe: an error in words for a log.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[ItemT]], None],
        *,
        batch: int,
        capacity: int,
        linger_s: float = 0.0,
        describe: Callable[[Exception], str] = lambda error: without_credentials(f"{type(error).__name__}: {error}")[
            :300
        ],
    ) -> None:
        assert capacity > batch, "the oldest item that is lost must not be one in delivery"
        self.name = name
        self.lost = 0
        self._deliver = deliver
        self._batch = batch
        self._capacity = capacity
        self._linger_s = linger_s
        self._describe = describe
        self._items: deque[ItemT] = deque()
        self._changed = threading.Condition()
        self._in_delivery = 0
        self._flushing = 0
        self._flushes = 0
        self._failures = 0
        self._backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        self._warned_of_refusal = False
        self._thread: threading.Thread | None = None

    def put(self, item: ItemT) -> None:
        """Keep one item for delivery. Returns at once."""
        with self._changed:
            if len(self._items) >= self._capacity:
                self._lose_oldest()
            self._items.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"outbox-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def pending(self) -> list[ItemT]:
        """What has not been delivered yet, oldest first."""
        with self._changed:
            return list(self._items)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is delivered.

        Returns:
            False when something is still waiting after ``timeout_s``.
        """
        with self._changed:
            self._flushing += 1
            self._flushes += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._items, timeout_s)
            finally:
                self._flushing -= 1

    def _lose_oldest(self) -> None:
        # The items in delivery are the queue's head; the one behind them goes.
        del self._items[self._in_delivery]
        self.lost += 1
        if self.lost == 1:
            log.warning("%s: more than %d wait for the receiver; the oldest are lost", self.name, self._capacity)

    def _run(self) -> None:
        while True:
            batch = self._take()
            try:
                self._deliver_or_refuse(batch)
            except Exception as error:
                self._wait_after(error)
            else:
                self._delivered(len(batch))

    def _take(self) -> list[ItemT]:
        """The next batch; its items stay in the queue until they are delivered."""
        with self._changed:
            self._in_delivery = 0
            self._changed.wait_for(lambda: bool(self._items))
            if self._linger_s and not self._failures:
                self._changed.wait_for(lambda: self._flushing > 0 or len(self._items) >= self._batch, self._linger_s)
            batch = [self._items[index] for index in range(min(self._batch, len(self._items)))]
            self._in_delivery = len(batch)
            return batch

    def _deliver_or_refuse(self, batch: list[ItemT]) -> None:
        """Send a batch; where it is refused, find the item at fault, so that the others still arrive."""
        try:
            self._deliver(batch)
        except RefusedError as refusal:
            if len(batch) == 1 or isinstance(refusal, ReceiverGoneError):
                self._leave_out(len(batch), refusal)
                return
            for item in batch:
                self._deliver_or_refuse([item])

    def _leave_out(self, count: int, refusal: RefusedError) -> None:
        self.lost += count
        if not self._warned_of_refusal:
            log.warning("%s: refused, left out from now on: %s", self.name, self._describe(refusal))
        self._warned_of_refusal = isinstance(refusal, ReceiverGoneError)

    def _delivered(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._items.popleft()
            self._in_delivery = 0
            if self._failures:
                log.info("%s: the receiver is back after %d failed attempts", self.name, self._failures)
            self._failures = 0
            self._backoff.reset()
            self._changed.notify_all()

    def _wait_after(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning("%s: not delivered, kept for later (%s)", self.name, self._describe(error))
        with self._changed:  # a new flush is worth another attempt at once
            flushes = self._flushes
            self._changed.wait_for(lambda: self._flushes != flushes, self._backoff.delay_s())
