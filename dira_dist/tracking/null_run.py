"""The run of a job without tracking."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Status = Literal["FINISHED", "FAILED", "KILLED"]


class NullRun:
    """Records nothing, for a job without tracking; the same calls as :class:`~dira_dist.tracking.run.TrackingRun`."""

    run_id = ""
    page = ""
    lost = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_picture(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Nothing."""

    def log_text(self, text: str, path: str) -> None:
        """Nothing."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Nothing."""

    def claimed(self) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_checkpoint(self, address: str, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Nothing."""

    def log_removal(self, step: int) -> None:
        """Nothing."""

    def pending(self) -> list[list[Any]]:
        """Nothing waits."""
        return []

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Nothing waits."""
        return True

    def finish(self, status: Status, reason: str = "", timeout_s: float = 60.0) -> bool:
        """Nothing waits."""
        return True
