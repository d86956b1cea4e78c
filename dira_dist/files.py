"""Files of this machine."""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_not_compressed(path: Path) -> None:
    """Holds a file of PyTorch's to what PyTorch writes: an archive that compresses nothing takes no more than its size.

    Raises:
        ValueError: it is an archive with a compressed member, which might take any amount of memory.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"it is a damaged archive: {error}") from error
    if packed:
        unpacked = sum(member.file_size for member in packed)
        raise ValueError(f"it is compressed, and would unpack to {unpacked:,} bytes; PyTorch's own files never are")


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
