"""Some samples of what a step works on."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

ViewsT = TypeVar("ViewsT")


def take_rows(views: ViewsT, rows: slice) -> ViewsT:
    """The samples ``rows`` of :class:`Views` or :class:`LabelledViews`; tensors share their memory."""
    taken = {each.name: _rows_of(getattr(views, each.name), rows) for each in fields(views)}  # type: ignore[arg-type]
    return type(views)(**taken)


def _rows_of(value: Any, rows: slice) -> Any:
    if isinstance(value, Mapping):
        return {name: _rows_of(each, rows) for name, each in value.items()}
    return None if value is None else value[rows]
