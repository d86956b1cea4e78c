"""Which errors of a worker last, which pass, and what to say of them."""

import torch
from ray.exceptions import RayActorError

from dira_dist.config import RequestError
from dira_dist.data.batch import TooManyBadSamplesError
from dira_dist.data.lanes import ShardError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.preflight import MIB, estimate_memory
from dira_dist.training.checkpoints import UnsavedError
from dira_dist.training.loop import NonFiniteError
from dira_dist.training.state import BrokenCheckpointError

# What would only happen again: a restart from the last checkpoint cannot mend it.
LASTING_ERRORS = (
    NonFiniteError,
    TooManyBadSamplesError,
    ShardError,
    BrokenCheckpointError,
    UnsavedError,
    RequestError,
)

# What a worker meets whose peer has failed: not the failure itself.
COLLATERAL_ERRORS = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)


class MovedError(RayActorError):
    """A worker has saved and leaves, for its run goes on elsewhere or in another number.

    Ray Train takes it for the loss of a preempted machine: it waits for the other workers, as long as the machine
    stands, and does not charge the restart to ``max_failures``. Any other error would end them in mid-save.
    """

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.error_msg,)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or this process' memory ended; PyTorch has no class of its own for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def is_timeout(error: BaseException) -> bool:
    """Whether a collective waited in vain for another worker."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("timed out" in text or "timeout" in text)


def advice_on_memory(job: TrainingJob, device: torch.device | None = None, error: BaseException | None = None) -> str:
    """What was needed, what there was, and what to change.

    Args:
        job: that ran out of memory.
        device: that it ran out of; the machine's memory if none.
        error: what was raised there.
    """
    parts = estimate_memory(job)
    needed = ", ".join(f"{purpose} {size / MIB:,.0f} MiB" for purpose, size in parts.items())
    there = ""
    if device is not None and device.type == "cuda":
        there = f", on a device of {torch.cuda.get_device_properties(device).total_memory / MIB:,.0f} MiB"
    share = max(stage.global_batch for stage in job.stage_configs()) / job.resources.min_workers
    remedies = [
        *job.ways_to_save_memory(on_gpu=device is not None and device.type == "cuda"),
        f"a smaller data.global_batch (now up to {share:g} images on a worker) or more resources.workers",
        f"a smaller data.image_size (now {job.data.image_size} px)",
    ]
    cause = f" ({str(error).splitlines()[0]})" if error is not None and str(error) else ""
    return (
        f"out of memory{cause}. A worker was estimated to need about {sum(parts.values()) / MIB:,.0f} MiB{there}: "
        f"{needed}. What helps: {'; '.join(remedies)}."
    )
