"""Retries: how long one waits between tries, which failures of a store can pass, and what the rest is called."""

import http.client
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class StoreError(OSError):
    """A store could not do what was asked, and waiting did not help."""


class MissingObjectError(StoreError, FileNotFoundError):
    """There is no such object."""


class DeniedObjectError(StoreError):
    """This user may not read the object, or it lies in an archive tier; its neighbours may be read all the same."""


class ChangedObjectError(StoreError):
    """The object is not, or no longer, the one that was meant: another ETag or another length."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long failures are retried: full-jitter exponential back-off, for ``timeout_s`` without progress."""

    timeout_s: float = 300.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 20.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0


class Backoff:
    """Delays between tries: exponential, with full jitter (Brooker, *Exponential Backoff And Jitter*, AWS, 2015).

    Args:
        first_s: bound of the first delay.
        longest_s: bound of all of them.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.tries = 0

    def delay_s(self) -> float:
        """The next delay, drawn between 0 and a bound that doubles with every try."""
        bound_s = min(self._longest_s, self._first_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(0, bound_s)

    def reset(self) -> None:
        """After a success."""
        self.tries = 0


def retried(
    action: Callable[[], T],
    is_final: Callable[[Exception], bool],
    backoff: Backoff,
    *,
    timeout_s: float = math.inf,
    attempts: float = math.inf,
) -> T:
    """What ``action`` returns when it succeeds at last.

    Args:
        action: to try.
        is_final: whether another try cannot help after an error; asked after each one that is not the last.
        backoff: between the tries.
        timeout_s: no try begins later than that.
        attempts: most tries.

    Raises:
        Exception: the action's own, where it is final, or time or tries are over.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return action()
        except Exception as error:
            delay_s = backoff.delay_s()
            over = backoff.tries >= attempts or time.monotonic() + delay_s > deadline_s
            if over or is_final(error):
                raise
        time.sleep(delay_s)


class Retrier:
    """Counts the failures of one piece of work and waits between its tries."""

    def __init__(self, what: str, retry: RetryPolicy, cancelled: threading.Event | None = None) -> None:
        self._what, self._policy = what, retry
        self._cancelled = cancelled or threading.Event()
        self._backoff = Backoff(retry.first_delay_s, retry.longest_delay_s)
        self._since_s = time.monotonic()

    def progress(self) -> None:
        self._since_s = time.monotonic()
        self._backoff.reset()

    def wait(self, error: Exception) -> None:
        """Returns when it is time for another try.

        Raises:
            StoreError: ``error`` will not pass, or its time is over, or the work was cancelled.
        """
        final = _final(error, self._what)
        if final is error:
            raise error
        if final is not None:
            raise final from error
        lost_s = time.monotonic() - self._since_s
        if lost_s >= self._policy.timeout_s:
            raise StoreError(
                f"could not {self._what}: gave up after {lost_s:.0f} s and {self._backoff.tries + 1} tries; "
                f"the last one failed with: {_reason(error)}"
            ) from error
        if self._cancelled.wait(self._backoff.delay_s()):
            raise StoreError(f"could not {self._what}: cancelled") from error


# Of one object. Keys and tokens that have run out are refused with 403 too, but under other codes, and for all objects.
_DENIED_CODES = {"AccessDenied", "InvalidObjectState"}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


def _final(error: Exception, what: str) -> StoreError | None:
    """What to raise where another try cannot help; none where it can."""
    if isinstance(error, StoreError):
        return error
    status, code = status_of(error), code_of(error)
    message = f"could not {what}: {_reason(error)}"
    if status == 404:
        return MissingObjectError(message)
    if status == 403 and code in _DENIED_CODES:
        return DeniedObjectError(message)
    if status == 412:
        return ChangedObjectError(f"could not {what}: the object has changed; its ETag is not the one that was meant")
    if status:
        # 409: another conditional write of the same object is under way, says S3; 501: the server knows none
        passes = (status >= 500 and status != 501) or status in (408, 409, 429) or code in _TRANSIENT_CODES
        return None if passes else StoreError(message)
    return None if _is_network_failure(error) else StoreError(message)


def _is_network_failure(error: Exception) -> bool:
    import botocore.exceptions as botocore
    import urllib3.exceptions
    from botocore.parsers import ResponseParserError

    of_botocore = (
        botocore.HTTPClientError,
        botocore.ConnectionError,
        botocore.IncompleteReadError,
        ResponseParserError,
    )
    below = (urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError)
    return isinstance(error, (*of_botocore, *below))


def _answer(error: Exception) -> Mapping[str, Any]:
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, Mapping) else {}


def status_of(error: Exception) -> int:
    """The HTTP status of the answer, 0 where there was none."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
