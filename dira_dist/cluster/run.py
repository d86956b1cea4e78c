"""A job of either kind, begun in the right room."""

from typing import TYPE_CHECKING

from rich.console import Console

from dira_dist.cluster.fit.driver import Outcome, pretrain
from dira_dist.jobs.job import LoadedJob, LoadedSearch

if TYPE_CHECKING:
    from dira_dist.cluster.tune.search import SearchOutcome


def run(loaded: LoadedJob, *, console: Console | None = None) -> "Outcome | SearchOutcome":
    """Run a pretraining job or a search to its end, or go on with the one of its name.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: when the work failed or was stopped; the same call goes on.
    """
    if not isinstance(loaded, LoadedSearch):
        return pretrain(loaded, console=console)
    from dira_dist.cluster.tune.search import search  # Ray Tune and Optuna take seconds to import

    return search(loaded, console=console)
