"""What a run measured and drew, read back."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from PIL import Image

from dira_dist.config import RequestError
from dira_dist.evaluation.pictures import loss_curves
from dira_dist.metrics import LOSS
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


def draw_losses(config: TrackingConfig, run_id: str, boundaries: Mapping[int, str]) -> npt.NDArray[np.uint8] | None:
    """The curves of all losses of a run as one picture, or none where it has no loss.

    Args:
        config: where the run is recorded.
        run_id: the run; everything must have arrived.
        boundaries: first step of each stage to its name.

    Raises:
        RequestError: the tracking server is away or knows no such run.
    """
    client, uri = _client(config)
    measured = ask(uri, lambda: client.get_run(run_id)).data.metrics
    curves = {}
    for name in sorted(name for name in measured if LOSS.covers(name)):
        history = metric_history(config, run_id, name)
        curves[LOSS.member(name)] = ([step for step, _ in history], [value for _, value in history])
    return loss_curves(curves, boundaries) if curves else None


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


def newest_pictures(client: MlflowClient, run_id: str) -> dict[str, npt.NDArray[np.uint8]]:
    """The last picture of each name that a run holds, ``(H, W, 3)`` uint8."""
    newest = {picture.name: picture.path for picture in picture_files(client, run_id)}
    pictures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in newest.items():
            with Image.open(client.download_artifacts(run_id, path, scratch), formats=("PNG",)) as image:
                pictures[name] = np.asarray(image.convert("RGB"))
    return pictures


def _client(config: TrackingConfig) -> tuple[MlflowClient, str]:
    uri = config.resolve_paths().uri
    if uri is None:
        raise RequestError("tracking.uri: missing; give the address of the run's tracking server")
    return connect(uri), uri
