"""Makes the plan of a set: the source is listed, tables are read, and every file is decided on."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dira_dist.config import RequestError
from dira_dist.data.ingest.assembly import tilt_deg
from dira_dist.data.ingest.centres import read_centres
from dira_dist.data.ingest.channels import join
from dira_dist.data.ingest.columns import KeptColumns, read_columns
from dira_dist.data.ingest.dicom import pixel_digest
from dira_dist.data.ingest.grouping import assign_parts
from dira_dist.data.ingest.headers import Header, read_headers
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.listing import MaskFiles, list_source, one_file_of, without_suffix
from dira_dist.data.ingest.matching import check_names, named_in, unmatched_rows
from dira_dist.data.ingest.names import printable
from dira_dist.data.ingest.options import FOLDERS, NOT_SAID, Content, ShardOptions, check_content, check_split
from dira_dist.data.ingest.pairing import MaskNames, pair
from dira_dist.data.ingest.plan import NO_GROUPS, Plan, strict_refusal
from dira_dist.data.ingest.readers import FileKind, UnreadableError, quiet_decoders
from dira_dist.data.ingest.salt import read_salt
from dira_dist.data.ingest.series import left_out, shared_identity, volumes_of
from dira_dist.data.ingest.stacks import Plane, Stack
from dira_dist.data.ingest.tables import read_boxes, read_labels, require_column
from dira_dist.data.store import open_store


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
        versions=listing.versions,
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
    assign_parts(plan, _with_centres(plan, items), headers)
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
    if plan.content != "images":
        items += _series_items(headers, plan)
    return _joined(items, plan) if plan.options.channels else items


def _joined(items: Sequence[Item], plan: Plan) -> list[Item]:
    """Registered volumes as channels of one item; those that are in none are skipped by name."""
    joined = join(items, plan.options.channels, plan.salt)
    plan.channels, plan.channel_table = joined.names, joined.table
    for file, reason in joined.left:
        _skip_unreadable(plan, file, reason)
    return joined.items


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
        folder = str(PurePosixPath(files[0]).parent)
        items.append(Item(plan.salt.digest("sample", name), "series", files, stack, folder))
    return items


def _tilt_reason(stack: Stack) -> str:
    return f"its gantry is tilted by {tilt_deg(stack):.3g} degrees"


def _skip_unreadable(plan: Plan, file: str, reason: str) -> None:
    if plan.options.strict:
        raise strict_refusal(plan.called(file), reason)
    plan.skipped.append((file, printable(reason)))


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
    """What a mask may call an item: its first file, before that its folder or case."""
    file = PurePosixPath(item.files[0])
    own = without_suffix(item.files[0])
    return ((item.called, own) if item.called else (own,)), file.suffix
