"""The one door to MLflow: clients, reachability, and which of its errors mean what."""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError, without_credentials
from dira_dist.tracking.config import SERVER_SCHEMES, TrackingConfig, absolute

ResultT = TypeVar("ResultT")
ANSWER_WITHIN_S = 15.0
# What makes MLflow's page show its side for trained models rather than the one for language models.
TRAINING_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}

# What no repetition can mend. Authorisation is not among them: an expired token is renewed while a run goes on.
_MISSING = frozenset(("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"))
_REFUSALS = (
    frozenset(("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")) | _MISSING
)
_UNAUTHORISED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"})


# How urllib3 and MLflow tell of a server: parts of it hold no more than that.
_NO_ANSWER = re.compile(r"HTTPS?ConnectionPool\(host=['\"]([^'\"]+)['\"], port=(\d+)\)")
_REASONS = [re.compile(each) for each in (r"\[Errno -?\d+\] ([^'\")]+)", r"(timed out)", r"(\w+Error)")]
_STATUS = re.compile(r"(?:error code|status code|status|HTTP(?:/[\d.]+)?) (\d{3})|\b([45]\d\d) (?:Client|Server) Error")
_PAGE = re.compile(r"\s*['\"]?\s*<(?:!doctype|html)\b.*", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def in_one_sentence(error: Exception, characters: int = 300) -> str:
    """An error of a server in one sentence, without passwords: who did not answer, or with what status.

    A proxy's page of HTML and the inside of urllib3 are no messages for people.
    """
    text = without_credentials(str(error)) or type(error).__name__
    if found := _NO_ANSWER.search(text):
        reason = next((reason[1] for each in _REASONS if (reason := each.search(text, found.end()))), "no reason told")
        return f"{found[1]}:{found[2]} does not answer: {reason.strip()}"
    if page := _PAGE.search(text):
        status, title = _STATUS.search(text[: page.start()]), _TITLE.search(text)
        words = " ".join((title[1] if title else "a page of HTML").split())
        code = f"{status[1] or status[2]}: " if status else ""
        return f"the server, or a proxy before it, answered {code}{words}"[:characters]
    return " ".join(text.split())[:characters]


def is_refusal(error: Exception) -> bool:
    """Whether the server understood the request and will never accept it."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def is_missing(error: Exception) -> bool:
    """Whether the server says that there is no such thing."""
    return isinstance(error, MlflowException) and error.error_code in _MISSING


def is_unauthorised(error: Exception) -> bool:
    """Whether the server refuses who is asking: an error of MLflow's, or a plain answer 401 or 403."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status in (401, 403) or (isinstance(error, MlflowException) and error.error_code in _UNAUTHORISED)


def credentials_advice(error: Exception) -> str:
    """The remedy, as a clause for a message."""
    return (
        f"the server refuses the credentials ({in_one_sentence(error, 200)}); set MLFLOW_TRACKING_TOKEN, or "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
    )


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server and of the registry beside it. Opens a database, but asks a server nothing.

    Raises:
        RequestError: if MLflow knows no such kind of address, or the database cannot be opened.
    """
    uri = absolute(uri)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:
        raise RequestError(_unreachable(uri, error)) from error


def ask(uri: str, question: Callable[[], ResultT], timeout_s: float = ANSWER_WITHIN_S) -> ResultT:
    """The answer to the first question put to a server, or a clear message in seconds.

    Asked on a thread, because no setting of MLflow bounds the whole of a call (lookup, connection, retries, answer).

    Raises:
        RequestError: if the server is away, silent for ``timeout_s``, or refuses the credentials.
        MlflowException: for any other answer of the server.
    """
    answers: list[ResultT] = []
    errors: list[Exception] = []

    def put_question() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=put_question, name="tracking-question", daemon=True)
    thread.start()
    thread.join(timeout_s if uri.startswith(SERVER_SCHEMES) else None)
    if answers:
        return answers[0]
    error = errors[0] if errors else TimeoutError(f"no answer within {timeout_s:g} s")
    if is_refusal(error) or is_missing(error):
        raise error
    raise RequestError(_unreachable(uri, error)) from None


def _unreachable(uri: str, error: Exception) -> str:
    address, reason = without_credentials(uri), in_one_sentence(error)
    if is_unauthorised(error):
        return f"tracking.uri: {address}: {credentials_advice(error)}"
    return (
        f"tracking.uri: {address} cannot be reached ({reason}); start the server or correct the address "
        "(leave tracking.uri out to record nothing)"
    )


def experiment_id(client: MlflowClient, config: TrackingConfig) -> str:
    """The id of the configured experiment, made where it does not exist.

    Raises:
        RequestError: if the server cannot be reached or the experiment is in MLflow's trash.
    """
    assert config.uri is not None
    found = ask(config.uri, lambda: client.get_experiment_by_name(config.experiment))
    if found is None:
        try:
            return str(client.create_experiment(config.experiment, _artifact_location(config), TRAINING_EXPERIMENT))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(config.experiment)  # another process was faster
            assert found is not None
    if found.lifecycle_stage != "active":
        raise RequestError(
            f"tracking.experiment: {config.experiment!r} is deleted on {without_credentials(config.uri)}; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or give another name"
        )
    return str(found.experiment_id)


def _artifact_location(config: TrackingConfig) -> str | None:
    """Beside the database for sqlite, where MLflow would take the working directory; the server's choice otherwise."""
    uri = absolute(config.uri or "")
    if not uri.startswith("sqlite:///"):
        return None
    safe = "".join(character if character.isalnum() or character in "-_." else "_" for character in config.experiment)
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts" / safe).as_uri()
