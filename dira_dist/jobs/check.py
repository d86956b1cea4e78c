"""``dira-dist check``: what can be known of a loaded job, from where it would be started."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from dira_dist.config import RequestError
from dira_dist.jobs.bill import bill_at, measured_bill
from dira_dist.jobs.compare_plan import ComparisonPlan, plan_comparison
from dira_dist.jobs.folds_plan import FoldsPlan, plan_folds
from dira_dist.jobs.load import AnyLoaded, Driver, LoadedJob
from dira_dist.jobs.preflight import Preflight, estimate_memory, preflight
from dira_dist.jobs.search_plan import SearchPlan, plan_search


def check(
    loaded: AnyLoaded, images_per_second: float | Literal["measured"] | None = None, *, memory: bool = False
) -> Preflight | SearchPlan | ComparisonPlan | FoldsPlan:
    """Check everything that a job names, and lay out what it will do; touches nothing.

    Args:
        loaded: the job.
        images_per_second: of all workers, where you know it, or ``measured`` by a few steps on this machine: adds the
            time that a run takes.
        memory: whether to estimate a worker's memory too, for which the networks' shapes are counted.

    Raises:
        RequestError: for what cannot run as asked.
    """
    facts = _CHECKS[loaded.driver](loaded)
    if images_per_second is None and not memory:
        return facts
    if not isinstance(facts, Preflight):
        raise RequestError("time and memory of a search or comparison are those of its runs: check one of them for it")
    if memory:
        facts = replace(facts, memory=estimate_memory(facts.job))
    if images_per_second is None:
        return facts
    return replace(
        facts, bill=measured_bill(facts) if images_per_second == "measured" else bill_at(facts, images_per_second)
    )


def _check_job(loaded: LoadedJob) -> Preflight:
    return preflight(loaded.job.resolve_paths())


_CHECKS: Mapping[Driver, Callable[[Any], Preflight | SearchPlan | ComparisonPlan | FoldsPlan]] = {
    "fit": _check_job,
    "search": plan_search,
    "compare": plan_comparison,
    "folds": plan_folds,
}
