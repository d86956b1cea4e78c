"""Files of this machine."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_with_checksum(path: Path, write: Callable[[Path], object]) -> str:
    """Write a file whole or not at all, with its sha256 in a file beside it (``sha256sum -c`` reads it).

    Args:
        path: of the file; its folder is made.
        write: writes it at another place of the same name.

    Returns:
        The sha256 in hexadecimal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial = Path(folder) / path.name
        write(partial)
        digest = sha256_of(partial)
        checksum = partial.with_name(f"{path.name}.sha256")
        checksum.write_text(f"{digest}  {path.name}\n")
        partial.replace(path)
        checksum.replace(path.with_name(checksum.name))
    return digest
