"""The job files that come with the package, for who has no checkout of it."""

import re
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.jobs.draft import SCHEMA_FILE

_JOBS = Path(__file__).parent / "jobs"
_SCHEMA_LINE = "# yaml-language-server: $schema="


def examples() -> dict[str, str]:
    """The job files of the package by name, each with the first sentence of what it says of itself."""
    return {file.stem: _first_sentence(file.read_text()) for file in sorted(_JOBS.glob("*.yaml"))}


def example(name: str) -> str:
    """A job file of the package as text, to be written into one's own; editors find the schema from anywhere.

    Raises:
        RequestError: there is none of that name.
    """
    file = _JOBS / f"{Path(name).stem}.yaml"
    if not file.is_file():
        raise RequestError(f"found {name!r}; there is no such job file, but {', '.join(examples())}")
    lines = file.read_text().splitlines(keepends=True)
    return "".join(
        f"{_SCHEMA_LINE}{SCHEMA_FILE.as_uri()}\n" if line.startswith(_SCHEMA_LINE) else line for line in lines
    )


def _first_sentence(text: str) -> str:
    """Of the comment below the line for editors, as far as its first colon or semicolon."""
    comment = " ".join(line.removeprefix("# ").strip() for line in text.splitlines()[2:] if line.startswith("#"))
    return re.split(r"\.(?= [A-Z]|$)|[:;](?= )|(?<=\?)", comment)[0]
