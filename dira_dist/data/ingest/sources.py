"""What files a generation of a set was made of: what whoever adds files has to know, and names nobody.

It lies beside the index, ``sources/000001.json``. Files are there by the salted keys of their samples, and so are the
marks of their versions: who has not the salt learns from it how many files there were.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dira_dist.data.samples import read_samples
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.store import MissingObjectError, Store
from dira_dist.formats import FileFormat

SOURCES = "sources/"
UNKNOWN = ""  # the version of a file that was taken when nobody kept versions


@dataclass(frozen=True)
class Sources:
    """The files of a generation, or of several.

    Attributes:
        versions: of each item's files, salted, by its key; :data:`UNKNOWN` where it was not kept.
        groups: whom an item is of, salted, by its key; nothing for one of nobody known.
    """

    versions: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def joined(self, other: "Sources") -> "Sources":
        """Both together; of an item in both what the other says."""
        return Sources({**self.versions, **other.versions}, {**self.groups, **other.groups})


SOURCES_FORMAT = FileFormat(Sources, version=1)


def sources_name(generation: int, mark: str = "") -> str:
    """``sources/000002-1f3a.json``; the mark tells those apart who make the same generation at once."""
    return f"{SOURCES}{generation:06d}{mark and '-'}{mark}.json"


def read_sources(store: Store, index: ShardSetIndex) -> Sources:
    """What the set was made of, over all generations that added something.

    Raises:
        FormatError: a file of them is damaged.
        ShardError, StoreError: it is a set of an older version, which kept no such file, and its shards cannot be read.
    """
    found = Sources()
    for name in _names(index):
        try:
            found = found.joined(SOURCES_FORMAT.load(store.read_bytes(name), store.join(name)))
        except MissingObjectError:
            found = found.joined(_from_shards(store.address, index))
    return found


def _names(index: ShardSetIndex) -> Iterator[str]:
    yield sources_name(1)
    yield from (str(added["sources"]) for added in index.made_by.get("appended", []))


def _from_shards(address: str, index: ShardSetIndex) -> Sources:
    """Keys and groups as the samples have them: the samples of one file begin with its key."""
    samples = read_samples(address, index)
    keys = [key.partition("-")[0] for key in samples.keys]
    groups = {key: group for key, group in zip(keys, samples.split_groups, strict=True) if group}
    return Sources(dict.fromkeys(keys, UNKNOWN), groups)
