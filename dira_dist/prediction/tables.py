"""The table: a part for each chunk while the work goes on, and all of them in one file at its end."""

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dira_dist.data.store import Store
from dira_dist.prediction.answers import Columns, Row

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "parts"
_ROWS_AT_ONCE = 1 << 14


def schema_of(columns: Columns) -> "pa.Schema":
    """The types of a table's columns."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "number": pa.float64(),
        "count": pa.int64(),
        "truth": pa.bool_(),
        "vector": pa.list_(pa.float32()),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def part_key(number: int) -> str:
    """Where the rows of a chunk lie until all are done."""
    return f"{PARTS}/{number:06d}.parquet"


def write_part(store: Store, key: str, rows: Sequence[Row], schema: "pa.Schema") -> None:
    """Rows as a file of their own, whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), buffer)
    store.write_bytes(key, buffer.getvalue())


def read_rows(store: Store, keys: Iterable[str]) -> Iterator["pa.Table"]:
    """The parts in order."""
    from pyarrow import parquet

    for key in keys:
        yield parquet.read_table(io.BytesIO(store.read_bytes(key)))


def merge(
    store: Store,
    keys: Sequence[str],
    name: str,
    schema: "pa.Schema",
    about: Mapping[str, str],
    *,
    as_csv: bool,
    unread: Counter[str] | None = None,
) -> int:
    """All parts as ``NAME.parquet`` and, with ``as_csv``, ``NAME.csv``; some thousand rows are held at a time.

    Args:
        store: where parts lie and tables go.
        keys: of the parts, in order.
        name: of the tables.
        schema: of the parts.
        about: what the Parquet file says of itself.
        as_csv: whether there is a CSV, too.
        unread: is told the reasons that stand in the rows.

    Returns:
        How many rows there are.
    """
    from pyarrow import parquet

    schema, count = schema.with_metadata(dict(about)), 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        path, text = Path(scratch) / "table.parquet", Path(scratch) / "table.csv"
        with parquet.ParquetWriter(path, schema) as writer:
            lines = stack.enter_context(text.open("w", newline="", encoding="utf-8"))
            rows = csv.writer(lines, lineterminator="\n")
            rows.writerow(schema.names)
            for table in _blocks(read_rows(store, keys), schema):
                writer.write_table(table)
                count += table.num_rows
                if unread is not None:
                    unread.update(filter(None, table["reason"].to_pylist()))
                if as_csv:
                    rows.writerows(_cells(table))
        lines.flush()
        store.upload(f"{name}.parquet", path)
        if as_csv:
            store.upload(f"{name}.csv", text)
    return count


def _blocks(tables: Iterable["pa.Table"], schema: "pa.Schema") -> Iterator["pa.Table"]:
    """Small tables put together to larger ones."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for table in tables:
        held.append(table.cast(schema))
        if sum(each.num_rows for each in held) >= _ROWS_AT_ONCE:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _cells(table: "pa.Table") -> Iterator[list[Any]]:
    """Rows for a CSV: nothing where nothing is known, and truths as 1 and 0, as labels are."""
    for row in table.to_pylist():
        yield [_cell(value) for value in row.values()]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return int(value) if isinstance(value, bool) else value
