"""The job's figures for Prometheus, through Ray's metrics: every Ray node serves them beside Ray's own.

Ray puts ``ray_`` before each name; ``k8s/components/monitoring/dira.json`` is the Grafana dashboard that shows them.
"""

import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from dira_dist.metrics import CHECKPOINT_STEP, CHECKPOINT_TIME_S, STEP, Metric, find


class JobMetrics:
    """Holds what Prometheus reads of one job; made in a process that Ray started, the first worker's.

    Args:
        job: the job's name, which every series is labelled with.
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._series: dict[str, Gauge | Counter] = {}

    def update(self, figures: Mapping[str, float], step: int) -> None:
        """Export the figures of a report; those without a name for Prometheus are left out.

        Args:
            figures: as the training loop names them (``train/images_per_s``, ``train/loss/total``, ...).
            step: optimiser steps taken so far.
        """
        self._export(STEP, step)
        for name, value in figures.items():
            metric = find(name)
            if metric is not None and metric.prometheus:
                self._export(metric, value, **({"loss": metric.member(name)} if metric.family else {}))

    def checkpointed(self, step: int) -> None:
        """A checkpoint of this step was committed just now."""
        self._export(CHECKPOINT_TIME_S, time.time())
        self._export(CHECKPOINT_STEP, step)

    def _export(self, metric: Metric, value: float, **labels: str) -> None:
        labels = {"job": self._job, **labels}
        if metric.name not in self._series:
            kind = Counter if metric.counted else Gauge
            self._series[metric.name] = kind(metric.prometheus, metric.description, tag_keys=tuple(labels))
        series = self._series[metric.name]
        if isinstance(series, Gauge):
            series.set(value, labels)
        elif value > 0:  # a counter takes nothing else
            series.inc(value, labels)
