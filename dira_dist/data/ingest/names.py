"""Names of files as they are hashed and as they are shown.

A folder may hold names that are no UTF-8 (an archive of the Latin-1 years); Python carries their bytes as surrogates,
which neither UTF-8 nor JSON can write.
"""


def name_bytes(text: str) -> bytes:
    """UTF-8 of a text about files; of a name that is none, its own bytes."""
    return text.encode(errors="surrogateescape")


def printable(text: str) -> str:
    r"""The same for a person or a file of JSON; bytes that are no UTF-8 as ``\xe9``."""
    return name_bytes(text).decode(errors="backslashreplace")
