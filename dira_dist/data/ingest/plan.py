"""What ``dira-dist shard`` will do, decided before it does any of it: which files, under which keys, in which part."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.ingest.assembly import tilt_deg
from dira_dist.data.ingest.centres import Centre, Centres, read_centres
from dira_dist.data.ingest.columns import KeptColumns, Scalar, read_columns
from dira_dist.data.ingest.depths import Depth
from dira_dist.data.ingest.dicom import pixel_digest
from dira_dist.data.ingest.headers import Header, read_headers
from dira_dist.data.ingest.intensity import Mapping as Greying
from dira_dist.data.ingest.items import VOLUME_KINDS as VOLUME_KINDS
from dira_dist.data.ingest.items import Item as Item
from dira_dist.data.ingest.listing import MaskFiles, list_source, one_file_of, without_suffix
from dira_dist.data.ingest.matching import check_names, named_in, unmatched_rows
from dira_dist.data.ingest.names import Naming, by_keys, printable
from dira_dist.data.ingest.options import FOLDERS, NOT_SAID, Content, ShardOptions, check_content, check_split
from dira_dist.data.ingest.pairing import MaskNames, pair
from dira_dist.data.ingest.patients import identifier, near_spellings
from dira_dist.data.ingest.readers import FileKind, UnreadableError, quiet_decoders
from dira_dist.data.ingest.salt import Salt, part_of, read_salt
from dira_dist.data.ingest.series import left_out, shared_identity, volumes_of
from dira_dist.data.ingest.stacks import Plane, Stack
from dira_dist.data.ingest.tables import (
    Labels,
    Table,
    column_of_groups,
    patient_column,
    read_boxes,
    read_labels,
    require_column,
)
from dira_dist.data.store import open_store

_NOT_IN_THE_BYTES = {"salt_file", "processes", "strict", "overwrite", "report", "names"}
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
        labels, columns, boxes, centres: tables; ``masks`` the mask's file by the item's key.
        depths: what the first bytes of flat images tell of their pixels, by path.
        copies: files that hold the same bytes, together.
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
    labels: Labels | None = None
    columns: KeptColumns | None = None
    boxes: Table | None = None
    centres: Centres | None = None
    masks: dict[str, str] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)
    copies: list[tuple[str, ...]] = field(default_factory=list)
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
        }

    def _not_said(self) -> set[str]:
        """Options that sets of 0.2.0 did not have, where they decide nothing: those sets are still asked for."""
        newer = {"keep_columns", "spacing"} | (set() if self.content == "cubes" else _OF_CUBES)
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


def make_plan(source: str, options: ShardOptions) -> Plan:
    """Lists the source, reads the tables and decides on every file.

    Raises:
        RequestError: what is asked for does not fit what is there, with the remedy.
    """
    check_content(options)
    if options.split is not None:
        check_split(options.split)
    if options.mode == "I;16" and options.coding == "jpeg":
        raise RequestError("mode I;16 with coding jpeg: JPEG holds 8 bits; choose png, or mode L.")
    salt = read_salt(options.salt_file)
    listing = list_source(source, options.masks, salt, options.include)
    found_content: Content = "volumes" if set(listing.files.values()) <= {"nifti", "itk"} else "images"
    plan = Plan(
        source=source,
        options=options,
        salt=salt,
        content=options.content or found_content,
        depths=listing.depths,
        copies=listing.copies,
        ignored=listing.ignored,
        source_digest=listing.digest,
    )
    if options.strict and listing.minded:
        first = min(listing.minded)
        raise strict_refusal(plan.called(first), f"it {listing.ignored[first]}")
    for file, reason in listing.unreadable.items():
        _skip_unreadable(plan, file, reason)
    _read_tables(plan)
    headers = plan.headers = _headers_of(plan, listing.files)
    items = _items_of(listing.files, headers, plan)
    if not items:
        raise _nothing_left(plan)
    if plan.content == "cubes":
        _settle_intensity(plan, items)
    check_names(plan.called, options, plan.tables, items)
    _pair_masks(plan, items, listing.masks)
    for table in plan.tables:
        unmatched = unmatched_rows(plan.called, table, items)
        if unmatched:
            name = PurePosixPath(table.address).name
            plan.unmatched[name] = tuple(map(printable, unmatched))
            shown = ", ".join(map(plan.called.row, unmatched[:3])) + (", ..." if len(unmatched) > 3 else "")
            plan.warnings.append(f"{len(unmatched)} rows of {name} name no image of the source: {shown}")
    _assign_parts(plan, _with_centres(plan, items), headers)
    plan.unlabelled = sum(1 for part in plan.parts.values() for item in part if not _has_labels(plan, item))
    return plan


def _settle_intensity(plan: Plan, items: Sequence[Item]) -> None:
    """Where no intensity was said: the Hounsfield units of CT, percentiles of MR, if the headers say what it is.

    Raises:
        RequestError: they do not, or they say something else.
    """
    if plan.options.intensity != NOT_SAID:
        return
    kinds = {_modality_of(item, plan.headers) for item in items}
    modality = kinds.pop() if len(kinds) == 1 else ""
    if modality not in _USUAL_INTENSITY:
        found = ", ".join(sorted(kind or "files that do not say what they are" for kind in kinds | {modality} if kind))
        raise RequestError(
            f"content cubes: which values of {found or 'files that do not say what they are'} become black and white? "
            "Cubes are stored on 16 bits, and one rule holds for the set: --intensity range:-1000,1000 for CT in HU, "
            "--intensity percentiles:0.5,99.5 (of each volume by itself) for MR."
        )
    plan.options = plan.options.model_copy(update={"intensity": _USUAL_INTENSITY[modality]})
    plan.remarks.append(f"no intensity was said: {modality} is stored with --intensity {_USUAL_INTENSITY[modality]}")


_USUAL_INTENSITY = {"CT": "range:-1000,1000", "MR": "percentiles:0.5,99.5"}


def _modality_of(item: Item, headers: Mapping[str, Header]) -> str:
    header = headers.get(item.files[0])
    return header.modality if header else ""


def _with_centres(plan: Plan, items: Sequence[Item]) -> list[Item]:
    """Items that cubes are cut of: where a table says where, those that it has rows of."""
    centres = {item.key: plan.centres_of(item) for item in items}
    plan.skipped += [
        (item.files[0], "no row of the table of centres is of it") for item in items if centres[item.key] == ()
    ]
    return [item for item in items if centres[item.key] != ()]


def _has_labels(plan: Plan, item: Item) -> bool:
    table = plan.labels.table if plan.labels else None
    return table is None or bool(table.rows_for(named_in(table, item)))


def _read_tables(plan: Plan) -> None:
    options = plan.options
    wanted = options.label_columns
    if options.centres is not None:
        plan.centres = read_centres(options.centres, wanted, options.group_by)
        wanted = wanted and tuple(column for column in wanted if column not in plan.centres.kinds)
        if wanted and options.labels in (None, FOLDERS):
            require_column(options.centres, plan.centres.table.columns, wanted[0])
    if options.labels is not None and options.labels != FOLDERS:
        plan.labels = read_labels(options.labels, options.image_column, wanted, options.group_by)
    if options.keep_columns:
        plan.columns = _kept_columns(plan)
    if options.boxes is not None:
        plan.boxes = read_boxes(options.boxes, options.image_column)
    columns = tuple(
        dict.fromkeys(column for table in (plan.labels, plan.centres) if table for column in table.table.columns)
    )
    if options.group_by and options.group_by not in (*columns, "PatientID", "folder", NO_GROUPS):
        found = ", ".join(repr(column) for column in columns) or "none, for no label table was given"
        raise RequestError(
            f"group_by {options.group_by!r}: the label table has no such column; its columns are {found}. "
            "'PatientID' groups by the DICOM header, 'folder' by the first folder of the path, 'none' not at all."
        )
    problems = [problem for table in plan.tables for problem in table.problems]
    problems += plan.columns.problems if plan.columns else ()
    if options.strict and problems:
        raise RequestError(f"strict: {problems[0]}.")
    plan.warnings += problems


def _kept_columns(plan: Plan) -> KeptColumns:
    options = plan.options
    if plan.labels is None:
        raise RequestError(
            f"keep_columns {', '.join(options.keep_columns)}: there is no label table that they could be columns of; "
            "give one with --labels FILE.csv."
        )
    return read_columns(plan.labels, options.keep_columns, options.image_column, options.group_by)


def _headers_of(plan: Plan, files: Mapping[str, FileKind]) -> dict[str, Header]:
    """Headers of the DICOM files, without those of objects that are no samples."""
    dicom = [file for file, kind in files.items() if kind == "dicom"]
    headers = read_headers(open_store(plan.source), dicom, planes=plan.content != "images")
    not_asked_for = left_out(headers, plan.options.include)
    if len(not_asked_for) == len(files):
        plan.warnings.append("the source holds nothing but DICOM objects that are left out otherwise; they are read")
        return headers
    plan.skipped += sorted(not_asked_for.items())
    plan.notes += shared_identity(headers)
    return {file: header for file, header in headers.items() if file not in not_asked_for}


def _nothing_left(plan: Plan) -> RequestError:
    of_reason: dict[str, list[str]] = {}
    for file, reason in plan.skipped:
        of_reason.setdefault(reason, []).append(file)
    reasons = [f"{plan.called.several(files)}: {reason}" for reason, files in of_reason.items()]
    more = f"; and {len(reasons) - 3} reasons more" if len(reasons) > 3 else ""
    return RequestError(
        f"{plan.source}: none of {len(plan.skipped)} files can go into the set. {'; '.join(reasons[:3])}{more}."
    )


def _items_of(files: Mapping[str, FileKind], headers: Mapping[str, Header], plan: Plan) -> list[Item]:
    """Files as items; those that do not fit the content are skipped by name."""
    items: list[Item] = []
    for file, kind in files.items():
        key = plan.salt.digest("sample", file)
        if kind == "nifti":
            items += _nifti_item(file, files, key, plan)
        elif kind == "itk":
            items.append(Item(key, "itk", (file,)))
        elif kind == "dicom":
            items += _dicom_item(file, headers, key, plan)
        elif plan.content in ("volumes", "cubes"):
            plan.skipped.append((file, f"it is a flat image in a set of {plan.content}"))
        else:
            items.append(Item(key, kind, (file,)))
    return items if plan.content == "images" else items + _series_items(headers, plan)


def _nifti_item(file: str, files: Mapping[str, FileKind], key: str, plan: Plan) -> list[Item]:
    """A NIfTI file, or the two of a pair, under the name of the header."""
    stem, suffix = file[:-4], file[-4:]
    if suffix.lower() not in (".hdr", ".img"):
        return [Item(key, "nifti", (file,))]
    other = next((stem + end for end in _PAIR[suffix.lower()] if stem + end in files), None)
    if other is None:
        needed = f"of the same name with the suffix {_PAIR[suffix.lower()][0]}"
        _skip_unreadable(
            plan, file, f"it is half of a pair of header and voxels, whose other half, {needed}, is not there"
        )
    elif suffix.lower() == ".hdr":
        return [Item(key, "nifti", (file, other))]
    return []


_PAIR = {".hdr": (".img", ".IMG"), ".img": (".hdr", ".HDR")}


def _dicom_item(file: str, headers: Mapping[str, Header], key: str, plan: Plan) -> list[Item]:
    """A DICOM file as an item of its own, in a set of images."""
    if file not in headers:
        return []  # left out by name
    if headers[file].problem:
        _skip_unreadable(plan, file, headers[file].problem)
        return []
    return [Item(key, "dicom", (file,))] if plan.content == "images" else []


def _series_items(headers: Mapping[str, Header], plan: Plan) -> list[Item]:
    """The volumes that DICOM series hold; what is in none is skipped by name."""
    store = open_store(plan.source)

    def digest(plane: Plane) -> str:
        try:
            with one_file_of(store), quiet_decoders():
                return pixel_digest(store.read_bytes(plane.file), plane.frame)
        except UnreadableError:
            return plane.file  # it is like no other, and is named when it is read

    readable = {file: header for file, header in headers.items() if not header.problem}
    found = volumes_of(readable, plan.options.spacing_tolerance, digest)
    for file, reason in found.left:
        _skip_unreadable(plan, file, reason)
    plan.notes += found.notes
    items = []
    for name, stack in found.stacks:
        files = tuple(dict.fromkeys(plane.file for plane in stack.planes))
        if stack.tilted and plan.options.tilt == "refuse":
            for file in files:
                _skip_unreadable(plan, file, _tilt_reason(stack))
            continue
        if stack.tilted:
            plan.notes.append((files[0], f"{_tilt_reason(stack)}: its slices are moved upright"))
        items.append(Item(plan.salt.digest("sample", name), "series", files, stack))
    return items


def _tilt_reason(stack: Stack) -> str:
    return f"its gantry is tilted by {tilt_deg(stack):.3g} degrees"


def _skip_unreadable(plan: Plan, file: str, reason: str) -> None:
    if plan.options.strict:
        raise strict_refusal(plan.called(file), reason)
    plan.skipped.append((file, printable(reason)))


def strict_refusal(name: str, reason: str) -> RequestError:
    """What is raised under ``strict`` for a file, called by ``name``, that cannot be read."""
    return RequestError(
        f"strict: {name} cannot go into the set: {printable(reason)}. "
        "Repair or remove it, or go on without --strict, which skips such files and names them in the report."
    )


def _pair_masks(plan: Plan, items: Sequence[Item], masks: MaskFiles) -> None:
    """Finds each item's mask, and says which masks belong to none.

    Raises:
        RequestError: none belongs to any, or one could be the mask of several images.
    """
    if not masks:
        return
    by_key = {item.key: item for item in items}
    pairs = pair({item.key: _mask_names(item) for item in items}, masks)
    for mask, keys in pairs.shared:
        raise RequestError(
            f"masks {plan.options.masks}: {plan.called(mask)!r} could be the mask of any of {len(keys)} images, "
            f"{plan.called(by_key[keys[0]].files[0])!r} for one; lay each mask under the path of its image within the "
            "source."
        )
    for key, files in pairs.passed_over:
        others = plan.called.several(files)
        plan.notes.append(
            (by_key[key].files[0], f"its mask is {plan.called(pairs.of[key])}; {others} could be it as well")
        )
    if not pairs.of:
        example, image = plan.called(pairs.unmatched[0]), plan.called(items[0].files[0])
        raise RequestError(
            f"masks {plan.options.masks}: none of {len(pairs.unmatched)} masks belongs to an image. A mask is called "
            f"{example!r}, an image {image!r}; it lies under its image's path or name, with an ending such as _mask "
            "or _seg or without."
        )
    if pairs.unmatched:
        plan.unmatched["masks"] = tuple(map(printable, pairs.unmatched))
        plan.warnings.append(f"{len(pairs.unmatched)} masks belong to no image: {plan.called.several(pairs.unmatched)}")
    plan.masks = pairs.of
    plan.remarks.append(f"{len(pairs.of)} of {len(items)} files have a mask")


def _mask_names(item: Item) -> MaskNames:
    """What a mask may call an item; a series is called by its folder, too."""
    file = PurePosixPath(item.files[0])
    own = without_suffix(item.files[0])
    return ((str(file.parent), own) if item.kind == "series" else (own,)), file.suffix


def _assign_parts(plan: Plan, items: Iterable[Item], headers: Mapping[str, Header]) -> None:
    split = plan.options.split or {WHOLE: 1.0}
    plan.parts = {part: [] for part in split}
    items = sorted(items, key=lambda item: item.key)
    group_by, values = _settled_groups(plan, items, headers)
    _warn_of_near_spellings(plan, {values[item.key]: item.files[0] for item in reversed(items) if values.get(item.key)})
    for item in items:
        if values.get(item.key):
            plan.groups[item.key] = plan.salt.digest("group", values[item.key])
    together = _kept_together(plan, items)
    for item in items:
        if plan.options.group_by not in (None, NO_GROUPS) and item.key not in plan.groups:
            plan.skipped.append((item.files[0], f"it has no {group_by} to group by"))
            continue
        group = plan.groups.get(item.key, item.key)
        plan.parts[part_of(plan.salt.fraction(together.get(group, group)), split)].append(item)
    plan.grouped_by = group_by
    empty = [part for part, found in plan.parts.items() if not found]
    if empty:
        groups = len(set(plan.groups.values())) or plan.items
        raise RequestError(
            f"part {empty[0]!r} of the split got nothing: there are {groups} "
            f"{group_by or 'image'} groups in all, and the hash of each decides. "
            "Give the part a larger share, or leave the split out."
        )


def _kept_together(plan: Plan, items: Iterable[Item]) -> dict[str, str]:
    """For groups that share byte-equal files the one group that decides for all of them."""
    group_of = {file: plan.groups.get(item.key, item.key) for item in items for file in item.files}
    leaders: dict[str, str] = {}

    def leader(group: str) -> str:
        while group in leaders:
            group = leaders[group]
        return group

    copies = 0
    for files in plan.copies:
        groups = [leader(group_of[file]) for file in files if file in group_of]
        copies += max(0, len(groups) - 1)
        first = min(groups, default="")
        leaders.update({group: first for group in groups if group != first})
    if copies:
        example = next(files for files in plan.copies if sum(file in group_of for file in files) > 1)
        plan.warnings.append(
            f"{copies} files hold the same bytes as another ({plan.called.several(example)}); "
            "copies stay in one part, and count as often as they lie there"
        )
    return {group: leader(group) for group in leaders}


def _settled_groups(plan: Plan, items: Sequence[Item], headers: Mapping[str, Header]) -> tuple[str, dict[str, str]]:
    """What groups, empty where nothing does, and the group of each item's key, empty where it has none."""
    asked = plan.options.group_by
    if asked == NO_GROUPS:
        return "", {}
    if asked is not None:
        return asked, {item.key: _group_of(plan, asked, item, headers) for item in items}
    return _found_groups(plan, items, headers)


def _found_groups(plan: Plan, items: Iterable[Item], headers: Mapping[str, Header]) -> tuple[str, dict[str, str]]:
    """Where nothing was said: the patient of the header, and for items without one the table's column of patients."""
    values = {item.key: _patient_of(item, headers) for item in items}
    by = ["PatientID"] if any(values.values()) else []
    others = [item for item in items if not values[item.key]]
    column = _group_column(plan, rest=bool(by)) if others else None
    if plan.labels and column is not None:
        values.update({item.key: _cell_of(plan.labels.table, column, item) for item in others})
        by += [column] if column not in by else []
    alone = sum(1 for value in values.values() if not value)
    if alone and plan.options.split:
        plan.warnings.append(
            f"{alone} images name no patient: each of them is split by itself. Group them with --group-by 'folder' or "
            "a column of the label table, or say --group-by none."
        )
    return " and ".join(by), values


def _group_column(plan: Plan, rest: bool) -> str | None:
    """A column of the label table that names patients; one that only looks so is told of where it matters.

    Args:
        plan: with its label table, if any.
        rest: whether it is only for images whose header names no patient, which the warnings say.
    """
    if plan.labels is None:
        return None
    table = plan.labels.table
    which = "images whose header names no patient are " if rest else ""
    where = " where no header names the patient" if rest else ""
    named = patient_column(table)
    if named is not None and named not in plan.labels.kinds:
        plan.warnings.append(
            f"{which}grouped by the column {named!r} of the label table, for it names patients; "
            "--group-by says otherwise"
        )
        return named
    guessed = column_of_groups(table, (*plan.labels.kinds, plan.options.image_column)) if plan.options.split else None
    if guessed is not None:
        plan.warnings.append(
            f"the split is by image{where}, though the column {guessed!r} looks as if it told patients apart: images "
            f"of one patient may lie in two parts. Split by it with --group-by {guessed!r}, or say --group-by none."
        )
    return None


def _warn_of_near_spellings(plan: Plan, example_of: Mapping[str, str]) -> None:
    """Names files, not patients: what is shown holds no identity."""
    for spellings in near_spellings(example_of):
        files = " and ".join(plan.called(example_of[spelling]) for spelling in spellings[:2])
        plan.warnings.append(
            f"{len(spellings)} identifiers differ only in case, leading zeros or '.0', those of {files} for instance: "
            "if they mean one patient, its images may lie in two parts"
        )


def _group_of(plan: Plan, group_by: str, item: Item, headers: Mapping[str, Header]) -> str:
    """The group that was asked for: of the table where it has such a column, else of the path or the header."""
    if plan.labels and group_by in plan.labels.table.columns:
        return _cell_of(plan.labels.table, group_by, item)
    if plan.centres and group_by in plan.centres.table.columns:
        return _cell_of(plan.centres.table, group_by, item)
    if group_by == "folder":
        folders = PurePosixPath(item.files[0]).parts[:-1]
        return folders[0] if folders else ""
    return _patient_of(item, headers)


def _patient_of(item: Item, headers: Mapping[str, Header]) -> str:
    header = headers.get(item.files[0])
    return header.patient if header else ""


def _cell_of(table: Table, column: str, item: Item) -> str:
    """The group that a table gives an item; of several rows, as of a volume's centres, all have to give the same.

    Raises:
        RequestError: they do not.
    """
    groups = {identifier(row[column]) for row in table.rows_for(named_in(table, item))}
    if len(groups) > 1:
        raise RequestError(
            f"{table.address}: the rows of one volume have {len(groups)} values of {column!r}; one is its group."
        )
    return groups.pop() if groups else ""
