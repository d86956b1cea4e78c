"""Workers that are killed, or stand still, while two of them train on one machine."""

import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest
import ray
import torch
from chaos import ChaosJob, when, worker_processes

from dira_dist.cluster.record import RunRecord, read_record
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import JobFailedError
from dira_dist.data.store import open_store
from dira_dist.job import ResourcesConfig, load_job
from dira_dist.training.precision import Precision, native_bf16, settle

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with embedded_ray(ResourcesConfig(workers=2)):
        yield


@pytest.mark.parametrize("method", ["moco_v2", "barlow_twins", "simsiam"])
def test_a_killed_worker_costs_nothing_that_can_be_seen(make_job: Callable[..., ChaosJob], method: str) -> None:
    unbroken = make_job(f"{method}-unbroken", method=method, steps=60)
    unbroken.run()
    broken = make_job(f"{method}-broken", method=method, steps=60)
    step = random.randrange(7, 50)
    print(f"killed once step {step} is saved")
    with when(lambda: broken.has_reached(step), lambda: random.choice(worker_processes()).kill()):
        broken.run()
    broken.assert_whole()
    broken.assert_same_end(unbroken)
    restarts, done_again = broken.setbacks()
    assert restarts == 1 and done_again < 20


def test_a_run_goes_on_in_the_precision_that_other_machines_settled_on(make_job: Callable[..., ChaosJob]) -> None:
    """Its first start was on machines unlike this one, and ended before the first checkpoint."""
    job = make_job("settled", steps=12)
    here = settle([native_bf16(torch.device("cpu"))])
    other: Precision = "fp32" if here == "bf16" else "bf16"
    folder = open_store(f"{job.storage}/{job.name}")
    RunRecord(load_job(job.file, ["precision=auto"]).record, {}, precision=other).write(folder)
    job.run("precision=auto")
    record = read_record(folder)
    assert record is not None
    assert (record.precision, record.status) == (other, "finished")
    assert job.mlflow_run().data.tags["dira.precision"] == other
    asked = make_job("asked", steps=12)
    asked.run(f"precision={other}")
    job.assert_same_end(asked)


def test_a_worker_that_hangs_is_named(make_job: Callable[..., ChaosJob]) -> None:
    job = make_job("hanging", steps=400, more="guards: {hang_timeout_s: 15}")
    frozen: list[int] = []

    def freeze() -> None:
        frozen.append(worker_processes()[-1].pid)
        os.kill(frozen[0], signal.SIGSTOP)

    try:
        with when(lambda: job.has_reached(14), freeze), pytest.raises(JobFailedError) as caught:
            job.run("resources.max_failures=0")
    finally:
        for pid in frozen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    message = str(caught.value)
    assert "the workers waited 15 s: worker " in message
    assert "not heard of for" in message
    assert ray.is_initialized()
