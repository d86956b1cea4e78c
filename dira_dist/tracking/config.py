"""The job file's ``tracking`` section. It stands alone so that a job can be read and checked without MLflow."""

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from dira_dist.config import MAY_CHANGE, Document, Section, validate, without_credentials

SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


class TrackingConfig(Section):
    """Where runs are logged. Without ``uri`` and without ``MLFLOW_TRACKING_URI`` nothing is."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    uri: str | None = Field(
        None, description="address of an MLflow server or database; MLFLOW_TRACKING_URI of the environment if left out"
    )
    experiment: str = Field("dira", min_length=1, max_length=500, description="MLflow experiment")
    register_as: str | None = Field(None, description="name in the model registry; left out, nothing is registered")
    log_every_steps: int = Field(10, ge=1, description="optimiser steps between two sets of figures")
    system_metrics_every_s: float = Field(
        10.0,
        ge=0,
        description="seconds between two measurements of processor, memory, network and GPU; 0 measures none",
    )

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        if uri is None or uri.startswith("${env:"):
            return uri
        if urlsplit(uri).scheme.partition("+")[0] not in SERVER_SCHEMES + DATABASE_SCHEMES:
            raise ValueError(
                f"found {without_credentials(uri)!r}; an address begins with one of "
                f"{', '.join(f'{scheme}:' for scheme in SERVER_SCHEMES + DATABASE_SCHEMES)} "
                "(for a file on this machine: sqlite:////absolute/path/mlflow.db)"
            )
        return uri

    @field_validator("register_as")
    @classmethod
    def _name_fit_for_an_address(cls, name: str | None) -> str | None:
        if name is not None and (not name.strip() or any(character in name for character in "/:@%'\"")):
            raise ValueError(f"found {name!r}; a model name is not empty and has none of / : @ % ' \"")
        return name

    def resolve_paths(self) -> "TrackingConfig":
        """The same with the address settled: environment read, a relative sqlite path made absolute.

        Called where the job starts, so that a process with another working directory finds the same database.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        return self.model_copy(update={"uri": absolute(uri) if uri else None})


def tracking_at(uri: str | None, register_as: str | None = None) -> TrackingConfig:
    """The settings given on the command line, in place of a job file's section.

    Raises:
        RequestError: for an address or a name that cannot be.
    """
    return validate(TrackingConfig, Document({"uri": uri, "register_as": register_as}, "tracking"))


def absolute(uri: str) -> str:
    """``sqlite:///mlflow.db`` (relative to the working directory) as ``sqlite:////where/it/is/mlflow.db``."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or uri == prefix:
        return uri
    return prefix + str(Path(uri.removeprefix(prefix)).expanduser().absolute())


def page_command(config: TrackingConfig) -> str:
    """How the runs are shown: a shell command for a database, the page's address for a server."""
    uri = config.resolve_paths().uri
    if uri is None:
        return "(tracking is off: give tracking.uri)"
    if uri.startswith(SERVER_SCHEMES):
        return without_credentials(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))}"
