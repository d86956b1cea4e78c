"""``kind: tune``: a search over jobs of another kind."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dira_dist.config import Section
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.kinds import KINDS
from dira_dist.search.config import SearchConfig

if TYPE_CHECKING:  # a union put together at run time is no type to a checker, and its members' base class is
    AnyJob = TrainingJob
elif len(KINDS) == 1:
    (AnyJob,) = KINDS.values()
else:
    AnyJob = Annotated[reduce(or_, KINDS.values()), Field(discriminator="kind")]


class TuneJob(Section):
    """A search over jobs: what ``kind: tune`` holds."""

    kind: Literal["tune"]
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="the search's identity; its trials are NAME-000, ..."
    )
    search: SearchConfig
    base: AnyJob = Field(description="a whole job; its name is the winner's, NAME-best if left out")
