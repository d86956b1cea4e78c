"""Checkpoints as MLflow's logged models: where each lies and how good it is. Nothing is uploaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric

ADDRESS_TAG, STEP_TAG, REMOVED_TAG = "dira.address", "dira.step", "dira.removed"
MODEL_TYPE = "checkpoint"


@dataclass(frozen=True)
class LoggedCheckpoint:
    """A checkpoint in storage.

    Attributes:
        address: of its folder or prefix, without credentials.
        step: optimiser steps it holds.
        metrics: what was measured of its networks.
    """

    address: str
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def record_checkpoint(client: MlflowClient, run_id: str, checkpoint: LoggedCheckpoint, timestamp_ms: int) -> None:
    """Make a checkpoint a logged model of the run, tied to its metrics at its step. Again changes nothing."""
    model = _known(client, run_id, checkpoint.step) or _new(client, run_id, checkpoint)
    outputs = client.get_run(run_id).outputs
    if not outputs or model.model_id not in {output.model_id for output in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
    known = {metric.key for metric in model.metrics or ()}
    entries = [
        Metric(key, value, timestamp_ms, checkpoint.step, model.model_id)
        for key, value in checkpoint.metrics.items()
        if key not in known
    ]
    if entries:
        client.log_batch(run_id, metrics=entries)
    client.set_logged_model_tags(model.model_id, {ADDRESS_TAG: checkpoint.address, REMOVED_TAG: "false"})
    client.finalize_logged_model(model.model_id, "READY")


def record_removal(client: MlflowClient, run_id: str, step: int) -> None:
    """Note that the checkpoint of a step is not in storage any more; one that was never recorded is no error."""
    model = _known(client, run_id, step)
    if model is not None:
        client.set_logged_model_tags(model.model_id, {REMOVED_TAG: "true"})


def checkpoints_of(client: MlflowClient, run_id: str) -> list[LoggedCheckpoint]:
    """The checkpoints of a run that were not removed from storage since, newest first."""
    found = [
        LoggedCheckpoint(model.tags[ADDRESS_TAG], int(model.name.rpartition("-")[2]))
        for model in _search(client, run_id, "name LIKE 'checkpoint-%'")
        if model.tags.get(REMOVED_TAG) != "true"
    ]
    return sorted(found, key=lambda checkpoint: -checkpoint.step)


def _new(client: MlflowClient, run_id: str, checkpoint: LoggedCheckpoint) -> LoggedModel:
    experiment = client.get_run(run_id).info.experiment_id
    tags = {ADDRESS_TAG: checkpoint.address, STEP_TAG: str(checkpoint.step)}
    return client.create_logged_model(experiment, _name(checkpoint.step), run_id, tags=tags, model_type=MODEL_TYPE)


def _known(client: MlflowClient, run_id: str, step: int) -> LoggedModel | None:
    return next(iter(_search(client, run_id, f"name = '{_name(step)}'")), None)


def _search(client: MlflowClient, run_id: str, wanted: str) -> list[LoggedModel]:
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND {wanted}", max_results=1000))


def _name(step: int) -> str:
    return f"{MODEL_TYPE}-{step:09d}"
