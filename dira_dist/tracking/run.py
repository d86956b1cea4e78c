"""One MLflow run per job, across every restart, that never stops or slows the training it records."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError, flatten, without_credentials
from dira_dist.data.store import StoreError
from dira_dist.tracking.config import SERVER_SCHEMES, TrackingConfig, page_command
from dira_dist.tracking.deliverer import REASON_TAG, Deliverer
from dira_dist.tracking.deliveries import Delivery, DeliveryFolder, Kept
from dira_dist.tracking.outbox import Outbox, ReceiverGoneError, RefusedError
from dira_dist.tracking.protocol import NullRun, Run, Status
from dira_dist.tracking.provenance import source_tags
from dira_dist.tracking.server import ask, connect, experiment_id, in_one_sentence, is_missing, is_refusal
from dira_dist.tracking.system import SystemMonitor
from dira_dist.tracking.unclaimed import CLAIMED_TAG, delete_unclaimed, unclaimed

log = logging.getLogger(__name__)

MetricRow = tuple[str, float, int, int]  # key, value, step, timestamp in ms

PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
PARAM_CHARACTERS = 6000
DIGEST_CHARACTERS = 36
METRICS_KEPT = 1_000_000
FILES_KEPT = 500
_FORBIDDEN_IN_NAME = re.compile(r"[^\w\-./ ]", re.ASCII)


class TrackingRun:
    """A run that is being recorded.

    Everything but :meth:`create` and :meth:`attach` returns at once and raises nothing: metrics and files wait in two
    queues, each with a thread, until the server takes them. While it is away they are kept, and delivered in order
    afterwards: files also after this process' death, for they are written down in the run's folder first (metrics
    travel in its checkpoints). A metric carries the time at which it was measured; the server stores an equal (key,
    step, time, value) once, so that a delivery whose answer was lost may be repeated.

    While it is open, the machine it is open on is measured every ``config.system_metrics_every_s`` seconds: attach to
    the run so once on every node, and elsewhere with 0.
    """

    def __init__(self, config: TrackingConfig, run_id: str, *, resumed: bool, folder: str | None = None) -> None:
        """Use :meth:`create` or :meth:`attach`."""
        assert config.uri is not None
        self.config = config
        self.run_id = run_id
        self._client = connect(config.uri)
        self._experiment_id: str | None = None
        self._last_steps: dict[str, int] | None = None if resumed else {}
        self._deliverer = Deliverer(self._client, run_id, resumed=resumed)
        self._folder = DeliveryFolder(folder, run_id) if folder is not None else None
        self._unusable_values = 0
        self._metrics: Outbox[MetricRow] = Outbox(
            "metrics",
            self._deliver_metrics,
            batch=METRICS_PER_BATCH,
            capacity=METRICS_KEPT,
            linger_s=1.0,
            describe=in_one_sentence,
        )
        self._to_keep: Outbox[Delivery] = Outbox(
            "pictures and files to be kept", self._keep, batch=1, capacity=FILES_KEPT
        )
        self._files: Outbox[Kept] = Outbox(
            "pictures and files", self._deliver_files, batch=1, capacity=FILES_KEPT, describe=in_one_sentence
        )
        self._monitor = SystemMonitor(self.log_metrics, config.system_metrics_every_s)

    @classmethod
    def create(
        cls,
        config: TrackingConfig,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> "TrackingRun":
        """Begin a new run.

        Args:
            config: ``uri`` must be known (:meth:`TrackingConfig.resolve_paths`).
            name: the run's name on the page.
            params: the resolved job, nested as it is, no secrets in it (:func:`dira_dist.config.public_values`).
                Flattened into parameters; kept whole in the artifact ``parameters.json``.
            tags: strings to find the run by, beside those of the source: git commit and versions.
            folder: address of the folder whose ``run.json`` is going to name the run; call :meth:`claimed` then.
                A run that an earlier driver created for it and did not come to claim is deleted. What the server has
                not taken yet lies in it, too, and outlasts this process.

        Raises:
            RequestError: if the server is away, refuses the credentials or the experiment is deleted. In seconds.
        """
        config = config.resolve_paths()
        if config.uri is None:
            raise RequestError("tracking.uri: missing; give an address, or set MLFLOW_TRACKING_URI")
        client = connect(config.uri)
        try:
            experiment = experiment_id(client, config)
            own = source_tags() | {key: str(value) for key, value in (tags or {}).items()}
            if folder is not None:
                delete_unclaimed(client, experiment, without_credentials(folder))
                own |= unclaimed(without_credentials(folder))
            created = client.create_run(experiment, tags=own, run_name=name)
            _log_params(client, created.info.run_id, params)
        except MlflowException as error:
            raise RequestError(_refused(config, error)) from error
        run = cls(config, created.info.run_id, resumed=False, folder=folder)
        run._experiment_id = experiment
        run.log_text(without_credentials(json.dumps(params, indent=2, default=str)), "parameters.json")
        run._monitor.start()
        return run

    @classmethod
    def attach(
        cls,
        config: TrackingConfig,
        run_id: str,
        pending: Iterable[Sequence[Any]] = (),
        *,
        folder: str | None = None,
        drives: bool = False,
    ) -> "TrackingRun":
        """Go on with a run after a restart.

        Metrics and pictures up to the last step that the run holds already (of each name) are left out, so that the
        steps done again since the last checkpoint are not doubled.

        Args:
            config: as for :meth:`create`.
            run_id: the run to go on with.
            pending: what :meth:`pending` gave when the checkpoint was written: values that were measured before it but
                not delivered then. They go first.
            folder: address of the run's folder; what the server has not taken yet lies there, too, and outlasts this
                process.
            drives: whether the run is to go on by this process: it is ``RUNNING`` again, after what earlier processes
                had left to be delivered.

        Raises:
            RequestError: if the server knows no such run. A server that is away raises nothing: a training that
                restarts during an outage goes on, and its metrics wait.
        """
        config = config.resolve_paths()
        if config.uri is None:
            raise RequestError(f"tracking.uri: missing, but the job is recorded in the run {run_id}; give its address")
        run = cls(config, run_id, resumed=True, folder=folder)
        run._assert_known()
        for key, value, step, timestamp_ms in pending:
            run._metrics.put((str(key), float(value), int(step), int(timestamp_ms)))
        if drives:
            run.deliver_left_behind()
            run._do(Delivery("status", {"status": "RUNNING"}))
        run._monitor.start()
        return run

    @property
    def page(self) -> str:
        """The run's page on a server, or the command that shows it for a database. Holds no credentials."""
        uri = (self.config.uri or "").rstrip("/")
        if not uri.startswith(SERVER_SCHEMES):
            return page_command(self.config)
        return f"{without_credentials(uri)}/#/experiments/{self._experiment_id or 0}/runs/{self.run_id}"

    @property
    def lost(self) -> int:
        """Values, pictures and files that will never arrive: refused, or too many for an outage's queue."""
        return self._metrics.lost + self._to_keep.lost + self._files.lost + self._unusable_values

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step. The names of one axis keep their steps rising; a step seen before is left out."""
        now_ms = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            try:
                self._metrics.put((_FORBIDDEN_IN_NAME.sub("_", key), float(value), int(step), now_ms))
            except (TypeError, ValueError) as error:
                self._unusable_values += 1
                if self._unusable_values == 1:
                    log.warning("metric %s at step %s is no number and is left out: %s", key, step, error)

    def log_picture(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Record a picture at a step, for the page's image charts.

        Args:
            name: letters, digits, ``_ - . /`` and spaces; others become ``_``.
            image: ``(H, W)`` or ``(H, W, 3)`` uint8. Encoded later, on the delivering thread.
            step: the picture's place on the slider.
        """
        values = {"name": _FORBIDDEN_IN_NAME.sub("_", name), "step": int(step), "shape": list(image.shape)}
        values["timestamp_ms"] = time.time_ns() // 1_000_000
        self._do(Delivery.of_bytes("picture", values, np.asarray(image, np.uint8).tobytes()))

    def log_text(self, text: str, path: str) -> None:
        """Record a text as the artifact ``path``."""
        self._do(Delivery.of_bytes("file", {"path": path}, text.encode()))

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record a table as the artifact ``path`` (``.json``), which MLflow's page shows as one.

        Args:
            rows: by column; the first row says which columns there are.
            path: of the artifact.
        """
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        self._do(Delivery.of_bytes("table", {"path": path}, json.dumps(table, default=str).encode()))

    def claimed(self) -> None:
        """Record that ``run.json`` names this run, by which the next start finds it."""
        self.set_tags({CLAIMED_TAG: "yes"})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._do(Delivery("tags", {key: without_credentials(str(value)) for key, value in tags.items()}))

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Record which data went in, from a shard set's index: its digest, address, and facts about it.

        Args:
            name: what the page calls it.
            digest: sha256 of the set; the page holds its first 36 characters.
            source: address, credentials are cut out.
            context: ``training``, ``validation``, ``probe``.
            profile: numbers and words about the set, as JSON.
        """
        values = {"name": name, "digest": digest[:DIGEST_CHARACTERS], "context": context}
        values["source"] = json.dumps({"uri": without_credentials(source)})
        values["profile"] = json.dumps(dict(profile), default=str)
        self._do(Delivery("dataset", values))

    def log_checkpoint(self, address: str, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Record where a checkpoint lies and how good it is, as a logged model of the run. Nothing is uploaded."""
        place, figures = without_credentials(address), {key: float(value) for key, value in (metrics or {}).items()}
        values = {"address": place, "step": int(step), "metrics": figures, "timestamp_ms": time.time_ns() // 1_000_000}
        self._do(Delivery("checkpoint", values))

    def log_removal(self, step: int) -> None:
        """Record that the checkpoint of a step is not kept any more."""
        self._do(Delivery("removal", {"step": int(step)}))

    def pending(self) -> list[list[Any]]:
        """The metrics not delivered yet, as plain lists, to be kept in a checkpoint and given to :meth:`attach`."""
        return [list(row) for row in self._metrics.pending()]

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait for everything recorded so far to arrive. False when something still waits after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        arrived = self._metrics.flush(timeout_s)
        kept = self._to_keep.flush(max(0.0, deadline - time.monotonic()))
        return self._files.flush(max(0.0, deadline - time.monotonic())) and kept and arrived

    def deliver_left_behind(self) -> None:
        """Deliver what other processes of this run were to deliver and left behind. For the run's driver."""
        try:
            for kept in self._folder.left_behind() if self._folder else ():
                self._files.put(kept)
        except StoreError as error:
            log.warning("what was left to be delivered to MLflow is not taken up yet: %s", error)

    def finish(self, status: Status, reason: str = "", timeout_s: float = 60.0) -> bool:
        """Close the run with a status and, where it is not ``FINISHED``, the reason.

        Returns:
            False when not everything arrived within ``timeout_s``; the threads go on trying while the process lives.
        """
        self._monitor.stop()
        deadline = time.monotonic() + timeout_s
        arrived = self.flush(timeout_s)
        tags = {REASON_TAG: reason[:5000]} if reason else {}
        self.set_tags(tags | ({"dira.lost": str(self.lost)} if self.lost else {}))
        self._do(Delivery("status", {"status": status, "end_ms": time.time_ns() // 1_000_000}))
        return self.flush(max(1.0, deadline - time.monotonic())) and arrived

    def _do(self, delivery: Delivery) -> None:
        self._to_keep.put(delivery)

    def _assert_known(self) -> None:
        assert self.config.uri is not None
        try:
            info = ask(self.config.uri, lambda: self._client.get_run(self.run_id)).info
            self._experiment_id = info.experiment_id
        except MlflowException as error:
            raise RequestError(_refused(self.config, error)) from error
        except RequestError as error:
            log.warning("%s; the training goes on, its metrics are delivered when the server is back", error)
            return
        if info.lifecycle_stage != "active":
            raise RequestError(f"run {self.run_id} is deleted in MLflow; restore it (mlflow runs restore --run-id ...)")

    def _deliver_metrics(self, rows: Sequence[MetricRow]) -> None:
        if self._last_steps is None:
            run = self._sent(lambda: self._client.get_run(self.run_id))
            self._last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        last_steps = self._last_steps
        fresh = [
            Metric(key, value, timestamp_ms, step)
            for key, value, step, timestamp_ms in rows
            if step > last_steps.get(key, -1)
        ]
        if fresh:
            self._sent(lambda: self._client.log_batch(self.run_id, metrics=fresh))

    def _keep(self, deliveries: Sequence[Delivery]) -> None:
        """Write down what is to be delivered, and then have it delivered."""
        for delivery in deliveries:
            self._files.put(self._folder.keep(delivery) if self._folder else Kept(delivery))

    def _deliver_files(self, deliveries: Sequence[Kept]) -> None:
        for kept in deliveries:
            try:
                self._sent(partial(self._deliverer.deliver, kept.delivery))
            except RefusedError:
                self._forget(kept)
                raise
            self._forget(kept)

    def _forget(self, kept: Kept) -> None:
        if self._folder:
            self._folder.remove(kept)

    def _sent(self, call: Callable[[], Any]) -> Any:
        """The call's result; what can never succeed raises another error than what may succeed later."""
        try:
            return call()
        except Exception as error:
            if not is_refusal(error):
                raise
            if is_missing(error) or self._client.get_run(self.run_id).info.lifecycle_stage != "active":
                raise ReceiverGoneError(f"run {self.run_id} does not exist any more: {error}") from error
            raise RefusedError(str(error)) from error


def open_run(
    config: TrackingConfig,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    *,
    folder: str | None = None,
) -> Run:
    """The job's run: gone on with where ``run_id`` is known, begun otherwise, and a :class:`NullRun` without address.

    Raises:
        RequestError: see :meth:`TrackingRun.create` and :meth:`TrackingRun.attach`.
    """
    if run_id:
        return TrackingRun.attach(config, run_id, folder=folder, drives=True)
    if config.resolve_paths().uri is None:
        return NullRun()
    return TrackingRun.create(config, name, params, tags, folder)


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    entries = [Param(key[:250], _param_text(value)) for key, value in flatten(dict(params)).items() if key]
    for start in range(0, len(entries), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + PARAMS_PER_BATCH])


def _param_text(value: Any) -> str:
    text = without_credentials(str(value))
    if len(text) <= PARAM_CHARACTERS:
        return text
    hint = " ... (whole in parameters.json)"
    return text[: PARAM_CHARACTERS - len(hint)] + hint


def _refused(config: TrackingConfig, error: Exception) -> str:
    return f"tracking: {without_credentials(config.uri or '')} answers: {in_one_sentence(error)}"
