"""Words for what ends workers."""

import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import torch
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import WorkerGroupError

from dira_dist.cluster.fit import trainer, worker
from dira_dist.cluster.fit.coordinator import Coordinator
from dira_dist.cluster.fit.failures import MovedError, advice_on_memory, is_out_of_memory, is_timeout
from dira_dist.cluster.fit.session import FitSession
from dira_dist.data.store import open_store
from dira_dist.jobs.load import LoadedJob, load_job
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.runs.run import RunState, keep_precision, read_run


@pytest.fixture
def job() -> PretrainJob:
    data = {"train": "nowhere", "image_size": 64, "global_batch": 32}
    return load_job({"name": "x", "data": data, "model": {"encoder": "resnet18"}, "resources": {"workers": 2}}).job


def test_memory_that_really_ends_is_known_and_advised_on(job: PretrainJob) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("something else"))
    advice = advice_on_memory(job, torch.device("cpu"), caught.value)
    for word in ("MiB", "data.global_batch (now up to 16 images", "data.image_size (now 64 px)", "activations"):
        assert word in advice, advice
    assert ("gradient_checkpointing: true" in advice) == (not job.model.gradient_checkpointing)


@pytest.fixture
def begun(tmp_path: Path) -> LoadedJob:
    """A job of undecided precision whose run has begun."""
    values = {
        "name": "x",
        "data": {"train": "nowhere", "image_size": 64, "global_batch": 32},
        "model": {"encoder": "resnet18"},
        "precision": "auto",
        "checkpoint": {"storage": str(tmp_path)},
    }
    loaded: Any = load_job(values)
    RunState(loaded.public, {}).write(open_store(loaded.job.run_folder))
    return loaded


def _activations(advice: str) -> str:
    return advice.partition("activations and gradients ")[2].partition(" MiB")[0]


def test_a_worker_out_of_memory_is_advised_in_the_precision_it_settled(
    begun: LoadedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[Any, str] = {}

    def call(method: Any, *given: str) -> str:
        said[method] = " ".join(given)
        return ""

    def train(*_: Any) -> None:
        raise torch.OutOfMemoryError("it is full")

    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "Heartbeat", lambda *_: nullcontext())
    monkeypatch.setattr(worker, "native_bf16", lambda _: True)
    monkeypatch.setattr(worker, "_train", train)
    setup: Any = SimpleNamespace(loaded=begun, coordinator=SimpleNamespace(call=call, send=call))
    with pytest.raises(torch.OutOfMemoryError):
        worker.train_worker(setup)
    advice = said[Coordinator.give_up]
    assert _activations(advice) == _activations(advice_on_memory(begun.job.in_precision("bf16")))
    assert _activations(advice) != _activations(advice_on_memory(begun.job))


def test_a_machine_out_of_memory_is_advised_on_in_the_precision_of_the_run(begun: LoadedJob) -> None:
    store = open_store(begun.job.run_folder)
    facts: Any = None
    session = FitSession(begun, facts, store, None, {})
    assert session.job_as_it_ran == begun.job
    keep_precision(store, "bf16")
    assert (state := read_run(store)) and state.precision == session.job_as_it_ran.precision == "bf16"
    error: Any = WorkerGroupError("one has ended", {1: ray.exceptions.OutOfMemoryError("killed")})
    assert trainer._cause(session, error) == f"worker 1: {advice_on_memory(begun.job.in_precision('bf16'))}"


def test_a_worker_that_moves_is_a_preemption_to_ray_train() -> None:
    moved = pickle.loads(pickle.dumps(MovedError("stopped after step 3")))
    assert str(moved) == "stopped after step 3"
    assert _is_preemption_failure(WorkerGroupError("one has left", {0: moved, 1: RuntimeError("connection reset")}))


@pytest.mark.parametrize(
    ("text", "waited"),
    [
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv operation to complete", True),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", True),
        ("shape mismatch", False),
    ],
)
def test_a_collective_that_waited_in_vain_is_known(text: str, waited: bool) -> None:
    assert is_timeout(RuntimeError(text)) is waited
