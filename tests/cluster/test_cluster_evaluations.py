"""What a evaluating task could not tell the tracking server is told when the run ends."""

from pathlib import Path

from mlflow import MlflowClient

from dira_dist.cluster.fit.evaluations import log_late
from dira_dist.data.store import open_store
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.logged_models import checkpoints_of
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder
from dira_dist.training.stages import Position
from dira_dist.training.state import Checkpoint, write_checkpoint


def test_late_figures_are_told_once_and_of_removed_checkpoints_too(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = open_store(str(tmp_path / "run"))
    write_checkpoint(tmp_path / "scratch", Checkpoint(Position(step=5), {}))
    CheckpointFolder(store).upload("step-000000005-aa", tmp_path / "scratch")
    for evaluated in (
        EvaluationEntry("untrained", 0, "step-000000000-aa", {"val/psnr": 11.0}, logged=False),  # kept no longer
        EvaluationEntry(
            "step-5", 5, "step-000000005-aa", {"val/psnr": 12.0, "probe/auroc": float("nan")}, logged=False
        ),
        EvaluationEntry("step-9", 9, "step-000000009-aa", {"val/psnr": 13.0}),
    ):
        add_evaluation(store, evaluated)
    run = TrackingRun.create(TrackingConfig(uri=uri, system_metrics_every_s=0), "job", {})
    for _ in range(2):  # again, where the end was not reached the first time
        log_late(run, store)
    assert run.finish("FINISHED")
    client = MlflowClient(uri)
    history = client.get_metric_history(run.run_id, "val/psnr")
    assert [(metric.step, metric.value) for metric in history] == [(0, 11.0), (5, 12.0)]
    assert client.get_metric_history(run.run_id, "probe/auroc") == []
    assert [each.step for each in checkpoints_of(client, run.run_id)] == [5]
