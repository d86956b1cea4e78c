"""The code blocks of a Markdown page, and the commands in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: that holds it.
        line: of the page, where it begins.
        language: as the fence says; empty where it says none.
        text: without the page's indentation.
    """

    page: Path
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        indent = len(found[1])
        lines = (line[indent:] for line in found[3].splitlines())
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], "\n".join(lines))


def commands_in(block: Block) -> list[str]:
    """Its commands, each in one line: what follows ``$``, or every line of a block that has no such mark."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    marked = [line[2:] for line in lines if line.startswith("$ ")]
    return marked or [line for line in lines if line.strip()]
