"""What a run will take: hours, and bytes read; from steps measured on this machine, or from a rate that is known."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dira_dist.config import RequestError
from dira_dist.data.stream import ShardStream
from dira_dist.training.precision import native_bf16, settle
from dira_dist.training.stages import StageSpan

if TYPE_CHECKING:
    from dira_dist.jobs.base import TrainingJob
    from dira_dist.jobs.preflight import Preflight

_UNTIMED = 2  # the first steps compile, allocate and fill caches
_TIMED = 3
_HOUR_S = 3600.0
_GIB = 2**30


@dataclass(frozen=True)
class Bill:
    """Time and reading of a whole run.

    Attributes:
        stages: seconds of each stage's steps, by its name, in order.
        bytes_read: from storage, over all workers; of those that ``data.cache`` keeps it is more than will be read.
        source: where the seconds come from, as the end of a sentence.
    """

    stages: tuple[tuple[str, float], ...]
    bytes_read: float
    source: str

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.stages)

    def lines(self) -> Iterator[str]:
        """The bill as a person reads it."""
        each = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self.stages)
        yield f"time     about {_duration(self.seconds)} ({each}), {self.source}"
        yield f"bytes    {self.bytes_read / _GIB:,.3g} GiB read from storage at most"


def bill_at(facts: "Preflight", images_per_second: float) -> Bill:
    """The bill at a rate that somebody knows.

    Args:
        facts: of the job.
        images_per_second: of all workers together; above 0.

    Raises:
        RequestError: the rate is not above 0.
    """
    if not images_per_second > 0:
        raise RequestError(f"{images_per_second:g} images per second; a rate is above 0")
    stages = ((span.name, span.steps * span.config.global_batch / images_per_second) for span in facts.plan.spans)
    return Bill(tuple(stages), _bytes_read(facts), f"at {images_per_second:g} images/s of all workers")


def measured_bill(facts: "Preflight") -> Bill:
    """The bill by a few real steps of each stage, as one of the job's workers would take them, on this machine.

    Reading, decoding, views and the step are measured; not the exchange between workers, evaluations and checkpoints.

    Raises:
        RequestError: the job's workers have GPUs and this machine has none, or a step cannot be taken.
    """
    job, device = facts.job, torch.device("cpu")
    if job.resources.gpus_per_worker:
        if not torch.cuda.is_available():
            raise RequestError(
                "measured is what this machine does, and it has no GPU, where the job's workers have "
                f"{job.resources.gpus_per_worker:g} each: measure on one of theirs, or give a rate that you know"
            )
        device = torch.device("cuda")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, int(job.resources.cpus_per_worker)))
        stages = tuple((span.name, span.steps * _seconds_a_step(facts, span, device)) for span in facts.plan.spans)
    finally:
        torch.set_num_threads(threads)
    workers = job.resources.min_workers
    several = f" of one of {workers} workers, without their exchange" if workers > 1 else ""
    source = f"by {_TIMED} steps of each stage on this machine{several}; evaluations and checkpoints come on top"
    return Bill(stages, _bytes_read(facts), source)


def _seconds_a_step(facts: "Preflight", span: StageSpan, device: torch.device) -> float:
    """The median of a few steps, each with its reading."""
    job = _in_its_precision(facts.job, device)
    task = job.build_task(facts.samples)
    networks = task.build(None).to(device)
    step, seconds = task.step(networks, span, device), []
    with _stream(facts, span) as batches:
        for number in range(_UNTIMED + _TIMED):
            begin = time.perf_counter()
            step(task.inputs(next(batches).to(device), span), number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[_UNTIMED:])


def _stream(facts: "Preflight", span: StageSpan) -> ShardStream:
    job = facts.job
    return ShardStream.from_config(
        job.data,
        seed=job.seed,
        world_size=job.resources.min_workers,
        global_batch=span.config.global_batch,
        lanes=job.lanes,
        index=facts.train,
        selection=facts.samples.selection,
        annotations=job.reads_masks,
    )


def _in_its_precision(job: "TrainingJob", device: torch.device) -> "TrainingJob":
    return job.in_precision(settle([native_bf16(device)])) if job.precision == "auto" else job


def _bytes_read(facts: "Preflight") -> float:
    return facts.train.bytes / facts.train.samples * facts.plan.samples


def _duration(seconds: float) -> str:
    """``5 min``, ``12.3 h`` or ``9.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h" if seconds < 48 * _HOUR_S else f"{seconds / 24 / _HOUR_S:.1f} days"
