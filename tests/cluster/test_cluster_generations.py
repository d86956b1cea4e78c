"""Which generations of its sets a run reads: those that it began with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import ShardWriter

from dira_dist.cluster.fit.driver import _at_generations
from dira_dist.config import RequestError
from dira_dist.data.ingest.pixels import encode
from dira_dist.data.shards import Sample, read_index
from dira_dist.data.withdrawal import withdraw
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.load import load_job
from dira_dist.jobs.preflight import preflight


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets of sixteen samples of eight patients; the first has lost one of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train", "val"):
        with ShardWriter(str(tmp_path / name), mode="L", encoding="png", samples_per_shard=5) as writer:
            for number in range(16):
                image = encode(np.full((40, 40), number, dtype=np.uint8), "png")
                record = {"split_group": f"{name}{number // 2}"}
                writer.add(Sample(f"{name}{number:04x}", image, "png", 40, 40, record))
    withdraw(str(tmp_path / "train"), ["train1"], [])
    return tmp_path


def job_on(train: str, val: str) -> TrainingJob:
    values: dict[str, Any] = {
        "name": "x",
        "data": {"train": train, "val": val, "image_size": 32, "global_batch": 4},
        "model": {"encoder": "tu-test_resnet"},
        "stages": [{"objective": "di", "steps": 5}],
    }
    loaded: Any = load_job(values)
    return loaded.job.resolve_paths()


def test_a_run_that_goes_on_reads_what_it_began_with_and_a_new_one_the_newest(sets: Path) -> None:
    job = job_on(str(sets / "train"), str(sets / "val"))
    facts, pinned = preflight(job), preflight(_at_generations(job, {"train": 1, "val": 1}))
    assert [index.number for index in facts.sets.values()] == [2, 1]
    assert (facts.train.samples, facts.train.withdrawn_since) == (14, 0)
    assert (pinned.train.number, pinned.train.samples, pinned.train.withdrawn_since) == (1, 16, 2)
    assert pinned.job.data.train == f"{sets / 'train'}#generation=1" and pinned.train.digest != facts.train.digest
    assert pinned.train.digest == read_index(f"{sets / 'train'}#generation=1").digest
    lines = "\n".join(pinned.lines())
    assert "set      train: generation 1" in lines and "; 2 samples were withdrawn since" in lines
    assert "set      val: generation 1" in lines and "generation 2" in "\n".join(facts.lines())


def test_a_generation_that_the_job_file_names_is_the_one_that_is_meant(sets: Path) -> None:
    named = job_on(f"{sets / 'train'}#generation=1", str(sets / "val"))
    again = _at_generations(named, {"train": 2, "val": 1})
    assert again.data.train == f"{sets / 'train'}#generation=1" and again.data.val == f"{sets / 'val'}#generation=1"
    with pytest.raises(RequestError, match=r"data\.train: no shard set can be read at .*no generation 7"):
        preflight(_at_generations(job_on(f"{sets / 'train'}#generation=7", str(sets / "val")), {}))
