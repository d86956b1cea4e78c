"""What this project uses of MLflow that is not public, with its reason."""

from typing import Any

from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.utils.rest_utils import http_request

__all__ = ["HttpArtifactRepository", "ask_artifact_server"]


def ask_artifact_server(repository: HttpArtifactRepository, name: str, headers: dict[str, str]) -> Any:
    """A GET of one artifact with headers of our own, streamed; MLflow's client sends no ``Range`` and reads it whole.

    The credentials are those of MLflow's own variables: token, user and password, certificates.
    """
    ask: Any = http_request
    return ask(repository._host_creds, f"/{name}", "GET", stream=True, extra_headers=headers, raise_on_status=False)
