"""Models of finished runs: written, registered, found and pulled. Imports MLflow, by way of tracking's settings."""

import dira_dist.tracking  # noqa: F401  (settles MLflow's environment before anything here imports it)
