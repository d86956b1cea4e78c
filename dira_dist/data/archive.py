"""The next generation of a shard set: written whole, beside the one it follows, by one of those who try at once."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.generations import APPENDS, GENERATIONS, PLAN_NAME, generation_name
from dira_dist.data.shards import INDEX_NAME, ShardSetIndex, parse_index
from dira_dist.data.store import ChangedObjectError, MissingObjectError, Store


@dataclass(frozen=True)
class Newest:
    """The newest generation, as it was read.

    Attributes:
        index: of it.
        content: its file.
        mark: by which the store knows it, see :meth:`~dira_dist.data.store.Store.write_version`.
    """

    index: ShardSetIndex
    content: bytes
    mark: str


def read_newest(store: Store) -> Newest:
    """The newest generation of a set, to be followed by another one.

    Raises:
        RequestError: there is no set, or its index is not one that this version reads.
    """
    try:
        content, mark = store.read_version(INDEX_NAME)
    except MissingObjectError:
        raise RequestError(
            f"no shard set at {store.address}: there is no {INDEX_NAME}. Make one with "
            f"`dira-dist shard SOURCE {store.address}`."
        ) from None
    return Newest(parse_index(content, store.address), content, mark)


def publish_next(store: Store, newest: Newest, **changes: Any) -> ShardSetIndex:
    """Writes the generation that follows ``newest``, which stays readable under its number.

    Args:
        store: of the set.
        newest: what it follows.
        changes: fields of the index that differ.

    Raises:
        RequestError: somebody else has written the next generation meanwhile.
    """
    number = newest.index.number
    index = newest.index.model_copy(update={**changes, "version": 2, "generation": number + 1}).sealed()
    content = index.to_json().encode()
    # Looked at once more, for a server that knows no conditional writes takes whatever comes
    lost = store.read_version(INDEX_NAME)[1] != newest.mark
    if not lost:
        store.write_bytes(generation_name(number), newest.content)
        try:
            store.write_version(INDEX_NAME, content, newest.mark)
        except ChangedObjectError:
            lost = store.read_bytes(INDEX_NAME) != content  # else it is this one, and the answer was lost
    if lost:
        raise RequestError(
            f"{store.address}: another command has made generation {number + 1} of this set meanwhile; nothing was "
            "changed. Repeat the command."
        )
    return index


def older_generations(store: Store) -> Iterator[ShardSetIndex]:
    """The indexes of a set before the newest, as they were written.

    Raises:
        RequestError: one of them is not one that this version reads.
    """
    for found in store.list(GENERATIONS):
        yield parse_index(store.read_bytes(found.key), store.address, found.key)


def discard_append(store: Store, mark: str, named: Collection[str]) -> None:
    """Removes the tars of an append that no generation has, and then its traces.

    Args:
        store: of the set.
        mark: of the append.
        named: tars of the newest generation, which stay.
    """
    for found in list(store.list()):
        if found.key.endswith(f"-{mark}.tar") and found.key not in named:
            store.delete(found.key)
    for found in list(store.list(f"{APPENDS}{mark}/")):
        store.delete(found.key)


def discard_outrun(store: Store, index: ShardSetIndex) -> None:
    """Removes what is left of those who would add to an older generation than ``index``, the newest: they cannot."""
    named = {shard.name for shard in index.shards}
    for key in [found.key for found in store.list(APPENDS) if found.key.endswith(f"/{PLAN_NAME}")]:
        if json.loads(store.read_bytes(key))["follows"] < index.number:
            discard_append(store, key.removeprefix(APPENDS).partition("/")[0], named)


def tars_under_way(store: Store) -> tuple[str, ...]:
    """How the names of tars end that somebody is adding at this moment, or has begun to."""
    return tuple(f"-{mark}.tar" for mark in sorted({found.key.split("/")[1] for found in store.list(APPENDS)}))
