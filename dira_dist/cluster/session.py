"""Ray for one job: the cluster of ``RAY_ADDRESS``, or an embedded one that lives as long as the job."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from dira_dist.config import RequestError
from dira_dist.job import ResourcesConfig

OBJECT_STORE_BYTES = 128 * 2**20

# Ray's own defaults wait for ever, or half an hour, where a training wants to hear of trouble.
_RAY_SETTINGS = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """Be connected to a Ray that can run a job of these resources.

    A connection that stands already is used and left standing. An embedded Ray has at least the CPUs that the smallest
    run asks for, so that two workers run on a laptop with one core, slowly.

    Raises:
        RequestError: if there is no cluster at ``RAY_ADDRESS``, or an embedded Ray lacks the GPUs.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    _connect(resources)
    try:
        if "RAY_ADDRESS" not in os.environ:
            _check_gpus(resources)
        yield
    finally:
        ray.shutdown()


def _connect(resources: ResourcesConfig) -> None:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RequestError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); correct it, "
                "or unset it to run on an embedded Ray on this machine"
            ) from error
        return
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that token authentication is on
    needed = math.ceil(resources.min_workers * resources.cpus_per_worker)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _check_gpus(resources: ResourcesConfig) -> None:
    found = ray.cluster_resources().get("GPU", 0)
    wanted = resources.min_workers * (resources.gpus_per_worker or 0)
    if wanted > found:
        raise RequestError(
            f"resources: {resources.min_workers} workers with {resources.gpus_per_worker:g} GPUs each want {wanted:g} "
            f"GPUs, and this machine has {found:g}; set RAY_ADDRESS to a cluster, or resources.gpus_per_worker to 0"
        )


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """The job's figure, or where it leaves it out 1 on a cluster with GPUs and 0 elsewhere."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= resources.min_workers else 0.0
