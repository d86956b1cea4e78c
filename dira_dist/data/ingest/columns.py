"""Columns of the label table that ride along, for figures by sex, age or view; never those that tell who somebody is.

A column of names, identifiers or dates is refused by its name, and one of dates, free text or names as DICOM writes
them by its cells. Ages go along in whole years, those over 89 as ``90+``: above that an age tells who somebody is (45
CFR 164.514(b)(2)(i)(C)).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from dira_dist.config import RequestError
from dira_dist.data.ingest.tables import (
    PATIENT_WORDS,
    Labels,
    Table,
    cell_of,
    column_of_groups,
    is_number,
    patient_column,
    value_of,
    words_of,
)

Scalar = str | int | float
Kind = Literal["number", "name", "age"]

OLDEST = "90+"
_OLDEST_KEPT, _MOST_AGE = 89, 130
_AGE_NAME = re.compile(r"(patients?|subject|person|participant)?ages?(y|yrs?|years?|inyears|at[a-z]*)?")
_AGE = re.compile(r"(?P<number>[0-9]{1,3}(\.[0-9]+)?) *(?P<unit>[DWMY]|years?|yrs?|yo)?", re.IGNORECASE)
_DICOM_AGE = re.compile(r"[0-9]{3}[DWMY]")  # PS3.5, AS
_OVER = re.compile(r"> *89|(>=|>|\u2265) *9[0-9]|9[0-9] *\+")
_BAND = re.compile(r"[0-9]{1,2} *- *(?P<high>[0-9]{1,3})")
_IN_A_YEAR = {"d": 365.25, "w": 365.25 / 7, "m": 12.0}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TELLING = _words("""
    date dates datetime birth birthdate birthday birthyear dob born death surname firstname lastname initials address
    street phone telephone email ssn mrn accession uid zip zipcode postcode comment comments
""")
_PERSONS = _words("first last full family given maiden physician doctor operator").union(PATIENT_WORDS)
_RECORDS = _words("study exam examination case record visit encounter series report scan").union(PATIENT_WORDS)
_NUMBERS = _words("id ids number no nr key code identifier")
_WHOLE_NAMES = _words("id name names")
_TELLING_CELL = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{2,4}|(19|20)[0-9]{2}(0[1-9]|1[0-2])[0-3][0-9]"
    r"|[^^]*\^.*|.{65,}",
    re.DOTALL,
)


@dataclass(frozen=True)
class KeptColumns:
    """The columns that ride along.

    Attributes:
        table: of the labels.
        kinds: what the cells of each column are.
        problems: what is left out of them, without a word of theirs.
    """

    table: Table
    kinds: Mapping[str, Kind]
    problems: tuple[str, ...] = ()

    def of(self, file: str) -> dict[str, Scalar]:
        """Values of an image, JSON-ready; empty cells, and those that cannot go along, are left out."""
        rows = self.table.rows_for(file)
        found = {column: _value(cell_of(rows[0][column]), kind) for column, kind in self.kinds.items()} if rows else {}
        return {column: value for column, value in found.items() if value is not None}


def read_columns(labels: Labels, wanted: Sequence[str], image_column: str, group_by: str | None) -> KeptColumns:
    """The columns that are asked for.

    Args:
        labels: with the table that they are of.
        wanted: the columns.
        image_column: names the image's file.
        group_by: names the patient.

    Raises:
        RequestError: a column is missing, or it tells, by its name or its cells, who a patient is.
    """
    table = labels.table

    def is_free(column: str) -> bool:
        return column in table.columns and column not in ("", image_column, group_by) and not _tells_who(table, column)

    for column in wanted:
        if not is_free(column):
            known = ", ".join(repr(name) for name in table.columns if is_free(name)) or "none"
            there = column in table.columns
            what = "tells who a patient is, or when, and does not enter a shard" if there else "does not exist"
            raise RequestError(f"{table.address}: keep_columns: {column!r} {what}; those that can be kept: {known}.")
    cells = {column: _cells(table, column) for column in wanted}
    kinds = {column: _kind(column, cells[column]) for column in wanted}
    problems = [_left_out(table, column, cells[column], kinds[column]) for column in wanted]
    return KeptColumns(table, kinds, tuple(filter(None, (*problems, _doubt(table, wanted)))))


def _cells(table: Table, column: str) -> list[str]:
    return [cell_of(rows[0][column]) for rows in table.rows.values()]


def _tells_who(table: Table, column: str) -> bool:
    words = set(words_of(column))
    by_name = (
        words & _TELLING
        or (words & {"name", "names"} and words & _PERSONS)
        or (words & _NUMBERS and words & _RECORDS)
        or "".join(words_of(column)) in _WHOLE_NAMES
        or patient_column(replace(table, columns=(column,)))
    )
    return bool(by_name) or any(map(_TELLING_CELL.fullmatch, _cells(table, column)))


def _doubt(table: Table, wanted: Sequence[str]) -> str:
    """Of a column that by what it holds may tell patients apart."""
    guessed = column_of_groups(table, [name for name in table.columns if name not in wanted])
    if guessed is None:
        return ""
    return f"the kept column {guessed!r} looks as if it told patients apart: leave it out of keep_columns if it does"


def _kind(column: str, cells: Sequence[str]) -> Kind:
    words, known = words_of(column), [cell for cell in cells if cell]
    if {"age", "ages"} & set(words) or _AGE_NAME.fullmatch("".join(words)):
        return "age"
    if known and all(map(_DICOM_AGE.fullmatch, known)):
        return "age"
    return "number" if all(map(is_number, known)) else "name"


def _value(cell: str, kind: Kind) -> Scalar | None:
    if not cell:
        return None
    value: Scalar | None = _age(cell) if kind == "age" else value_of(cell, kind)
    return value


def _age(cell: str) -> int | str | None:
    """An age in whole years, or a band of ages, as far as it may leave; none for what is no age."""
    if _OVER.fullmatch(cell):
        return OLDEST
    if band := _BAND.fullmatch(cell):
        return cell if int(band["high"]) <= _OLDEST_KEPT else None
    if found := _AGE.fullmatch(cell):
        years = int(float(found["number"]) / _IN_A_YEAR.get((found["unit"] or "").lower(), 1.0))
        return years if years <= _OLDEST_KEPT else OLDEST if years <= _MOST_AGE else None
    return None


def _left_out(table: Table, column: str, cells: Sequence[str], kind: Kind) -> str:
    count = sum(1 for cell in cells if cell and _value(cell, kind) is None)
    what = "are no ages, or bands that reach over 89," if kind == "age" else "are out of range"
    return f"{PurePosixPath(table.address).name}: {count} cells of {column!r} {what} and are left out" if count else ""
