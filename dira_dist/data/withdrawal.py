"""Patients taken out of a set: at once for whoever reads it from now on, and for good by writing their tars anew.

To withdraw is to write the next generation of the index, which passes over their samples; the tars stay as they are,
and who goes on with an older generation reads of its index and of the newest what has gone. To rewrite is to publish,
for each tar that holds withdrawn samples, another one without them, then an index that names those, and then to delete
every tar that the newest index does not name.
"""

import hashlib
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dira_dist.config import RequestError
from dira_dist.data.archive import discard_outrun, older_generations, publish_next, read_newest, tars_under_way
from dira_dist.data.generations import among, plain_address
from dira_dist.data.lanes import ShardSet
from dira_dist.data.samples import SampleTable, forget_samples, read_samples
from dira_dist.data.shards import Sample, ShardInfo, ShardSetIndex, Withdrawal, publish_shard, read_index, shard_number
from dira_dist.data.splitmix import Int64s
from dira_dist.data.store import Store, StoreError, open_store
from dira_dist.data.verify import problems_of

_EXTENSIONS = ("png", "jpg", "npy")


def group_digest(group: str) -> str:
    """What stands for a group, as shards name it, where it may be remembered after it is gone."""
    return hashlib.sha256(group.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Removal:
    """What became of a set.

    Attributes:
        address: of it.
        samples: that were withdrawn by this call.
        groups: of whom they were.
        generation: the newest by now.
        left: samples in it.
        found: of what was asked for, what this set had, now or before it was withdrawn.
        rewritten: tars that were written anew.
        deleted: tars that are gone.
    """

    address: str
    samples: int
    groups: int
    generation: int
    left: int
    found: frozenset[str]
    rewritten: int = 0
    deleted: int = 0

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        yield (
            f"{self.address}: {self.samples} samples of {self.groups} groups withdrawn; generation {self.generation} "
            f"has {self.left}"
        )
        if self.rewritten or self.deleted:
            yield f"{self.address}: {self.rewritten} tars written anew and verified, {self.deleted} deleted"


def withdraw(address: str, groups: Collection[str], keys: Collection[str]) -> Removal:
    """Takes samples out of the newest generation of a set; the next one is without them. The tars stay.

    Args:
        address: of the set.
        groups: whom to take out, as shards name them (``split_group``).
        keys: of samples, or of the files that several samples were made of.

    Raises:
        RequestError: nothing would be left, or another command has changed the set meanwhile.
        StoreError, ShardError: the set cannot be read.
    """
    store = open_store(plain_address(address))
    newest = read_newest(store)
    index = newest.index
    samples = read_samples(address, index)
    taken, found = _taken(samples, set(groups), set(keys))
    gone = [group for group, out in zip(samples.groups, taken.tolist(), strict=True) if out]
    found |= _known_digests(index, groups)
    _check_left(address, len(gone), len(samples))
    if gone:
        withdrawal = Withdrawal(
            generation=index.number + 1,
            samples=len(gone),
            groups=tuple(sorted(set(map(group_digest, gone)))),
            barred=tuple(sorted(set(_barred(samples, taken, set(groups))))),
        )
        index = publish_next(
            store,
            newest,
            shards=tuple(_shards_without(index.shards, np.flatnonzero(taken))),
            withdrawals=(*(index.withdrawals or ()), withdrawal),
        )
    return Removal(address, len(gone), len(set(gone)), index.number, index.samples, frozenset(found))


def check_left(address: str, groups: Collection[str], keys: Collection[str]) -> None:
    """Raises RequestError where nothing would be left of a set."""
    samples = read_samples(address, read_index(address))
    taken, _ = _taken(samples, set(groups), set(keys))
    _check_left(address, int(taken.sum()), len(samples))


def _check_left(address: str, gone: int, samples: int) -> None:
    if gone == samples:
        raise RequestError(
            f"{address}: all of its {gone} samples would be taken out, and nothing would be left of the set; nothing "
            "was changed. Delete the set itself."
        )


def _taken(samples: SampleTable, groups: set[str], keys: set[str]) -> tuple[npt.NDArray[np.bool_], set[str]]:
    """``(N,)`` whether each sample is meant, and which of the groups and keys are there."""
    taken = np.zeros(len(samples), dtype=bool)
    found: set[str] = set()
    for place, (group, key) in enumerate(zip(samples.groups, samples.keys, strict=True)):
        named = ({group} & groups) | ({key, key.partition("-")[0]} & keys)
        taken[place] = bool(named)
        found |= named
    return taken, found


def _barred(samples: SampleTable, taken: npt.NDArray[np.bool_], groups: set[str]) -> Iterator[str]:
    """Who is named is gone for good; of a sample that is named alone its file is, and not whom it is of."""
    for place in np.flatnonzero(taken).tolist():
        group = samples.groups[place]
        yield group_digest(group if group in groups else samples.keys[place].partition("-")[0])


def _known_digests(index: ShardSetIndex, groups: Collection[str]) -> set[str]:
    """Groups that were named before: to ask again is no mistake. Who is gone by single files alone was not named."""
    digests = {digest for withdrawal in index.withdrawals or () for digest in withdrawal.barred}
    return {group for group in groups if group_digest(group) in digests}


def _shards_without(shards: Sequence[ShardInfo], ids: Int64s) -> Iterator[ShardInfo]:
    """The shards less some samples, by their rising ids; one that has no others is left out."""
    first = 0
    for shard in shards:
        here = ids[(ids >= first) & (ids < first + shard.samples)] - first
        first += shard.samples
        if len(here) == 0:
            yield shard
        elif len(here) < shard.samples:
            withdrawn = sorted({*(shard.withdrawn or ()), *among(here, shard.withdrawn or ()).tolist()})
            yield shard.model_copy(
                update={"samples": shard.samples - len(here), "withdrawn": tuple(map(int, withdrawn))}
            )


# ------------------------------------------------------------------------ for good


def rewrite(address: str) -> tuple[ShardSetIndex, int, int]:
    """Writes the tars that hold withdrawn samples anew without them, and deletes those; an interrupted call goes on.

    Returns:
        The newest index, how many tars were written, and how many were deleted.

    Raises:
        RequestError: another command has changed the set meanwhile.
        StoreError, ShardError: a tar cannot be read, or what was written is not what it should be.
    """
    store = open_store(plain_address(address))
    newest = read_newest(store)
    index = newest.index
    changed = {
        shard.name: _rewritten(store, index, place) for place, shard in enumerate(index.shards) if shard.withdrawn
    }
    if changed:
        for shard in changed.values():
            for problem in problems_of(store, shard, index.image):
                raise StoreError(f"{store.address}: {problem}: it was written a moment ago, and nothing was deleted")
        shards = tuple(changed.get(shard.name, shard) for shard in index.shards)
        index = publish_next(store, newest, shards=shards)
    return index, len(changed), _delete_outlived(store, index)


def _rewritten(store: Store, index: ShardSetIndex, place: int) -> ShardInfo:
    """A tar's samples that are left, in a tar of their own."""
    shard = index.shards[place]
    for problem in problems_of(store, shard, index.image):  # a damaged tar must not become a sound one
        raise StoreError(f"{store.address}: {problem}: nothing was written anew or deleted")
    left_out = tuple(shard.removed.tolist())
    mark = hashlib.sha256(f"{shard.first_name} {left_out}".encode()).hexdigest()[:8]
    name = f"{shard_number(shard.first_name):06d}-{mark}.tar"
    published = publish_shard(store, name, _samples_left(store.address, index, place))
    assert published is not None, "a shard without samples is in no index"
    return published.info.model_copy(update={"origin": shard.first_name, "left_out": left_out})


@dataclass(frozen=True)
class _StoredSample(Sample):
    """A sample whose members stay as they are."""

    stored: dict[str, bytes] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[str, bytes]]:
        yield from self.stored.items()


def _samples_left(address: str, index: ShardSetIndex, place: int) -> Iterator[Sample]:
    for found in ShardSet(address, index).members_of(place, threading.Event()):
        assert found is not None, "of the newest generation nothing has gone since"
        members = {name: data for name, data in found.items() if name[:2] != "__"}
        image = next(members[name] for name in _EXTENSIONS if name in members)
        yield _StoredSample(found["__key__"], image, index.image.encoding, 0, 0, stored=members)


def _delete_outlived(store: Store, index: ShardSetIndex) -> int:
    """Deletes every tar that the newest generation does not name, and what this machine remembers of older ones.

    Those of no generation, too: an interrupted rewriting, or adding, left them, and they may hold who is withdrawn now.
    """
    for older in older_generations(store):
        forget_samples(older)
    discard_outrun(store, index)
    named, under_way = {shard.name for shard in index.shards}, tars_under_way(store)
    tars = [found.key for found in store.list() if found.key.endswith(".tar")]
    outlived = [key for key in tars if key not in named and not key.endswith(under_way)]
    if read_newest(store).index.number != index.number:  # tars of who came after were perhaps among them
        raise RequestError(f"{store.address}: another command has changed this set meanwhile. Repeat the command.")
    for key in outlived:
        store.delete(key)
    return len(outlived)
