"""Tables that ride along with an archive: labels and lesion boxes, from CSV files keyed by the image's file name."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


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
        rows: by image, in the table's order.
        sha256: of the file, hexadecimal.
    """

    address: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]
    sha256: str

    def rows_for(self, file: str) -> Sequence[Row]:
        """The rows of an image of the source, by its path, its name, or its name without suffix."""
        for name in names_of(file):
            if name in self.rows:
                return self.rows[name]
        return ()


def read_table(address: str, image_column: str, needed: Iterable[str] = ()) -> Table:
    """Reads a CSV file with a header row.

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
        columns = tuple(reader.fieldnames or ())
        for column in (image_column, *needed):
            require_column(address, columns, column)
        for row in reader:
            rows.setdefault(row[image_column].strip(), []).append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{address}: this is no CSV text in UTF-8: {error}") from error
    if not rows:
        raise RequestError(f"{address}: the table has a header but no rows.")
    return Table(address, columns, rows, hashlib.sha256(content).hexdigest())


def require_column(address: str, columns: Sequence[str], column: str) -> None:
    """Raises RequestError, naming the columns that there are, where ``column`` is none of them."""
    if column not in columns:
        found = ", ".join(repr(name) for name in columns) or "none"
        raise RequestError(f"{address}: there is no column {column!r}; the columns are {found}.")


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
        cells = {column: rows[0][column].strip() for column in self.kinds} if rows else {}
        return {column: _value(cell, self.kinds[column]) for column, cell in cells.items() if cell}


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
            raise RequestError(f"{address}: {image!r} stands in {len(rows)} rows; keep one row for each image.")
    columns = wanted if wanted is not None else _guess_columns(table, image_column, group_by)
    if group_by in columns:
        raise RequestError(
            f"{address}: {group_by!r} is what the split groups by, and its values never enter a shard; "
            "leave it out of the label columns (samples carry its salted hash as split_group)."
        )
    cells = {column: [rows[0][column].strip() for rows in table.rows.values()] for column in columns}
    kinds = {column: _kind(column, cells[column]) for column in columns}
    classes = {column: _classes(cells[column]) for column in columns if kinds[column] != "number"}
    return Labels(table, kinds, {column: names for column, names in classes.items() if len(names) <= _MOST_CLASSES})


def _guess_columns(table: Table, image_column: str, group_by: str | None) -> tuple[str, ...]:
    """Only what is surely a label: other columns may tell who the patient is."""
    others = [column for column in table.columns if column not in (image_column, group_by, "")]
    usual = tuple(column for column in others if column.lower() in _USUAL_LABELS)
    if usual:
        return usual
    raise RequestError(
        f"{table.address}: it is not clear which columns are labels; name them with --label-columns. "
        f"The columns are {', '.join(repr(column) for column in others)}; those that identify a patient stay behind."
    )


def _kind(column: str, cells: Sequence[str]) -> LabelKind:
    if column.lower() in _PLURALS or any("|" in cell for cell in cells):
        return "names"
    return "number" if all(_NUMBER.fullmatch(cell) for cell in cells if cell) else "name"


def _classes(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({name for cell in cells for name in _split_names(cell)}))


def _split_names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split("|") if name.strip()]


def _value(cell: str, kind: LabelKind) -> Any:
    if kind == "names":
        return _split_names(cell)
    if kind == "name":
        return cell
    return float(cell) if set(cell) & set(".eE") else int(cell)


# ------------------------------------------------------------------------ boxes

_BOX_COLUMNS = ("x", "y", "width", "height")
Box = dict[str, Any]


def read_boxes(address: str, image_column: str) -> Table:
    """The table of lesion boxes: columns x, y, width, height in pixels of the original, and a column for their name.

    Raises:
        RequestError: a column is missing, or a cell is no number.
    """
    table = read_table(address, image_column, _BOX_COLUMNS)
    for image, rows in table.rows.items():
        for row in rows:
            for column in _BOX_COLUMNS:
                if not _NUMBER.fullmatch(row[column].strip()):
                    raise RequestError(f"{address}: {column} of {image!r} is {row[column]!r}, which is no number.")
    return table


def boxes_for(table: Table, file: str) -> list[Box]:
    """The boxes of an image, ``{"label", "x", "y", "width", "height"}`` in pixels of the original."""
    return [_box(row) for row in table.rows_for(file)]


def _box(row: Row) -> Box:
    name = next((row[column].strip() for column in _USUAL_LABELS if row.get(column)), "")
    return {"label": name, **{column: float(row[column]) for column in _BOX_COLUMNS}}


def scale_boxes(boxes: Iterable[Box], from_px: tuple[int, int], to_px: tuple[int, int]) -> Iterator[Box]:
    """Boxes of an image of (H, W) ``from_px`` in the pixels of its copy of ``to_px``."""
    down, right = to_px[0] / from_px[0], to_px[1] / from_px[1]
    for box in boxes:
        factors = {"x": right, "width": right, "y": down, "height": down}
        yield {**box, **{side: round(box[side] * factor, 3) for side, factor in factors.items()}}
