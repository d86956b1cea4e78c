"""The model registry: a new version of a name, the aliases ``latest`` and ``best``, and the way back to files."""

import difflib
import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from safetensors.torch import load_file

from dira_dist.config import RequestError, without_credentials
from dira_dist.evaluation import center_view
from dira_dist.export import sha256_of, weights_digest
from dira_dist.tracking import feature_model
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.model_files import CARD, CHECKSUMS, damaged_files, read_checksums
from dira_dist.tracking.server import ask, connect, is_missing, is_refusal

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
METRIC_TAG, VALUE_TAG, DIGEST_TAG = "dira.metric", "dira.metric_value", "dira.digest"
MODEL_FOLDER = "model"
ADDRESS_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"
ATTEMPTS = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0

Progress = Callable[[str, int, int], None]  # file, bytes there, bytes in all
_MODELS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")
_RUNS = re.compile(r"runs:/(?P<run>[0-9a-zA-Z_-]+)/?")


class Artifacts(Protocol):
    """What is used of MLflow's artifact repositories: a folder somewhere, listed and read by relative paths."""

    def list_artifacts(self, path: str | None = None) -> list[Any]: ...

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str: ...


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
    """

    name: str
    version: int
    is_best: bool
    why: str

    @property
    def address(self) -> str:
        """``models:/name/version``."""
        return f"models:/{self.name}/{self.version}"


def register(
    config: TrackingConfig,
    run_id: str,
    folder: Path,
    *,
    metric: Metric | None = None,
    tags: Mapping[str, str] | None = None,
    patience_s: float = 300.0,
) -> Registered:
    """Make a model folder a new version of ``config.register_as``.

    ``latest`` is it from now on, an alias that MLflow keeps itself. ``best`` moves to it only if its metric beats that
    of the version that has the alias, or if none has. The same weights of the same run registered again are the same
    version: a job that was stopped between registering and noting it down registers once.

    Args:
        config: ``uri`` and ``register_as`` must be known.
        run_id: the run that made it.
        folder: from :func:`dira_dist.tracking.model_files.write_model_folder`.
        metric: by which it is compared; without one ``best`` goes to a first version only.
        tags: method, weights, dataset digest, parent search ...
        patience_s: how long to try again while the registry is away. A training of days does not fail for it.

    Raises:
        RequestError: if the folder is damaged, or the registry refuses, or it is away for longer than that.
    """
    config = config.located()
    name = config.register_as
    if config.uri is None or name is None:
        raise RequestError("tracking: uri and register_as are needed to register a model; give both")
    damaged = damaged_files(folder)
    if damaged:
        raise RequestError(f"{folder}: damaged or missing: {', '.join(damaged)}; write the model folder again")
    client, uri, digest = connect(config.uri), config.uri, weights_digest(load_file(folder / "unet.safetensors"))

    def attempt() -> Registered:
        ask(uri, lambda: client.get_run(run_id))
        version = _existing_version(client, name, run_id, digest)
        if version is None:
            version = _new_version(client, name, run_id, folder, _tags(metric, digest, tags))
        return _point_best(client, name, version, metric)

    return _patiently(attempt, patience_s)


def _patiently(attempt: Callable[[], Registered], patience_s: float) -> Registered:
    """The first success; a refusal at once, and any other trouble when the patience is over."""
    deadline, wait_s = time.monotonic() + patience_s, FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except Exception as error:
            if is_refusal(error) or time.monotonic() + wait_s > deadline:
                raise RequestError(f"the model is not registered: {without_credentials(str(error))[:400]}") from error
            log.warning("the registry does not take the model yet: %s", without_credentials(str(error))[:300])
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def fetch(
    address: str,
    dest: Path,
    config: TrackingConfig,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
) -> Path:
    """Bring a registered model's folder here; every file is checked, and what is here already stays.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or ``runs:/RUN_ID`` (the newest version of a run).
        dest: folder to write to; a fetch that was broken off goes on there.
        config: where the registry is.
        progress: called after each file.
        only: names of the files wanted; all where left out.

    Returns:
        ``dest``.

    Raises:
        RequestError: for an unknown model, version, alias or run, with the nearest known ones; for damaged files; and
            if the registry is away or refuses the credentials.
    """
    config = config.located()
    if config.uri is None:
        raise RequestError(f"{address}: no registry is known; give tracking.uri or set MLFLOW_TRACKING_URI")
    client = connect(config.uri)
    version = find_version(client, config.uri, address)
    source = client.get_model_version_download_uri(version.name, version.version)
    repository = get_artifact_repository(f"{source.rstrip('/')}/data/{MODEL_FOLDER}", tracking_uri=config.uri)
    try:
        _download(repository, dest, progress, only)
    except RequestError as error:
        raise RequestError(f"{address}: {error}") from error
    return dest


def find_version(client: MlflowClient, uri: str, address: str) -> ModelVersion:
    """The registered version that an address means.

    Raises:
        RequestError: see :func:`fetch`.
    """
    of_model, of_run = _MODELS.fullmatch(address), _RUNS.fullmatch(address)
    if of_run:
        return _version_of_run(client, uri, of_run["run"])
    if not of_model:
        raise RequestError(f"{address!r} is no address of a model; allowed: {ADDRESS_FORMS}")
    name = of_model["name"]
    try:
        model = ask(uri, lambda: client.get_registered_model(name))
    except MlflowException as error:
        if not is_missing(error):
            raise RequestError(f"{address}: {without_credentials(str(error))[:300]}") from error
        known = [model.name for model in client.search_registered_models(max_results=1000)]
        raise RequestError(f"{address}: there is no model {name!r}; {_nearest(name, known)}") from None
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    if LATEST in (of_model["alias"], of_model["version"]):
        return client.get_model_version_by_alias(name, LATEST)
    if alias := of_model["alias"]:
        if alias not in aliases:
            raise RequestError(f"{address}: {name} has no alias {alias!r}; {_nearest(alias, aliases)}")
        return client.get_model_version(name, aliases[alias])
    versions = {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    if of_model["version"] not in versions:
        known = sorted(versions, key=int)
        raise RequestError(
            f"{address}: {name} has no version {of_model['version']!r}; versions: {', '.join(known) or 'none'}; "
            f"aliases: {', '.join(f'@{alias}' for alias in aliases) or 'none'}"
        )
    return versions[of_model["version"]]


def _version_of_run(client: MlflowClient, uri: str, run_id: str) -> ModelVersion:
    versions = ask(uri, lambda: client.search_model_versions(f"run_id = '{run_id}'"))
    if versions:
        return max(versions, key=lambda version: int(version.creation_timestamp))
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise RequestError(f"runs:/{run_id}: there is no such run; give the id shown on its page") from error
    raise RequestError(f"runs:/{run_id}: the run has no registered model; register one, or pull from its checkpoint")


def _nearest(wanted: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"known: {', '.join(names[:20]) or 'none'}"


def _tags(metric: Metric | None, digest: str, tags: Mapping[str, str] | None) -> dict[str, str]:
    own = {DIGEST_TAG: digest}
    if metric is not None:
        own |= {METRIC_TAG: metric.name, VALUE_TAG: repr(metric.value)}
    return {key: without_credentials(str(value)) for key, value in (tags or {}).items()} | own


def _existing_version(client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    return next((version for version in found if version.tags.get(DIGEST_TAG) == digest), None)


def _new_version(client: MlflowClient, name: str, run_id: str, folder: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Upload the folder as a logged model of the run, runnable by MLflow, and make it a version."""
    try:
        client.create_registered_model(name, description="Encoders and decoders pretrained with DiRA by dira_dist.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name, run_id, tags=dict(tags), model_type="dira-encoder")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(model.model_id, str(_runnable(folder, Path(scratch), run_id, model.model_id)))
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    card = (folder / CARD).read_text() if (folder / CARD).is_file() else None
    place = model.artifact_location
    return client.create_model_version(
        name, place, run_id, dict(tags), description=card, await_creation_for=0, model_id=model.model_id
    )


def _runnable(folder: Path, scratch: Path, run_id: str, model_id: str) -> Path:
    """The folder wrapped as an MLflow model: its pyfunc flavour needs mlflow, numpy and torch, and nothing of ours."""
    # MLflow names its copy after the folder, and follows no links.
    named, path = shutil.copytree(folder, scratch / MODEL_FOLDER), scratch / "wrapped"
    mlflow.pyfunc.save_model(
        path,
        loader_module=feature_model.__name__.rpartition(".")[2],
        data_path=str(named),
        code_paths=[str(feature_model.__file__), str(center_view.__file__)],
        pip_requirements=["mlflow", "numpy", "torch"],
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
    return path


def _point_best(client: MlflowClient, name: str, version: ModelVersion, metric: Metric | None) -> Registered:
    number = str(version.version)
    holder = _holder_of_best(client, name)
    if holder is not None and str(holder.version) == number:
        return Registered(name, int(number), True, "it is the best already")
    moves, why = _is_better(metric, holder)
    if moves:
        client.set_registered_model_alias(name, BEST, number)
    return Registered(name, int(number), moves, why)


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
        return False, f"version {holder.version} was judged by {holder.tags.get(METRIC_TAG)}, not by {metric.name}"
    other = float(holder.tags.get(VALUE_TAG, "nan"))
    comparison = f"{metric.name} {metric.value:.4g} against {other:.4g} of version {holder.version}"
    return metric.beats(other), comparison


def _download(repository: Artifacts, dest: Path, progress: Progress | None, only: Collection[str] | None) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    _bring(repository, CHECKSUMS, dest)
    checksums = {name: digest for name, digest in read_checksums(dest).items() if only is None or name in only}
    sizes = dict(_sizes(repository))
    there, total = 0, sum(sizes.get(name, 0) for name in checksums)
    for name, digest in checksums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RequestError(f"{CHECKSUMS} names {name!r}, which lies outside of the folder; do not use this model")
        _bring_checked(repository, name, digest, dest)
        there += sizes.get(name, 0)
        if progress is not None:
            progress(name, there, total)


def _bring_checked(repository: Artifacts, name: str, digest: str, dest: Path) -> None:
    for _ in range(ATTEMPTS):
        if (dest / name).is_file() and sha256_of(dest / name) == digest:
            return
        _bring(repository, name, dest)
    if sha256_of(dest / name) != digest:
        (dest / name).unlink()
        raise RequestError(f"{name} is damaged where it is stored (its sha256 is not {digest[:12]}...); register again")


def _bring(repository: Artifacts, name: str, dest: Path) -> None:
    with tempfile.TemporaryDirectory(dir=dest, prefix=".fetching-") as scratch:
        try:
            partial = Path(repository.download_artifacts(name, scratch))
        except Exception as error:
            raise RequestError(f"{name} cannot be fetched: {without_credentials(str(error))[:300]}") from error
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(dest / name)


def _sizes(repository: Artifacts, folder: str | None = None) -> Iterator[tuple[str, int]]:
    entries: list[Any] = repository.list_artifacts(folder)
    for entry in entries:
        if entry.is_dir:
            yield from _sizes(repository, entry.path)
        else:
            yield entry.path, int(entry.file_size or 0)
