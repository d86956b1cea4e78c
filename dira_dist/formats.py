"""Files that this project writes and reads back: each has a version and is held to a schema, like a job file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from dira_dist.config import RequestError, dotted, flatten

FileT = TypeVar("FileT")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

OF_0_1_0 = (
    "it was written by dira-dist 0.1.0: finish it with that version (pip install dira-dist==0.1.0), or start under "
    "another name, with model.init its pulled weights"
)
_OF_ANOTHER = "it was written by another version of dira-dist: read it with that one"


class FormatError(RequestError):
    """A file that cannot be read back: damaged, or of a format that this version does not know."""


class FileFormat(Generic[FileT]):
    """A JSON file of one kind.

    Args:
        kind: a dataclass; its fields are the file's keys, beside ``version``.
        version: the one that is written, and read.
        upgrades: how the keys of another version become those of this one; None stands for a file that names none.
        remedies: what to do with a file of any other version, likewise.
    """

    def __init__(
        self,
        kind: type[FileT],
        version: int,
        *,
        upgrades: Mapping[int | None, Upgrade] | None = None,
        remedies: Mapping[int | None, str] | None = None,
    ) -> None:
        self._kind, self._version = kind, version
        self._upgrades, self._remedies = dict(upgrades or {}), dict(remedies or {})

    def dump(self, value: FileT) -> bytes:
        """The file's content."""
        return json.dumps({"version": self._version, **asdict(value)}, indent=1).encode()  # type: ignore[call-overload]

    def load(self, content: bytes, address: str) -> FileT:
        """Read the file's content back.

        Args:
            content: of the file.
            address: where it came from, for messages.

        Raises:
            FormatError: it is damaged, or of another version.
        """
        values = _mapping(content, address)
        numbered, found = "version" in values, values.pop("version", None)
        if (known := found if type(found) is int or not numbered else -1) in self._upgrades:
            values = self._upgrades[known](values)
        elif known != self._version:
            remedy = self._remedies.get(known, _OF_ANOTHER)
            raise FormatError(
                f"{address}: format version {repr(found) if numbered else 'missing'}; this version of dira-dist "
                f"reads version {self._version}. {remedy[0].upper()}{remedy[1:]}"
            )
        try:
            value = self._schema.validate_json(json.dumps(values), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise _damaged(address, dotted(first["loc"]), first["msg"]) from None
        # A default is for who makes a value: a file of this version has every key.
        if missing := flatten(json.loads(self.dump(value))).keys() - flatten(values).keys() - {"version"}:
            raise _damaged(address, min(missing), "this key is missing")
        return value

    @cached_property
    def _schema(self) -> TypeAdapter[FileT]:
        return TypeAdapter(self._kind)


def _damaged(address: str, key: str, reason: str) -> FormatError:
    place = ": ".join(filter(None, [address, key]))
    return FormatError(f"{place}: damaged: {reason}")


def _mapping(content: bytes, address: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(address, "", str(error)) from error
    if not isinstance(values, dict):
        raise _damaged(address, "", f"holds a {type(values).__name__} where a mapping is expected")
    return values
