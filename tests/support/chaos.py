"""A small real job on several workers, what it leaves behind, and ways to hurt it while it runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

import dira_dist
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.data.order import Order, fingerprint
from dira_dist.data.store import open_store
from dira_dist.jobs.load import load_job
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.state import Checkpoint

IMAGES = 40
BATCH = 8


@dataclass(frozen=True)
class ChaosJob:
    """A job file in a folder, and what its run leaves there."""

    folder: Path
    name: str
    steps: int
    storage: str

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    def run(self, *overrides: str) -> Outcome:
        outcome = dira_dist.run(load_job(self.file, overrides))
        assert isinstance(outcome, Outcome)
        return outcome

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(open_store(f"{self.storage}/{self.name}"))

    def final(self) -> Checkpoint:
        return self.checkpoints.fetch(self.checkpoints.names()[-1])

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder}/{self.name}.db"

    def mlflow_run(self) -> Run:
        """The job's one run."""
        client = MlflowClient(self.database)
        (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
        return run

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values from the job's one MLflow run; nothing before there is one."""
        client = MlflowClient(self.database)
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
        assert len(runs) <= 1
        found = [each for run in runs for each in client.get_metric_history(run.info.run_id, metric)]
        return sorted((each.step, each.value) for each in found)

    def setbacks(self) -> tuple[int, int]:
        """How often the workers started anew, and how many steps they did again, as the run tells it at its end."""
        restarts, again = (self.history(f"train/{name}")[-1][1] for name in ("restarts", "steps_done_again"))
        return int(restarts), int(again)

    def has_reached(self, step: int) -> bool:
        """Whether a checkpoint of this step or a later one is finished."""
        return any(int(name.split("-")[1]) >= step for name in self.checkpoints.names())

    def has_measured(self, step: int) -> bool:
        """Whether the losses of this step have arrived in MLflow."""
        found = self.history("train/loss/total")
        return bool(found) and found[-1][0] >= step

    def assert_whole(self) -> None:
        """Every step is there once, and each saw the very samples of the order."""
        seen = self.history("train/sample_fingerprint")
        assert [step for step, _ in seen] == list(range(1, self.steps + 1))
        job = load_job(self.file).job
        order = Order([IMAGES], lanes=job.lanes, window=job.data.shuffle_window, seed=job.seed)
        for step, value in seen:
            first = BATCH * (step - 1)
            epochs = np.array([(first + place) // IMAGES for place in range(BATCH)])
            assert value == fingerprint(order.local_ids(range(job.lanes), first, BATCH), epochs), step

    def assert_same_end(self, other: "ChaosJob", *, same_saves: bool = True) -> None:
        """Losses at every step and all weights equal another run's, bit for bit.

        Each save averages the running statistics of batch norms over the workers, which changes nothing but rounding:
        of runs that did not save at the same steps they are close.
        """
        assert self.history("train/loss/total") == other.history("train/loss/total")
        mine, others = self.final(), other.final()
        assert mine.position == others.position
        wrong = different(mine.tensors, others.tensors)
        if not same_saves:
            rounded = [path for path in wrong if path.endswith(("running_mean", "running_var"))]
            ours, theirs = mine.tensors["networks"], others.tensors["networks"]
            for name in (path.removeprefix("/networks/") for path in rounded):
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
            wrong = [path for path in wrong if path not in rounded]
        assert wrong == []


def different(mine: Any, others: Any, path: str = "") -> list[str]:
    """Paths at which two nested states differ."""
    if isinstance(mine, dict):
        assert mine.keys() == others.keys(), path
        return [found for key in mine for found in different(mine[key], others[key], f"{path}/{key}")]
    same = torch.equal(mine, others) if isinstance(mine, torch.Tensor) else mine == others
    return [] if same else [path]


def worker_processes(under: psutil.Process | None = None) -> list[psutil.Process]:
    """Ray Train's worker processes below a process, this one by default."""
    found = []
    for process in (under or psutil.Process()).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def driver_of(job: ChaosJob, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in a process group of its own, once the job is ready; nothing of it is left afterwards."""
    command = [sys.executable, "-m", "dira_dist", "run", str(job.file)]
    log = job.folder / f"{job.name}.log"
    with log.open("ab") as output:
        driver = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while not ready():
                assert driver.poll() is None, log.read_text()
                time.sleep(0.1)
            yield driver
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


@contextmanager
def when(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """While the block runs, do something once, as soon as a condition holds. The block must not end before that."""
    failures: list[BaseException] = []
    ended, done = threading.Event(), threading.Event()

    def watch() -> None:
        try:
            while not ended.is_set():
                if condition():
                    act()
                    done.set()
                    return
                time.sleep(0.05)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]
    assert done.is_set(), "the run ended before anything happened to it"
