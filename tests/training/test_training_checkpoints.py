"""Checkpoints in a storage: committed last, removed first, and written by a thread that bears with the storage."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flaky_s3 import FlakyS3, flaky_s3

from dira_dist.data.store import LocalStore, RetryPolicy, open_store
from dira_dist.training.checkpoints import CheckpointFolder, CheckpointWriter, copied_to_host, step_of
from dira_dist.training.stages import Position
from dira_dist.training.state import BrokenCheckpointError, Checkpoint, write_checkpoint


def checkpoint(step: int, weight: float = 1.0) -> Checkpoint:
    return Checkpoint(Position(0, step, step, 8 * step), {"name": "test"}, tensors={"w": torch.full((3,), weight)})


def saved(folder: CheckpointFolder, tmp_path: Path, name: str, step: int) -> None:
    write_checkpoint(tmp_path / "scratch" / name, checkpoint(step, float(step)))
    folder.upload(name, tmp_path / "scratch" / name)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(LocalStore(str(tmp_path / "run")))
    for step in (5, 10, 100):
        saved(folder, tmp_path, f"step-{step:09d}-aaaaaa", step)
    return folder


def test_a_checkpoint_without_its_manifest_does_not_exist(folder: CheckpointFolder, tmp_path: Path) -> None:
    (tmp_path / "run" / "step-000000100-aaaaaa" / "manifest.json").unlink()
    assert [name[5:14] for name in folder.names()] == ["000000005", "000000010"]
    found = folder.newest_whole(lambda line: None)
    assert found is not None
    assert found[1].position.step == 10
    assert torch.equal(found[1].tensors["w"], torch.full((3,), 10.0))
    folder.remove_unfinished()
    assert sorted(path.name[5:14] for path in (tmp_path / "run").iterdir()) == ["000000005", "000000010"]


def test_broken_ones_give_way_are_said_and_go(folder: CheckpointFolder, tmp_path: Path) -> None:
    state = tmp_path / "run" / "step-000000100-aaaaaa" / "state.pt"
    state.write_bytes(state.read_bytes()[:-3])
    (tmp_path / "run" / "step-000000010-aaaaaa" / "manifest.json").write_text("{")
    said: list[str] = []
    found = folder.newest_whole(said.append)
    assert found is not None
    assert found[0].startswith("step-000000005")
    assert len(said) == 2
    assert "state.pt" in said[0] + said[1] and "damaged" in said[0] + said[1]
    assert len(folder.names()) == 1


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(folder: CheckpointFolder, tmp_path: Path) -> None:
    for state in (tmp_path / "run").glob("*/state.pt"):
        state.write_bytes(b"")
    with pytest.raises(BrokenCheckpointError, match="no checkpoint of this run is whole") as caught:
        folder.newest_whole(lambda line: None)
    assert f"remove them all ({tmp_path}/run/step-*), and the same command begins anew" in str(caught.value)
    assert len(folder.names()) == 3, "nothing is removed while nothing whole is there"
    assert CheckpointFolder(LocalStore(str(tmp_path / "new"))).newest_whole(lambda line: None) is None


def test_where_a_run_stands_is_said_by_the_newest_manifest_that_is_whole(
    folder: CheckpointFolder, tmp_path: Path
) -> None:
    (tmp_path / "run" / "step-000000100-aaaaaa" / "manifest.json").write_text("")
    newest = folder.newest_manifest()
    assert newest is not None
    assert newest.position.step == 10
    assert CheckpointFolder(LocalStore(str(tmp_path / "new"))).newest_manifest() is None


def test_the_writer_lives_on_after_any_error(tmp_path: Path) -> None:
    said: list[str] = []

    def committed(name: str, one: Checkpoint) -> None:
        if one.position.step == 1:
            raise ValueError("a damaged record")

    folder = CheckpointFolder(LocalStore(str(tmp_path)))
    writer = CheckpointWriter(folder, keep=2, committed=committed, warn=said.append)
    for step in (1, 2):
        writer.put(checkpoint(step))
        writer.drain(30)
    writer.close()
    assert [step_of(name) for name in folder.names()] == [1, 2]
    assert said == ["after the checkpoint of step 1: ValueError: a damaged record"]


def test_the_newest_and_the_spared_are_kept(folder: CheckpointFolder, tmp_path: Path) -> None:
    half = tmp_path / "run" / "step-000000001-aaaaaa"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half removed")
    folder.keep(1, ["step-000000005-aaaaaa"])
    assert [name[5:14] for name in folder.names()] == ["000000005", "000000100"]
    assert not half.exists()


def test_what_is_written_is_what_was_put_not_what_it_became(tmp_path: Path) -> None:
    folder, done = CheckpointFolder(LocalStore(str(tmp_path))), []
    writer = CheckpointWriter(folder, keep=2, committed=lambda name, one: done.append(one.position.step))
    weight = torch.ones(3)
    for step in (1, 2, 3):
        weight.fill_(step)
        writer.put(Checkpoint(Position(0, step, step, step), {}, tensors={"nested": [weight, {"lr": 0.1}]}))
        weight.fill_(-1.0)
        writer.drain(30)
    assert done == [1, 2, 3]
    names = folder.names()
    assert len(names) == 2
    assert torch.equal(folder.fetch(names[-1]).tensors["nested"][0], torch.full((3,), 3.0))
    writer.close()


def test_copies_share_nothing_with_what_they_were_made_of() -> None:
    state: dict[str, Any] = {"a": torch.zeros(2, 2).to(memory_format=torch.preserve_format), "b": [1, (2.0, "x")]}
    copied = copied_to_host(state)
    state["a"].fill_(1)
    assert torch.equal(copied["a"], torch.zeros(2, 2))
    assert copied["b"] == [1, (2.0, "x")]


@pytest.fixture
def flaky() -> Iterator[FlakyS3]:
    with flaky_s3("writer") as server:
        yield server


def test_a_labelled_checkpoint_gives_way_to_a_labelled_one_only(flaky: FlakyS3) -> None:
    folder, done = CheckpointFolder(open_store("s3://writer/labels", RetryPolicy(timeout_s=0.2))), list[int]()
    in_trouble = threading.Event()
    writer = CheckpointWriter(
        folder,
        keep=9,
        committed=lambda name, one: done.append(one.position.step),
        warn=lambda line: in_trouble.set(),
    )
    flaky.failing.set()
    writer.put(replace(checkpoint(1), label="a"))
    assert in_trouble.wait(30)
    for step, label in ((2, ""), (3, "b"), (4, ""), (5, "")):
        writer.put(replace(checkpoint(step), label=label))
    flaky.failing.clear()
    writer.drain(60)
    writer.close()
    assert done == [3, 5]
    assert [each.name for each in folder.labelled().values()] == [folder.names()[0]]


def test_an_outage_is_borne_and_only_the_newest_is_written_after_it(flaky: FlakyS3) -> None:
    folder = CheckpointFolder(open_store("s3://writer/run", RetryPolicy(timeout_s=0.2)))
    said: list[str] = []
    done: list[int] = []
    writer = CheckpointWriter(
        folder, keep=3, committed=lambda name, one: done.append(one.position.step), warn=said.append
    )
    flaky.failing.set()
    for step in (1, 2, 3):
        began = time.monotonic()
        writer.put(checkpoint(step))
        assert time.monotonic() - began < 1.0, "putting waits for no storage"
        time.sleep(0.5)
    with pytest.raises(TimeoutError, match="did not take the last checkpoint"):
        writer.drain(0.1)
    threading.Timer(0.5, flaky.failing.clear).start()
    writer.drain(60)
    assert done == [3]
    assert any("the checkpoint of step 1 is not written yet" in line for line in said)
    assert any("the checkpoint of step 2 was not written" in line for line in said)
    assert any("the storage is back after" in line for line in said)
    writer.close()
