"""What runs on each Ray Train worker: a job turned into objects and handed to the training loop.

``ray.train`` is called from here alone.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from dira_dist.cluster.progress import BoardTracker
from dira_dist.data.stream import Batch, ShardStream
from dira_dist.evaluation.judge import Judge
from dira_dist.job import LoadedJob, PretrainJob
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.pictures import restoration_grid
from dira_dist.tracking.run import NullRun, TrackingRun
from dira_dist.training.loop import Training, train
from dira_dist.training.stages import Plan, Position, StageSpan
from dira_dist.training.state import Checkpoint, read_checkpoint, write_checkpoint
from dira_dist.training.step import Networks, TrainStep, build_networks
from dira_dist.views import Views, make_views


@dataclass(frozen=True)
class WorkerSetup:
    """What the driver hands to every worker.

    Attributes:
        tracking: the job's, its address settled on the driver.
        run_id: MLflow run; empty without tracking.
        board: handle of the progress board.
    """

    loaded: LoadedJob
    plan: Plan
    tracking: TrackingConfig
    run_id: str
    board: Any


def train_worker(setup: WorkerSetup) -> dict[str, int]:
    """Train this worker's part of the job from the newest checkpoint, or from the start."""
    job, device = setup.loaded.job, ray.train.torch.get_device()
    torch.manual_seed(job.seed)
    resumed = _newest_checkpoint()
    networks = build_networks(job.model, job.method, adversarial=job.adversarial, seed=job.seed)
    first = ray.train.get_context().get_world_rank() == 0
    run = TrackingRun.attach(setup.tracking, setup.run_id) if first and setup.run_id else NullRun()
