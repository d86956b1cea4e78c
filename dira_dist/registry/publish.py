"""From a run or a checkpoint to a registered model."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError, dump_yaml, without_credentials
from dira_dist.data.store import open_store
from dira_dist.registry.checkpoint import FoundCheckpoint, download_checkpoint, is_checkpoint
from dira_dist.registry.download import Progress
from dira_dist.registry.lookup import RUN_ADDRESS
from dira_dist.registry.registry import Metric, Registered, register_version
from dira_dist.runs.evaluations import best, ranked_by, read_evaluations
from dira_dist.runs.report import read_report
from dira_dist.tracking.config import TrackingConfig, tracking_at
from dira_dist.tracking.history import newest_pictures
from dira_dist.tracking.logged_models import checkpoints_of
from dira_dist.tracking.run import TrackingRun
from dira_dist.tracking.server import ask, connect, in_one_sentence
from dira_dist.training.state import Checkpoint
from dira_dist.training.task import About, Recipe, recipe_of

log = logging.getLogger(__name__)

REGISTRY_TIMEOUT_S = 300.0
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def publish(
    config: TrackingConfig,
    run_id: str,
    checkpoint: Checkpoint,
    quality: Mapping[str, float],
    data: Mapping[str, Any],
    *,
    recipe: Recipe | None = None,
    tags: Mapping[str, str] | None = None,
    report: Mapping[str, bytes] | None = None,
    timeout_s: float = REGISTRY_TIMEOUT_S,
) -> Registered:
    """Register what a checkpoint holds as a new version of ``config.register_as``.

    The task that trained it writes the model.

    The version holds the newest of each of the run's pictures.

    Args:
        config: of the job, its address settled and ``register_as`` given.
        run_id: the run that made them.
        checkpoint: of a finished run.
        quality: what the checkpoint's networks were evaluated to be, may be empty; by the first figure of
            the recipe's ranking in it versions are compared.
        data: what the card says of the training images; ``digest`` becomes a tag.
        recipe: of the task that trained it; the checkpoint's own if none.
        tags: more of them, such as the search that a run was a part of.
        report: files of the run's report on these networks.
        timeout_s: how long a registry that does not answer is waited for.

    Raises:
        RequestError: the registry is away for longer, or refuses.
    """
    job, recipe = checkpoint.job, recipe or recipe_of(checkpoint.job)
    task = recipe.build_task()
    about = About(
        name=str(config.register_as),
        data=data,
        quality=quality,
        origin={"job": job["name"], "run": run_id, "steps": checkpoint.position.step},
        job=dump_yaml(job),
        pictures=_pictures(config, run_id),
        report=report or {},
        trained_on=recipe.trained_on(),
    )
    with tempfile.TemporaryDirectory() as scratch:
        package = task.package(checkpoint.tensors, checkpoint.position, Path(scratch) / "model", about)
        figure = ranked_by(quality, recipe.ranking())
        metric = None if figure is None else Metric(figure, quality[figure], recipe.better(figure) == "max")
        notes = {**task.notes(), "train_digest": data.get("digest", "")}
        own = {f"dira.{name}": str(value) for name, value in notes.items()} | dict(tags or {})
        return register_version(config, run_id, package, metric=metric, tags=own, timeout_s=timeout_s)


def register(
    source: str, *, name: str | None = None, tracking_uri: str | None = None, progress: Progress | None = None
) -> Registered:
    """Register what a run or a checkpoint holds: also of a job that failed, was stopped, or had no tracking.

    Args:
        source: an MLflow run (``runs:/ID`` or its id), of which the newest checkpoint is taken, or the chosen one
            where its task chooses; or the address of a checkpoint or of a run's folder.
        name: in the registry; the job's ``tracking.register_as`` if none.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: called with the bytes that are here and the bytes in all.

    Raises:
        RequestError: no such run or checkpoint, no name, no server, no answer from storage, or the registry refuses.
    """
    config = tracking_at(tracking_uri, register_as=name).resolve_paths()
    if config.uri is None:
        raise RequestError(f"{source}: no registry is known; give --tracking-uri or set MLFLOW_TRACKING_URI")
    uri, client = config.uri, connect(config.uri)
    address = _checkpoint_of_run(client, uri, source) or source
    with tempfile.TemporaryDirectory() as scratch:
        found = download_checkpoint(address, Path(scratch) / "newest", progress)
        found, report = chosen_checkpoint(found, source, Path(scratch) / "chosen", progress)
    job = found.checkpoint.job
    register_as = name or job["tracking"]["register_as"]
    if register_as is None:
        raise RequestError(f"{source}: its job has no tracking.register_as; say under which name with --name")
    config = config.model_copy(update={"register_as": register_as, "experiment": job["tracking"]["experiment"]})
    if found.checkpoint.run_id:
        _deliver_late(config, found)
    run_id = found.checkpoint.run_id or _run_afterwards(config, found)
    data = {"address": job["data"]["train"]} | _recorded_data(client, uri, run_id)
    return publish(config, run_id, found.checkpoint, found.quality, data, report=report, timeout_s=0)


def chosen_checkpoint(
    found: FoundCheckpoint, source: str, folder: Path, progress: Progress | None
) -> tuple[FoundCheckpoint, dict[str, bytes]]:
    """Of a run whose task chooses among its checkpoints the one that was chosen, and the report on it.

    A checkpoint that is asked for by its own address is the one that is meant.
    """
    recipe, (parent, _, name) = recipe_of(found.checkpoint.job), found.address.rpartition("/")
    if not recipe.publishes_best or not parent:
        return found, {}
    store = open_store(parent)
    chosen = best(read_evaluations(store), recipe.ranking(), recipe.better)
    if chosen is None or (chosen.checkpoint != name and source.rstrip("/") == found.address):
        return found, {}
    if chosen.checkpoint != name:
        found = download_checkpoint(f"{parent}/{chosen.checkpoint}", folder, progress)
    return found, read_report(store)


def _pictures(config: TrackingConfig, run_id: str) -> dict[str, Any]:
    """The run's, as far as they can be had: a model without pictures is better than none."""
    assert config.uri is not None
    client = connect(config.uri)
    try:
        return ask(config.uri, lambda: newest_pictures(client, run_id), timeout_s=REGISTRY_TIMEOUT_S)
    except (RequestError, MlflowException) as error:
        log.warning("the model is registered without pictures: %s", in_one_sentence(error))
        return {}


def _checkpoint_of_run(client: MlflowClient, uri: str, source: str) -> str | None:
    """The newest checkpoint of a run that is still in storage; none where the source is no run."""
    named = RUN_ADDRESS.fullmatch(source)
    if named is None and not _RUN_ID.fullmatch(source):
        return None
    run_id = named["run"] if named else source
    try:
        recorded = ask(uri, lambda: checkpoints_of(client, run_id))
    except MlflowException as error:
        raise RequestError(f"{source}: there is no such run; give the id shown on its page") from error
    address = next((each.address for each in recorded if is_checkpoint(each.address)), None)
    if address is None:
        recorded_words = ", ".join(each.address for each in recorded) or "none"
        raise RequestError(f"{source}: no checkpoint of this run is in storage; recorded were: {recorded_words}")
    return address


def _run_afterwards(config: TrackingConfig, found: FoundCheckpoint) -> str:
    """A run for a checkpoint that was made without tracking: a version in the registry belongs to one."""
    job = found.checkpoint.job
    run = TrackingRun.create(config, job["name"], job, {"dira.job": job["name"], "dira.recorded": "afterwards"})
    run.log_metrics(found.quality, found.checkpoint.position.step)
    run.log_checkpoint(found.address, found.checkpoint.position.step)
    run.finish("FINISHED")
    return run.run_id


def _deliver_late(config: TrackingConfig, found: FoundCheckpoint) -> None:
    """What the run's processes had measured and written down, and did not deliver before they ended."""
    folder, _, _ = found.address.rpartition("/")
    unmeasured = config.model_copy(update={"system_metrics_every_s": 0.0})
    checkpoint = found.checkpoint
    try:
        run = TrackingRun.attach(unmeasured, checkpoint.run_id, checkpoint.pending_metrics, folder=folder or None)
    except RequestError:
        return  # whoever asks the run for its data says why
    run.deliver_left_behind()
    if not run.flush(REGISTRY_TIMEOUT_S):
        log.warning("not all of what the run had left to be delivered has arrived; the same command delivers the rest")


def _recorded_data(client: MlflowClient, uri: str, run_id: str) -> dict[str, Any]:
    """What the run knows of its training images."""
    try:
        run = ask(uri, lambda: client.get_run(run_id))
    except MlflowException as error:
        raise RequestError(
            f"{without_credentials(uri)} knows no run {run_id}, which made this checkpoint; give --tracking-uri of the "
            "server that recorded it"
        ) from error
    datasets = [entry.dataset for entry in run.inputs.dataset_inputs] if run.inputs else []
    train = next((each for each in datasets if each.name == "train"), None)
    if train is None:
        return {}
    generation = json.loads(train.profile or "{}").get("generation", 1)
    return {"dataset": train.name, "generation": generation, "digest": train.digest}
