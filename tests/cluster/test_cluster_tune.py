"""A real search: trials side by side, a worker and the driver killed, a configuration refused, trials stopped early."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from chaos import different, when, worker_processes
from mlflow import MlflowClient
from mlflow.entities import Run

import dira_dist
from dira_dist.cluster.session import embedded_ray
from dira_dist.cluster.tune.search import SearchOutcome
from dira_dist.config import RequestError
from dira_dist.data.store import open_store
from dira_dist.jobs.base import ResourcesConfig
from dira_dist.jobs.load import LoadedSearch, load_job
from dira_dist.jobs.search_plan import plan_search
from dira_dist.quickstart.phantom import write_archive
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.search import read_search
from dira_dist.search.trial import Trial
from dira_dist.training.checkpoints import CheckpointFolder

pytestmark = pytest.mark.timeout(1200)

STEPS, GRACE, EVERY = 120, 40, 20
# Weights so small that restoration learns nothing: behind the published ones at every rung.
JOB = """
kind: tune
name: s
search:
  space:
    loss_weights.restorative: {low: 1.0e-9, high: 1.0e-6}
    data.lanes: {choices: [8, 4]}
    data.global_batch: {choices: [8, 4]}   # lanes must divide it: one of four combinations is refused
  metric: val/psnr
  trials: 4
  sampler: random
  seed: 4   # the second that is drawn is the one that is refused
  grace_steps: 40
  reduction_factor: 4
  confirm_seeds: 1
base:
  name: the-best
  data: {train: FOLDER/shards, val: FOLDER/shards, image_size: 32, global_batch: 8, loader_workers: 0}
  model: {encoder: tu-test_resnet, decoder_channels: [8, 8, 8, 8, 8]}
  method: {queue_size: 16}
  stages: [{objective: dir, steps: 120}]
  precision: fp32
  evaluation: {threads: 1}
  resources: {workers: 1}
  checkpoint: {storage: FOLDER/runs, every_steps: 20, keep: 2}
  tracking: {uri: "sqlite:///FOLDER/runs.db", log_every_steps: 1, system_metrics_every_s: 0, register_as: winner}
"""


@dataclass(frozen=True)
class Search:
    """A search in a folder and what it left there."""

    folder: Path
    outcome: SearchOutcome
    killed: list[int]
    finished_before: Trial

    @property
    def trials(self) -> dict[str, Trial]:
        return {trial.name: trial for trial in trials(self.folder)}

    def runs(self) -> dict[str, Run]:
        client = MlflowClient(f"sqlite:///{self.folder}/runs.db")
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        assert len({run.info.run_name for run in found}) == len(found), "one run each, whatever was killed"
        return {str(run.info.run_name): run for run in found}


def trials(folder: Path) -> tuple[Trial, ...]:
    record = read_search(open_store(f"{folder}/runs/s"))
    return record.trials if record else ()


def job(folder: Path) -> LoadedSearch:
    loaded = load_job(folder / "job.yaml")
    assert isinstance(loaded, LoadedSearch)
    return loaded


def checkpoints(folder: Path, name: str) -> CheckpointFolder:
    return CheckpointFolder(open_store(f"{folder}/runs/{name}"))


def until(driver: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert driver.poll() is None, "the search ended before that"
        time.sleep(0.05)


def published(folder: Path) -> Trial | None:
    return next((trial for trial in trials(folder) if trial.name == "s-000"), None)


def worker_of(name: str, driver: psutil.Process) -> psutil.Process | None:
    """The living worker of a trial: Ray Train has it work in a folder of the trial's name."""
    for process in worker_processes(driver):
        try:
            if Path(process.cwd()).name == name:
                return process
        except psutil.Error:
            continue
    return None


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """First a driver that loses a worker, and its life once the first trial is finished; then one that goes on."""
    folder = tmp_path_factory.mktemp("tune")
    write_archive(folder / "archive", 40, size_px=48)
    dira_dist.shard(
        folder / "archive" / "images", folder / "shards", dira_dist.ShardOptions(image_size=None, processes=1)
    )
    (folder / "job.yaml").write_text(JOB.replace("FOLDER", str(folder)))
    killed: list[int] = []
    with (folder / "first.log").open("w") as log:
        command = [sys.executable, "-m", "dira_dist", "run", str(folder / "job.yaml")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log, text=True)
        try:

            def trained_a_while() -> bool:
                return (
                    has_reached(folder, "s-000", EVERY) and worker_of("s-000", psutil.Process(driver.pid)) is not None
                )

            def kill() -> None:
                worker = worker_of("s-000", psutil.Process(driver.pid))
                assert worker is not None
                worker.kill()
                killed.append(worker.pid)

            with when(trained_a_while, kill):
                until(driver, lambda: (trial := published(folder)) is not None and trial.status == "finished")
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    before = published(folder)
    assert before is not None
    with embedded_ray(ResourcesConfig()):  # one for all that follows: to start Ray takes longer than to train
        outcome = dira_dist.run(job(folder))
        assert isinstance(outcome, SearchOutcome)
        yield Search(folder, outcome, killed, before)


def has_reached(folder: Path, name: str, step: int) -> bool:
    return any(int(each.split("-")[1]) >= step for each in checkpoints(folder, name).names())


def test_every_trial_has_an_end_and_a_reason(searched: Search) -> None:
    tried = {name: trial for name, trial in searched.trials.items() if trial.seed is None}
    assert sorted(tried) == ["s-000", "s-001", "s-002", "s-003"]
    first = tried["s-000"]
    assert first.params["loss_weights.restorative"] == 10
    assert first.status == "finished", "the published weights are never stopped"
    refused = [trial for trial in tried.values() if trial.status == "failed"]
    assert refused
    assert "data.lanes is 8, which does not divide the global batch 4" in refused[0].reason
    stopped = [trial for trial in tried.values() if trial.status == "stopped"]
    assert stopped, "what restores nothing is behind"
    for trial in stopped:
        assert trial.step < STEPS
        assert f"stopped early at step {trial.step}: val/psnr" in trial.reason


def test_progress_is_told_while_it_runs(searched: Search) -> None:
    told = (searched.folder / "first.log").read_text()
    assert "trials: 2 running, 0 done, 0 stopped early of 8" in told, "side by side"
    assert re.search(r"best (so far )?val/psnr", told), "of trials at their end, or of one under way"
    assert "left" in told


def test_a_killed_worker_costs_the_steps_since_its_checkpoint_and_a_killed_driver_nothing(searched: Search) -> None:
    assert len(searched.killed) == 1
    assert searched.trials["s-000"] == searched.finished_before, "a finished trial is kept as it was"
    client = MlflowClient(f"sqlite:///{searched.folder}/runs.db")
    history = client.get_metric_history(searched.runs()["s-000"].info.run_id, "train/loss/total")
    assert sorted(metric.step for metric in history) == list(range(1, STEPS + 1))


def test_a_trial_ends_alike_alone_and_side_by_side(searched: Search) -> None:
    plan, folder = plan_search(job(searched.folder)), searched.folder
    dira_dist.run(plan.trial("alone", searched.trials["s-000"].params))
    alone, beside = (read_evaluations(open_store(f"{folder}/runs/{name}")) for name in ("alone", "s-000"))
    assert [(each.label, each.metrics) for each in alone] == [(each.label, each.metrics) for each in beside]
    ends = [checkpoints(folder, name).fetch(checkpoints(folder, name).names()[-1]) for name in ("alone", "s-000")]
    assert ends[0].position.step == STEPS
    assert different(ends[0].tensors, ends[1].tensors) == []


def test_the_winner_is_a_job_that_runs_as_it_is(searched: Search) -> None:
    text = Path(searched.outcome.best).read_text()
    winner = load_job(Path(searched.outcome.best))
    assert winner.job.name == "the-best"
    assert winner.job.tracking.register_as == "winner"
    assert winner.job.evaluation.every_steps is None, "what only the search needs is left out"
    assert load_job(yaml.safe_load(text)) == winner
    best = searched.trials[f"s-{searched.outcome.winner:03d}"]
    assert winner.job.loss_weights.restorative == best.params["loss_weights.restorative"]
    dira_dist.check(winner)
    client, parent = MlflowClient(f"sqlite:///{searched.folder}/runs.db"), searched.runs()["s"]
    kept = Path(client.download_artifacts(parent.info.run_id, "best.yaml"))
    assert kept.read_text() == text


def test_the_best_are_repeated_with_another_seed(searched: Search) -> None:
    repeats = {name: trial for name, trial in searched.trials.items() if trial.seed is not None}
    finished = [trial for trial in searched.trials.values() if trial.seed is None and trial.status == "finished"]
    assert sorted(repeats) == sorted(f"{trial.name}-seed1" for trial in finished)
    for name, trial in repeats.items():
        assert (trial.seed, trial.status, trial.step) == (1, "finished", STEPS)
        assert trial.metrics != searched.trials[name.removesuffix("-seed1")].metrics


def test_mlflow_has_a_parent_and_a_child_for_each_trial_with_its_reason_and_pictures(searched: Search) -> None:
    runs = {name: run for name, run in searched.runs().items() if name != "alone"}
    parent = runs.pop("s")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["dira.winner"] == f"s-{searched.outcome.winner:03d}"
    assert set(runs) == {name for name, trial in searched.trials.items() if trial.status != "failed"}
    for name, run in runs.items():
        trial = searched.trials[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["loss_weights.restorative"] == str(trial.params["loss_weights.restorative"])
        if trial.status == "finished":  # a stopped one may have measured more than was waited for
            assert run.data.metrics["val/psnr"] == pytest.approx(trial.metrics["val/psnr"])
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial.status]
        assert run.data.tags.get("dira.status_reason", "") == trial.reason
    client = MlflowClient(f"sqlite:///{searched.folder}/runs.db")
    pictures = {file.path.split("+")[0] for file in client.list_artifacts(parent.info.run_id, "images")}
    assert pictures == {"images/parallel coordinates", "images/val~psnr against each key"}


def test_a_finished_search_is_told_again_and_another_one_refused(searched: Search) -> None:
    again = dira_dist.run(job(searched.folder))
    assert again.already_done
    assert list(again.lines())[:-4] == list(searched.outcome.lines())[:-4]
    other = load_job(searched.folder / "job.yaml", ["search.metric=val/ssim", "base.seed=5"])
    with pytest.raises(RequestError, match=r"base\.seed: 0 there, 5 here\n.*search\.metric: 'val/psnr' there"):
        dira_dist.run(other)


def test_more_trials_than_fit_are_refused_before_anything_is_written(searched: Search) -> None:
    for name, override, words in (
        ("wide", "search.max_concurrent=1000", "1000 trials of 1 workers with 1 CPUs"),
        ("huge", "base.resources={workers: 1, gpus_per_worker: 64}", "64 GPUs"),
    ):
        with pytest.raises(RequestError, match=words):
            dira_dist.run(load_job(searched.folder / "job.yaml", [f"name={name}", override]))
        assert not (searched.folder / "runs" / name).exists()


RATES = """
kind: tune
name: rates
search:
  space: {optimizer.lr: {low: 1.0e-5, high: 1.0e-2}}
  trials: 2
  sampler: random
  confirm_seeds: 0
base:
  kind: finetune
  name: best-rate
  data: {train: FOLDER/labelled/train, val: FOLDER/labelled/val, image_size: 32, global_batch: 8, loader_workers: 0}
  model: {encoder: tu-test_resnet, decoder_channels: [8, 8, 8, 8, 8]}
  task: {name: classify, label: finding}
  epochs: 2
  report: {bootstrap: 100}
  precision: fp32
  resources: {workers: 1}
  checkpoint: {storage: FOLDER/runs, every_steps: 100}
  tracking: {uri: "sqlite:///FOLDER/rates.db", system_metrics_every_s: 0, register_as: classifier}
"""


@pytest.mark.usefixtures("searched")  # whose Ray is still there
def test_a_search_over_a_fine_tuning_is_judged_on_val(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", 60, size_px=40)
    options = dira_dist.ShardOptions(
        image_size=None,
        processes=1,
        labels=str(tmp_path / "archive" / "labels.csv"),
        group_by="patient",
        split=dira_dist.parse_split("train=0.6,val=0.4"),
    )
    dira_dist.shard(tmp_path / "archive" / "images", tmp_path / "labelled", options)
    (tmp_path / "rates.yaml").write_text(RATES.replace("FOLDER", str(tmp_path)))
    outcome = dira_dist.run(load_job(tmp_path / "rates.yaml"))
    assert isinstance(outcome, SearchOutcome)
    record = read_search(open_store(f"{tmp_path}/runs/rates"))
    assert record is not None
    first, second = record.trials
    assert first.params == {"optimizer.lr": 2e-4}, "the base's own goes first"
    assert 1e-5 <= second.params["optimizer.lr"] <= 1e-2
    for trial in (first, second):
        assert trial.status in ("finished", "stopped")
        figures = [each.metrics["val/auroc"] for each in read_evaluations(open_store(f"{tmp_path}/runs/{trial.name}"))]
        assert trial.metrics["val/auroc"] in figures
    assert first.metrics != second.metrics, "the rate changes what is learned"
    winner = load_job(Path(outcome.best)).job
    best = max((first, second), key=lambda trial: trial.metrics["val/auroc"])
    assert (winner.name, winner.kind, winner.tracking.register_as) == ("best-rate", "finetune", "classifier")
    assert winner.optimizer.lr == best.params["optimizer.lr"]
    assert MlflowClient(f"sqlite:///{tmp_path}/rates.db").search_registered_models() == [], "trials register nothing"
