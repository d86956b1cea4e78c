"""What a run's chosen networks are worth: the folder ``report`` of a run, written when its training has ended."""

import json
from collections.abc import Mapping

from dira_dist.data.store import Store
from dira_dist.runs.folder import REPORT

FIGURES = "report.json"
_METRICS = "metrics"


def write_report(store: Store, files: Mapping[str, bytes]) -> None:
    """Writes the files, by name; :data:`FIGURES` comes last and makes it a report."""
    for name in sorted(files, key=lambda name: name == FIGURES):
        store.write_bytes(f"{REPORT}/{name}", files[name])


def read_report(store: Store) -> dict[str, bytes]:
    """The files by name; empty where there is no whole report."""
    names = [found.key for found in store.list(f"{REPORT}/")]
    if f"{REPORT}/{FIGURES}" not in names:
        return {}
    return {name.removeprefix(f"{REPORT}/"): store.read_bytes(name) for name in names}


def report_metrics(files: Mapping[str, bytes]) -> dict[str, float]:
    """The figures that a tracker has of a report."""
    metrics: dict[str, float] = json.loads(files[FIGURES]).get(_METRICS, {})
    return metrics
