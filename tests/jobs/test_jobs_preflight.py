"""What is refused before anything starts: a probe that would be judged on what it has learned from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.shards import INDEX_NAME, read_index
from dira_dist.jobs.check import check
from dira_dist.jobs.preflight import Preflight
from dira_dist.quickstart.phantom import write_archive


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of a set in several shards, and a copy of one of them."""
    folder = tmp_path_factory.mktemp("preflight")
    write_archive(folder / "archive", 48, size_px=32)
    (folder / "salt").write_text("the same split everywhere")
    options = dira_dist.ShardOptions(
        image_size=None,
        labels=str(folder / "archive" / "labels.csv"),
        split={"train": 0.5, "val": 0.5},
        group_by="patient",
        samples_per_shard=6,
        salt_file=str(folder / "salt"),
        processes=1,
    )
    dira_dist.shard(folder / "archive" / "images", folder, options)
    shutil.copytree(folder / "train", folder / "copy")
    return folder


def checked(shards: Path, **probe: str) -> list[str]:
    job: dict[str, Any] = {
        "name": "probed",
        "data": {"train": str(shards / "train"), "image_size": 32, "global_batch": 8},
        "model": {"encoder": "tu-test_resnet"},
        "stages": [{"objective": "di", "steps": 5}],
        "probe": {part: str(shards / name) for part, name in probe.items()} | {"label": "finding"},
    }
    return list(check(dira_dist.load_job(job)).lines())


def test_a_probe_is_not_judged_on_what_it_has_learned_from(shards: Path) -> None:
    checked(shards, train="train", val="val")
    with pytest.raises(RequestError, match=r"probe: train and val are both .*; give two parts"):
        checked(shards, train="train", val="train")
    count = len(read_index(str(shards / "copy")).shards)
    with pytest.raises(RequestError, match=rf"probe.val: {count} of the {count} shards of .*copy .*--group-by patient"):
        checked(shards, train="train", val="copy")


def test_nor_on_a_set_that_holds_a_part_of_it(shards: Path) -> None:
    """Index files are plain JSON, and nothing keeps anybody from joining shards of two sets."""
    joined, index = shards / "joined", read_index(str(shards / "val"))
    shutil.copytree(shards / "val", joined)
    first = read_index(str(shards / "train")).shards[0]
    shutil.copyfile(shards / "train" / first.name, joined / "more.tar")
    extended = index.model_copy(update={"shards": (*index.shards, first.model_copy(update={"name": "more.tar"}))})
    (joined / INDEX_NAME).write_text(extended.model_dump_json())
    with pytest.raises(RequestError, match=rf"1 of the {len(extended.shards)} shards of .*joined \(first more.tar\)"):
        checked(shards, train="train", val="joined")


def job_of(shards: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "billed",
        "data": {"train": str(shards / "train"), "image_size": 32, "global_batch": 8, "lanes": 2},
        "model": {"encoder": "tu-test_resnet"},
        "stages": [{"objective": "di", "steps": 9000}, {"objective": "dira", "steps": 100, "global_batch": 4}],
        "resources": {"workers": 2, "cpus_per_worker": 1},
    } | changes


def test_the_bill_at_a_rate_that_is_known(shards: Path) -> None:
    facts = check(dira_dist.load_job(job_of(shards)), 10.0)
    assert isinstance(facts, Preflight) and facts.bill is not None
    assert dict(facts.bill.stages) == {"1-di": 7200.0, "2-dira": 40.0}
    index = read_index(str(shards / "train"))
    assert facts.bill.bytes_read == pytest.approx(index.bytes / index.samples * 72_400)
    (line,) = (line for line in facts.lines() if line.startswith("time"))
    assert line == "time     about 2.0 h (1-di 2.0 h, 2-dira 40 s), at 10 images/s of all workers"
    with pytest.raises(RequestError, match="0 images per second; a rate is above 0"):
        check(dira_dist.load_job(job_of(shards)), 0.0)


def test_the_bill_by_measured_steps(shards: Path) -> None:
    facts = check(dira_dist.load_job(job_of(shards)), "measured")
    assert isinstance(facts, Preflight) and facts.bill is not None
    stages = dict(facts.bill.stages)
    assert stages["1-di"] > 0 and stages["2-dira"] > 0
    assert "by 3 steps of each stage on this machine of one of 2 workers" in facts.bill.source


def test_a_rate_is_measured_where_the_device_is(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    job = job_of(shards, resources={"workers": 1, "gpus_per_worker": 1})
    with pytest.raises(RequestError, match="has no GPU, where the job's workers have 1 each"):
        check(dira_dist.load_job(job), "measured")
