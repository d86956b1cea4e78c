"""Checkpoints on disk: what is read is what was written, and what is not whole is refused."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from dira_dist.config import RequestError
from dira_dist.files import sha256_of
from dira_dist.models.weights import read_weights
from dira_dist.training.stages import Position
from dira_dist.training.state import BrokenCheckpointError, Checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture
def checkpoint() -> Checkpoint:
    tensors = {
        "unet": {"weight": torch.randn(3, 2), "half": torch.randn(4).to(torch.bfloat16)},
        "optimizer": {"lr": 0.1, "step": 3, "name": "sgd"},
    }
    pending = [["train/loss/total", 0.5, 30, 1700000000000]]
    return Checkpoint(Position(1, 2, 30, 960), {"name": "test"}, "run-1", "1-di", {"val/auroc": 0.75}, pending, tensors)


def test_round_trip(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_checkpoint(tmp_path / "c", checkpoint)
    again = read_checkpoint(tmp_path / "c")
    for name in ("position", "job", "run_id", "label", "figures", "pending_metrics"):
        assert getattr(again, name) == getattr(checkpoint, name), name
    assert torch.equal(again.tensors["unet"]["weight"], checkpoint.tensors["unet"]["weight"])
    assert again.tensors["unet"]["half"].dtype == torch.bfloat16
    assert again.tensors["optimizer"] == checkpoint.tensors["optimizer"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest"])
def test_what_is_not_whole_is_refused(tmp_path: Path, checkpoint: Checkpoint, damage: str) -> None:
    write_checkpoint(tmp_path, checkpoint)
    state = tmp_path / "state.pt"
    content = bytearray(state.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            state.write_bytes(content)
        case "cut":
            state.write_bytes(content[:-1])
        case "remove":
            state.unlink()
        case _:
            (tmp_path / "manifest.json").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"state\.pt|manifest"):
        read_checkpoint(tmp_path)


def test_later_format_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_checkpoint(tmp_path, checkpoint)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(BrokenCheckpointError, match="format version 99"):
        read_checkpoint(tmp_path)


def _compressed(path: Path) -> None:
    """The same archive, its members deflated."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_state_that_would_inflate_is_refused_unread(tmp_path: Path) -> None:
    zeros = Checkpoint(Position(0, 1, 1, 8), {}, tensors={"weight": torch.zeros(2_000_000)})
    write_checkpoint(tmp_path, zeros)
    _compressed(tmp_path / "state.pt")
    small = (tmp_path / "state.pt").stat().st_size
    assert small < 100_000
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {"bytes": small, "sha256": sha256_of(tmp_path / "state.pt")}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BrokenCheckpointError, match=r"it is compressed, and would unpack to 8,0\d\d,\d\d\d bytes"):
        read_checkpoint(tmp_path)


def test_weights_that_would_inflate_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2_000_000)}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt")["weight"].shape == (2_000_000,)
    _compressed(tmp_path / "weights.pt")
    with pytest.raises(RequestError, match=r"weights\.pt is no plain file of weights"):
        read_weights(tmp_path / "weights.pt")
