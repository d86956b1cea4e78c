"""Real runs on two workers that are killed, damaged or beyond help, and what comes of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

import dira_dist
from dira_dist.cluster.pretrain import Outcome
from dira_dist.config import JobFailedError
from dira_dist.data.phantom import write_archive
from dira_dist.job import load_job
from dira_dist.training.state import Checkpoint, read_checkpoint

pytestmark = pytest.mark.timeout(600)

STEPS = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_archive(folder / "archive", 40, size_px=48)
    options = dira_dist.ShardOptions(image_size=None, processes=1)
    dira_dist.shard(folder / "archive" / "images", folder / "shards", options)
    return folder


def job_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"""
name: {name}
data: {{train: {folder}/shards, val: {folder}/shards, image_size: 32, global_batch: 8, loader_workers: 0}}
model: {{encoder: resnet18}}
method: {{queue_size: 20}}
stages: [{{objective: di, steps: 10}}, {{objective: dira, steps: {STEPS - 10}}}]
precision: fp32
resources: {{workers: 2}}
checkpoint: {{storage: {folder}/runs, every_steps: 7, keep: 2}}
tracking: {{uri: "sqlite:///{folder}/{name}.db", log_every_steps: 1, system_metrics_every_s: 0}}
""")
    return path


def run_here(folder: Path, name: str) -> tuple[Outcome, Checkpoint]:
    outcome = dira_dist.run(load_job(job_file(folder, name)))
    return outcome, read_checkpoint(Path(outcome.checkpoint))


def losses(folder: Path, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{folder}/{name}.db")
    experiment = client.get_experiment_by_name("dira")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss/total")
    return sorted((metric.step, metric.value) for metric in history)


def start_and_kill(folder: Path, name: str) -> None:
    """A driver in a process group of its own, and SIGKILL for all of it once checkpoints are there."""
    command = [sys.executable, "-m", "dira_dist", "run", str(job_file(folder, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (folder / f"{name}.log").open("w")
    driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
    try:
        listed = folder / "runs" / name / "checkpoint_manager_snapshot.json"  # Ray's own list of what is committed
        while not (listed.is_file() and "step-000000014-" in listed.read_text()):
            assert driver.poll() is None, (folder / f"{name}.log").read_text()
            time.sleep(0.1)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        log.close()


def test_a_killed_run_goes_on_to_the_very_same_end(folder: Path) -> None:
    _, unbroken = run_here(folder, "unbroken")
    start_and_kill(folder, "broken")
    outcome, resumed = run_here(folder, "broken")
    assert not outcome.already_done
    assert resumed.position == unbroken.position
    before, after = unbroken.tensors["networks"], resumed.tensors["networks"]
    different = [name for name, value in before.items() if torch.is_tensor(value) and not value.equal(after[name])]
    assert different == []
    assert losses(folder, "broken") == losses(folder, "unbroken")
    assert [step for step, _ in losses(folder, "broken")] == list(range(1, STEPS + 1))
    kept = list((folder / "runs" / "broken").glob("step-*/manifest.json"))
    assert len(kept) == 2, "keep: 2, and nothing that a killed driver left half listed"


def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(folder: Path) -> None:
    start_and_kill(folder, "damaged")
    (newest,) = (folder / "runs" / "damaged").glob("step-000000014-*")
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    outcome, resumed = run_here(folder, "damaged")
    assert resumed.position.step == STEPS
    assert set(outcome.quality) == {"untrained", "1-di", "2-dira"}


def test_what_a_restart_cannot_mend_ends_the_job_with_its_reason(folder: Path) -> None:
    loaded = load_job(job_file(folder, "hopeless"), ["optimizer.lr=1.0e+30", "guards.max_nonfinite_steps=3"])
    with pytest.raises(JobFailedError, match="3 steps in a row had a loss or gradient that was not finite") as caught:
        dira_dist.run(loaded)
    assert "NonFiniteError" in str(caught.value)
    client = MlflowClient(f"sqlite:///{folder}/hopeless.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FAILED"
    assert "not finite" in run.data.tags["dira.status_reason"]
    # one try: a second would have measured the first steps again
    skipped = client.get_metric_history(run.info.run_id, "train/skipped_steps")
    assert sum(metric.value for metric in skipped) <= 3
