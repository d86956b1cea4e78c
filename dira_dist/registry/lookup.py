"""Which registered version an address means; an unknown name is answered with the nearest known ones."""

import difflib
import re
from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError
from dira_dist.tracking.server import ask, in_one_sentence, is_missing

LATEST = "latest"
ADDRESS_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"
MODEL_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")
RUN_ADDRESS = re.compile(r"runs:/(?P<run>[0-9a-zA-Z_-]+)/?")


def find_version(client: MlflowClient, uri: str, address: str) -> ModelVersion:
    """The registered version that an address means.

    Raises:
        RequestError: see :func:`fetch`.
    """
    of_model, of_run = MODEL_ADDRESS.fullmatch(address), RUN_ADDRESS.fullmatch(address)
    if of_run:
        return _version_of_run(client, uri, of_run["run"])
    if not of_model:
        raise RequestError(f"{address!r} is no address of a model; allowed: {ADDRESS_FORMS}")
    name = of_model["name"]
    try:
        model = ask(uri, lambda: client.get_registered_model(name))
    except MlflowException as error:
        if not is_missing(error):
            raise RequestError(f"{address}: {in_one_sentence(error)}") from error
        known = [model.name for model in client.search_registered_models(max_results=1000)]
        raise RequestError(f"{address}: there is no model {name!r}; {_nearest(name, known)}") from None
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    if LATEST in (of_model["alias"], of_model["version"]):
        if not client.search_model_versions(f"name = '{name}'", max_results=1):
            raise RequestError(f"{address}: {name} has no version yet; register one with dira-dist register")
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
