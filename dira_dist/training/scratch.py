"""Room in the temporary folder, where a checkpoint is written before it goes to the storage."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dira_dist.config import RequestError

MB = 10**6
CHECKPOINTS_AT_ONCE = 2  # one that is written, and one of the evaluation that reads it back
_REMEDY = "make room there, or set TMPDIR to a folder on a larger disk"


class NoRoomError(OSError):
    """The temporary folder did not take a checkpoint; the message names folder and disk, and the remedy."""


def check_room(state: Mapping[str, Any]) -> None:
    """Looks, before the first step, whether checkpoints of these networks can be written here at all.

    Args:
        state: the networks' own, nested, which is the least that a checkpoint holds.

    Raises:
        RequestError: the temporary folder has no room for two of them.
    """
    least = CHECKPOINTS_AT_ONCE * _bytes_of(state)
    folder = Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < least:
        raise RequestError(
            f"{_described(folder)}: a checkpoint is written there first, and {CHECKPOINTS_AT_ONCE} of them take at "
            f"least {least / MB:,.0f} MB; {_REMEDY}"
        )


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Trouble with what is written here is the temporary folder's, and not the storage's.

    Raises:
        NoRoomError: in the place of what PyTorch or the system raised.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk with the latter
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoRoomError(f"{_described(folder.parent)} did not take it ({reason}); {_REMEDY}") from error


def _bytes_of(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(_bytes_of, state.values())) if isinstance(state, Mapping) else 0


def _described(folder: Path) -> str:
    disk = next(place for place in (folder, *folder.absolute().parents) if place.is_mount())
    usage = shutil.disk_usage(folder)
    return f"the temporary folder {folder} (disk {disk}: {usage.free / MB:,.0f} of {usage.total / MB:,.0f} MB free)"
