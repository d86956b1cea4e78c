"""What a run measured and drew, read back."""

from functools import partial
from pathlib import Path

from mlflow import MlflowClient

from dira_dist.config import RequestError
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.picture_files import picture_files
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
    saved = []
    for picture in ask(uri, lambda: picture_files(client, run_id)):
        path = folder / f"{picture.name.replace('/', '-').replace(' ', '-')}-{picture.step}.png"
        path.write_bytes(Path(client.download_artifacts(run_id, picture.path)).read_bytes())
        saved.append(path)
    return saved


def _client(config: TrackingConfig) -> tuple[MlflowClient, str]:
    uri = config.located().uri
    if uri is None:
        raise RequestError("tracking.uri: missing; give the address of the run's tracking server")
    return connect(uri), uri
