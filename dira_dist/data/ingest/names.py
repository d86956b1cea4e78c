"""Names of files as they are hashed and as they are shown.

A folder may hold names that are no UTF-8 (an archive of the Latin-1 years); Python carries their bytes as surrogates,
which neither UTF-8 nor JSON can write.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dira_dist.data.ingest.salt import Salt


def name_bytes(text: str) -> bytes:
    """UTF-8 of a text about files; of a name that is none, its own bytes."""
    return text.encode(errors="surrogateescape")


def printable(text: str) -> str:
    r"""The same for a person or a file of JSON; bytes that are no UTF-8 as ``\xe9``."""
    return name_bytes(text).decode(errors="backslashreplace")


@dataclass(frozen=True)
class Naming:
    """How files of the source are called on a console or in the log of a job.

    Args:
        salt: of the set's keys.
        keys: whether the salted key stands in a name's place; the report has both.
    """

    salt: "Salt"
    keys: bool

    def __call__(self, file: str) -> str:
        """A file, by its path within the source or by the key of its samples."""
        return self.salt.digest("sample", file) if self.keys else printable(file)

    def row(self, name: str) -> str:
        """What a table calls an image, which tells its file's name too."""
        return self.salt.digest("row", name) if self.keys else printable(name)

    def several(self, files: Sequence[str], most: int = 3) -> str:
        """The first few of many."""
        more = f" and {len(files) - most} more" if len(files) > most else ""
        return ", ".join(self(file) for file in files[:most]) + more


def by_keys(asked: str | None) -> bool:
    """Whether keys stand in the place of names, by what was asked for: where others read the log if it was nothing."""
    return runs_as_a_job() if asked is None else asked == "keys"


def runs_as_a_job() -> bool:
    """Whether this process belongs to a job of Ray or a pod of Kubernetes, whose logs others read."""
    return any(name in os.environ for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_ID", "KUBERNETES_SERVICE_HOST"))
