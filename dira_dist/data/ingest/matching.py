"""Which rows of a table belong to which item; a row that could mean two, and rows that mean none, are told of."""

from collections import Counter
from collections.abc import Iterable, Sequence

from dira_dist.config import RequestError
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.names import Naming
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.ingest.tables import Table, names_of


def named_in(table: Table, item: Item) -> str:
    """The name by which a table knows an item: its folder or case, else that of its files which is known best."""
    files = item.files
    if item.called:
        if table.name_for(item.called) is not None:
            return item.called
        files = (item.called, *files)
    if len(files) == 1:
        return files[0]
    # a path says more than a name, and that more than a stem, which the two files of a pair share
    names = [(file, names_of(file)) for file in files]
    return next((file for position in range(3) for file, each in names if each[position] in table.rows), files[0])


def check_names(called: Naming, options: ShardOptions, tables: Sequence[Table], items: Iterable[Item]) -> None:
    """A table that calls two items by one name would give one's labels to the other.

    Raises:
        RequestError: one does.
    """
    named = [(item, [names_of(file) for file in item.files]) for item in items] if tables else []
    for position in (1, 2):
        # once for an item: the files of a pair share their stem
        meant = {(names[position], item.files[0]) for item, each in named for names in each}
        counts = Counter(name for name, _ in meant)
        for table in tables:
            for item, each in named:
                if any(name in table.rows for names in each for name in names[:position]):
                    continue
                for name in {names[position]: None for names in each}:
                    if counts[name] > 1 and name in table.rows:
                        raise RequestError(
                            f"{table.address}: {called.row(name)!r} could be any of {counts[name]} files, "
                            f"{called(item.files[0])!r} for one; in column {options.image_column!r} write paths within "
                            "the source."
                        )


def unmatched_rows(called: Naming, table: Table, items: Sequence[Item]) -> list[str]:
    """How a table calls the images of its rows that belong to none of the source.

    Raises:
        RequestError: none of them belongs to any.
    """
    # a series has a row for each slice, a case one for each channel; of two rows for a pair's files one is not read
    slices = (file for item in items if item.called for file in item.files)
    names = (table.name_for(file) for file in (*(named_in(table, item) for item in items), *slices))
    used = {name for name in names if name is not None}
    unused = [name for name in table.rows if name not in used]
    if not used:
        raise RequestError(
            f"{table.address}: no image has a row there. An image is called {called(items[0].files[0])!r}, a row "
            f"{called.row(unused[0])!r}; rows name a file by its path in the source, its name, or its name without "
            "suffix."
        )
    return unused
