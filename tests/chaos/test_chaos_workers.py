"""Workers that are killed, or stand still, while two of them train on one machine."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import ray
import torch
from chaos import ChaosJob, different, when, worker_processes
from line import INTERCEPT, SLOPE, LineJob
from mlflow import MlflowClient
from mlflow.pyfunc import load_model

from dira_dist.cluster.session import embedded_ray
from dira_dist.config import JobFailedError
from dira_dist.data.store import open_store
from dira_dist.environment import environment
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import load_job
from dira_dist.runs.run import RunState, read_run
from dira_dist.training.precision import Precision, native_bf16, settle

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file, whose workers find the second task."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH"))))
    with environment(PYTHONPATH=path), embedded_ray(ResourcesConfig(workers=2)):
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
    RunState(load_job(job.file, ["precision=auto"]).public, {}, precision=other).write(folder)
    job.run("precision=auto")
    state = read_run(folder)
    assert state is not None
    assert (state.precision, state.status) == (other, "finished")
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
    assert "no heartbeat for" in message
    assert ray.is_initialized()


def test_another_task_runs_on_the_same_machinery(chaos_shards: Path, tmp_path: Path) -> None:
    """A line, known to nothing of the package: two workers, one killed, resumed, evaluated, registered, used."""
    LineJob.model_validate({"name": "known", "data": {"train": "a"}})
    jobs = []
    for name in ("unbroken", "broken"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"""
kind: line
name: {name}
data: {{train: {chaos_shards}, image_size: 32, loader_workers: 0}}
steps: 60
evaluation: {{every_steps: 25}}
resources: {{workers: 2, resize_every_s: 5}}
checkpoint: {{storage: "{tmp_path}/runs", every_steps: 5}}
tracking: {{uri: "sqlite:///{tmp_path}/{name}.db", register_as: line, log_every_steps: 1, system_metrics_every_s: 0}}
""")
        jobs.append(ChaosJob(tmp_path, name, 60, f"{tmp_path}/runs"))
    unbroken, broken = jobs
    outcome = unbroken.run()
    again = unbroken.run()
    assert again.already_done and again.model == outcome.model
    with when(lambda: broken.has_reached(20), lambda: worker_processes()[0].kill()):
        broken.run()
    assert broken.setbacks()[0] == 1
    assert broken.history("train/loss/squared") == unbroken.history("train/loss/squared")
    assert different(broken.final().tensors, unbroken.final().tensors) == []
    first, last = outcome.quality["untrained"]["val/error"], outcome.quality["1-train"]["val/error"]
    assert last < 0.2 < first
    assert outcome.best == outcome.checkpoint, "the error is smallest at the end"
    registered = MlflowClient(unbroken.database).get_model_version("line", "1")
    assert registered.tags["dira.metric"] == "val/error"
    mlflow.set_tracking_uri(unbroken.database)
    predicted = load_model(f"models:/{outcome.model.removeprefix('models:/')}").predict(np.array([0.5]))
    assert predicted == pytest.approx([SLOPE * 0.5 + INTERCEPT], abs=0.2)
