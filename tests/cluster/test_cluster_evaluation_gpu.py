"""The GPU that evaluations have beside the workers': how it is counted, reserved in Ray, and done without.

No GPU is needed: Ray gives out so many as it is told that there are.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from line import LineJob

from dira_dist.cluster.fit.coordinator import Coordinator, EvaluationRequest
from dira_dist.cluster.fit.evaluation_gpu import EvaluationGpu, gpus_for_evaluation
from dira_dist.cluster.fit.evaluations import NO_GPU, UNUSABLE_GPU, EvaluationRunner, EvaluationSetup
from dira_dist.cluster.tune.room import at_once
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.environment import environment
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import load_job
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint, write_checkpoint

GPUS = 2


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    """A Ray that takes this machine for one with two GPUs, whose workers find the second task."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH"))))
    with environment(PYTHONPATH=path):
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=GPUS,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="WARNING",
        )
        yield
        ray.shutdown()


def job(device: str, **resources: Any) -> TrainingJob:
    loaded = load_job(
        {
            "name": "a",
            "data": {"train": "x", "val": "y", "image_size": 64, "global_batch": 32},
            "model": {"encoder": "resnet18"},
            "evaluation": {"device": device},
            "resources": {"cpus_per_worker": 0.5, **resources},
        }
    )
    found: TrainingJob = loaded.job
    return found


@pytest.mark.parametrize(
    ("device", "gpus_per_worker", "wanted"),
    [("cpu", 1, 0), ("cuda", 1, 1), ("cuda", 0, 1), ("auto", 1, 1), ("auto", 0, 0), ("auto", None, 1)],
)
def test_it_is_asked_for_as_the_job_says(device: str, gpus_per_worker: int | None, wanted: int) -> None:
    assert gpus_for_evaluation(job(device, gpus_per_worker=gpus_per_worker)) == wanted


def test_a_job_that_is_not_evaluated_takes_none() -> None:
    found = job("cuda")
    assert gpus_for_evaluation(found.model_copy(update={"data": found.data.model_copy(update={"val": None})})) == 0


def test_trials_at_once_are_counted_with_it() -> None:
    def trials(device: str, asked: int | None = None) -> int:
        return at_once(job(device, gpus_per_worker=1), asked, 9, key="search.max_concurrent", member="trials")

    assert (trials("cpu"), trials("cuda")) == (2, 1)
    with pytest.raises(RequestError, match=r"1 GPUs and one more for evaluation\.device are asked for at once, and 1"):
        trials("cuda", 2)


def test_it_is_held_while_the_job_runs_and_given_back() -> None:
    with EvaluationGpu(job("cuda", gpus_per_worker=1)) as gpu:
        assert gpu.options()["num_gpus"] == 1
        wait_for(GPUS - 1)
        assert "num_gpus" not in EvaluationGpu(job("cuda", gpus_per_worker=1)).options(), "of two jobs one has it"
    wait_for(GPUS)


def test_where_the_workers_need_all_there_is_none() -> None:
    with EvaluationGpu(job("cuda", workers=2, gpus_per_worker=1)) as gpu:
        assert gpu.wanted == 1 and "num_gpus" not in gpu.options()


def wait_for(free: int) -> None:
    """Until Ray says that so many are free, which it learns a little later than it happens."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU", 0) != free:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


class Heard:
    """A coordinator's client that has nothing to ask for and keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def call(self, method: Any, *given: Any) -> list[EvaluationRequest]:
        return []

    def send(self, method: Any, warning: str) -> None:
        assert method is Coordinator.warn
        self.warnings.append(warning)


@pytest.mark.parametrize(("workers", "said"), [(1, UNUSABLE_GPU), (2, NO_GPU)])
def test_what_it_does_without_is_said_once(tmp_path: Path, workers: int, said: str) -> None:
    """Given one that PyTorch cannot use, and given none; the figures come from the CPU."""
    found = LineJob.model_validate(
        {
            "kind": "line",
            "name": "line",
            "data": {"train": "/nowhere", "image_size": 32, "global_batch": 8},
            "evaluation": {"device": "cuda"},
            "resources": {"workers": workers, "gpus_per_worker": 1},
            "checkpoint": {"storage": str(tmp_path)},
        }
    )
    networks = found.build_task().build()
    store, heard = open_store(found.run_folder), Heard()
    for step in (1, 2):
        scratch, name = tmp_path / f"scratch-{step}", f"step-00000000{step}-aa"
        saved = {"networks": networks.state_dict()}
        write_checkpoint(scratch, Checkpoint(Position(step=step), {}, label=f"step-{step}", tensors=saved))
        CheckpointFolder(store).upload(name, scratch)
    coordinator: Any = heard
    with (
        EvaluationGpu(found) as gpu,
        EvaluationRunner(EvaluationSetup(found, found.tracking, ""), coordinator, gpu),
    ):
        pass
    assert len(read_evaluations(store)) == 2
    assert [each for each in heard.warnings if "evaluation.device" in each] == [said]
    wait_for(GPUS)
