"""Which rows of a table belong to which item; a row that could mean two, and rows that mean none, are told of."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from dira_dist.config import RequestError
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.names import Naming
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.tables import Table, names_of


def named_in(table: Table, item: Item) -> str:
    """The name by which a table knows an item: that of its file, or for a series of its folder or any slice."""
    if item.kind != "series":
        return item.files[0]
    folder = str(PurePosixPath(item.files[0]).parent)
    return next((name for name in (folder, *item.files) if table.rows_for(name)), folder)


def check_names(called: Naming, options: ShardOptions, tables: Sequence[Table], items: Iterable[Item]) -> None:
    """A table that calls two files by one name would give one's labels to the other.

    Raises:
        RequestError: one does.
    """
    files = [file for item in items for file in item.files] if tables else []
    for position in (1, 2):
        counts = Counter(names_of(file)[position] for file in files)
        for table in tables:
            for file in files:
                names = names_of(file)
                name = names[position]
                if counts[name] > 1 and name in table.rows and not any(n in table.rows for n in names[:position]):
                    raise RequestError(
                        f"{table.address}: {called.row(name)!r} could be any of {counts[name]} files, {called(file)!r} "
                        f"for one; in column {options.image_column!r} write paths within the source."
                    )


def unmatched_rows(called: Naming, table: Table, items: Sequence[Item]) -> list[str]:
    """How a table calls the images of its rows that belong to none of the source.

    Raises:
        RequestError: none of them belongs to any.
    """
    names = (table.name_for(file) for item in items for file in (named_in(table, item), *item.files))
    used = {name for name in names if name is not None}
    unused = [name for name in table.rows if name not in used]
    if not used:
        raise RequestError(
            f"{table.address}: no image has a row there. An image is called {called(items[0].files[0])!r}, a row "
            f"{called.row(unused[0])!r}; rows name a file by its path in the source, its name, or its name without "
            "suffix."
        )
    return unused
