"""The tracking tests' real MLflow server serves these tests as well."""

from tests.tracking.conftest import mlflow_server, server_config, wire

__all__ = ["mlflow_server", "server_config", "wire"]
