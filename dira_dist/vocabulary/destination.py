"""Where words go, and what is known of them there: ``words.json``, the sets, and the picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.shards import INDEX_NAME
from dira_dist.data.store import Store
from dira_dist.formats import FileFormat

STATE, SHEET = "words.json", "words.png"


@dataclass(frozen=True)
class Word:
    """A word as it was found.

    Attributes:
        number: its label.
        place_xyz: of its cubes' centres, as shares of a volume's sides.
        reference: key of the volume that it was found in.
        nearest: by part the keys of the volumes that it is cut of, nearest first.
    """

    number: int
    place_xyz: tuple[float, float, float]
    reference: str
    nearest: dict[str, list[str]]


@dataclass(frozen=True)
class Vocabulary:
    """``words.json``: what is made at a place, and the words, once they are known. It names no file and no patient.

    Attributes:
        request: all that decides what the sets are.
        words: in the order of their numbers; empty while their cubes are cut.
        finished: whether all is written.
    """

    request: dict[str, Any]
    words: list[Word] = field(default_factory=list)
    finished: bool = False


FORMAT = FileFormat(Vocabulary, version=1)


def is_finished(store: Store, request: Mapping[str, Any]) -> bool:
    """Whether all that is asked for lies at a place already; writes nothing.

    Raises:
        RequestError: the place holds something else.
    """
    if store.stat(STATE) is None:
        if (found := next(iter(store.list()), None)) is not None:
            raise RequestError(f"{store.address}: holds other files ({found.key} for one); give a new or empty folder")
        return False
    there = FORMAT.load(store.read_bytes(STATE), store.join(STATE))
    if there.request != request:
        names = [name for name in {**there.request, **request} if there.request.get(name) != request.get(name)]
        raise RequestError(
            f"{store.address}: holds words that were found otherwise (other {', '.join(names)}), and no set is changed "
            "in place: give another folder"
        )
    return there.finished


def begin(store: Store, request: Mapping[str, Any]) -> None:
    """Notes what is made at a place, and clears away what an interrupted call has left: the indexes go first, for
    without them it is no set."""
    store.write_bytes(STATE, FORMAT.dump(Vocabulary(dict(request))))
    left = [found.key for found in store.list() if found.key.endswith((INDEX_NAME, ".tar")) or found.key == SHEET]
    for key in sorted(left, key=lambda key: not key.endswith(INDEX_NAME)):
        store.delete(key)
