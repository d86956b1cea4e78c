"""Why a file cannot be read, in words: what a decoder says may quote a header, an address in memory, or nothing."""

import re
import struct
import zlib

from dira_dist.data.ingest.names import printable


class UnreadableError(ValueError):
    """A file that is no image, or not one that can be read; the message says why, and quotes nothing of the file.

    Args:
        reason: in words, without names.
        file: which of several files it is, where one of a series is damaged.
    """

    def __init__(self, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.file = file


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (UnicodeDecodeError, "a text in it is damaged"),
    (MemoryError, "it needs more memory than there is"),
    (EOFError, "it ends too early"),
    (zlib.error, "its compressed data is damaged"),
    (struct.error, "it ends too early"),
    (NotImplementedError, "it is coded in a way that is not read"),
    (SyntaxError, "its structure is damaged"),
    (ArithmeticError, "a number in its header makes no sense"),
    (AttributeError, "its header lacks what its pixels need"),
    (LookupError, "its header lacks what its pixels need"),
    (TypeError, "its header holds what makes no sense"),
    (ValueError, "its header and its pixels do not fit together"),
    (OSError, "its pixels are damaged or cut off"),
)
_PATTERNS = (  # of decoders' messages that are safe and tell more than their class
    (
        re.compile(r"truncat|too small|short|end of (file|stream)|not enough|premature", re.IGNORECASE),
        "it is cut short",
    ),
    (re.compile(r"crc|checksum|data check", re.IGNORECASE), "it is damaged: a checksum differs"),
    (re.compile(r"cannot identify|not a tiff|no valid|unsupported .*(format|file)", re.IGNORECASE), "it is no image"),
    (re.compile(r"broken data stream|corrupt|invalid", re.IGNORECASE), "its compressed data is damaged"),
)


def reason_of(error: Exception) -> str:
    """One clause that a person understands, for any error of any decoder."""
    if isinstance(error, UnreadableError):
        return printable(str(error))
    text = str(error)
    for pattern, words in _PATTERNS:
        if pattern.search(text):
            return f"it cannot be read: {words}"
    words = next((words for kind, words in _WORDS if isinstance(error, kind)), "its decoder gives up")
    return f"it cannot be read: {words}"
