"""What `dira-dist init` writes: a job that is valid as it stands, for what is there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions
from dira_dist.jobs.draft import DEFAULTS, SCHEMA_FILE, Room, defaults_for, draft, find_sets
from dira_dist.jobs.load import LoadedComparison, load_job
from dira_dist.jobs.recipe_guards import stale_queue

LAPTOP, CLUSTER = Room(2, 0, "this machine"), Room(32, 4, "a Ray cluster")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 64 radiographs of 32 patients in three parts, with a label, made by `shard`."""
    folder = tmp_path_factory.mktemp("archive")
    numbers = np.random.default_rng(0)
    lines = ["image,patient,finding"]
    for place in range(64):
        Image.fromarray(numbers.integers(0, 255, (100, 120), np.uint8)).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{place // 2},{'ill' if place % 3 else 'well'}")
    (folder / "labels.csv").write_text("\n".join(lines))
    options = ShardOptions(
        labels=str(folder / "labels.csv"), split={"train": 0.5, "val": 0.25, "test": 0.25}, group_by="patient"
    )
    dira_dist.shard(str(folder), str(folder / "hospital" / "set"), options)
    return folder / "hospital" / "set"


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "job.yaml").write_text(text)
    return tmp_path / "job.yaml"


@pytest.mark.parametrize("room", [LAPTOP, CLUSTER])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_what_is_drafted_is_a_job_of_that_kind(kind: str, room: Room, sets: Path, tmp_path: Path) -> None:
    text = draft(kind, find_sets(str(sets)), room, storage="runs", tracking="sqlite:///a.db", start=None)  # type: ignore[arg-type]
    job = load_job(written(tmp_path, text)).job
    assert job.kind == kind and job.name.startswith("set-")
    assert job.data.train == f"{sets}/train" and job.data.val == f"{sets}/val"
    assert job.data.image_size == 96
    assert job.resources.workers == (4 if room.gpus else 1)
    assert "finding" in text
    assert job.tracking.uri == "sqlite:///a.db"


def test_a_comparison_is_drafted_for_a_pretrained_model(sets: Path, tmp_path: Path) -> None:
    found, network = find_sets(str(sets)), {"name": "unet", "encoder": "resnet34"}
    where = {"storage": "runs", "tracking": "sqlite:///a.db"}
    text = draft("compare", found, LAPTOP, **where, start="models:/a@best", network=network)
    loaded = load_job(written(tmp_path, text))
    assert isinstance(loaded, LoadedComparison)
    assert loaded.comparison.settled_starts()["pretrained"].addresses == ("models:/a@best",)
    assert loaded.job.model is not None and loaded.job.model.encoder == "resnet34"  # type: ignore[attr-defined]
    assert loaded.job.tracking.uri == "sqlite:///a.db"


def test_init_writes_once_and_what_check_accepts(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = dira_dist.init(str(sets), "own.yaml")
    first, second, *_ = file.read_text().splitlines()
    assert first == "#!/usr/bin/env -S python -m dira_dist run"
    assert second == f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"
    facts = dira_dist.check(load_job(file))
    assert facts.plan.steps > 0
    with pytest.raises(RequestError, match="is there already"):
        dira_dist.init(str(sets), "own.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert "${env:MLFLOW_TRACKING_URI}" in dira_dist.init(str(sets), "tracked.yaml").read_text()


def test_what_lacks_is_said(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nor a part train"):
        find_sets(str(tmp_path))
    alone = find_sets(f"{sets}/train")
    with pytest.raises(RequestError, match="no part val, on which networks are chosen"):
        draft("finetune", alone, LAPTOP, storage="runs", tracking="sqlite:///a.db", start=None)
    with pytest.raises(RequestError, match="--start"):
        draft("compare", find_sets(str(sets)), LAPTOP, storage="runs", tracking="sqlite:///a.db", start=None)


@pytest.mark.parametrize("row", DEFAULTS)
def test_defaults_by_size_outlive_no_key_encoder(row: object, sets: Path, tmp_path: Path) -> None:
    """Each row as a job: its queue is one that the guards let pass."""
    found = find_sets(str(sets))
    text = draft("pretrain", found, CLUSTER, storage="runs", tracking="sqlite:///a.db", start=None)
    chosen, first = defaults_for(row.images), DEFAULTS[0]  # type: ignore[attr-defined]
    assert chosen is row
    for name in ("method", "views", "optimizer"):
        text = text.replace(f"{name}: {getattr(first, name)}", f"{name}: {getattr(chosen, name)}")
    job = load_job(written(tmp_path, text), [f"data.global_batch={chosen.global_batch}"]).job
    assert not list(stale_queue(job))
