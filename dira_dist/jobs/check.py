"""``dira-dist check``: what can be known of a loaded job, from where it would be started."""

from collections.abc import Callable, Mapping
from typing import Any

from dira_dist.jobs.compare_plan import ComparisonPlan, plan_comparison
from dira_dist.jobs.folds_plan import FoldsPlan, plan_folds
from dira_dist.jobs.load import AnyLoaded, Driver, LoadedJob
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.jobs.search_plan import SearchPlan, plan_search


def check(loaded: AnyLoaded) -> Preflight | SearchPlan | ComparisonPlan | FoldsPlan:
    """Check everything that a job names, and lay out what it will do; touches nothing.

    Raises:
        RequestError: for what cannot run as asked.
    """
    return _CHECKS[loaded.driver](loaded)


def _check_job(loaded: LoadedJob) -> Preflight:
    return preflight(loaded.job.resolve_paths())


_CHECKS: Mapping[Driver, Callable[[Any], Preflight | SearchPlan | ComparisonPlan | FoldsPlan]] = {
    "fit": _check_job,
    "search": plan_search,
    "compare": plan_comparison,
    "folds": plan_folds,
}
