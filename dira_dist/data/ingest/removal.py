"""``dira-dist remove``: patients out of a set, or out of all parts of one, called as its maker calls them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.data.generations import generation_of
from dira_dist.data.ingest.patients import identifier
from dira_dist.data.ingest.salt import has_own_salt, read_salt
from dira_dist.data.shards import INDEX_NAME
from dira_dist.data.store import check_reachable, open_store
from dira_dist.data.withdrawal import Removal, check_left, rewrite, withdraw

_SHOWN = 10


@dataclass(frozen=True)
class RemovalReport:
    """What became of the sets.

    Attributes:
        removals: of each set, by its part's place.
        asked: groups and keys that were given.
        unknown: places of those, from 1, that are in none of the sets.
    """

    removals: tuple[Removal, ...]
    asked: int
    unknown: tuple[int, ...]

    def lines(self) -> Iterator[str]:
        """The summary for a person. It names lines of the list and nobody on it."""
        for removal in self.removals:
            yield from removal.lines()
        if self.unknown:
            shown = ", ".join(map(str, self.unknown[:_SHOWN])) + (", ..." if len(self.unknown) > _SHOWN else "")
            yield (
                f"warning: {len(self.unknown)} of {self.asked} lines are of nobody in the set: {shown}. Give "
                "identifiers as the source has them (with --salt-file, if the set was made with one), or split_group "
                "and keys as the shards have them"
            )


def read_list(file: str) -> list[str]:
    """The lines of a list, without empty ones.

    Raises:
        RequestError: there is no such file, or nothing in it.
    """
    try:
        lines = [line.strip() for line in Path(file).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: a list of one group or key a line is expected: {error}") from error
    if not any(lines):
        raise RequestError(f"{file}: there is nothing in it; write one group or key a line.")
    return [line for line in lines if line]


def remove(
    address: str,
    groups: Sequence[str] = (),
    keys: Sequence[str] = (),
    *,
    rewrite_tars: bool = False,
    salt_file: str | None = None,
) -> RemovalReport:
    """Takes patients, or single samples, out of a set: at once for every new run, and for good where asked.

    Args:
        address: of a set, or of the folder that the parts of a split lie in.
        groups: patients: identifiers of the source, or ``split_group`` as the shards have it.
        keys: samples: keys as the shards have them, or paths of files within the source.
        rewrite_tars: whether tars that hold anything withdrawn, now or earlier, are written anew without it.
        salt_file: the secret that the set was made with; this user's own if none.

    Raises:
        RequestError: there is no set, one would be left empty, or another command has changed it meanwhile.
        StoreError: a set cannot be read or written; the same call goes on from there.
    """
    if generation_of(address) is not None:
        raise RequestError(f"{address}: what is removed is removed from the newest generation; leave the number out.")
    if not (groups or keys or rewrite_tars):
        raise RequestError(f"{address}: whom? Give a list with --groups or --keys, or --rewrite for earlier ones.")
    salted_groups, salted_keys = _spellings(groups, "group", salt_file), _spellings(keys, "sample", salt_file)
    sets = _sets_at(address)
    for each in sets:
        check_left(each, salted_groups, salted_keys)
    removals = tuple(_removed(each, salted_groups, salted_keys, rewrite_tars) for each in sets)
    found = frozenset[str]().union(*(removal.found for removal in removals))
    known = {spellings[name] for spellings in (salted_groups, salted_keys) for name in found & spellings.keys()}
    asked = [*groups, *keys]
    unknown = tuple(place for place, text in enumerate(asked, start=1) if text not in known)
    return RemovalReport(removals, len(asked), unknown)


def _removed(address: str, groups: dict[str, str], keys: dict[str, str], rewrite_tars: bool) -> Removal:
    removal = withdraw(address, groups, keys)
    if not rewrite_tars:
        return removal
    index, written, deleted = rewrite(address)
    return replace(removal, generation=index.number, rewritten=written, deleted=deleted)


def _spellings(given: Sequence[str], purpose: str, salt_file: str | None) -> dict[str, str]:
    """What was given, by itself and by the salted hash that shards have in its place."""
    found = {text: text for text in given}
    if given and (salt_file is not None or has_own_salt()):
        salt = read_salt(salt_file)
        name_of: Callable[[str], str] = identifier if purpose == "group" else str
        found |= {salt.digest(purpose, name_of(text)): text for text in given}
    return found


def _sets_at(address: str) -> list[str]:
    """The set that lies there, or those in the folders of a split's parts.

    Raises:
        RequestError: there is none.
    """
    check_reachable(address)
    store = open_store(address)
    if store.stat(INDEX_NAME) is not None:
        return [address]
    ends = [found.key.removesuffix(f"/{INDEX_NAME}") for found in store.list() if found.key.endswith(f"/{INDEX_NAME}")]
    parts = sorted(part for part in ends if "/" not in part)
    if not parts:
        raise RequestError(f"{address}: there is no shard set there, nor parts of one; check the address.")
    return [f"{address.rstrip('/')}/{part}" for part in parts]
