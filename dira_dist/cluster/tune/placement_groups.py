"""CPUs and GPUs that nobody uses and nobody gives back: placement groups whose creator is gone.

Ray keeps a group that an actor made for as long as the actor's *job* lives. Ray Train removes its own when it shuts
down in order; for a controller that was killed it has a cleaner, which asks Ray's state API and in Ray 2.60 was seen to
wait for more than a minute, with a dashboard or without one. A search kills controllers all day.
"""

import ray
from ray._private.state import state  # what ray.util tells of a placement group leaves its creator out
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


def remove_orphaned_groups() -> int:
    """Remove the placement groups of this job that were made by actors which are dead; returns how many."""
    job = ray.get_runtime_context().get_job_id()
    orphans = [group for group in _groups() if _is_orphan(group) and group.creator_job_id.hex() == job]
    for group in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(orphans)


def _groups() -> list[gcs_pb2.PlacementGroupTableData]:
    table = state._connect_and_get_accessor().get_placement_group_table()
    return [gcs_pb2.PlacementGroupTableData.FromString(group) for group in table]


def _is_orphan(group: gcs_pb2.PlacementGroupTableData) -> bool:
    """Groups that a driver made have no creating actor, and Ray calls that one dead."""
    by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
    removed = group.state == gcs_pb2.PlacementGroupTableData.REMOVED
    return by_actor and group.creator_actor_dead and not group.is_detached and not removed
