"""What the service asks of a tracked run, and the run of a job without tracking."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Run(Protocol):
    """A run that is being recorded. Its calls return at once and raise nothing; only the last two wait."""

    @property
    def run_id(self) -> str:
        """Empty where nothing is recorded."""

    @property
    def page(self) -> str:
        """Address of the run's page, or the command that shows it; empty where nothing is recorded."""

    @property
    def lost(self) -> int:
        """Values, pictures and files that will never arrive."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""

    def log_picture(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Record a picture, ``(H, W)`` or ``(H, W, 3)`` uint8, at a step."""

    def log_text(self, text: str, path: str) -> None:
        """Record a text as the artifact ``path``."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record a table as the artifact ``path`` (``.json``)."""

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Record which data went in: digest and address of a shard set, its use, and facts about it."""

    def log_checkpoint(self, address: str, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Record where a checkpoint lies, and its figures."""

    def log_removal(self, step: int) -> None:
        """Record that the checkpoint of a step was removed."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""

    def claimed(self) -> None:
        """Record that ``run.json`` names this run, by which the next start finds it."""

    def deliver_left_behind(self) -> None:
        """Deliver what other processes of this run were to deliver and left behind. For the run's driver."""

    def pending(self) -> list[list[Any]]:
        """The metrics that were not delivered yet, to be kept in a checkpoint."""

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until everything has arrived; False where something has not after ``timeout_s``."""

    def finish(self, status: Status, reason: str = "", timeout_s: float = 60.0) -> bool:
        """Close the run; False where not everything arrived within ``timeout_s``."""


class NullRun:
    """Records nothing, for a job without tracking; what the calls mean stands at :class:`Run`."""

    run_id = ""
    page = ""
    lost = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_picture(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None: ...

    def log_text(self, text: str, path: str) -> None: ...

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None: ...

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None: ...

    def log_checkpoint(self, address: str, step: int, metrics: Mapping[str, float] | None = None) -> None: ...

    def log_removal(self, step: int) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def claimed(self) -> None: ...

    def deliver_left_behind(self) -> None: ...

    def pending(self) -> list[list[Any]]:
        return []

    def flush(self, timeout_s: float = 30.0) -> bool:
        return True

    def finish(self, status: Status, reason: str = "", timeout_s: float = 60.0) -> bool:
        return True
