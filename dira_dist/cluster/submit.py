"""A job handed to a running cluster through Ray Jobs, with the working directory as its environment."""

import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from dira_dist.cluster.kubernetes import object_name
from dira_dist.cluster.submitted import Submission, talking_to
from dira_dist.config import RequestError
from dira_dist.job import load_job

# A stopped job's workers save first; Ray's own patience with its driver is 3 s.
STOP_WAIT_VARIABLE, STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 600
# What a working tree holds that no job needs; Ray uploads everything else, up to its own limit.
_LEFT_OUT = [".git", ".venv", "**/__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "quickstart", "runs"]


def submit(
    job: Path | str,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    env: Sequence[str] = (),
    working_dir: Path | str = ".",
) -> Submission:
    """Hand a job file to a cluster.

    Args:
        job: path of the job file, inside ``working_dir``.
        overrides: ``key.path=value`` each.
        address: the cluster's dashboard (``http://host:8265``); ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` if none.
        env: names of environment variables that the job gets with the values they have here. They stand in the job's
            runtime environment, where whoever holds the cluster's token can read them.
        working_dir: what is uploaded.

    Raises:
        RequestError: for an invalid job, a file outside the working directory, an unset variable, a cluster that does
            not answer or refuses the token. Nothing is uploaded then.
    """
    loaded = load_job(Path(job), overrides)
    folder, file = Path(working_dir).resolve(), Path(job).resolve()
    if not file.is_relative_to(folder):
        raise RequestError(f"{file}: not inside {folder}, which is what the cluster gets; submit from its folder")
    absent = [name for name in env if name not in os.environ]
    if absent:
        raise RequestError(f"--env {' '.join(absent)}: not set here; export it, or leave it out")
    words = ["python", "-m", "dira_dist", "run", str(file.relative_to(folder))]
    words += [word for override in overrides for word in ("--set", override)]
    with talking_to(address) as client:
        job_id = client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=f"{object_name(loaded.job.name)}-{secrets.token_hex(4)}",
            metadata={"dira_job": loaded.job.name},
            runtime_env={
                "working_dir": str(folder),
                "excludes": _LEFT_OUT,
                "env_vars": {STOP_WAIT_VARIABLE: str(STOP_WAIT_S)} | {name: os.environ[name] for name in env},
            },
        )
    return Submission(client, job_id)
