"""Jobs that a cluster has taken: their status, their log, their end; and how the cluster is spoken to.

Nothing of the job file is needed here, so that asking takes a moment.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dira_dist.cluster.answering import check_answers
from dira_dist.config import JobFailedError, RequestError

_POLL_S = 1.0
_POLL_MOST_S = 30.0
_POLL_S_PER_BYTE = 1e-5  # the whole log comes each time, and that of a long run is megabytes
_GIVE_UP_AFTER_S = 120.0
_MESSAGE_CHARACTERS = 300
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Submission:
    """A job that a cluster has taken."""

    client: JobSubmissionClient
    job_id: str

    def follow(self, write: Callable[[str], object]) -> int:
        """Pass the job's log on until it ends; its exit code, or 1 where it was ended from outside.

        Raises:
            JobFailedError: the cluster was silent for two minutes.
        """
        shown, heard_at = 0, time.monotonic()
        while True:
            try:
                status = self.client.get_job_status(self.job_id)
                log = self.client.get_job_logs(self.job_id)
            except (ConnectionError, RuntimeError) as error:  # the job goes on while the dashboard is out of reach
                if time.monotonic() - heard_at > _GIVE_UP_AFTER_S:
                    raise JobFailedError(
                        f"the cluster has not answered for {_GIVE_UP_AFTER_S:g} s ({error}); the job may go on: "
                        f"dira-dist logs --follow {self.job_id}"
                    ) from error
            else:
                write(log[shown:])
                shown, heard_at = len(log), time.monotonic()
                if status.is_terminal():
                    return 0 if status == JobStatus.SUCCEEDED else self._exit_code(status)
            time.sleep(min(_POLL_MOST_S, _POLL_S + _POLL_S_PER_BYTE * shown))

    def _exit_code(self, status: JobStatus) -> int:
        if status != JobStatus.FAILED:
            return 1
        try:
            code = self.client.get_job_info(self.job_id).driver_exit_code
        except (ConnectionError, RuntimeError):
            return 1
        return code if code is not None and 0 < code < 256 else 1

    def log(self) -> str:
        """What the job has written so far."""
        return str(self.client.get_job_logs(self.job_id))

    def stop(self) -> bool:
        """Ask the job to end; false where it had ended already. The run goes on when the job is submitted again."""
        return bool(self.client.stop_job(self.job_id))

    def describe(self) -> str:
        """One line: id, status, when it began and ended, and of a failure the reason."""
        return describe(self.client.get_job_info(self.job_id))


def submission(job_id: str, *, address: str | None = None) -> Submission:
    """A job that was submitted before.

    Raises:
        RequestError: for a job the cluster does not know; for a cluster that does not answer or refuses the token.
    """
    with talking_to(address) as client:
        known = [details.submission_id for details in client.list_jobs() if details.submission_id]
        if job_id not in known:
            raise RequestError(f"{job_id}: no job of this cluster; it knows: {', '.join(sorted(known)) or 'none'}")
    return Submission(client, job_id)


def submissions(*, address: str | None = None) -> list[JobDetails]:
    """All jobs that were submitted to a cluster, oldest first.

    Raises:
        RequestError: for a cluster that does not answer or refuses the token.
    """
    with talking_to(address) as client:
        jobs = [details for details in client.list_jobs() if details.submission_id]
    return sorted(jobs, key=lambda details: details.start_time or 0)


def describe(details: JobDetails) -> str:
    """One line about a job, as ``dira-dist status`` prints it."""
    times = [details.start_time, details.end_time]
    began, ended = (datetime.fromtimestamp(ms / 1000).isoformat(" ", "seconds") if ms else "-" for ms in times)
    line = f"{details.submission_id}  {details.status.value:9}  {began}  {ended}"
    if details.status != JobStatus.FAILED or not details.message:
        return line
    # Ray appends the end of the log
    return f"{line}  {' '.join(details.message.partition(', last available logs')[0].split())[:_MESSAGE_CHARACTERS]}"


@contextmanager
def talking_to(address: str | None) -> Iterator[JobSubmissionClient]:
    """A client of the cluster; its errors become a ``RequestError`` with the remedy."""
    place = address or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), None) or "the default address"
    try:
        if address is not None:
            _check_dashboard(address)
        with _without_variables(_ADDRESS_VARIABLES if address is not None else ()):  # Ray prefers them
            client = JobSubmissionClient(address)
        with _answering(place):
            yield client
    except AuthenticationError as error:
        raise RequestError(
            f"the Ray cluster at {place} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            f"RAY_AUTH_TOKEN_PATH) to the token it was started with. {str(error).splitlines()[0]}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"no Ray cluster takes jobs at {place}: {error}") from error


@contextmanager
def _answering(place: str) -> Iterator[None]:
    """Trouble with a cluster that is there, such as a working directory beyond Ray's limit."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"the Ray cluster at {place} is there, but does not do what was asked: {error}") from error


def _check_dashboard(address: str) -> None:
    try:
        check_answers(address, 8265)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; the dashboard's address looks like http://host:8265") from error


@contextmanager
def _without_variables(names: Sequence[str]) -> Iterator[None]:
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
