"""What ``dira-dist shard`` will do, decided before it does any of it: which files, under which keys, in which part.

Keys and split hang on a secret salt. With the same salt a file has the same key and a patient the same part in every
run and on every machine, also after the archive has grown; without it nobody can tell from a key which file or patient
it was. The salt is a small file that stays with the user and never enters a shard.
"""

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from dira_dist.config import RequestError, Section
from dira_dist.data.pixels import PictureMode, Side
from dira_dist.data.readers import SUFFIXES, FileKind, Intensity
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.data.tables import Labels, Table, names_of, read_boxes, read_labels, stem_of

Content = Literal["images", "volumes"]
ItemKind = Literal["raster", "tiff", "dicom", "nifti", "series"]

WHOLE = "all"  # the only part's name where there is no split
FOLDERS = "folders"  # in place of a table: the folder's name is the label
_KEY_BYTES = 10
_HEADER_THREADS = 16
_PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id")


class ShardOptions(Section):
    """How an archive becomes a shard set."""

    image_size: Annotated[
        int | None, Field(ge=8, description="side of the stored images in px; smaller ones stay; none: no resize")
    ] = 512
    side: Annotated[Side, Field(description="which side image_size means")] = "shortest"
    coding: Annotated[Literal["png", "jpeg"], Field(description="png loses nothing; jpeg is smaller, 8 bits only")] = (
        "png"
    )
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    mode: Annotated[
        PictureMode | None,
        Field(description="8-bit grey, 16-bit grey or colour; none: the richest of a sample of files"),
    ] = None
    content: Annotated[
        Content | None, Field(description="images, or whole volumes; none: volumes where there is only NIfTI")
    ] = None
    intensity: Annotated[
        Intensity, Field(description="DICOM values to grey: the file's own window, or smallest to largest")
    ] = "window"
    labels: Annotated[str | None, Field(description="a CSV file, or the word 'folders'")] = None
    image_column: Annotated[str, Field(description="column of the tables that names the image's file")] = "image"
    label_columns: Annotated[
        tuple[str, ...] | None, Field(description="columns that are labels; none: those with a usual name")
    ] = None
    boxes: Annotated[str | None, Field(description="a CSV file with columns x, y, width, height in px")] = None
    masks: Annotated[str | None, Field(description="a folder with a label map for each image, named like it")] = None
    split: Annotated[
        dict[str, float] | None, Field(description="share of each part, for example train 0.9, val 0.1")
    ] = None
    group_by: Annotated[
        str | None,
        Field(description="what stays in one part: a column of the label table, 'PatientID' (DICOM) or 'folder'"),
    ] = None
    samples_per_shard: Annotated[int | None, Field(ge=1, description="files per tar; none: chosen by their number")] = (
        None
    )
    salt_file: Annotated[str | None, Field(description="secret behind the keys; none: one per user, made once")] = None
    processes: Annotated[int | None, Field(ge=1, description="none: one per core")] = None
    strict: Annotated[bool, Field(description="refuse an archive with an unreadable file")] = False
    overwrite: Annotated[bool, Field(description="replace a set made otherwise")] = False
    report: Annotated[str | None, Field(description="file for the JSON report; it names files, so keep it private")] = (
        None
    )


def parse_split(text: str) -> dict[str, float]:
    """``train=0.9,val=0.1`` as a mapping.

    Raises:
        RequestError: it is written otherwise.
    """
    split: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, share = piece.partition("=")
        try:
            split[name.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise RequestError(f"split {text!r}: write it as name=share,name=share, for example train=0.9,val=0.1.")
    return split


def check_split(split: Mapping[str, float]) -> None:
    """Raises RequestError where the shares are not positive or do not sum to 1, or a name makes no folder."""
    total = sum(split.values())
    if abs(total - 1) > 1e-6 or any(share <= 0 for share in split.values()):
        shares = ", ".join(f"{name}={share:g}" for name, share in split.items())
        raise RequestError(f"split {shares}: the shares must be positive and sum to 1; these sum to {total:g}.")
    for name in split:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise RequestError(f"split: {name!r} names a folder; use letters, digits, '-' and '_'.")


# ------------------------------------------------------------------- keyed hashes


@dataclass(frozen=True)
class Salt:
    """The secret behind keys and split."""

    secret: bytes = field(repr=False)

    def digest(self, purpose: str, text: str, size_bytes: int = _KEY_BYTES) -> str:
        """Keyed BLAKE2b of ``text``, hexadecimal; unlike purposes give unrelated values."""
        person = purpose.encode()
        return hashlib.blake2b(text.encode(), digest_size=size_bytes, key=self.secret, person=person).hexdigest()

    def fraction(self, text: str) -> float:
        """A uniform number in [0, 1) that ``text`` always gets."""
        return int(self.digest("split", text, 6), 16) / (1 << 48)


def read_salt(path: str | None) -> Salt:
    """The salt of a file; without one this user's own, made on first use.

    Raises:
        RequestError: the named file is missing or holds hardly anything.
    """
    if path is None:
        home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
        file = home / "dira_dist" / "shard-salt"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_secret(file, secrets.token_hex(32))
    else:
        file = Path(path).expanduser()
        if not file.is_file():
            raise RequestError(
                f"salt_file {path}: there is no such file; make one with `openssl rand -hex 32 > {path}`."
            )
    text = file.read_text().strip()
    if len(text) < 8:
        raise RequestError(f"salt_file {file}: {len(text)} characters are no secret; use `openssl rand -hex 32`.")
    return Salt(hashlib.sha256(text.encode()).digest())


def _write_secret(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text + "\n")


def part_of(fraction: float, split: Mapping[str, float]) -> str:
    """The part whose share of [0, 1), in the split's order, ``fraction`` falls into."""
    end = 0.0
    for name, share in split.items():
        end += share
        if fraction < end:
            return name
    return name  # the shares sum to 1 but for rounding


# -------------------------------------------------------------------------- plan


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one sample, or one for each frame: a file, or the files of a series."""

    key: str
    kind: ItemKind
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages and reports call it."""
        return (
            self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more of its series"
        )


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
            return {"label": PurePosixPath(item.files[0]).parent.name}
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
        names = (
            "image_size",
            "side",
            "coding",
            "jpeg_quality",
            "mode",
            "intensity",
            "image_column",
            "group_by",
            "split",
        )
        chosen = self.options.model_dump(mode="json", include={*names, "label_columns"})
        return {
            **chosen,
            "content": self.content,
            "part": part,
            "samples_per_shard": self.samples_per_shard(part),
            "source": self.source_digest,
            "salt": self.salt.digest("fingerprint", "", 8),
            "labels": self.options.labels if self.options.labels == FOLDERS else _digest_of(self.labels),
            "boxes": self.boxes.sha256 if self.boxes else None,
            "masks": bool(self.options.masks),
        }

    def samples_per_shard(self, part: str) -> int:
        """Files per tar: about 64 tars, within bounds that suit images or volumes."""
        if self.options.samples_per_shard is not None:
            return self.options.samples_per_shard
        low, high = (64, 2000) if self.content == "images" else (4, 128)
        return min(high, max(low, -(-len(self.parts[part]) // 64)))


def _digest_of(labels: Labels | None) -> str | None:
    return labels.table.sha256 if labels else None


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
    check_reachable(source)
    plan = Plan(source, options, read_salt(options.salt_file))
    store = open_store(source)
    files = _list_files(store, plan)
    _read_tables(plan)
    headers = _read_headers(store, files, plan)
    items = _items_of(files, headers, plan)
    _check_names(plan, items)
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


def _list_files(store: Store, plan: Plan) -> dict[str, FileKind]:
    """Image files of the source by path, and the digest over them; sets the plan's content and masks."""
    masks = plan.options.masks
    inside = _below(masks, plan.source) if masks else None
    digest = hashlib.blake2b(key=plan.salt.secret, digest_size=16)
    files: dict[str, FileKind] = {}
    for found in store.list():
        kind = kind_of(store, found.key)
        if (inside and found.key.startswith(inside)) or _is_hidden(found.key):
            continue
        if kind is None:
            plan.ignored += 1
            continue
        digest.update(f"{found.key}\0{found.bytes}\0{found.etag}\n".encode())
        files[found.key] = kind
    if not files:
        raise RequestError(
            f"no images in {plan.source}: of {plan.ignored} files none is PNG, JPEG, TIFF, DICOM or NIfTI "
            f"(by suffix: {', '.join(SUFFIXES)}; DICOM also without one)."
        )
    if masks:
        plan.masks = _list_masks(masks, digest.update)
    plan.source_digest = digest.hexdigest()
    plan.content = plan.options.content or ("volumes" if set(files.values()) == {"nifti"} else "images")
    return files


def _below(folder: str, parent: str) -> str | None:
    """``masks/`` for ``data/masks`` below ``data``; none where it does not lie below."""
    parent, folder = parent.rstrip("/") + "/", folder.rstrip("/") + "/"
    return folder[len(parent) :] if folder.startswith(parent) and folder != parent else None


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def kind_of(store: Store, key: str) -> FileKind | None:
    """By its suffix; a file without one, or with a number for one, by DICOM's mark at byte 128."""
    name = PurePosixPath(key).name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    suffix = PurePosixPath(name).suffix
    if name.startswith("dicomdir") or (suffix and not suffix[1:].isdigit()):
        return None
    with store.open(key) as stream:
        return "dicom" if stream.read(132)[128:] == b"DICM" else None


def _list_masks(address: str, note: Callable[[bytes], None]) -> dict[str, str]:
    check_reachable(address)
    masks: dict[str, str] = {}
    for found in open_store(address).list():
        if not _is_hidden(found.key) and any(found.key.lower().endswith(suffix) for suffix in SUFFIXES):
            note(f"mask {found.key}\0{found.bytes}\0{found.etag}\n".encode())
            masks[without_suffix(found.key)] = found.key
    if not masks:
        raise RequestError(f"masks {address}: there is no label map (PNG, TIFF or NIfTI) in it.")
    return masks


def without_suffix(key: str) -> str:
    """``a/scan`` for ``a/scan.nii.gz``."""
    return str(PurePosixPath(key).with_name(stem_of(key)))


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


# ------------------------------------------------------------------ DICOM headers


@dataclass(frozen=True, slots=True)
class _Header:
    patient: str
    series: str
    problem: str = ""


def _read_headers(store: Store, files: Mapping[str, FileKind], plan: Plan) -> dict[str, _Header]:
    """Headers of the DICOM files, where the plan hangs on them."""
    by_patient = plan.options.group_by == "PatientID" and not _is_column(plan, "PatientID")
    if not by_patient and plan.content != "volumes":
        return {}
    dicoms = [file for file, kind in files.items() if kind == "dicom"]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return dict(zip(dicoms, pool.map(lambda file: _read_header(store, file), dicoms), strict=True))


def _is_column(plan: Plan, name: str) -> bool:
    return plan.labels is not None and name in plan.labels.table.columns


def _read_header(store: Store, file: str) -> _Header:
    import pydicom

    with store.open(file) as stream:
        try:
            tags = ["PatientID", "SeriesInstanceUID"]
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(tags))
            return _Header(str(dataset.get("PatientID") or ""), str(dataset.get("SeriesInstanceUID") or file))
        except (ValueError, AttributeError, KeyError, NotImplementedError, EOFError) as error:
            return _Header("", file, f"its DICOM header cannot be read ({type(error).__name__})")
        except Exception as error:
            if isinstance(error, OSError):
                raise
            return _Header("", file, f"it is no DICOM file ({type(error).__name__})")


# ------------------------------------------------------------------ items and parts


def _items_of(files: Mapping[str, FileKind], headers: Mapping[str, _Header], plan: Plan) -> list[Item]:
    """Files as items; those that do not fit the content are skipped by name."""
    if plan.content == "images":
        return list(_image_items(files, plan))
    series: dict[str, list[str]] = {}
    items: list[Item] = []
    for file, kind in files.items():
        if kind == "nifti":
            items.append(Item(plan.salt.digest("sample", file), "nifti", (file,)))
        elif kind != "dicom":
            plan.skipped.append((file, "it is a flat image in a set of volumes"))
        elif headers[file].problem:
            plan.skipped.append((file, headers[file].problem))
        else:
            series.setdefault(headers[file].series, []).append(file)
    digest = plan.salt.digest
    return items + [Item(digest("sample", uid), "series", tuple(slices)) for uid, slices in series.items()]


def _image_items(files: Mapping[str, FileKind], plan: Plan) -> Iterator[Item]:
    for file, kind in files.items():
        if kind == "nifti":
            plan.skipped.append((file, "it is a volume in a set of images; content volumes stores it whole"))
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


def _assign_parts(plan: Plan, items: Iterable[Item], headers: Mapping[str, _Header]) -> None:
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


def _group_of(plan: Plan, item: Item, headers: Mapping[str, _Header]) -> str:
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
