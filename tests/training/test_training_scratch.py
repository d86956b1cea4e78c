"""The temporary folder is not the storage: what it lacks is said of it, and looked for before the first step."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dira_dist.cluster.fit.failures import LASTING_ERRORS
from dira_dist.config import RequestError
from dira_dist.data.folder import LocalStore
from dira_dist.training import checkpoints
from dira_dist.training.checkpoints import CheckpointFolder, CheckpointWriter, UnsavedError
from dira_dist.training.scratch import NoRoomError, check_room, writing_into
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint


def test_room_for_two_checkpoints_is_looked_for_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    state = {"unet": dict(nn.Linear(999, 1000).state_dict()), "steps": 3}  # 4 MB of weights
    for free, enough in ((9_000_000, True), (7_000_000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: usage._replace(free=free))
        if enough:
            check_room(state)
            continue
        with pytest.raises(RequestError) as refused:
            check_room(state)
    said = str(refused.value)
    assert f"the temporary folder {tmp_path} (disk /" in said and ": 7 of" in said
    assert "2 of them take at least 8 MB; make room there, or set TMPDIR" in said


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_what_is_not_written_there_is_said_of_folder_and_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NoRoomError) as caught, writing_into(tmp_path / "scratch"):
        raise error
    assert f"the temporary folder {tmp_path} (disk /" in str(caught.value)
    assert f"did not take it ({error}); make room there, or set TMPDIR" in str(caught.value)


def test_what_cannot_be_saved_names_the_temporary_folder_and_is_not_trained_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path, checkpoint: Checkpoint) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    said: list[str] = []
    writer: Any = CheckpointWriter(CheckpointFolder(LocalStore(str(tmp_path))), keep=1, warn=said.append)
    writer.put(Checkpoint(Position(0, 1, 1, 8), {}))
    with pytest.raises(UnsavedError, match=r"the temporary folder .* did not take it") as caught:
        writer.drain(0.5)
    writer.close()
    assert isinstance(caught.value, LASTING_ERRORS)
    assert "the temporary folder" in said[0]
    assert list(tmp_path.iterdir()) == []
