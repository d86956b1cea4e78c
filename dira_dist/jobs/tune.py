"""``kind: tune``: a search over jobs of another kind."""

from typing import Generic, Literal, TypeVar

from pydantic import Field

from dira_dist.config import Section
from dira_dist.jobs.base import TrainingJob
from dira_dist.search.config import SearchConfig

Job = TypeVar("Job", bound=TrainingJob)


class TuneJob(Section, Generic[Job]):
    """A search over jobs of one kind: what ``kind: tune`` holds."""

    kind: Literal["tune"]
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="the search's identity; its trials are NAME-000, ..."
    )
    search: SearchConfig
    base: Job = Field(description="a whole job; its name is the winner's, NAME-best if left out")
