"""What a killed trial held is given back, and nothing else."""

import time
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, placement_group_table

from dira_dist.cluster.ray_internals import remove_orphaned_groups
from dira_dist.cluster.session import embedded_ray
from dira_dist.jobs.base import ResourcesConfig


@ray.remote(num_cpus=0)
class Controller:
    """Makes a group as Ray Train's controller does for its workers."""

    def make(self) -> str:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready(), timeout=120)
        return str(group.id.hex())


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def standing() -> set[str]:
    return {key for key, group in placement_group_table().items() if group["state"] == "CREATED"}


def test_groups_of_dead_actors_are_removed_and_those_of_the_living_and_the_driver_stay() -> None:
    with embedded_ray(ResourcesConfig(workers=2)):
        dead, alive = Controller.remote(), Controller.remote()
        left, kept = ray.get([dead.make.remote(), alive.make.remote()])
        own = placement_group([{"CPU": 0.5}])
        ray.get(own.ready(), timeout=120)
        assert remove_orphaned_groups() == 0
        ray.kill(dead)
        until(lambda: remove_orphaned_groups() == 1)
        until(lambda: standing() == {kept, own.id.hex()})
        assert left not in standing()
        assert remove_orphaned_groups() == 0
