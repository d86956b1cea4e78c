"""The GPU that a job's evaluations have beside those of its workers, for as long as the job runs."""

from types import TracebackType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dira_dist.cluster.session import cluster_grows, gpus_per_worker
from dira_dist.jobs.base import TrainingJob

ON_CPU = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
"""How Ray starts an evaluation that has no GPU."""
_GIVEN_WITHIN_S = 5


class EvaluationGpu:
    """Reserves it where ``evaluation.device`` asks for one and the cluster has one that the workers do not need.

    It is asked for before the workers start: they get what is left, and an elastic run so many as that is enough for.
    On a cluster that grows it may come later; until then evaluations run on the CPU.

    Args:
        job: the process is connected to a Ray that can run it.

    Attributes:
        wanted: GPUs that the job asks for.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.wanted = gpus_for_evaluation(job)
        self._room: PlacementGroup | None = None
        if self.wanted and (cluster_grows() or _one_is_spare(job)):
            self._room = placement_group([{"GPU": float(self.wanted)}])

    def options(self) -> dict[str, Any]:
        """How Ray starts the next evaluation: with ``num_gpus`` where the cluster has given it."""
        if self._room is None or not self._room.wait(_GIVEN_WITHIN_S):
            return dict(ON_CPU)
        strategy = PlacementGroupSchedulingStrategy(placement_group=self._room)
        return {"num_cpus": 0, "num_gpus": self.wanted, "scheduling_strategy": strategy}

    def __enter__(self) -> "EvaluationGpu":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._room is not None and ray.is_initialized():
            remove_placement_group(self._room)


def gpus_for_evaluation(job: TrainingJob) -> int:
    """GPUs that a job asks for beside its workers', on the cluster that this process is connected to."""
    return job.evaluation.gpus(gpus_per_worker(job.resources)) if job.is_evaluated_beside else 0


def _one_is_spare(job: TrainingJob) -> bool:
    """Of what no other job holds, after the fewest workers of this one."""
    needed = job.resources.min_workers * gpus_per_worker(job.resources)
    return bool(ray.available_resources().get("GPU", 0) >= needed + gpus_for_evaluation(job))
