"""What is refused before anything starts: a probe that would be judged on what it has learned from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import dira_dist
from dira_dist.config import RequestError
from dira_dist.data.shards import INDEX_NAME, read_index
from dira_dist.jobs.check import check
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
