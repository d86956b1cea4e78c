"""Whether two identifiers mean one patient: what DICOM says of it, and what only looks like it."""

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER_AS_TEXT = re.compile(r"\.0+$")


def identifier(text: str) -> str:
    """An identifier as DICOM means it (PS3.5, LO): blanks and NULs around it, which only pad, are no part of it."""
    return text.strip(" \0\t\r\n")


def alike(text: str) -> str:
    """What is left of an identifier when case, leading zeros and a ``.0`` of a spreadsheet are set aside."""
    bare = _NUMBER_AS_TEXT.sub("", identifier(text)).casefold()
    return bare.lstrip("0") or bare


def near_spellings(identifiers: Iterable[str]) -> list[tuple[str, ...]]:
    """Unlike identifiers that may well mean one patient, together."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in identifiers:
        if identifier(text):
            found[alike(text)].add(identifier(text))
    return [tuple(sorted(spellings)) for spellings in found.values() if len(spellings) > 1]
