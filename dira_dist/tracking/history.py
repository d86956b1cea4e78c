"""What a run measured and drew, read back."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mlflow import MlflowClient

from dira_dist.config import RequestError
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import ask, connect


def metric_history(config: TrackingConfig, run_id: str, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, in the order of the steps; empty where the run has none of the name.

    Raises:
        RequestError: the tracking server is away or knows no such run.
    """
    client, uri = _client(config)
    history = ask(uri, partial(client.get_metric_history, run_id, name))
    return sorted((int(metric.step), float(metric.value)) for metric in history)


def save_pictures(config: TrackingConfig, run_id: str, folder: Path) -> list[Path]:
    """Bring the pictures of a run into a folder, as ``NAME-STEP.png``; in the order of their steps.

    Raises:
        RequestError: the tracking server is away or knows no such run.
    """
    client, uri = _client(config)
    folder.mkdir(parents=True, exist_ok=True)
    return list(_save(client, run_id, folder, ask(uri, lambda: _picture_files(client, run_id))))


def _client(config: TrackingConfig) -> tuple[MlflowClient, str]:
    uri = config.located().uri
    if uri is None:
        raise RequestError("tracking.uri: missing; give the address of the run's tracking server")
    return connect(uri), uri


def _picture_files(client: MlflowClient, run_id: str) -> list[str]:
    files = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]
    return sorted(files, key=lambda file: _name_and_step(file)[1])


def _name_and_step(file: str) -> tuple[str, int]:
    """From MLflow's own naming of a picture of a step: ``NAME+step+STEP+timestamp+...``."""
    name, _, rest = Path(file).name.partition("+step+")
    return name.replace("~", "-"), int(rest.partition("+")[0])


def _save(client: MlflowClient, run_id: str, folder: Path, files: Iterable[str]) -> Iterator[Path]:
    for file in files:
        name, step = _name_and_step(file)
        path = folder / f"{name}-{step}.png"
        path.write_bytes(Path(client.download_artifacts(run_id, file)).read_bytes())
        yield path
