"""A job handed to a running cluster through Ray Jobs, with the working directory as its environment."""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from dira_dist.config import JobFailedError, RequestError
from dira_dist.job import load_job

_POLL_S = 1.0
_SILENCE_S = 120.0
# What a working tree holds that no job needs; Ray uploads everything else, up to its own limit.
_LEFT_OUT = [".git", ".venv", "**/__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "quickstart", "runs"]


@dataclass(frozen=True)
class Submission:
    """A job that a cluster has taken."""

    client: JobSubmissionClient
    job_id: str

    def follow(self, write: Callable[[str], object]) -> int:
        """Pass the job's log on until it ends; the exit code is 0 where it succeeded, else 1.

        Raises:
            JobFailedError: the cluster was silent for two minutes.
        """
        shown, heard_at = 0, time.monotonic()
        while True:
            try:
                status = self.client.get_job_status(self.job_id)
                log = self.client.get_job_logs(self.job_id)
            except (ConnectionError, RuntimeError) as error:  # the job goes on while the dashboard is out of reach
                if time.monotonic() - heard_at > _SILENCE_S:
                    raise JobFailedError(
                        f"the cluster has not answered for {_SILENCE_S:g} s ({error}); the job may go on: "
                        f"ray job logs --follow {self.job_id}"
                    ) from error
            else:
                write(log[shown:])
                shown, heard_at = len(log), time.monotonic()
                if status.is_terminal():
                    return 0 if status == JobStatus.SUCCEEDED else 1
            time.sleep(_POLL_S)


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
        env: names of environment variables that the job gets with the values they have here.
        working_dir: what is uploaded.

    Raises:
        RequestError: for an invalid job, a file outside the working directory, an unset variable, a cluster that does
            not answer. Nothing is uploaded then.
    """
    load_job(Path(job), overrides)
    folder, file = Path(working_dir).resolve(), Path(job).resolve()
    if not file.is_relative_to(folder):
        raise RequestError(f"{file}: not inside {folder}, which is what the cluster gets; submit from its folder")
    absent = [name for name in env if name not in os.environ]
    if absent:
        raise RequestError(f"--env {' '.join(absent)}: not set here; export it, or leave it out")
    words = ["python", "-m", "dira_dist", "run", str(file.relative_to(folder))]
    words += [word for override in overrides for word in ("--set", override)]
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=shlex.join(words),
            runtime_env={
                "working_dir": str(folder),
                "excludes": _LEFT_OUT,
                "env_vars": {name: os.environ[name] for name in env},
            },
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster takes jobs at {address or os.environ.get('RAY_ADDRESS') or 'the default address'}: {error}"
        ) from error
    return Submission(client, job_id)
