"""The secret behind keys and splits.

With the same salt a file has the same key and a patient the same part in every run and on every machine, also after the
archive has grown; without it nobody can tell from a key which file or patient it was. The salt is a small file that
stays with the user and never enters a shard.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.data.ingest.names import name_bytes

_KEY_BYTES = 10


@dataclass(frozen=True)
class Salt:
    """The secret behind keys and split."""

    secret: bytes = field(repr=False)

    def digest(self, purpose: str, text: str, size_bytes: int = _KEY_BYTES) -> str:
        """Keyed BLAKE2b of ``text``, hexadecimal; unlike purposes give unrelated values."""
        person = purpose.encode()
        return hashlib.blake2b(name_bytes(text), digest_size=size_bytes, key=self.secret, person=person).hexdigest()

    def fraction(self, text: str) -> float:
        """A uniform number in [0, 1) that ``text`` always gets."""
        return int(self.digest("split", text, 6), 16) / (1 << 48)


def read_salt(path: str | None) -> Salt:
    """The salt of a file; without one this user's own, made on first use.

    Raises:
        RequestError: the named file is missing or holds hardly anything, or this user's own cannot be made.
    """
    if path is None:
        file = _own_file()
    else:
        file = Path(path).expanduser()
        if not file.is_file():
            raise RequestError(
                f"salt_file {path}: there is no such file; make one with `openssl rand -hex 32 > {path}`."
            )
    text = file.read_text().strip()
    if len(text) < 8:
        raise RequestError(f"salt_file {file}: {len(text)} characters are no secret; use `openssl rand -hex 32`.")
    return Salt(hashlib.sha256(text.encode()).digest())


def has_own_salt() -> bool:
    """Whether this user has made sets without naming a salt."""
    try:
        return _own_place().is_file()
    except (OSError, RuntimeError):  # the latter where nobody knows a home
        return False


def _own_place() -> Path:
    home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return home / "dira_dist" / "shard-salt"


def _own_file() -> Path:
    """The file of this user's salt, made where it is not there.

    Raises:
        RequestError: the home folder is missing or takes no files.
    """
    try:
        file = _own_place()
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_secret(file, secrets.token_hex(32))
    except (OSError, RuntimeError) as error:  # the latter where nobody knows a home
        raise RequestError(
            f"the salt of this user's shards cannot be kept in the home folder ({error}); make one that stays with you "
            "(`openssl rand -hex 32 > FILE`) and give it as --salt-file FILE, or set XDG_DATA_HOME to a folder that "
            "takes files"
        ) from error
    return file


def _write_secret(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text + "\n")


def part_of(fraction: float, split: Mapping[str, float]) -> str:
    """The part whose share of [0, 1), in the split's order, ``fraction`` falls into."""
    end = 0.0
    for name, share in split.items():
        end += share
        if fraction < end:
            return name
    return name  # the shares sum to 1 but for rounding
