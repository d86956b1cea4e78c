"""Drivers that are killed, stopped, or come back to damage, and jobs beyond help."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
from chaos import ChaosJob, driver_of
from mlflow import MlflowClient
from safetensors.torch import save_file

from dira_dist.config import JobFailedError

pytestmark = pytest.mark.timeout(1500)

STEPS = 80


@pytest.fixture(scope="module")
def unbroken(make_job: Callable[..., ChaosJob]) -> ChaosJob:
    job = make_job("unbroken", steps=STEPS)
    job.run()
    return job


def test_a_killed_cluster_and_a_broken_checkpoint(make_job: Callable[..., ChaosJob], unbroken: ChaosJob) -> None:
    """Driver, Ray and workers die at once, and the newest two checkpoints are damaged: the one before them serves."""
    job = make_job("killed", steps=STEPS)
    with driver_of(job, lambda: job.has_reached(14)):
        pass
    second, newest = job.checkpoints.names()[-2:]
    run_folder = job.folder / "runs" / job.name
    (run_folder / newest / "manifest.json").write_text("")
    state = run_folder / second / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    outcome = job.run()
    assert not outcome.already_done
    assert not {second, newest} & set(job.checkpoints.names())
    job.assert_whole()
    job.assert_same_end(unbroken)
    assert len(job.checkpoints.names()) == 3, "keep: 3, and nothing that a killed driver left half written"
    assert job.run().already_done


def test_a_stopped_run_saves_says_how_to_go_on_and_loses_nothing(
    make_job: Callable[..., ChaosJob], unbroken: ChaosJob
) -> None:
    job = make_job("stopped", steps=STEPS, every_steps=1000)
    stopped_at = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with driver_of(job, partial(job.has_measured, stopped_at + 1)) as driver:
            driver.send_signal(number)
            assert driver.wait(timeout=120) == 1
        log = job.folder / f"{job.name}.log"
        said = log.read_text()
        log.unlink()  # the next driver says it again
        assert "was stopped after step" in said and "the same command goes on from the newest" in said, said
        assert "Traceback" not in said
        run = job.mlflow_run()
        assert run.info.status == "KILLED"
        assert "JobStoppedError" in run.data.tags["dira.status_reason"]
        stopped_at = int(job.checkpoints.names()[-1].split("-")[1])
        assert [step for step, _ in job.history("train/loss/total")] == list(range(1, stopped_at + 1))
    job.run()
    job.assert_whole()
    job.assert_same_end(unbroken, same_saves=False)


def test_what_a_restart_cannot_mend_ends_the_job_with_its_reason(make_job: Callable[..., ChaosJob]) -> None:
    job = make_job("hopeless", more="guards: {max_nonfinite_steps: 3}\noptimizer: {lr: 1.0e+30}")
    encoder = job.folder / "encoder.safetensors"
    save_file(timm.create_model("test_resnet", in_chans=1).state_dict(), encoder)
    with pytest.raises(JobFailedError, match="3 steps in a row had a loss or gradient that was not finite") as caught:
        job.run(f"model.init={encoder}")
    assert "NonFiniteError" in str(caught.value)
    named = str(caught.value).split("Samples in these steps:")[1]
    assert named.count("step ") >= 6, "the samples of both workers at each of three steps"
    run = job.mlflow_run()
    report = Path(MlflowClient(job.database).download_artifacts(run.info.run_id, "init.txt"))
    assert "of the decoder, which keep their own start" in report.read_text(), "no key is left out in silence"
    assert run.info.status == "FAILED"
    assert "not finite" in run.data.tags["dira.status_reason"]
    # one try: a second would have measured the first steps again
    assert sum(value for _, value in job.history("train/skipped_steps")) <= 3
