"""Several gloo workers against one process on the global batch."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.objectives.collectives import GlobalBatch

SCRIPT = Path(__file__).with_name("workers.py")
MOST_WORKERS = 4
METHODS = ("moco_v2", "barlow_twins", "simsiam")

specification = spec_from_file_location("workers", SCRIPT)
assert specification is not None and specification.loader is not None
workers = module_from_spec(specification)
specification.loader.exec_module(workers)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that all workers found, in one start of them."""
    folder = tmp_path_factory.mktemp("workers")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(MOST_WORKERS)], stderr=subprocess.PIPE
        )
        for rank in range(MOST_WORKERS)
    ]
    messages = [process.communicate(timeout=500)[1].decode() for process in processes]
    failed = [message for process, message in zip(processes, messages, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
    return folder


def _of_ranks(folder: Path, name: str, count: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}.{rank}.pt") for rank in range(count)]


def _assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, int], dict[str, Any]]:
    """What one process finds on global batches of each size."""
    return {
        (method, samples): workers.exact_step(method, GlobalBatch((samples,)))
        for method in METHODS
        for samples in (8, 9)
    }


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize("method", METHODS)
def test_workers_compute_what_one_process_does(
    found: Path, alone: dict[tuple[str, int], dict[str, Any]], method: str, kind: str, count: int
) -> None:
    expected = alone[method, sum(workers.SHARES[count][kind])]
    _assert_computed(_of_ranks(found, f"{method}.{kind}.{count}", count), expected)


@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize("method", METHODS)
def test_workers_that_pass_their_shares_in_parts_compute_the_same(
    found: Path, alone: dict[tuple[str, int], dict[str, Any]], method: str, kind: str
) -> None:
    expected = alone[method, sum(workers.SHARES[2][kind])]
    _assert_computed(_of_ranks(found, f"parts.{method}.{kind}.2", 2), expected)


@pytest.mark.parametrize("kind", ["even", "uneven", "parts"])
def test_workers_penalise_a_critic_as_one_process_does(found: Path, kind: str) -> None:
    """Gradients of gradients, averaged over the workers, whose shares pass whole or in parts."""
    samples = sum(workers.SHARES[2]["uneven" if kind == "uneven" else "even"])
    expected = workers.critic_step(GlobalBatch((samples,)))
    _assert_computed(_of_ranks(found, f"critic.{kind}.2", 2), expected)


def test_gradients_of_parts_are_sent_once(found: Path) -> None:
    for sent in _of_ranks(found, "sent.2", 2):
        assert sent[2] == sent[None] > 0


def _assert_computed(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in ranks:
        for losses, one in zip(result["losses"], expected["losses"], strict=True):
            assert losses == pytest.approx(one, rel=1e-5)
        assert result["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-5, atol=1e-9, msg=name)
        torch.testing.assert_close(result["queue"], expected["queue"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("count", [2, 4])
def test_state_is_equal_on_all_workers_after_many_steps(found: Path, count: int) -> None:
    first, *others = _of_ranks(found, f"queue.{count}", count)
    assert first["keys_seen"] == workers.QUEUE_STEPS * sum(workers.SHARES[count]["even"])
    for other in others:
        _assert_equal(first["state"], other["state"])
        assert not torch.equal(other["own_statistics"], first["own_statistics"]), "no buffers are sent in a step"


@pytest.mark.parametrize("count", [2, 4])
def test_keys_are_computed_among_other_workers_samples(found: Path, count: int) -> None:
    ranks = _of_ranks(found, f"shuffled.{count}", count)
    everything = sorted(mean for each in ranks for mean in each["own"])
    for step in range(2):
        dealt = [each["seen"][step] for each in ranks]
        assert sorted(mean for part in dealt for mean in part) == pytest.approx(everything)
        assert [len(part) for part in dealt] == [len(each["own"]) for each in ranks], (
            "no worker gets more than its share"
        )
        for part, each in zip(dealt, ranks, strict=True):
            kept = sum(any(abs(mean - own) < 1e-6 for own in each["own"]) for mean in part)
            assert kept < len(part), "some of them come from elsewhere"
    assert any(sorted(each["seen"][0]) != sorted(each["seen"][1]) for each in ranks), "each step deals anew"
    for each in ranks:
        assert each["seen"][2] == pytest.approx(each["own"]), "evaluation has no batch statistics to hide"


def test_one_bad_worker_stops_the_step_on_all(found: Path) -> None:
    for result in _of_ranks(found, "bad.2", 2):
        assert not result["finite"] and result["unchanged"]


def test_stages_follow_one_another(found: Path) -> None:
    first, second = _of_ranks(found, "stages.2", 2)
    assert all(first["finite"]) and all(second["finite"])
    _assert_equal(first["state"], second["state"])
    di, dir_, dira = first["reduced"]
    assert not any(name.startswith(("unet.decoder", "discriminator", "method.key")) for name in di)
    assert {name for name in dir_ if name.startswith("unet.decoder")}
    assert {name for name in dira - dir_ if name.startswith("discriminator")}


def test_compression_rounds_gradients_between_workers(
    found: Path, alone: dict[tuple[str, int], dict[str, Any]]
) -> None:
    expected = alone["moco_v2", 8]["gradients"]
    found_gradients = _of_ranks(found, "compressed.2", 2)[0]["gradients"]
    name = "unet.encoder.model.layer4.0.conv1.weight"
    assert not torch.allclose(found_gradients[name], expected[name], rtol=1e-5)
    for name, gradient in expected.items():
        assert (found_gradients[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-9, name


def test_synchronised_batch_norm_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr("dira_dist.training.execution.is_distributed", lambda: True)
        with pytest.raises(RequestError, match="sync_batchnorm"):
            workers.exact_step("moco_v2", GlobalBatch((4,)), sync_batchnorm=True)
    finally:
        torch.distributed.destroy_process_group()
