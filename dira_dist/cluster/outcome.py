"""What is reported of a job that came to its end, whatever its kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class JobOutcome:
    """What every finished job leaves behind.

    Attributes:
        name: of the job.
        run_id: MLflow run; empty without tracking.
        page: the run's page, or the command that opens it.
        already_done: the job was finished before; nothing was done now.
    """

    name: str
    run_id: str = ""
    page: str = ""
    already_done: bool = False

    @classmethod
    def of_earlier(cls, kept: Mapping[str, Any]) -> Self:
        """The outcome that an earlier start has kept."""
        return cls(**{**kept, "already_done": True})

    def headline(self, what: str) -> str:
        return f"{self.name}: {'was finished already' if self.already_done else 'finished'}{what}"

    def run_lines(self) -> Iterator[str]:
        """Where the run is shown; nothing without tracking."""
        if self.run_id:
            yield f"MLflow run  {self.run_id}  ({self.page})"
