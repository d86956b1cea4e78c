"""What can be known of a job before anything starts: its samples, its steps, what they cost. Reads, never writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dira_dist.config import RequestError
from dira_dist.data.generations import plain_address
from dira_dist.data.lanes import check_set
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import check_reachable
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.bill import Bill
from dira_dist.training.stages import Plan
from dira_dist.training.task import Start, TrainingSamples

MIB = 2**20


@dataclass(frozen=True)
class Preflight:
    """A job that can run, and what it will do.

    Attributes:
        train: index of the training set.
        samples: what of it the job learns from.
        changes: what the job left open and was settled, by section, as the recorded job has it.
        start: weights to start from, where they are brought to the workers.
        plan: the stages in steps.
        bytes_per_step: bytes read from storage for one global batch of the first stage.
        warnings: what is allowed and likely to go wrong, each with its remedy.
        bill: what it will take, where that was asked for.
        sets: indices of all its sets, by name.
        memory: estimated device memory of one worker, in bytes, by purpose, where that was asked for.
    """

    job: TrainingJob
    train: ShardSetIndex
    samples: TrainingSamples
    changes: Mapping[str, Any]
    start: Start | None
    plan: Plan
    bytes_per_step: int
    warnings: tuple[str, ...]
    bill: Bill | None = None
    sets: Mapping[str, ShardSetIndex] = field(default_factory=dict)
    memory: Mapping[str, int] | None = None

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it."""
        job, low, high = self.job, *self.job.resources.worker_range
        workers = f"{low}" if low == high else f"{low} to {high}"
        yield f"images   {self.train.samples:,} in {len(self.train.shards)} shards, {_mib(self.train.bytes)}"
        for name, index in self.sets.items():
            yield f"set      {name}: generation {index.number}, digest {index.digest[:12]}{_withdrawn(index)}"
        yield f"workers  {workers}, {job.resources.cpus_per_worker:g} CPUs each, {job.lanes} lanes"
        resources = job.resources
        if job.is_evaluated_beside and job.evaluation.gpus(resources.gpus_per_worker):
            gpus = [count * (resources.gpus_per_worker or 0) for count in (low, high)]
            most = f"{gpus[0]:g}" if low == high else f"{gpus[0]:g} to {gpus[1]:g}"
            yield f"GPUs     {most} of the workers and 1 for evaluation"
        for span in self.plan.spans:
            batch = span.config.global_batch
            each = f"{batch // low}" if low == high else f"{batch // high} to {batch // low}"
            epochs = span.steps * batch / self.plan.epoch_samples
            steps = f"{span.steps:,} steps of {batch} images ({each} per worker)"
            yield f"stage    {span.name:8} {steps}, {epochs:.3g} epochs{span.config.described()}"
        yield f"total    {self.plan.steps:,} steps, {self.plan.samples:,} images"
        yield f"reading  {_mib(self.bytes_per_step)} per step from storage"
        yield from self.bill.lines() if self.bill else ()
        if self.memory is not None:
            parts = ", ".join(f"{purpose} {_mib(size)}" for purpose, size in self.memory.items())
            yield f"memory   about {_mib(sum(self.memory.values()))} per worker (estimate: {parts})"
        yield from (f"preset   {text}" for text in job.filled_in())
        yield from (f"warning  {text}" for text in self.warnings)


def preflight(job: TrainingJob, recorded: Mapping[str, Any] | None = None) -> Preflight:
    """Check everything a job names and lay out its plan.

    Args:
        job: its addresses absolute.
        recorded: the job as the run of its name recorded it, where there is one.

    Raises:
        RequestError: for a shard set that is missing, out of reach or too small, or lacks what the task asks of it.
    """
    sets = {name: _readable_set(job.key_of(name), address) for name, address, _ in job.shard_sets()}
    index, settled = sets["train"], job.settle(sets, recorded)
    job = settled.job
    for stage in job.stage_configs():
        check_set(
            job.data.train,
            index,
            global_batch=stage.global_batch,
            lanes=job.lanes,
            workers=job.resources.max_workers,
        )
    for name, address, _ in job.shard_sets():
        if name != "train":
            check_set(address, sets[name])
    job.check_workers()
    job.check_sets(sets)
    samples = job.draw_samples(sets, job.lanes)
    plan = job.plan(samples.per_epoch)
    per_step = round(index.bytes / index.samples * plan.spans[0].config.global_batch)
    return Preflight(
        job=job,
        train=index,
        samples=samples,
        changes=settled.changes,
        start=settled.start,
        plan=plan,
        bytes_per_step=per_step,
        warnings=(*settled.notes, *samples.notes, *job.warnings(index)),
        sets=sets,
    )


def steps_of(job: TrainingJob, facts: Preflight) -> int:
    """Optimiser steps of a job that learns from the same samples, in batches of its own."""
    train, samples = facts.train, facts.samples
    drawn = samples.per_epoch if samples.selection else job.lanes * (train.samples // job.lanes)
    return job.plan(drawn).steps


def estimate_memory(job: TrainingJob) -> dict[str, int]:
    """Bytes of one worker's device memory by purpose, from shapes alone, for the stage that needs most."""
    return job.build_task().memory(job.resources.min_workers, bool(job.resources.gpus_per_worker))


def _readable_set(key: str, address: str) -> ShardSetIndex:
    try:
        check_reachable(plain_address(address))
        return read_index(address)
    except RequestError as error:
        raise RequestError(
            f"{key}: no shard set can be read at {address}: {error}\n"
            f"correct {key}, or make the set with: dira-dist shard IMAGES {plain_address(address)}"
        ) from error


def _withdrawn(index: ShardSetIndex) -> str:
    return f"; {index.withdrawn_since} samples were withdrawn since" if index.withdrawn_since else ""


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.1f} MiB" if size_bytes < 1024 * MIB else f"{size_bytes / MIB / 1024:,.2f} GiB"
