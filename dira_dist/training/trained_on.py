"""What a model remembers of the sets that it was made with: how their images were made, and who is in them.

The first is what whoever uses the model feeds it; the second lets an evaluation refuse patients that it has learned
from, without the sets at hand. Patients are known there by the salted hashes of the shards, and here by a digest of
those: nothing leads back to a person.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import StoreError
from dira_dist.data.withdrawal import group_digest

log = logging.getLogger(__name__)

_READING = ("image_size", "side", "content", "intensity", "axis", "tilt", "spacing_tolerance", "spacing", "channels")
"""Options of ``dira-dist shard`` that decide what the pixels of a sample are."""


@dataclass(frozen=True)
class TrainedOn:
    """What is remembered.

    Attributes:
        fed: options of ``dira-dist shard`` by name, with ``mode``, the pixels of the training set, and of arrays their
            ``array_type``; empty where nobody knows.
        groups: by the name of the set, digests of whom its samples are of; none where that was not looked up.
    """

    fed: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] | None = None


def fed_by(index: ShardSetIndex) -> dict[str, Any]:
    """How the images of a set were made, as far as its index tells."""
    request = index.made_by.get("request", {})
    known = {name: request[name] for name in _READING if name in request} | {"mode": index.image.mode}
    return known | ({} if index.image.array_type is None else {"array_type": index.image.array_type})


def group_digests(groups: Iterable[str]) -> list[str]:
    """Digests of groups as shards name them, sorted, each once."""
    return sorted({group_digest(group) for group in groups})


def trained_on(sets: Mapping[str, str], *, groups: bool) -> TrainedOn:
    """Looks into the sets of a job; a set that is out of reach by now is no reason to lose the model.

    Args:
        sets: addresses by name, ``train`` among them.
        groups: whether to look up whom the samples are of, too.
    """
    try:
        indices = {name: read_index(address) for name, address in sets.items()}
    except (RequestError, StoreError):
        return TrainedOn()
    try:
        found = {name: _digests_of(sets[name], index) for name, index in indices.items()} if groups else None
    except (RequestError, StoreError) as error:
        log.warning("the model does not remember whom it has learned from: %s", error)
        found = None
    return TrainedOn(fed_by(indices["train"]), found)


def _digests_of(address: str, index: ShardSetIndex) -> list[str]:
    return group_digests(read_samples(address, index).groups)
