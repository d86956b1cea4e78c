"""What a run measured, read back."""

from collections.abc import Iterable
from functools import partial

from dira_dist.config import RequestError
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import ask, connect


def first_and_last(config: TrackingConfig, run_id: str, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """First and last recorded value of each metric that the run has.

    Raises:
        RequestError: the tracking server is away or knows no such run.
    """
    uri = config.located().uri
    if uri is None:
        raise RequestError("tracking.uri: missing; give the address of the run's tracking server")
    client = connect(uri)
    found = {}
    for name in names:
        history = ask(uri, partial(client.get_metric_history, run_id, name))
        if history:
            values = [float(metric.value) for metric in sorted(history, key=lambda metric: int(metric.step))]
            found[name] = (values[0], values[-1])
    return found
