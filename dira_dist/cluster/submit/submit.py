"""A job handed to a running cluster through Ray Jobs, with the working directory as its environment."""

import os
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from dira_dist.cluster.submit.jobs import Submission, talking_to
from dira_dist.cluster.submit.kubernetes import object_name
from dira_dist.config import RequestError, Section, flatten
from dira_dist.data.shards import INDEX_NAME
from dira_dist.environment import environment
from dira_dist.jobs.load import load_job

# A stopped job's workers save first; Ray itself waits 3 s for its driver.
STOP_WAIT_VARIABLE, STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 600
# What a working tree holds that no job needs, beside shard sets; Ray uploads everything else, up to its own limit.
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
            runtime environment, where everyone with the cluster's token can read them.
        working_dir: what is uploaded, but for shard sets in it that the job does not name.

    Raises:
        RequestError: for an invalid job, a file outside the working directory, an unset variable, a cluster that does
            not answer or refuses the token or the upload. No job is begun then.
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
    left_out, settings = _left_out(folder, loaded.job)
    with talking_to(address) as client, environment(**settings):
        job_id = client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=f"{object_name(loaded.job.name)}-{secrets.token_hex(4)}",
            metadata={"dira_job": loaded.job.name},
            runtime_env={
                "working_dir": str(folder),
                "excludes": left_out,
                "env_vars": {STOP_WAIT_VARIABLE: str(STOP_WAIT_S)} | {name: os.environ[name] for name in env},
            },
        )
    return Submission(client, job_id)


def _left_out(folder: Path, job: Section) -> tuple[list[str], dict[str, str]]:
    """What stays here, as patterns of .gitignore, and variables for Ray: a shard set travels where the job names it."""
    named = {
        os.path.normpath(folder / text)
        for text in flatten(job.model_dump(mode="json")).values()
        if isinstance(text, str)
    }
    sets = list(_shard_sets(folder))
    wanted = [found.relative_to(folder) for found in sets if str(found) in named]
    patterns = [*_LEFT_OUT, *(_pattern(found.relative_to(folder)) for found in sets if str(found) not in named)]
    ignored = folder / ".gitignore"
    lines = ignored.read_text().splitlines() if ignored.is_file() else []
    kept = [line for line in lines if not any(_hides(line, found) for found in wanted)]
    if kept == lines:
        return patterns, {}
    return kept + patterns, {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"}  # what Ray reads there cannot be taken back


def _hides(line: str, found: Path) -> bool:
    """Whether a line of .gitignore is the name or the path of a folder, or of one that it lies in."""
    above = [place for place in (found, *found.parents) if place.name]
    return line.strip().strip("/") in {name for place in above for name in (place.name, place.as_posix())}


def _pattern(found: Path) -> str:
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", found.as_posix())


def _shard_sets(folder: Path) -> Iterator[Path]:
    """Folders with an index and tars below ``folder``, at any depth."""
    for place, folders, files in os.walk(folder):
        if INDEX_NAME in files and any(file.endswith(".tar") for file in files):
            folders.clear()
            yield Path(place)
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
