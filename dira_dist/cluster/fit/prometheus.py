"""The job's figures for Prometheus, through Ray's metrics: every Ray node serves them beside Ray's own.

Ray puts ``ray_`` before each name; ``k8s/components/monitoring/dira.json`` is the Grafana dashboard that shows them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Counter, Gauge


@dataclass(frozen=True)
class PrometheusMetric:
    """A figure as Prometheus knows it.

    Attributes:
        name: without Ray's prefix.
        total: whether values add up to a counter, as what is counted between two reports does.
    """

    name: str
    description: str
    total: bool = False


FIGURES = {
    "train/images_per_s": PrometheusMetric("dira_images_per_second", "images trained on per second, over all workers"),
    "train/data_wait_share": PrometheusMetric(
        "dira_data_wait_share", "share of the time the slowest worker waits for images"
    ),
    "train/step_s": PrometheusMetric("dira_step_seconds", "seconds per optimiser step"),
    "train/memory_peak_bytes": PrometheusMetric("dira_memory_peak_bytes", "peak memory of the fullest worker"),
    "train/learning_rate": PrometheusMetric("dira_learning_rate", "learning rate"),
    "train/grad_norm": PrometheusMetric("dira_gradient_norm", "norm of the gradient"),
    "train/stage": PrometheusMetric("dira_stage", "stage in training, from 1"),
    "train/samples": PrometheusMetric("dira_samples_consumed", "samples consumed since the start of the run"),
    "train/skipped_steps": PrometheusMetric(
        "dira_skipped_steps", "steps skipped for a value that was not finite", total=True
    ),
    "train/bad_samples": PrometheusMetric(
        "dira_bad_samples", "samples replaced because they were unreadable", total=True
    ),
}
LOSS_PREFIX = "train/loss/"
LOSS = PrometheusMetric("dira_loss", "loss, unweighted")
STEP = PrometheusMetric("dira_step", "optimiser steps taken since the start of the run")
CHECKPOINT_TIME = PrometheusMetric(
    "dira_checkpoint_timestamp_seconds", "when the newest checkpoint was committed, Unix time"
)
CHECKPOINT_STEP = PrometheusMetric("dira_checkpoint_step", "optimiser step of the newest checkpoint")


class JobMetrics:
    """Holds what Prometheus reads of one job; made in a process that Ray started, the first worker's.

    Args:
        job: the job's name, which every series is labelled with.
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._series: dict[str, Gauge | Counter] = {}

    def update(self, figures: Mapping[str, float], step: int) -> None:
        """Take over the figures of a report; those that nobody exports are passed over.

        Args:
            figures: as the training loop names them (``train/images_per_s``, ``train/loss/total``, ...).
            step: optimiser steps taken so far.
        """
        self._record(STEP, step)
        for name, value in figures.items():
            if name in FIGURES:
                self._record(FIGURES[name], value)
            elif name.startswith(LOSS_PREFIX):
                self._record(LOSS, value, loss=name.removeprefix(LOSS_PREFIX))

    def checkpointed(self, step: int) -> None:
        """A checkpoint of this step was committed just now."""
        self._record(CHECKPOINT_TIME, time.time())
        self._record(CHECKPOINT_STEP, step)

    def _record(self, exported: PrometheusMetric, value: float, **labels: str) -> None:
        labels = {"job": self._job, **labels}
        if exported.name not in self._series:
            kind = Counter if exported.total else Gauge
            self._series[exported.name] = kind(exported.name, exported.description, tag_keys=tuple(labels))
        series = self._series[exported.name]
        if isinstance(series, Gauge):
            series.set(value, labels)
        elif value > 0:  # a counter takes nothing else
            series.inc(value, labels)
