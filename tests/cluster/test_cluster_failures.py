"""Words for what ends workers."""

import pickle

import pytest
import torch
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import WorkerGroupError

from dira_dist.cluster.fit.failures import MovedError, advice_on_memory, is_out_of_memory, is_timeout
from dira_dist.jobs.load import load_job
from dira_dist.jobs.pretrain import PretrainJob


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
