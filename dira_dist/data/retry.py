"""Retries: how long failures of a store are retried, which of them can pass, and what the rest is called."""

import http.client
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


class Retrier:
    """Counts the failures of one piece of work and waits between its tries."""

    def __init__(self, what: str, retry: RetryPolicy, cancelled: threading.Event | None = None) -> None:
        self._what, self._policy = what, retry
        self._cancelled = cancelled or threading.Event()
        self._since_s, self._tries = time.monotonic(), 0

    def progress(self) -> None:
        self._since_s, self._tries = time.monotonic(), 0

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
                f"could not {self._what}: gave up after {lost_s:.0f} s and {self._tries + 1} tries; "
                f"the last one failed with: {_reason(error)}"
            ) from error
        longest_s = min(self._policy.longest_delay_s, self._policy.first_delay_s * 2.0 ** min(self._tries, 30))
        self._tries += 1
        if self._cancelled.wait(random.uniform(0, longest_s)):
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
        passes = status >= 500 or status in (408, 429) or code in _TRANSIENT_CODES
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
