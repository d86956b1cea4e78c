"""Which part of the split a sample goes to: the samples of a patient, and copies of a file, to one."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from dira_dist.config import RequestError
from dira_dist.data.ingest.headers import Header
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.matching import named_in
from dira_dist.data.ingest.patients import identifier, near_spellings
from dira_dist.data.ingest.plan import NO_GROUPS, WHOLE, Plan
from dira_dist.data.ingest.salt import part_of
from dira_dist.data.ingest.tables import Table, column_of_groups, patient_column


def assign_parts(plan: Plan, items: Iterable[Item], headers: Mapping[str, Header]) -> None:
    """Gives each item its part, by the hash of its group.

    Raises:
        RequestError: a part got nothing, or one item has several groups.
    """
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
