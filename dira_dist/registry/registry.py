"""The model registry: a new version of a name, the aliases ``latest`` and ``best``."""

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from safetensors.torch import load_file

from dira_dist.config import RequestError, without_credentials
from dira_dist.data.retry import Backoff, retried
from dira_dist.files import sha256_of
from dira_dist.models.export import weights_digest
from dira_dist.models.model_files import CARD, CHECKSUMS, damaged_files
from dira_dist.registry.fetch import FOLDER_IN_VERSION
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import ask, connect, in_one_sentence, is_refusal
from dira_dist.training.task import Package

log = logging.getLogger(__name__)

BEST = "best"
METRIC_TAG, VALUE_TAG, DIGEST_TAG = "dira.metric", "dira.metric_value", "dira.digest"
SUM_TAG = "dira.sha256"
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_AT_ONCE_S = 600.0


@dataclass(frozen=True)
class Metric:
    """The figure by which versions of a model are compared."""

    name: str
    value: float
    higher_is_better: bool = True

    def beats(self, other: float) -> bool:
        """Whether this value is better than another; a value that is no number never is."""
        if math.isnan(self.value):
            return False
        return math.isnan(other) or (self.value > other if self.higher_is_better else self.value < other)


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: of the model.
        version: counted from 1.
        is_best: whether the alias ``best`` points to it now.
        why: one sentence on the alias ``best``.
        sha256: of the list of its files' sums: what ``pull --sha256`` compares.
    """

    name: str
    version: int
    is_best: bool
    why: str
    sha256: str = ""

    @property
    def address(self) -> str:
        """``models:/name/version``."""
        return f"models:/{self.name}/{self.version}"


def register_version(
    config: TrackingConfig,
    run_id: str,
    package: Package,
    *,
    metric: Metric | None = None,
    tags: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> Registered:
    """Make a packaged model a new version of ``config.register_as``.

    ``latest`` is it from now on, an alias that MLflow keeps itself. ``best`` moves to it only if its metric beats that
    of the version that has the alias, or if none has. The same weights of the same run registered again are the same
    version: a job that was stopped between registering and noting it down registers once.

    Args:
        config: ``uri`` and ``register_as`` must be known.
        run_id: the run that made it.
        package: from a task's ``package``.
        metric: by which it is compared; without one ``best`` goes to a first version only.
        tags: method, weights, dataset digest, parent search ...
        timeout_s: how long to try again while the registry is away. A training of days does not fail for it.

    Raises:
        RequestError: if the folder is damaged, or the registry refuses, or it is away for longer than that.
    """
    config = config.resolve_paths()
    name = config.register_as
    if config.uri is None or name is None:
        raise RequestError("tracking: uri and register_as are needed to register a model; give both")
    damaged = damaged_files(package.folder)
    if damaged:
        raise RequestError(f"{package.folder}: damaged or missing: {', '.join(damaged)}; write the model folder again")
    client, uri = connect(config.uri), config.uri
    digest = weights_digest(load_file(package.folder / package.weights))

    def attempt() -> Registered:
        ask(uri, lambda: client.get_run(run_id))
        version = _existing_version(client, name, run_id, digest)
        if version is None:
            known = {**(tags or {}), SUM_TAG: sha256_of(package.folder / CHECKSUMS)}
            version = _new_version(client, name, run_id, package, _tags(metric, digest, known))
        return replace(_point_best(client, name, version, metric), sha256=version.tags.get(SUM_TAG, ""))

    return _retried(attempt, timeout_s)


def _retried(attempt: Callable[[], Registered], timeout_s: float) -> Registered:
    """The first success; a refusal at once, and any other failure when the time is over."""

    def is_final(error: Exception) -> bool:
        if is_refusal(error):
            return True
        log.warning("the registry does not take the model yet: %s", in_one_sentence(error))
        return False

    try:
        return retried(attempt, is_final, Backoff(FIRST_WAIT_S, LONGEST_WAIT_S), timeout_s=timeout_s)
    except Exception as error:
        raise RequestError(f"the model is not registered: {in_one_sentence(error, 400)}") from error


def _tags(metric: Metric | None, digest: str, tags: Mapping[str, str] | None) -> dict[str, str]:
    own = {DIGEST_TAG: digest}
    if metric is not None:
        own |= {METRIC_TAG: metric.name, VALUE_TAG: repr(metric.value)}
    return {key: without_credentials(str(value)) for key, value in (tags or {}).items()} | own


def _existing_version(client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    return next((version for version in found if version.tags.get(DIGEST_TAG) == digest), None)


def _new_version(
    client: MlflowClient, name: str, run_id: str, package: Package, tags: Mapping[str, str]
) -> ModelVersion:
    """Upload the folder as a logged model of the run, runnable by MLflow, and make it a version."""
    try:
        client.create_registered_model(name, description=package.description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = _logged_model(client, name, run_id, package, tags)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(model.model_id, str(_runnable(package, Path(scratch), run_id, model.model_id)))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    card = (package.folder / CARD).read_text() if (package.folder / CARD).is_file() else None
    place = model.artifact_location
    return client.create_model_version(
        name, place, run_id, dict(tags), description=card, await_creation_for=0, model_id=model.model_id
    )


def _logged_model(
    client: MlflowClient, name: str, run_id: str, package: Package, tags: Mapping[str, str]
) -> LoggedModel:
    """The run's logged model of these weights: the one that an attempt which was broken off has left, or a new one."""
    experiment = client.get_run(run_id).info.experiment_id
    of_run = f"source_run_id = '{run_id}' AND name = '{name}' AND tags.`{DIGEST_TAG}` = '{tags[DIGEST_TAG]}'"
    found = client.search_logged_models([experiment], of_run)
    if found:
        return found[0]
    return client.create_logged_model(experiment, name, run_id, tags=dict(tags), model_type=package.model_type)


def _runnable(package: Package, scratch: Path, run_id: str, model_id: str) -> Path:
    """The folder wrapped as an MLflow model: its pyfunc flavour needs what the package says, and nothing of ours."""
    # MLflow names its copy after the folder, and follows no links.
    named, path = shutil.copytree(package.folder, scratch / Path(FOLDER_IN_VERSION).name), scratch / "wrapped"
    mlflow.pyfunc.save_model(
        path,
        loader_module=package.code[0].stem,
        data_path=str(named),
        code_paths=[str(file) for file in package.code],
        pip_requirements=list(package.requirements),
        signature=_signature(package),
        input_example=package.example,
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
    return path


def _signature(package: Package) -> ModelSignature | None:
    """Without one MLflow drops what ``predict`` is given as ``params``, and cannot read a request.

    Of the images it says the one thing that MLflow holds against nothing and casts to nothing: arrays of any shape and
    type, and words in their place.
    """
    specs = [ParamSpec(name, "string", usual) for name, usual in package.parameters.items()]
    inputs = None if package.example is None else Schema([TensorSpec(np.dtype(object), (-1,))])
    if specs:
        return ModelSignature(inputs=inputs, params=ParamSchema(specs))
    return None if inputs is None else ModelSignature(inputs=inputs)


def _point_best(client: MlflowClient, name: str, version: ModelVersion, metric: Metric | None) -> Registered:
    number = str(version.version)
    holder = _holder_of_best(client, name)
    if holder is not None and str(holder.version) == number:
        return Registered(name, int(number), True, "it is the best already")
    moves, why = _is_better(metric, holder)
    if not moves:
        return Registered(name, int(number), False, why)
    client.set_registered_model_alias(name, BEST, number)
    rival = None if metric is None else _better_rival(client, version, metric)
    if rival is None or metric is None:
        return Registered(name, int(number), True, why)
    client.set_registered_model_alias(name, BEST, str(rival.version))
    why = f"version {rival.version}, registered at the same time, has {metric.name} {rival.tags[VALUE_TAG]}"
    return Registered(name, int(number), False, why)


def _better_rival(client: MlflowClient, version: ModelVersion, metric: Metric) -> ModelVersion | None:
    """The best of the versions that were made at about the same time, where it beats this one.

    MLflow sets an alias without a condition. Two that register at once may both beat the version that holds it, and
    the worse one may come last: so whoever has set it looks once more, when both versions are there to be seen.
    """
    best: tuple[Metric, ModelVersion] | None = None
    for other in client.search_model_versions(f"name = '{version.name}'"):
        apart_s = abs(other.creation_timestamp - version.creation_timestamp) / 1000
        if other.tags.get(METRIC_TAG) == metric.name and apart_s <= _AT_ONCE_S:
            found = replace(metric, value=float(other.tags[VALUE_TAG]))
            if found.beats(best[0].value if best else metric.value):
                best = found, other
    return best[1] if best else None


def _holder_of_best(client: MlflowClient, name: str) -> ModelVersion | None:
    number = client.get_registered_model(name).aliases.get(BEST)
    return None if number is None else client.get_model_version(name, str(number))


def _is_better(metric: Metric | None, holder: ModelVersion | None) -> tuple[bool, str]:
    if holder is None:
        usable = metric is None or not math.isnan(metric.value)
        return usable, "no version was the best before" if usable else f"its {metric.name if metric else ''} is NaN"
    if metric is None:
        return False, f"it was not measured; version {holder.version} stays the best"
    if holder.tags.get(METRIC_TAG) != metric.name:
        return False, f"version {holder.version} was evaluated by {holder.tags.get(METRIC_TAG)}, not by {metric.name}"
    other = float(holder.tags.get(VALUE_TAG, "nan"))
    comparison = f"{metric.name} {metric.value:.4g} against {other:.4g} of version {holder.version}"
    return metric.beats(other), comparison
