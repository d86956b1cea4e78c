"""Runs whose driver was lost after it had created them and before ``run.json`` named them."""

import logging

from mlflow import MlflowClient
from mlflow.entities import Run

from dira_dist.metrics import MACHINE

FOLDER_TAG = "dira.folder"
CLAIMED_TAG = "dira.claimed"

log = logging.getLogger(__name__)


def unclaimed(folder: str) -> dict[str, str]:
    """Tags of a new run, until ``run.json`` in ``folder`` names it."""
    return {FOLDER_TAG: folder, CLAIMED_TAG: "no"}


def delete_unclaimed(client: MlflowClient, experiment_id: str, folder: str) -> None:
    """Moves empty runs that were created for ``folder``, and that nothing names, to MLflow's trash.

    Call it when no ``run.json`` is in the folder.

    Raises:
        MlflowException: the server does not do it.
    """
    page: str | None = None
    while True:
        found = client.search_runs([experiment_id], f"tags.`{CLAIMED_TAG}` = 'no'", page_token=page)
        for run in found:
            if run.data.tags.get(FOLDER_TAG) == folder and not _holds_figures(run):
                client.delete_run(run.info.run_id)
                log.warning("run %s had lost its driver before it began, and is deleted", run.info.run_id)
        page = found.token
        if not page:
            return


def _holds_figures(run: Run) -> bool:
    return any(not MACHINE.covers(name) for name in run.data.metrics)
