"""What a job names of this machine must be there on every other one."""

from pathlib import Path

import pytest
import ray

from dira_dist.cluster.folders import check_seen
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import RequestError
from dira_dist.jobs.base import ResourcesConfig


def test_a_machine_that_lacks_a_file_is_named(tmp_path: Path) -> None:
    there = tmp_path / "run.json"
    there.touch()
    with embedded_ray(ResourcesConfig()):
        machines = {"10.0.0.7": ray.get_runtime_context().get_node_id()}
        check_seen([str(there)], machines)
        with pytest.raises(RequestError, match=r"index\.json: the machine 10\.0\.0\.7 .* does not have it; give s3://"):
            check_seen([str(there), str(tmp_path / "index.json")], machines)
