"""What is told of a run, done on the MLflow server: files, pictures, tags, inputs, checkpoints, its status."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from dira_dist.tracking.deliveries import Delivery, Kind
from dira_dist.tracking.logged_models import LoggedCheckpoint, record_checkpoint, record_removal
from dira_dist.tracking.picture_files import encodings, picture_files, picture_stem

REASON_TAG = "dira.status_reason"
_RUNNING = "RUNNING"


class Deliverer:
    """Does deliveries on the server. Each may be repeated: it leaves what doing it once leaves.

    Args:
        client: of the server.
        run_id: the run.
        resumed: whether the run may hold pictures already.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, resumed: bool) -> None:
        self._client, self._run_id = client, run_id
        self._pictures: set[tuple[str, int]] | None = None if resumed else set()
        self._acts: dict[Kind, Callable[[Delivery], None]] = {
            "file": self._file,
            "table": self._table,
            "picture": self._picture,
            "tags": self._tags,
            "dataset": self._dataset,
            "checkpoint": self._checkpoint,
            "removal": self._removal,
            "status": self._status,
        }

    def deliver(self, delivery: Delivery) -> None:
        """Do what it says.

        Raises:
            Exception: whatever MLflow raises.
        """
        self._acts[delivery.kind](delivery)

    def _file(self, delivery: Delivery) -> None:
        self._send(delivery.content_bytes, delivery.values["path"])

    def _table(self, delivery: Delivery) -> None:
        path = delivery.values["path"]
        self._send(delivery.content_bytes, path)
        tags = self._client.get_run(self._run_id).data.tags
        known = json.loads(tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in known:
            self._client.set_tag(self._run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))

    def _picture(self, delivery: Delivery) -> None:
        """Upload a picture, once, whole and small.

        ``MlflowClient.log_image`` draws a new name for every attempt; here a repeated attempt overwrites the first.
        """
        if self._pictures is None:
            stored = picture_files(self._client, self._run_id)
            self._pictures = {(picture.name, picture.step) for picture in stored}
        name, step = delivery.values["name"], delivery.values["step"]
        if (name, step) in self._pictures:
            return
        stem = picture_stem(self._run_id, name, step, delivery.values["timestamp_ms"])
        image = np.frombuffer(delivery.content_bytes, np.uint8).reshape(delivery.values["shape"])
        for ending, content in encodings(image):
            self._send(content, f"{stem}{ending}")
        self._client.set_tag(self._run_id, "mlflow.loggedImages", "True")
        self._pictures.add((name, step))

    def _tags(self, delivery: Delivery) -> None:
        self._client.log_batch(self._run_id, tags=[RunTag(key, text) for key, text in delivery.values.items()])

    def _dataset(self, delivery: Delivery) -> None:
        values = delivery.values
        dataset = Dataset(values["name"], values["digest"], "uri", values["source"], None, values["profile"])
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", values["context"])])
        self._client.log_inputs(self._run_id, [entry])

    def _checkpoint(self, delivery: Delivery) -> None:
        values = delivery.values
        checkpoint = LoggedCheckpoint(values["address"], values["step"], values["metrics"])
        record_checkpoint(self._client, self._run_id, checkpoint, values["timestamp_ms"])

    def _removal(self, delivery: Delivery) -> None:
        record_removal(self._client, self._run_id, delivery.values["step"])

    def _status(self, delivery: Delivery) -> None:
        status = delivery.values["status"]
        if status != _RUNNING:
            self._client.set_terminated(self._run_id, status, delivery.values["end_ms"])
            return
        self._client.update_run(self._run_id, status=status)
        if REASON_TAG in self._client.get_run(self._run_id).data.tags:
            self._client.delete_tag(self._run_id, REASON_TAG)

    def _send(self, content: bytes, path: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PurePosixPath(path).name
            file.write_bytes(content)
            parent = str(PurePosixPath(path).parent)
            self._client.log_artifact(self._run_id, str(file), None if parent == "." else parent)
