"""Ray for one job: the cluster of ``RAY_ADDRESS``, or an embedded one that lives as long as the job."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from dira_dist.cluster.capacity import check_capacity
from dira_dist.config import RequestError
from dira_dist.jobs.job import ResourcesConfig

OBJECT_STORE_BYTES = 128 * 2**20

# Ray's own defaults wait for ever, or half an hour, where a training wants to hear of trouble.
_RAY_SETTINGS = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a spot machine's notice is short
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # of one try; resources.start_timeout_s bounds all of them
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # the next evaluation finds torch imported
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """Be connected to a Ray that can run a job of these resources; a connection that stands already is left standing.

    Raises:
        RequestError: if there is no cluster at ``RAY_ADDRESS``, or it can never hold the fewest workers.
    """
    if ray.is_initialized():
        check_capacity(resources, gpus_per_worker(resources))
        yield
    elif "RAY_ADDRESS" in os.environ:
        with _cluster(os.environ["RAY_ADDRESS"]):
            check_capacity(resources, gpus_per_worker(resources))
            yield
    else:
        with embedded_ray(resources):
            yield


@contextmanager
def embedded_ray(resources: ResourcesConfig) -> Iterator[None]:
    """A Ray of this machine alone, whatever ``RAY_ADDRESS`` says, that ends with the block.

    It has at least the CPUs that the smallest run asks for, so that two workers run on a laptop with one core, slowly.

    Raises:
        RequestError: if this machine lacks the GPUs, or the process is connected to a Ray already.
    """
    if ray.is_initialized():
        raise RequestError("this process is connected to a Ray already; call ray.shutdown() first")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that token authentication is on
    _settle_environment()
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(resources.min_workers * resources.cpus_per_worker)),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        _check_gpus(resources)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    _settle_environment()
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); correct it, "
            "or unset it to run on an embedded Ray on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _settle_environment() -> None:
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)


def _check_gpus(resources: ResourcesConfig) -> None:
    found, each = ray.cluster_resources().get("GPU", 0), gpus_per_worker(resources)
    if resources.min_workers * each > found:
        raise RequestError(
            f"resources: {resources.min_workers} workers with {each:g} GPUs each want {resources.min_workers * each:g} "
            f"GPUs, and this machine has {found:g}; set RAY_ADDRESS to a cluster, lower resources.workers, or set "
            f"resources.gpus_per_worker to a fraction or to 0"
        )


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """The job's figure, or where it leaves it out 1 on a cluster with GPUs and 0 elsewhere."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
