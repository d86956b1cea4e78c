"""What ``dira-dist shard`` will do, decided before it does any of it: which files, under which keys, in which part."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.ingest.centres import Centre, Centres
from dira_dist.data.ingest.columns import KeptColumns, Scalar
from dira_dist.data.ingest.depths import Depth
from dira_dist.data.ingest.headers import Header
from dira_dist.data.ingest.intensity import Mapping as Greying
from dira_dist.data.ingest.items import VOLUME_KINDS, Item
from dira_dist.data.ingest.matching import named_in
from dira_dist.data.ingest.names import Naming, by_keys, printable
from dira_dist.data.ingest.options import FOLDERS, Content, ShardOptions
from dira_dist.data.ingest.salt import Salt
from dira_dist.data.ingest.tables import Labels, Table

_NOT_IN_THE_BYTES = {"salt_file", "processes", "strict", "overwrite", "append", "report", "names"}
_OF_CUBES = {"cube", "cubes_per_volume", "margin", "content_filter", "centres", "centres_in", "seed"}
WHOLE = "all"  # the only part's name where there is no split
NO_GROUPS = "none"  # in place of what to group by: every file by itself


@dataclass
class Plan:
    """The work, and what is known about it beforehand.

    Attributes:
        source: where the files are.
        options: as they were given; of cubes with the intensity that was settled.
        content: images, slices, volumes or cubes.
        parts: items by part, each in the order of the keys, which is random and always the same.
        groups: salted hash of the group of each item's key; empty where nothing groups.
        channels: names of a sample's channels; none where it has one. ``channel_table`` says which files they are.
        labels, columns, boxes, centres: tables; ``masks`` the mask's file by the item's key.
        depths: what the first bytes of flat images tell of their pixels, by path.
        copies: files that hold the same bytes, together.
        versions: size and ETag, or time, of each file, by path.
        headers: of the DICOM files that are read, by path.
        scales: grey scales that hold for all slices of a series, by file.
        grouped_by: what keeps samples in one part; empty where nothing does.
        skipped: ``(file, reason)`` of files that will not be read.
        notes: ``(file, text)`` of what a user should know of files that are read.
        ignored: why files are not read, by path, as the end of a sentence.
        unlabelled: images without a row in the label table.
        source_digest: salted, over names, sizes and ETags of all that will be read.
        warnings: for the report; ``remarks`` what is said, but no warning.
        unmatched: masks, and rows by table, that belong to no image.
    """

    source: str
    options: ShardOptions
    salt: Salt
    content: Content = "images"
    parts: dict[str, list[Item]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    channel_table: Table | None = None
    labels: Labels | None = None
    columns: KeptColumns | None = None
    boxes: Table | None = None
    centres: Centres | None = None
    masks: dict[str, str] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)
    copies: list[tuple[str, ...]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    headers: dict[str, Header] = field(default_factory=dict)
    scales: dict[str, Greying] = field(default_factory=dict)
    grouped_by: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    source_digest: str = ""
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def called(self) -> Naming:
        """How files are called where others may read it."""
        return Naming(self.salt, by_keys(self.options.names))

    @property
    def items(self) -> int:
        return sum(len(items) for items in self.parts.values())

    @property
    def tables(self) -> list[Table]:
        """The tables that were given."""
        centres = self.centres.table if self.centres else None
        return [table for table in (self.labels.table if self.labels else None, self.boxes, centres) if table]

    def labels_of(self, item: Item) -> dict[str, Any]:
        """Label values of an item, from the table or its folder."""
        if self.options.labels == FOLDERS:
            return {"label": printable(PurePosixPath(item.files[0]).parent.name)}
        if self.labels is None:
            return {}
        return self.labels.of(named_in(self.labels.table, item))

    def columns_of(self, item: Item) -> dict[str, Scalar]:
        """What rides along with an item beside its labels."""
        return self.columns.of(named_in(self.columns.table, item)) if self.columns else {}

    def centres_of(self, item: Item) -> tuple[Centre, ...] | None:
        """Where its cubes lie; none where no table says it."""
        return self.centres.of(named_in(self.centres.table, item)) if self.centres else None

    def mask_of(self, item: Item) -> str | None:
        """The mask's file, if the item has one."""
        return self.masks.get(item.key)

    def version_of(self, item: Item) -> str:
        """What tells whether the item's files have changed since; salted."""
        return self.salt.digest("version", "\n".join(self.versions[file] for file in item.files))

    def label_names(self) -> tuple[str, ...]:
        if self.options.labels == FOLDERS:
            return ("label",)
        tables = (self.labels, self.centres)
        return tuple(dict.fromkeys(name for table in tables if table for name in table.kinds))

    def classes(self) -> dict[str, tuple[str, ...]]:
        """The names that categorical labels take anywhere in the archive, the same for all parts."""
        if self.options.labels == FOLDERS:
            folders = {self.labels_of(item)["label"] for items in self.parts.values() for item in items}
            return {"label": tuple(sorted(folders))}
        classes: dict[str, set[str]] = {}
        for table in (self.labels, self.centres):
            for label, names in table.classes.items() if table else ():
                classes.setdefault(label, set()).update(names)
        return {label: tuple(sorted(names)) for label, names in classes.items()}

    def request(self, part: str) -> dict[str, Any]:
        """All that decides what the bytes of a part are; JSON-ready and free of names, for the set's index."""
        table = self.labels.table if self.labels else None
        return {
            **self.options.model_dump(mode="json", exclude=_NOT_IN_THE_BYTES | self._not_said()),
            "content": self.content,
            "part": part,
            "samples_per_shard": self.samples_per_shard(part),
            "source": self.source_digest,
            "salt": self.salt.digest("fingerprint", "", 8),
            "labels": FOLDERS if self.options.labels == FOLDERS else self._digest_of(table),
            "boxes": self._digest_of(self.boxes),
            "masks": bool(self.options.masks),
            **({"centres": self._digest_of(self.centres.table)} if self.centres else {}),
            **(
                {"channels": self.channels, "channel_table": self._digest_of(self.channel_table)}
                if self.channels
                else {}
            ),
        }

    def _not_said(self) -> set[str]:
        """Options that sets of 0.2.0 did not have, where they decide nothing: those sets are still asked for."""
        newer = {"keep_columns", "spacing", "channels"} | (set() if self.content == "cubes" else _OF_CUBES)
        return {name for name in newer if getattr(self.options, name) == ShardOptions.model_fields[name].default}

    def _digest_of(self, table: Table | None) -> str | None:
        return self.salt.digest("table", table.sha256) if table else None

    def samples_per_shard(self, part: str) -> int:
        """Files per tar: about 64 tars, within bounds that suit images or volumes."""
        if self.options.samples_per_shard is not None:
            return self.options.samples_per_shard
        volumes = self.content != "images" or any(item.kind in VOLUME_KINDS for item in self.parts[part])
        low, high = (4, 128) if volumes else (64, 2000)
        return min(high, max(low, -(-len(self.parts[part]) // 64)))


def strict_refusal(name: str, reason: str) -> RequestError:
    """What is raised under ``strict`` for a file, called by ``name``, that cannot be read."""
    return RequestError(
        f"strict: {name} cannot go into the set: {printable(reason)}. "
        "Repair or remove it, or go on without --strict, which skips such files and names them in the report."
    )
