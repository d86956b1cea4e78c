"""A job handed to a running cluster through Ray Jobs, with its file and what that names."""

import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dira_dist.cluster.submit.jobs import Submission, talking_to
from dira_dist.cluster.submit.kubernetes import object_name
from dira_dist.cluster.submit.upload import upload_of
from dira_dist.config import RequestError
from dira_dist.environment import environment
from dira_dist.jobs.load import load_job

# A stopped job's workers save first; Ray itself waits 3 s for its driver.
STOP_WAIT_VARIABLE, STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 600
# What is staged is meant, also where a folder with a .gitignore is included.
_TAKE_ALL = {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"}


def submit(
    job: Path | str,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    env: Sequence[str] = (),
    working_dir: Path | str = ".",
    include: Sequence[Path | str] = (),
    console: Console | None = None,
) -> Submission:
    """Hand a job file to a cluster.

    Args:
        job: path of the job file, inside ``working_dir``.
        overrides: ``key.path=value`` each.
        address: the cluster's dashboard (``http://host:8265``); ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` if none.
        env: names of environment variables that the job gets with the values they have here. They stand in the job's
            runtime environment, where everyone with the cluster's token can read them.
        working_dir: where the job's relative paths start, here and on the cluster. The job file is uploaded, and the
            files, shard sets, runs and checkpoints in this folder that it names. This package comes from the cluster.
        include: files and folders in it that are uploaded as well.
        console: where it is said what travels; standard error by default.

    Raises:
        RequestError: for an invalid job, a file outside the working directory, an unset variable, a cluster that does
            not answer or refuses the token or the upload. No job is begun then.
    """
    loaded = load_job(Path(job), overrides)
    folder, file = Path(working_dir).resolve(), Path(job).resolve()
    upload = upload_of(file, loaded.job, folder, include)
    absent = [name for name in env if name not in os.environ]
    if absent:
        raise RequestError(f"--env {' '.join(absent)}: not set here; export it, or leave it out")
    words = ["python", "-m", "dira_dist", "run", str(file.relative_to(folder))]
    words += [word for override in overrides for word in ("--set", override)]
    (console or Console(stderr=True, soft_wrap=True)).print(upload.described(), markup=False, highlight=False)
    with talking_to(address) as client, upload.staged() as staged, environment(**_TAKE_ALL):
        job_id = client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=f"{object_name(loaded.job.name)}-{secrets.token_hex(4)}",
            metadata={"dira_job": loaded.job.name},
            runtime_env={
                "working_dir": str(staged),
                "env_vars": {STOP_WAIT_VARIABLE: str(STOP_WAIT_S)} | {name: os.environ[name] for name in env},
            },
        )
    return Submission(client, job_id)
