"""A shard set in the making, as it stands at its destination; what an interrupted run finds again.

While the work goes on, the folder of a set holds::

    plan.json                what is being made; another request is refused
    000000.tar ...           published tars
    progress/000000.json     what became of the files of a tar, written after it
    sources/000001.json      what files it was made of, for who adds more
    index.json               written last; then plan.json and progress/ go
"""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from dira_dist.config import RequestError, Section
from dira_dist.data.generations import GENERATIONS, PLAN_NAME
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.pixels import PictureMode
from dira_dist.data.ingest.plan import Plan
from dira_dist.data.ingest.sources import SOURCES, SOURCES_FORMAT, Sources, sources_name
from dira_dist.data.shards import INDEX_NAME, PublishedShard, ShardSetIndex, publish_index, read_index, shard_name
from dira_dist.data.store import open_store

PROGRESS = "progress/"
_HASHED = ("source", "salt", "labels", "boxes")
_LIBRARIES = ("numpy", "pillow", "pydicom", "nibabel", "tifffile", "pylibjpeg", "pyjpegls", "imagecodecs", "zlib-ng")


def _difference(name: str, there: Any, now: Any) -> str:
    return f"{name} (another one)" if name in _HASHED else f"{name} ({there!r} there, {now!r} now)"


class SkippedItem(Section):
    """An item that could not be read: by key and kind of error at the destination, with the whole reason only here."""

    key: str
    cause: str
    reason: str = ""
    file: str = ""


class ItemNote(Section):
    """What a user should know of an item that is in the set, in words without names."""

    key: str
    text: str


class ShardOutcome(Section):
    """What became of the files of one tar; ``record`` is none where nothing of them could be read."""

    record: PublishedShard | None
    files: int
    converted: int
    lost_colour: int = 0
    padded: int = 0
    skipped: tuple[SkippedItem, ...] = ()
    notes: tuple[ItemNote, ...] = ()


class Part:
    """One part of the plan and what of it is done.

    Attributes:
        name: of the part.
        address: of its shard set.
        index: of the finished set, none before.
        outcomes: of the tars that are done, by name.
        resumed_shards: how many of them an earlier run has done.
        was_complete: whether the index was there from the start.
    """

    _workplace = ""  # where in the set's folder the plan and the progress lie

    def __init__(self, plan: Plan, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._plan, self._store = plan, open_store(address)
        self._request = plan.request(name)
        self.index: ShardSetIndex | None = None
        self.outcomes: dict[str, ShardOutcome] = {}
        self.resumed_shards = 0
        self.was_complete = False

    @property
    def items(self) -> list[Item]:
        return self._plan.parts[self.name]

    @property
    def files_done(self) -> int:
        return sum(outcome.files for outcome in self.outcomes.values())

    def check_place(self, *, overwrite: bool) -> None:
        """Raises RequestError where the place holds something else and ``overwrite`` does not allow to replace it."""
        made = self._made_there()
        if made is not None and made != self._request and not overwrite:
            raise RequestError(f"{self.address} already holds {self._difference(made)}")

    def resume(self) -> None:
        """Finds out what is done already, and clears the place of anything else: call :meth:`check_place` before."""
        made = self._made_there()
        if made != self._request:
            self._clear()
            self._write_plan(self._request)
        elif self._store.stat(INDEX_NAME) is not None:
            self.index = read_index(self.address)
            self.was_complete, self.resumed_shards = True, len(self.index.shards)
            self._remove_traces()
        else:
            self._read_progress()

    def _write_plan(self, plan: dict[str, Any]) -> None:
        self._store.write_bytes(self._workplace + PLAN_NAME, json.dumps(plan, indent=1).encode())

    def _made_there(self) -> dict[str, Any] | None:
        """The request that made what is there; empty for what nothing is known of, none for an empty place."""
        if self._store.stat(INDEX_NAME) is not None:
            return dict(read_index(self.address).made_by.get("request", {}))
        if self._store.stat(PLAN_NAME) is not None:
            return dict(json.loads(self._store.read_bytes(PLAN_NAME)))
        return {} if any(found.key.endswith(".tar") for found in self._store.list()) else None

    def _difference(self, made: dict[str, Any]) -> str:
        if not made:
            return "tars of unknown making. Choose another place, or replace them with --overwrite."
        what = "a set" if self._store.stat(INDEX_NAME) is not None else "an unfinished set"
        names = dict.fromkeys((*self._request, *made))
        differing = [name for name in names if made.get(name) != self._request.get(name)]
        differences = ", ".join(_difference(name, made.get(name), self._request.get(name)) for name in differing)
        more = "" if differing != ["source"] else "add what is new with --append, "
        return f"{what} made otherwise: {differences}. Choose another place, {more}or replace it with --overwrite."

    def _clear(self) -> None:
        """The index goes first: without it, what is left is no set."""
        self._store.delete(INDEX_NAME)
        for found in list(self._store.list()):
            if (found.key.endswith(".tar") and "/" not in found.key) or found.key.startswith((GENERATIONS, SOURCES)):
                self._store.delete(found.key)
        self._remove_traces()

    def _remove_traces(self) -> None:
        for found in list(self._store.list(self._workplace + PROGRESS)):
            self._store.delete(found.key)
        self._store.delete(self._workplace + PLAN_NAME)

    def _read_progress(self) -> None:
        for found in self._store.list(self._workplace + PROGRESS):
            name = found.key.removeprefix(self._workplace + PROGRESS).removesuffix(".json") + ".tar"
            outcome = ShardOutcome.model_validate_json(self._store.read_bytes(found.key), strict=True)
            published = self._store.stat(name)
            if outcome.record is None or (published and published.bytes == outcome.record.info.bytes):
                self.outcomes[name] = outcome
        self.resumed_shards = len(self.outcomes)

    def open_shards(self) -> Iterator[tuple[str, list[Item]]]:
        """Name and items of the tars that are still to be made."""
        if self.index is not None:
            return
        size = self._plan.samples_per_shard(self.name)
        for number, start in enumerate(range(0, len(self.items), size)):
            if (name := self._tar_name(number)) not in self.outcomes:
                yield name, self.items[start : start + size]

    def _tar_name(self, number: int) -> str:
        return shard_name(number)

    def note(self, name: str, outcome: ShardOutcome) -> None:
        """Remembers a tar that is done, here and at the destination; there without reasons, which may quote files."""
        self.outcomes[name] = outcome
        text = outcome.model_dump_json(exclude={"skipped": {"__all__": {"reason", "file"}}})
        self._store.write_bytes(f"{self._workplace}{PROGRESS}{name.removesuffix('.tar')}.json", text.encode())

    def finish(self, mode: PictureMode | None) -> None:
        """Publishes the index.

        Raises:
            RequestError: not one file could be read.
        """
        outcomes = [self.outcomes[name] for name in sorted(self.outcomes)]
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        skipped = [item for outcome in outcomes for item in outcome.skipped]
        if records:
            self._publish(records, mode, self._made_by(outcomes, skipped))
        self._remove_traces()
        if not records:
            self._refuse(skipped)

    def _refuse(self, skipped: list[SkippedItem]) -> None:
        first = skipped[0]
        file = first.file or self.file_of(first.key)
        raise RequestError(
            f"{self.address}: none of {len(self.items)} files could be read. "
            f"The first was {self._plan.called(file)}: {first.reason or first.cause}."
        )

    def _publish(self, records: list[PublishedShard], mode: PictureMode | None, made_by: dict[str, Any]) -> None:
        self._write_sources(sources_name(1))
        self.index = publish_index(
            self._store,
            records,
            mode="volume" if mode is None else "planes" if self._plan.channels else mode,
            encoding="npy" if mode is None or self._plan.channels else self._plan.options.coding,
            labels=self._plan.label_names(),
            classes=self._plan.classes(),
            made_by=made_by,
        )

    def _write_sources(self, name: str) -> None:
        """What of the source is in the tars; what could not be read is not, and is tried again by who adds files."""
        left_out = {item.key for outcome in self.outcomes.values() for item in outcome.skipped}
        taken = [item for item in self.items if item.key not in left_out]
        groups = {item.key: self._plan.groups[item.key] for item in taken if item.key in self._plan.groups}
        found = Sources({item.key: self._plan.version_of(item) for item in taken}, groups)
        self._store.write_bytes(name, SOURCES_FORMAT.dump(found))

    def _made_by(self, outcomes: list[ShardOutcome], skipped: list[SkippedItem]) -> dict[str, Any]:
        return {
            "tool": "dira_dist",
            "version": version("dira-dist"),
            "libraries": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
            "request": self._request,
            "files": sum(outcome.files for outcome in outcomes),
            "converted": sum(outcome.converted for outcome in outcomes),
            "lost_colour": sum(outcome.lost_colour for outcome in outcomes),
            "padded": sum(outcome.padded for outcome in outcomes),
            "skipped": [[item.key, item.cause] for item in skipped],
            "notes": [[note.key, note.text] for outcome in outcomes for note in outcome.notes],
        }

    def file_of(self, key: str) -> str:
        """The first file of an item of this part."""
        return next(item.files[0] for item in self.items if item.key == key)

    def skipped(self) -> Iterator[tuple[str, str]]:
        """``(file, reason)`` of the files of this part that are not in the set."""
        files = {item.key: item.files[0] for item in self.items}
        for key, cause in self._earlier.get("skipped", []):
            yield files[key], f"an earlier run could not read it ({cause}); --overwrite tells why"
        for outcome in self.outcomes.values():
            for item in outcome.skipped:
                yield item.file or files[item.key], item.reason or f"an earlier run could not read it ({item.cause})"

    def notes(self) -> Iterator[tuple[str, str]]:
        """``(file, text)`` of what a user should know of files of this part that are in the set."""
        files = {item.key: item.files[0] for item in self.items}
        for key, text in self._earlier.get("notes", []):
            yield files[key], text
        for outcome in self.outcomes.values():
            for note in outcome.notes:
                yield files[note.key], note.text

    def converted(self) -> int:
        """Files whose depth or colour the set's mode does not keep."""
        return self._sum_of("converted")

    def lost_colour(self) -> int:
        """Those of them that have become grey."""
        return self._sum_of("lost_colour")

    def padded(self) -> int:
        """Volumes that are smaller than the cubes cut of them."""
        return self._sum_of("padded")

    def _sum_of(self, name: str) -> int:
        counted: list[int] = [getattr(outcome, name) for outcome in self.outcomes.values()]
        return int(self._earlier.get(name, 0)) + sum(counted)

    @property
    def _earlier(self) -> dict[str, Any]:
        """What the run that has made the whole part said of it; empty where this one makes any of it."""
        return self.index.made_by if self.was_complete and self.index is not None else {}
