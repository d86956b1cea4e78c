"""What ``dira-dist shard`` will do, decided before it does any of it: which files, under which keys, in which part."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from dira_dist.config import RequestError
from dira_dist.data.ingest.listing import Header, list_source, read_headers, without_suffix
from dira_dist.data.ingest.names import printable
from dira_dist.data.ingest.options import FOLDERS, Content, ShardOptions, check_split
from dira_dist.data.ingest.readers import FileKind
from dira_dist.data.ingest.salt import Salt, part_of, read_salt
from dira_dist.data.ingest.tables import Labels, Table, names_of, read_boxes, read_labels
from dira_dist.data.store import open_store

ItemKind = Literal["raster", "tiff", "dicom", "nifti", "series"]

_NOT_IN_THE_BYTES = {"salt_file", "processes", "strict", "overwrite", "report"}
WHOLE = "all"  # the only part's name where there is no split
_PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id")


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one sample, or one for each frame: a file, or the files of a series."""

    key: str
    kind: ItemKind
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages and reports call it."""
        first = printable(self.files[0])
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more of its series"


@dataclass
class Plan:
    """The work, and what is known about it beforehand.

    Attributes:
        source: where the files are.
        options: as they were given.
        content: images or volumes.
        parts: items by part, each in the order of the keys, which is random and always the same.
        groups: salted hash of the group of each item's key; empty where nothing groups.
        labels, boxes: tables; ``masks`` the mask's file by the image's path without suffix.
        skipped: ``(file, reason)`` of files that will not be read.
        ignored: files that are no images.
        unlabelled: images without a row in the label table.
        source_digest: salted, over names, sizes and ETags of all that will be read.
        warnings: for the report.
    """

    source: str
    options: ShardOptions
    salt: Salt
    content: Content = "images"
    parts: dict[str, list[Item]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    labels: Labels | None = None
    boxes: Table | None = None
    masks: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    unlabelled: int = 0
    source_digest: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def items(self) -> int:
        return sum(len(items) for items in self.parts.values())

    def labels_of(self, item: Item) -> dict[str, Any]:
        """Label values of an item, from the table or its folder."""
        if self.options.labels == FOLDERS:
            return {"label": printable(PurePosixPath(item.files[0]).parent.name)}
        if self.labels is None:
            return {}
        return self.labels.of(_named_in(self.labels.table, item))

    def mask_of(self, item: Item) -> str | None:
        """The mask's file: under the image's path, else under its name alone."""
        name = without_suffix(item.files[0])
        return self.masks.get(name) or self.masks.get(PurePosixPath(name).name)

    def label_names(self) -> tuple[str, ...]:
        if self.options.labels == FOLDERS:
            return ("label",)
        return tuple(self.labels.kinds) if self.labels else ()

    def classes(self) -> dict[str, tuple[str, ...]]:
        """The names that categorical labels take anywhere in the archive, the same for all parts."""
        if self.options.labels == FOLDERS:
            folders = {self.labels_of(item)["label"] for items in self.parts.values() for item in items}
            return {"label": tuple(sorted(folders))}
        return dict(self.labels.classes) if self.labels else {}

    def request(self, part: str) -> dict[str, Any]:
        """All that decides what the bytes of a part are; JSON-ready and free of names, for the set's index."""
        table = self.labels.table if self.labels else None
        return {
            **self.options.model_dump(mode="json", exclude=_NOT_IN_THE_BYTES),
            "content": self.content,
            "part": part,
            "samples_per_shard": self.samples_per_shard(part),
            "source": self.source_digest,
            "salt": self.salt.digest("fingerprint", "", 8),
            "labels": FOLDERS if self.options.labels == FOLDERS else self._digest_of(table),
            "boxes": self._digest_of(self.boxes),
            "masks": bool(self.options.masks),
        }

    def _digest_of(self, table: Table | None) -> str | None:
        return self.salt.digest("table", table.sha256) if table else None

    def samples_per_shard(self, part: str) -> int:
        """Files per tar: about 64 tars, within bounds that suit images or volumes."""
        if self.options.samples_per_shard is not None:
            return self.options.samples_per_shard
        low, high = (64, 2000) if self.content == "images" else (4, 128)
        return min(high, max(low, -(-len(self.parts[part]) // 64)))


def _named_in(table: Table, item: Item) -> str:
    """The name by which a table knows an item: that of its file, or for a series of its folder or any slice."""
    if item.kind != "series":
        return item.files[0]
    folder = str(PurePosixPath(item.files[0]).parent)
    return next((name for name in (folder, *item.files) if table.rows_for(name)), folder)


def make_plan(source: str, options: ShardOptions) -> Plan:
    """Lists the source, reads the tables and decides on every file.

    Raises:
        RequestError: what is asked for does not fit what is there, with the remedy.
    """
    if options.split is not None:
        check_split(options.split)
    if options.mode == "I;16" and options.coding == "jpeg":
        raise RequestError("mode I;16 with coding jpeg: JPEG holds 8 bits; choose png, or mode L.")
    salt = read_salt(options.salt_file)
    listing = list_source(source, options.masks, salt)
    found_content: Content = "volumes" if set(listing.files.values()) == {"nifti"} else "images"
    plan = Plan(
        source=source,
        options=options,
        salt=salt,
        content=options.content or found_content,
        masks=listing.masks,
        ignored=listing.ignored,
        source_digest=listing.digest,
    )
    for file, reason in listing.unreadable.items():
        _skip_unreadable(plan, file, reason)
    _read_tables(plan)
    headers = _needed_headers(plan, listing.files)
    items = _items_of(listing.files, headers, plan)
    _check_names(plan, items)
    _check_masks(plan, items)
    _assign_parts(plan, items, headers)
    plan.unlabelled = sum(1 for part in plan.parts.values() for item in part if not _has_labels(plan, item))
    if plan.labels and plan.unlabelled == plan.items:
        example, row = next(iter(plan.parts.values()))[0].name, next(iter(plan.labels.table.rows))
        raise RequestError(
            f"{options.labels}: no image has a row there. An image is called {example!r}, a row {row!r}; "
            "rows name a file by its path in the source, its name, or its name without suffix."
        )
    return plan


def _has_labels(plan: Plan, item: Item) -> bool:
    table = plan.labels.table if plan.labels else None
    return table is None or bool(table.rows_for(_named_in(table, item)))


def _read_tables(plan: Plan) -> None:
    options = plan.options
    if options.labels is not None and options.labels != FOLDERS:
        plan.labels = read_labels(options.labels, options.image_column, options.label_columns, options.group_by)
    if options.boxes is not None:
        plan.boxes = read_boxes(options.boxes, options.image_column)
    columns = plan.labels.table.columns if plan.labels else ()
    if options.group_by and options.group_by not in (*columns, "PatientID", "folder"):
        found = ", ".join(repr(column) for column in columns) or "none, for no label table was given"
        raise RequestError(
            f"group_by {options.group_by!r}: the label table has no such column; its columns are {found}. "
            "'PatientID' groups by the DICOM header, 'folder' by the first folder of the path."
        )
    if options.split and not options.group_by and any(column.lower() in _PATIENT_COLUMNS for column in columns):
        plan.warnings.append(
            "the split is by image, though the label table names patients: images of one patient may lie in two parts. "
            "Split by patient with --group-by."
        )


def _needed_headers(plan: Plan, files: Mapping[str, FileKind]) -> dict[str, Header]:
    """Headers of the DICOM files, where the plan hangs on them."""
    columns = plan.labels.table.columns if plan.labels else ()
    by_patient = plan.options.group_by == "PatientID" and "PatientID" not in columns
    if not by_patient and plan.content != "volumes":
        return {}
    return read_headers(open_store(plan.source), (file for file, kind in files.items() if kind == "dicom"))


def _items_of(files: Mapping[str, FileKind], headers: Mapping[str, Header], plan: Plan) -> list[Item]:
    """Files as items; those that do not fit the content are skipped by name."""
    if plan.content == "images":
        return list(_image_items(files, headers, plan))
    series: dict[str, list[str]] = {}
    items: list[Item] = []
    for file, kind in files.items():
        if kind == "nifti":
            items.append(Item(plan.salt.digest("sample", file), "nifti", (file,)))
        elif kind != "dicom":
            plan.skipped.append((file, "it is a flat image in a set of volumes"))
        elif headers[file].problem:
            _skip_unreadable(plan, file, headers[file].problem)
        else:
            series.setdefault(headers[file].series, []).append(file)
    digest = plan.salt.digest
    return items + [Item(digest("sample", uid), "series", tuple(slices)) for uid, slices in series.items()]


def _skip_unreadable(plan: Plan, file: str, reason: str) -> None:
    if plan.options.strict:
        raise strict_refusal(file, reason)
    plan.skipped.append((file, printable(reason)))


def strict_refusal(file: str, reason: str) -> RequestError:
    """What is raised under ``strict`` for a file that cannot be read."""
    return RequestError(
        f"strict: {printable(file)} cannot go into the set: {printable(reason)}. "
        "Repair or remove it, or go on without --strict, which skips such files and names them in the report."
    )


def _image_items(files: Mapping[str, FileKind], headers: Mapping[str, Header], plan: Plan) -> Iterator[Item]:
    for file, kind in files.items():
        if kind == "nifti":
            plan.skipped.append((file, "it is a volume in a set of images; content volumes stores it whole"))
        elif file in headers and headers[file].problem:
            _skip_unreadable(plan, file, headers[file].problem)
        else:
            yield Item(plan.salt.digest("sample", file), kind, (file,))


def _check_names(plan: Plan, items: Iterable[Item]) -> None:
    """A table that calls two files by one name would give one's labels to the other."""
    tables = [table for table in (plan.labels.table if plan.labels else None, plan.boxes) if table]
    files = [file for item in items for file in item.files] if tables else []
    for position in (1, 2):
        counts = Counter(names_of(file)[position] for file in files)
        for table in tables:
            for file in files:
                name = names_of(file)[position]
                if (
                    counts[name] > 1
                    and name in table.rows
                    and not any(n in table.rows for n in names_of(file)[:position])
                ):
                    raise RequestError(
                        f"{table.address}: {name!r} could be any of {counts[name]} files, {file!r} for one; "
                        f"in column {plan.options.image_column!r} write paths within the source."
                    )


def _check_masks(plan: Plan, items: Iterable[Item]) -> None:
    """A mask that two images could mean would lie on the wrong one."""
    images: dict[str, list[str]] = {}
    for item in items:
        mask = plan.mask_of(item)
        if mask is not None:
            images.setdefault(mask, []).append(item.name)
    for mask, names in images.items():
        if len(names) > 1:
            raise RequestError(
                f"masks {plan.options.masks}: {printable(mask)!r} could be the mask of any of {len(names)} images, "
                f"{names[0]!r} for one; lay each mask under the path of its image within the source."
            )


def _assign_parts(plan: Plan, items: Iterable[Item], headers: Mapping[str, Header]) -> None:
    split = plan.options.split or {WHOLE: 1.0}
    plan.parts = {part: [] for part in split}
    for item in sorted(items, key=lambda item: item.key):
        group = item.key
        if plan.options.group_by:
            value = _group_of(plan, item, headers)
            if not value:
                plan.skipped.append((item.name, f"it has no {plan.options.group_by} to group by"))
                continue
            group = plan.salt.digest("group", value)
            plan.groups[item.key] = group
        plan.parts[part_of(plan.salt.fraction(group), split)].append(item)
    empty = [part for part, found in plan.parts.items() if not found]
    if empty:
        groups = len(set(plan.groups.values())) or plan.items
        raise RequestError(
            f"part {empty[0]!r} of the split got nothing: there are {groups} "
            f"{plan.options.group_by or 'image'} groups in all, and the hash of each decides. "
            "Give the part a larger share, or leave the split out."
        )


def _group_of(plan: Plan, item: Item, headers: Mapping[str, Header]) -> str:
    group_by = plan.options.group_by
    assert group_by is not None
    if plan.labels and group_by in plan.labels.table.columns:
        rows = plan.labels.table.rows_for(_named_in(plan.labels.table, item))
        return rows[0][group_by].strip() if rows else ""
    if group_by == "folder":
        folders = PurePosixPath(item.files[0]).parts[:-1]
        return folders[0] if folders else ""
    header = headers.get(item.files[0])
    return header.patient if header else ""
