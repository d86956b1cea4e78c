"""What a model has learned from, said from its own files and from the sets as they are now."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shard_sets import ShardWriter

from dira_dist.config import RequestError
from dira_dist.data.ingest.pixels import encode
from dira_dist.data.shards import Sample, read_index
from dira_dist.data.store import open_store
from dira_dist.data.withdrawal import group_digest, rewrite, withdraw
from dira_dist.registry.lineage import lineage
from dira_dist.runs.run import RunState


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A set of four patients with two images each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ShardWriter(str(tmp_path / "set"), mode="L", encoding="png", samples_per_shard=3) as writer:
        for number in range(8):
            image = encode(np.full((8, 8), number, dtype=np.uint8), "png")
            writer.add(Sample(f"{number:04x}", image, "png", 8, 8, {"split_group": f"g{number // 2}"}))
    return str(tmp_path / "set")


def model(folder: Path, images: str, job: str = "", groups: dict[str, list[str]] | None = None) -> str:
    folder.mkdir()
    index = read_index(images)
    data = {"address": images, "generation": index.number, "digest": index.digest}
    (folder / "model.json").write_text(json.dumps({"data": data}))
    (folder / "job.yaml").write_text(job or "kind: pretrain\n")
    if groups is not None:
        (folder / "groups.json").write_text(json.dumps(groups))
    return str(folder)


def test_a_model_and_what_it_started_from_say_who_left_since(tmp_path: Path, images: str) -> None:
    pretrained = model(tmp_path / "a", images)
    withdraw(images, ["g1"], [])
    everybody = sorted(group_digest(f"g{number}") for number in (0, 2, 3))
    tuned = model(tmp_path / "b", images, f"kind: finetune\nstart: {{from: {pretrained}}}\n", {"train": everybody})
    assert [each.samples_withdrawn for each in lineage(tuned).seen] == [0, 2]
    withdraw(images, ["g2"], [])
    rewrite(images)
    own, earlier = lineage(tuned).seen
    assert (own.generation, own.samples_withdrawn, own.groups_withdrawn) == (2, 2, 1)
    assert (earlier.generation, earlier.samples_withdrawn, earlier.groups_withdrawn) == (1, 4, None)
    text = "\n".join(lineage(tuned).lines())
    assert f"{images}, generation 2, digest {own.digest[:12]}" in text
    assert "seen 2 samples that were withdrawn since (of 1 groups that it remembers)" in text


def test_a_run_says_it_before_there_is_a_model(tmp_path: Path, images: str) -> None:
    index = read_index(images)
    state = RunState({"data": {"train": images}}, {"train": index.digest}, generations={"train": 1})
    state.write(open_store(str(tmp_path / "run")))
    withdraw(images, ["g0", "g1"], [])
    (seen,) = lineage(str(tmp_path / "run")).seen
    assert (seen.generation, seen.digest, seen.samples_withdrawn) == (1, index.digest, 4)


def test_what_cannot_be_said_is_not_guessed(tmp_path: Path, images: str) -> None:
    trained = model(tmp_path / "a", images, "kind: finetune\nstart: {from: nowhere/at/all}\n")
    found = lineage(trained)
    assert found.notes and "nowhere/at/all" in found.notes[0]
    (tmp_path / "a" / "model.json").write_text(
        (tmp_path / "a" / "model.json").read_text().replace(read_index(images).digest, "0" * 64)
    )
    assert "another digest" in lineage(trained).seen[0].problem
    shutil.rmtree(images)
    assert "no shard set" in lineage(trained).seen[0].problem
    with pytest.raises(RequestError, match="no model and no run"):
        lineage(str(tmp_path / "nothing"))
    (tmp_path / "a" / "model.json").write_text("{}")
    with pytest.raises(RequestError, match="does not say what it was trained on"):
        lineage(trained)
