"""Tables that ride along with an archive: labels and lesion boxes, from CSV files keyed by the image's file name."""

import ast
import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from dira_dist.config import RequestError
from dira_dist.data.ingest.readers import SUFFIXES
from dira_dist.data.store import open_store

Row = Mapping[str, str]
LabelKind = Literal["number", "name", "names"]

_USUAL_LABELS = ("label", "labels", "finding", "findings", "class", "diagnosis", "target")
_PLURALS = ("labels", "findings")  # lists even where each row has one name
_MOST_CLASSES = 1000
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CODE = re.compile(r"0[0-9]+")  # leading zeros are part of a code, and of no number
_ABSENT = ("", "nan", "n/a", "#n/a", "null")  # what tools write for an empty cell, in any case
_MOST_DIGITS = 15  # more are no whole number that a float holds
PATIENT_WORDS = ("patient", "subject", "mrn", "person", "pid", "participant")


def stem_of(name: str) -> str:
    """The file name without an image's suffix: ``scan`` for ``a/scan.nii.gz``."""
    name = PurePosixPath(name).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def names_of(file: str) -> tuple[str, str, str]:
    """What a table may call a file: its path in the source, its name, its name without suffix."""
    return file, PurePosixPath(file).name, stem_of(file)


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        address: where it was read.
        columns: names in order.
        rows: by image, in the table's order; those that name no image are left out.
        lines: of the file, where the rows of each image end.
        sha256: of the file, hexadecimal.
        problems: what was found wrong with rows or cells that are left out; without a word of theirs.
    """

    address: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]
    sha256: str
    problems: tuple[str, ...] = ()
    lines: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def rows_for(self, file: str) -> Sequence[Row]:
        """The rows of an image of the source, by its path, its name, or its name without suffix."""
        name = self.name_for(file)
        return () if name is None else self.rows[name]

    def name_for(self, file: str) -> str | None:
        """How the table calls an image of the source, if it does."""
        return next((name for name in names_of(file) if name in self.rows), None)


def read_table(address: str, image_column: str, needed: Iterable[str] = ()) -> Table:
    """Reads a CSV file with a header row.

    A row with more fields than the header is refused: a comma without quotes has moved its cells, the patient's too.

    Raises:
        RequestError: the file or a column is missing, or it has no rows.
    """
    folder, _, name = address.rpartition("/")
    store = open_store(folder or ("/" if address.startswith("/") else "."))
    if store.stat(name) is None:
        raise RequestError(f"{address}: there is no such table; give the path of a CSV file with a header row.")
    content = store.read_bytes(name)
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), restval="", restkey="")
        rows: dict[str, list[Row]] = {}
        lines: dict[str, list[int]] = {}
        columns = tuple(reader.fieldnames or ())
        for column in (image_column, *needed):
            require_column(address, columns, column)
        refused: list[int] = []
        for row in reader:
            if "" in row and "" not in columns:
                refused.append(reader.line_num)
            elif name := row[image_column].strip():
                rows.setdefault(name, []).append(row)
                lines.setdefault(name, []).append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{address}: this is no CSV text in UTF-8: {error}") from error
    problems = [_refused_rows(address, refused, len(columns))] if refused else []
    if not rows:
        raise RequestError(
            f"{address}: the table has a header but no rows that name an image. {' '.join(problems)}".strip()
        )
    return Table(address, columns, rows, hashlib.sha256(content).hexdigest(), tuple(problems), lines)


def _refused_rows(address: str, lines: Sequence[int], columns: int) -> str:
    return (
        f"{PurePosixPath(address).name}: {len(lines)} rows have more fields than the {columns} of the header and are "
        f"left out ({_shown_lines(lines)}); put cells with a comma in quotes"
    )


def _shown_lines(lines: Sequence[int]) -> str:
    """Where rows stand, without a word of theirs."""
    return f"line {', '.join(map(str, lines[:5]))}{' and others' if len(lines) > 5 else ''}"


def require_column(address: str, columns: Sequence[str], column: str) -> None:
    """Raises RequestError, naming the columns that there are, where ``column`` is none of them."""
    if column not in columns:
        found = ", ".join(repr(name) for name in columns) or "none"
        raise RequestError(f"{address}: there is no column {column!r}; the columns are {found}.")


# --------------------------------------------------------------------- patients


def words_of(column: str) -> list[str]:
    """``StudyDate_DICOM`` as study, date, dicom."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower()
    return [word for word in re.split(r"[^a-z]+", spaced) if word]


def patient_column(table: Table) -> str | None:
    """The column whose name says that it tells patients apart, if any."""
    columns = [column for column in table.columns if column]
    words = {column: words_of(column) for column in columns}
    whole = (column for column in columns if column.lower().replace("_", "").replace(" ", "") in _PATIENT_NAMES)
    partly = (
        column
        for column in columns
        if set(words[column]) & set(PATIENT_WORDS)
        and set(words[column]) & {"id", "number", "no", "nr", "key", "mrn", "pid"}
    )
    return next(whole, None) or next(partly, None)


_PATIENT_NAMES = frozenset(
    name + end for name in PATIENT_WORDS for end in ("", "id", "number", "no", "key", "identifier")
)


def column_of_groups(table: Table, others: Collection[str]) -> str | None:
    """A column that, by what it holds, may tell patients apart: codes that several rows share, and few rows each.

    Args:
        table: of labels, a row for each image.
        others: columns that are known to hold something else.
    """
    rows = [found[0] for found in table.rows.values()]
    if len(rows) < _FEWEST_ROWS:
        return None
    found = []
    for column in table.columns:
        if column and column not in others:
            cells = [cell_of(row[column]) for row in rows]
            share = len(set(cells)) / len(cells)
            if all(cells) and _LEAST_SHARE <= share <= _MOST_SHARE and all(map(_GROUP_CODE.fullmatch, cells)):
                found.append((share, column))
    return max(found)[1] if found else None


_FEWEST_ROWS = 8
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.9  # of unlike cells among all; ages and scanners are fewer, keys of rows are more
_GROUP_CODE = re.compile(r"(?=.*[0-9])[A-Za-z0-9_.:-]{3,64}")  # two digits are an age


# ----------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Labels:
    """Which columns are labels, what they mean, and the label values of each image."""

    table: Table
    kinds: Mapping[str, LabelKind]
    classes: Mapping[str, tuple[str, ...]]

    def of(self, file: str) -> dict[str, Any]:
        """Label values of an image, JSON-ready: numbers, names, or lists of names; empty cells are left out."""
        rows = self.table.rows_for(file)
        return values_of(rows[0], self.kinds) if rows else {}


def values_of(row: Row, kinds: Mapping[str, LabelKind]) -> dict[str, Any]:
    """Label values of a row, JSON-ready; empty cells are left out."""
    cells = {column: cell_of(row[column]) for column in kinds}
    values = {column: value_of(cell, kinds[column]) for column, cell in cells.items() if cell}
    return {column: value for column, value in values.items() if value is not None}


def kinds_and_classes(
    rows: Sequence[Row], columns: Sequence[str]
) -> tuple[dict[str, LabelKind], dict[str, tuple[str, ...]]]:
    """What label columns hold, and the names that categorical ones take, where they are few enough to be classes."""
    cells = {column: [cell_of(row[column]) for row in rows] for column in columns}
    kinds = {column: _kind(column, cells[column]) for column in columns}
    classes = {column: _classes(cells[column]) for column in columns if kinds[column] != "number"}
    return kinds, {column: names for column, names in classes.items() if len(names) <= _MOST_CLASSES}


def read_labels(address: str, image_column: str, wanted: tuple[str, ...] | None, group_by: str | None) -> Labels:
    """The label table; one row for each image.

    Args:
        address: of the CSV file.
        image_column: names the image's file.
        wanted: label columns; where none are given, those with a usual name.
        group_by: a column that is never a label: it names the patient.

    Raises:
        RequestError: a column is missing, an image stands twice, or it is not clear which columns are labels.
    """
    table = read_table(address, image_column, wanted or ())
    for image, rows in table.rows.items():
        if len(rows) > 1:
            raise RequestError(
                f"{address}: one image stands in {len(rows)} rows ({_shown_lines(table.lines[image])}); "
                "keep one row for each image."
            )
    columns = wanted if wanted is not None else _guess_columns(table, image_column, group_by)
    if group_by in columns:
        raise RequestError(
            f"{address}: {group_by!r} is what the split groups by, and its values never enter a shard; "
            "leave it out of the label columns (samples carry its salted hash as split_group)."
        )
    first_rows = [rows[0] for rows in table.rows.values()]
    kinds, classes = kinds_and_classes(first_rows, columns)
    beyond = [_out_of_range(table, column, first_rows) for column in columns if kinds[column] == "number"]
    table = replace(table, problems=(*table.problems, *filter(None, beyond)))
    return Labels(table, kinds, classes)


def _out_of_range(table: Table, column: str, rows: Sequence[Row]) -> str:
    cells = (cell_of(row[column]) for row in rows)
    count = sum(1 for cell in cells if cell and value_of(cell, "number") is None)
    return (
        f"{PurePosixPath(table.address).name}: {count} numbers in {column!r} are out of range and left out"
        if count
        else ""
    )


def _guess_columns(table: Table, image_column: str, group_by: str | None) -> tuple[str, ...]:
    """Only what is surely a label: other columns may tell who the patient is."""
    others = [column for column in table.columns if column not in (image_column, group_by, "")]
    usual = usual_labels(others)
    if usual:
        return usual
    raise RequestError(
        f"{table.address}: it is not clear which columns are labels; name them with --label-columns. "
        f"The columns are {', '.join(repr(column) for column in others)}; those that identify a patient stay behind."
    )


def usual_labels(columns: Iterable[str]) -> tuple[str, ...]:
    """Those of the columns whose name says that they are labels."""
    return tuple(column for column in columns if column.lower() in _USUAL_LABELS)


def cell_of(text: str | None) -> str:
    """A cell without blanks around it, empty where it stands for nothing."""
    text = (text or "").strip()
    return "" if text.lower() in _ABSENT else text


def _kind(column: str, cells: Sequence[str]) -> LabelKind:
    if column.lower() in _PLURALS or any("|" in cell or _python_list(cell) is not None for cell in cells):
        return "names"
    return "number" if all(is_number(cell) for cell in cells if cell) else "name"


def is_number(cell: str) -> bool:
    """Whether a cell is a number, and no code with leading zeros."""
    return bool(_NUMBER.fullmatch(cell)) and not _CODE.fullmatch(cell)


def _python_list(cell: str) -> list[str] | None:
    """``['a', 'b']`` as pandas and PadChest write a list; none for any other cell."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(name) for name in found] if isinstance(found, list) else None


def _classes(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({name for cell in cells for name in _split_names(cell)}))


def _split_names(cell: str) -> list[str]:
    listed = _python_list(cell)
    return [name.strip() for name in (cell.split("|") if listed is None else listed) if name.strip()]


def value_of(cell: str, kind: LabelKind) -> Any:
    """A cell that is not empty, JSON-ready; none for a number that is out of range."""
    if kind == "names":
        return _split_names(cell)
    if kind == "name":
        return cell
    number = float(cell)
    if not math.isfinite(number):
        return None
    whole = not set(cell) & set(".eE") and len(cell) <= _MOST_DIGITS
    return int(cell) if whole else number


# ------------------------------------------------------------------------ boxes

_BOX_COLUMNS = ("x", "y", "width", "height")
Box = dict[str, Any]


def read_boxes(address: str, image_column: str) -> Table:
    """The table of lesion boxes: columns x, y, width, height in pixels of the original, and a column for their name.

    A row whose four cells are empty says that the image has no box; one with a cell that is no number is left out.

    Raises:
        RequestError: a column is missing, or it has no rows.
    """
    table = read_table(address, image_column, _BOX_COLUMNS)
    wrong: Counter[str] = Counter()
    kept = {image: [row for row in rows if _holds_box(row, wrong)] for image, rows in table.rows.items()}
    if not wrong:
        return replace(table, rows=kept)
    name, columns = PurePosixPath(address).name, ", ".join(sorted(wrong))
    problem = f"{name}: {wrong.total()} boxes are left out, for a cell of theirs is no number of pixels ({columns})"
    return replace(table, rows=kept, problems=(*table.problems, problem))


def _holds_box(row: Row, wrong: Counter[str]) -> bool:
    """Whether a row holds a box; the first column at fault of one that should is counted."""
    cells = {column: cell_of(row[column]) for column in _BOX_COLUMNS}
    bad = [column for column, cell in cells.items() if not (is_number(cell) and math.isfinite(float(cell)))]
    if bad and any(cells.values()):
        wrong[bad[0]] += 1
    return not bad


def boxes_for(table: Table, file: str) -> list[Box]:
    """The boxes of an image, ``{"label", "x", "y", "width", "height"}`` in pixels of the original."""
    return [_box(row) for row in table.rows_for(file)]


def _box(row: Row) -> Box:
    by_lower = {column.lower(): column for column in row if column}
    name = next((row[by_lower[word]].strip() for word in _USUAL_LABELS if row.get(by_lower.get(word, ""))), "")
    return {"label": name, **{column: float(row[column]) for column in _BOX_COLUMNS}}


def scale_boxes(boxes: Iterable[Box], from_px: tuple[int, int], to_px: tuple[int, int]) -> Iterator[Box]:
    """Boxes of an image of (H, W) ``from_px`` in the pixels of its copy of ``to_px``."""
    down, right = to_px[0] / from_px[0], to_px[1] / from_px[1]
    for box in boxes:
        factors = {"x": right, "width": right, "y": down, "height": down}
        yield {**box, **{side: round(box[side] * factor, 3) for side, factor in factors.items()}}
