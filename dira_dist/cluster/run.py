"""A job of any kind, begun in the right room."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dira_dist.jobs.load import AnyLoaded, Driver

if TYPE_CHECKING:
    from dira_dist.cluster.fit.outcome import Outcome
    from dira_dist.cluster.tune.compare import ComparisonOutcome
    from dira_dist.cluster.tune.folds import FoldsOutcome
    from dira_dist.cluster.tune.search import SearchOutcome

# Ray Tune and Optuna take seconds to import, and a training needs neither.
_DRIVERS: dict[Driver, tuple[str, str]] = {
    "fit": ("dira_dist.cluster.fit.driver", "fit"),
    "search": ("dira_dist.cluster.tune.search", "search"),
    "compare": ("dira_dist.cluster.tune.compare", "compare"),
    "folds": ("dira_dist.cluster.tune.folds", "train_folds"),
}


def run(
    loaded: AnyLoaded, *, console: Console | None = None
) -> "Outcome | SearchOutcome | ComparisonOutcome | FoldsOutcome":
    """Run a job to its end, or go on with the one of its name.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: when the work failed or was stopped; the same call goes on.
    """
    module, name = _DRIVERS[loaded.driver]
    outcome: Any = getattr(import_module(module), name)(loaded, console=console)
    return outcome  # type: ignore[no-any-return]
