"""Where results go: what is being made there, and what of it is done; another making is refused."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.store import Store, StoreError
from dira_dist.formats import FileFormat
from dira_dist.prediction.tables import PARTS, part_key

STATE = "prediction.json"


@dataclass(frozen=True)
class Making:
    """``prediction.json``: what is made at a place. It names no file of the source.

    Attributes:
        verb: ``predict`` or ``embed``.
        model: address as it was given, for people.
        weights: digest of the model, its weights and what else its answers depend on.
        source: digest of the source.
        options: that decide what the results are.
        parts: how many there are.
        finished: whether all is written.
        rows: of the table, when it is.
        unread: why entries have no answer, with how many; without names.
    """

    verb: str
    model: str
    weights: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    parts: int = 0
    finished: bool = False
    rows: int = 0
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a call to go on."""
        return {"verb": self.verb, "weights": self.weights, "source": self.source, "options": self.options}


FORMAT = FileFormat(Making, version=1)


def claim(store: Store, wanted: Making) -> Making:
    """Begins the making of results, or finds how far an earlier call has come.

    Raises:
        RequestError: the place holds something else.
    """
    if store.stat(STATE) is None:
        if (found := next(iter(store.list()), None)) is not None:
            raise RequestError(f"{store.address}: holds other files ({found.key} for one); give a new or empty folder")
        store.write_bytes(STATE, FORMAT.dump(wanted))
        return wanted
    there = FORMAT.load(store.read_bytes(STATE), store.join(STATE))
    if there.identity != wanted.identity:
        raise RequestError(f"{store.address}: {_difference(there, wanted)}; give another folder")
    return there


def _difference(there: Making, wanted: Making) -> str:
    if there.verb != wanted.verb:
        return f"holds results of dira-dist {there.verb}"
    if there.weights != wanted.weights:
        return f"holds results of another model, {there.model} (and {wanted.model} answers otherwise)"
    if there.source != wanted.source:
        return "holds results of another source, or files of the source have changed since"
    names = [name for name, value in wanted.options.items() if there.options.get(name) != value]
    shown = (f"{name} ({there.options.get(name)!r} there, {wanted.options[name]!r} now)" for name in names)
    return f"holds results made with other options: {', '.join(shown)}"


def parts_done(store: Store) -> set[int]:
    """Numbers of the parts that are there."""
    names = (found.key.removeprefix(f"{PARTS}/").partition(".")[0] for found in store.list(f"{PARTS}/"))
    return {int(name) for name in names if name.isdecimal()}


def finish(store: Store, making: Making) -> None:
    """Notes that all is written, and removes the parts."""
    store.write_bytes(STATE, FORMAT.dump(making))
    for number in range(making.parts):
        store.delete(part_key(number))


@contextmanager
def full_disk_in_a_sentence(dest: str) -> Iterator[None]:
    """Turns the many words of a full disk into one sentence.

    Raises:
        JobFailedError: in its place.
    """
    try:
        yield
    except (StoreError, OSError) as error:
        causes = (error, error.__cause__, error.__context__)
        if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes):
            raise JobFailedError(
                f"{dest}: the disk is full; make room, and the same command goes on from where it was"
            ) from None
        raise
