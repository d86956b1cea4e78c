"""Whose run a folder is: what may change between two starts, and what is refused with the difference shown."""

from pathlib import Path
from typing import Any

import pytest

from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.runs.run import RunState, claim, differing_keys, keep_precision, read_run

MAY_CHANGE = ("resources", "checkpoint")
JOB: dict[str, Any] = {
    "name": "a",
    "seed": 0,
    "resources": {"workers": 2},
    "checkpoint": {"storage": "x", "every_steps": 5},
    "stages": [{"objective": "di", "epochs": 2}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    job: Any = {**JOB, "stages": [dict(JOB["stages"][0])], "resources": dict(JOB["resources"])}
    node = job
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[last] = value
    return dict(job)


@pytest.mark.parametrize(
    ("path", "value"), [("resources.workers", 4), ("checkpoint.every_steps", 9), ("stages.0.epochs", 3)]
)
def test_workers_and_longer_stages_may_change(path: str, value: Any) -> None:
    assert differing_keys(JOB, changed(path, value), MAY_CHANGE) == []


@pytest.mark.parametrize(("path", "value"), [("seed", 1), ("stages.0.epochs", 1), ("stages.0.objective", "dir")])
def test_what_is_computed_may_not(path: str, value: Any) -> None:
    (line,) = differing_keys(JOB, changed(path, value), MAY_CHANGE)
    assert line.startswith(f"{path}: ")
    assert repr(value) in line


def test_claim_goes_on_with_the_run_that_is_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert claim(store, RunState(JOB, {"train": "a"}), MAY_CHANGE) == RunState(JOB, {"train": "a"})
    assert read_run(store) is None, "claiming writes nothing"
    RunState(JOB, {"train": "a"}, "run-1").write(store)
    claimed = claim(store, RunState(changed("resources.workers", 4), {"train": "a", "val": "b"}), MAY_CHANGE)
    assert claimed.run_id == "run-1"
    assert claimed.digests == {"train": "a", "val": "b"}
    assert claimed.job["resources"]["workers"] == 4


def test_a_finished_run_is_claimed_again_but_no_longer_one(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    RunState(JOB, {"train": "a"}, "run-1").finished({"steps": 9}).write(store)
    assert claim(store, RunState(JOB, {"train": "a"}), MAY_CHANGE).outcome == {"steps": 9}
    with pytest.raises(RequestError, match="a finished run's stages cannot be made longer"):
        claim(store, RunState(changed("stages.0.epochs", 3), {"train": "a"}), MAY_CHANGE)


def test_a_finished_run_of_a_task_without_stages_is_claimed_again(tmp_path: Path) -> None:
    store, job = open_store(str(tmp_path)), {"name": "a", "steps": 40, "resources": {"workers": 1}}
    RunState(job, {"train": "a"}, "run-1").finished({"steps": 40}).write(store)
    again = claim(store, RunState({**job, "resources": {"workers": 2}}, {"train": "a"}), MAY_CHANGE)
    assert (again.status, again.outcome) == ("finished", {"steps": 40})
    with pytest.raises(RequestError, match="steps: 40 there, 41 here"):
        claim(store, RunState({**job, "steps": 41}, {"train": "a"}), MAY_CHANGE)


def test_claim_refuses_another_configuration_and_other_images(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    RunState(JOB, {"train": "a", "val": "b"}, "run-1").write(store)
    with pytest.raises(RequestError, match=r"seed: 0 there, 7 here\n  the images of train: digest a there, c here"):
        claim(store, RunState(changed("seed", 7), {"train": "c", "val": "b"}), MAY_CHANGE)
    with pytest.raises(RequestError, match="the images of val: digest b there, c here"):
        claim(store, RunState(JOB, {"train": "a", "val": "c"}), MAY_CHANGE)


def test_the_first_precision_is_kept_by_all_later_starts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    RunState(JOB, {"train": "a"}, "run-1").write(store)
    assert keep_precision(store, "bf16") == "bf16"
    assert keep_precision(store, "fp32") == "bf16", "other machines, the same run"
    assert read_run(store) == RunState(JOB, {"train": "a"}, "run-1", precision="bf16")
    assert claim(store, RunState(JOB, {"train": "a"}), MAY_CHANGE).precision == "bf16"
