"""``dira-dist shard --append``: files that a finished set does not have yet, as further tars and its next generation.

Nothing of what is there is touched. The new tars carry the request's mark in their names, so that two who append at
once do not meet in a tar; the index decides who was first. While the work goes on, the set's folder holds also::

    000008-1f3a09c2.tar ...            tars that no generation has yet
    appends/1f3a09c2/plan.json         what is added, and to which generation
    appends/1f3a09c2/progress/...      as for a new set
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.archive import Newest, discard_append, discard_outrun, publish_next, read_newest
from dira_dist.data.generations import APPENDS, PLAN_NAME
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.parts import Part, SkippedItem
from dira_dist.data.ingest.pixels import PictureMode
from dira_dist.data.ingest.plan import Plan
from dira_dist.data.ingest.sources import UNKNOWN, Sources, read_sources, sources_name
from dira_dist.data.shards import PublishedShard, image_info, shard_name, shard_number, statistics_of
from dira_dist.data.store import Store, open_store
from dira_dist.data.withdrawal import group_digest

_MAY_DIFFER = {"source", "labels", "boxes", "centres", "channel_table", "samples_per_shard"}
_PICTURES = ("L", "I;16", "RGB")


def parts_to_append(plan: Plan, addresses: Mapping[str, str]) -> dict[str, Part]:
    """The parts of a plan, which from now on has only what their sets have not.

    Raises:
        RequestError: a part has no set, or one that was made otherwise.
    """
    newest = {name: _finished_set(open_store(address)) for name, address in addresses.items()}
    for name, address in addresses.items():
        _check_request(plan, name, address, newest[name])
    sources = {name: read_sources(open_store(addresses[name]), found.index) for name, found in newest.items()}
    _keep_new(plan, sources, set().union(*map(_barred, newest.values())))
    mode = next(iter(newest.values())).index.image.mode
    if mode in _PICTURES:
        plan.options = plan.options.model_copy(update={"mode": mode})
    return {name: AppendedPart(plan, name, address, newest[name]) for name, address in addresses.items()}


def _finished_set(store: Store) -> Newest:
    try:
        return read_newest(store)
    except RequestError as error:
        raise RequestError(f"append: {error} There is nothing to add to before that.") from error


def _check_request(plan: Plan, name: str, address: str, newest: Newest) -> None:
    made, now = newest.index.made_by.get("request", {}), json.loads(json.dumps(plan.request(name)))
    if not made:
        raise RequestError(
            f"append: {address} was not made by `dira-dist shard`, so that nobody knows how; make a set with it first."
        )
    differing = [
        key for key in dict.fromkeys((*now, *made)) if key not in _MAY_DIFFER and made.get(key) != now.get(key)
    ]
    differing += [key for key in ("labels", "boxes") if (made.get(key) is None) != (now.get(key) is None)]
    if differing:
        found = ", ".join(
            "salt (another one)" if key == "salt" else f"{key} ({made.get(key)!r} there, {now.get(key)!r} now)"
            for key in differing
        )
        raise RequestError(f"append: {address} was made otherwise: {found}. Say the same options, or make another set.")


def _barred(newest: Newest) -> set[str]:
    return {digest for withdrawal in newest.index.withdrawals or () for digest in withdrawal.barred}


def _keep_new(plan: Plan, sources: Mapping[str, Sources], barred: set[str]) -> None:
    """Leaves in the plan's parts what no set has, each patient in the part that the patient is in already."""
    part_of_group = {group: name for name, found in sources.items() for group in found.groups.values()}
    there = {key: version for found in sources.values() for key, version in found.versions.items()}
    planned = [(name, item) for name, items in plan.parts.items() for item in items]
    plan.parts = {name: [] for name in plan.parts}
    for name, item in planned:
        group = plan.groups.get(item.key, item.key)
        if item.key in there:
            _note_change(plan, item, there[item.key])
        elif {group_digest(group), group_digest(item.key)} & barred:
            plan.skipped.append((item.files[0], "it, or whom it is of, was withdrawn from the set"))
        else:
            plan.parts[part_of_group.get(group, name)].append(item)
    _note_vanished(plan, set(there) - {item.key for _, item in planned})


def _note_change(plan: Plan, item: Item, version: str) -> None:
    if version not in (UNKNOWN, plan.version_of(item)):
        plan.skipped.append((item.files[0], "it has changed since the set took it; the set keeps what it has"))


def _note_vanished(plan: Plan, keys: set[str]) -> None:
    if keys:
        plan.unmatched["files of the set"] = tuple(sorted(keys))
        plan.warnings.append(
            f"{len(keys)} files that the set was made of are not in the source any more; the set keeps them "
            "(`dira-dist remove --keys` takes them out; the report has their keys)"
        )


class AppendedPart(Part):
    """What is added to a finished set.

    Args:
        plan: of the new items alone.
        name: of the part.
        address: of its set.
        newest: generation of it, which the next one follows.
    """

    def __init__(self, plan: Plan, name: str, address: str, newest: Newest) -> None:
        super().__init__(plan, name, address)
        self._newest = newest
        asked = json.dumps([self._request, newest.index.index_sha256, newest.index.digest], sort_keys=True)
        self._mark = hashlib.sha256(asked.encode()).hexdigest()[:8]
        self._workplace = f"{APPENDS}{self._mark}/"

    def check_place(self, *, overwrite: bool) -> None:
        """Its place is a finished set, which was looked at already."""

    def resume(self) -> None:
        """Finds out what of these tars is done already, and clears away what others left who can add no more."""
        discard_outrun(self._store, self._newest.index)
        if not self.items:
            self.index, self.was_complete = self._newest.index, True
        elif self._store.stat(self._workplace + PLAN_NAME) is None:
            self._write_plan({"follows": self._newest.index.number, "request": self._request})
        else:
            self._read_progress()

    def _tar_name(self, number: int) -> str:
        stem = shard_name(_next_number(self._newest) + number).removesuffix(".tar")
        return f"{stem}-{self._mark}.tar"

    def _publish(self, records: list[PublishedShard], mode: PictureMode | None, made_by: dict[str, Any]) -> None:
        index = self._newest.index
        sources = sources_name(index.number + 1, self._mark)
        added = {"generation": index.number + 1, "sources": sources, **_of_this_time(made_by)}
        earlier = index.made_by
        self._write_sources(sources)
        try:
            self.index = publish_next(
                self._store,
                self._newest,
                shards=(*index.shards, *(record.info for record in records)),
                image=image_info([statistics_of(index), *records], index.image.mode, index.image.encoding),
                labels=tuple(dict.fromkeys((*index.labels, *self._plan.label_names()))),
                classes=_joined(index.classes, self._plan.classes()),
                made_by={**earlier, "appended": [*earlier.get("appended", []), added]},
            )
        except RequestError as error:
            discard_append(self._store, self._mark, {shard.name for shard in read_newest(self._store).index.shards})
            raise RequestError(f"{error} It makes its tars again, for what they follow is not the newest.") from None

    def _refuse(self, skipped: list[SkippedItem]) -> None:
        """What cannot be read is told of, and tried again by the next one who adds files."""
        self.index = self._newest.index

    @property
    def _earlier(self) -> dict[str, Any]:
        return {}  # its files are not those of this run


def _next_number(newest: Newest) -> int:
    """Behind the tars of the newest generation; their names begin with their number, and marks tell others apart."""
    return 1 + max(shard_number(shard.first_name) for shard in newest.index.shards)


def _of_this_time(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is known of the making what may differ from one generation to the next."""
    request = made_by["request"]
    differing = {key: request[key] for key in request if key in _MAY_DIFFER}
    return {**{key: value for key, value in made_by.items() if key != "request"}, "request": differing}


def _joined(there: Mapping[str, tuple[str, ...]], found: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    names = dict.fromkeys((*there, *found))
    return {name: tuple(sorted({*there.get(name, ()), *found.get(name, ())})) for name in names}
