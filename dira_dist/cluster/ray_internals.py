"""What this project uses of Ray that is not public, all of it, each with its reason. Written against Ray 2.60.

A new version of Ray is taken up by reading this file against it; nothing else here depends on Ray's inside.
"""

from collections.abc import Mapping
from typing import Any

import ray

# Ray Train saves nothing before the restarts that it plans itself: a drained node, another cluster size. Its
# controller's states say when one is planned, and only its own kind of callback sees them; there is no public one.
from ray._private.state import state
from ray.core.generated import gcs_pb2

# Two of the actors that Ray Train starts for every job have nothing to do in ours; only these names tell them apart.
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)

# `ray.train.RunConfig` takes one, and `ray.train` does not export it.
from ray.train.v2.api.config import LoggingConfig
from ray.util.placement_group import PlacementGroup, remove_placement_group

__all__ = [
    "AUTHENTICATION_LOGGER",
    "ControllerCallback",
    "LeanTrainer",
    "LoggingConfig",
    "PreemptingState",
    "ReschedulingState",
    "ResizingState",
    "RestartingState",
    "RunningState",
    "SchedulingState",
    "TrainControllerState",
    "remove_orphaned_groups",
    "worker_failures",
]

# Prints at every start that token authentication is on; loggers have no public names.
AUTHENTICATION_LOGGER = "ray._private.authentication"


class LeanTrainer(TorchTrainer):  # type: ignore[misc]  # mypy sees no class in Ray's lazy export
    """Ray Train's trainer without two of its actors, each of which takes seconds to start.

    One hands out Ray Data's datasets, which no job of ours has. The other removes the workers' placement group once
    the controller was killed: Ray does so itself at the end of the driver, and :func:`remove_orphaned_groups` before.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback | PlacementGroupCleanerCallback)]


def worker_failures(error: BaseException) -> Mapping[int, BaseException]:
    """What each worker raised, by rank; Ray Train wraps it twice, and keeps the original in a private attribute."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}


def remove_orphaned_groups() -> int:
    """Remove the placement groups of this job that were made by actors which are dead; returns how many.

    Ray keeps a group that an actor made for as long as the actor's *job* lives. Ray Train removes its own when it shuts
    down in order; for a controller that was killed it has a cleaner, which asks Ray's state API and in Ray 2.60 was
    seen to wait for more than a minute, with a dashboard or without one. A search kills controllers all day. The
    creator of a group stands only in Ray's internal table, ``ray.util`` leaves it out.
    """
    job = ray.get_runtime_context().get_job_id()
    table = state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(group) for group in table]
    orphaned = [group for group in groups if _is_orphan(group) and group.creator_job_id.hex() == job]
    for group in orphaned:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(orphaned)


def _is_orphan(group: gcs_pb2.PlacementGroupTableData) -> bool:
    """Groups that a driver made have no creating actor, and Ray calls that one dead."""
    by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
    removed = group.state == gcs_pb2.PlacementGroupTableData.REMOVED
    return by_actor and group.creator_actor_dead and not group.is_detached and not removed
