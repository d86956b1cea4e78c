"""The run's memory: MLflow runs, pictures, and models in the registry. The only floor that imports MLflow."""

import os

# Set before MLflow is imported, and only where the user has not: MLflow's own retries take minutes per call, while
# every caller on this floor has its own way to wait; usage statistics do not leave a hospital's network unasked; the
# address that MLflow prints at the end of a run may hold a password; and progress is shown by the command line.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)
