"""What can be known of a job before anything starts: its images, its steps, what they cost. Reads, never writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import check_reachable
from dira_dist.data.stream import check_set
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.guards import warnings
from dira_dist.job import LoadedJob, PretrainJob
from dira_dist.recipe_guards import recipe_warnings
from dira_dist.training.memory import passing_bytes
from dira_dist.training.networks import Networks, networks_on_meta
from dira_dist.training.stages import Plan, StageConfig
from dira_dist.training.step import active_weights, set_learning

MIB = 2**20


@dataclass(frozen=True)
class Preflight:
    """A job that can run, and what it will do.

    Attributes:
        train: index of the training set.
        plan: the stages in steps.
        bytes_per_step: bytes read from storage for one global batch of the first stage.
        memory: estimated device memory of one worker, in bytes, by purpose.
        warnings: what is allowed and likely to go wrong, each with its remedy.
    """

    job: PretrainJob
    train: ShardSetIndex
    plan: Plan
    bytes_per_step: int
    memory: dict[str, int]
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it."""
        job, low, high = self.job, *self.job.resources.worker_range
        workers = f"{low}" if low == high else f"{low} to {high}"
        yield f"images   {self.train.samples:,} in {len(self.train.shards)} shards, {_mib(self.train.bytes)}"
        yield f"workers  {workers}, {job.resources.cpus_per_worker:g} CPUs each, {job.lanes} lanes"
        for span in self.plan.spans:
            batch = span.config.global_batch
            share = f"{batch // low}" if low == high else f"{batch // high} to {batch // low}"
            epochs = span.steps * batch / self.plan.epoch_samples
            steps = f"{span.steps:,} steps of {batch} images ({share} per worker)"
            yield f"stage    {span.name:8} {steps}, {epochs:.3g} epochs"
        yield f"total    {self.plan.steps:,} steps, {self.plan.samples:,} images"
        yield f"reading  {_mib(self.bytes_per_step)} per step from storage"
        parts = ", ".join(f"{purpose} {_mib(size)}" for purpose, size in self.memory.items())
        yield f"memory   about {_mib(sum(self.memory.values()))} per worker (estimate: {parts})"
        yield from (f"warning  {text}" for text in self.warnings)


def check(loaded: LoadedJob) -> Preflight:
    """What can be known of a loaded job, from where it would be started; see :func:`preflight`."""
    return preflight(loaded.job.located())


def preflight(job: PretrainJob) -> Preflight:
    """Check everything a job names and lay out its plan.

    Raises:
        RequestError: for a shard set that is missing, out of reach or too small, or a label the probe sets lack.
    """
    index = _readable_set("data.train", job.data.train)
    for stage in job.stages:
        check_set(
            job.data.train,
            index,
            global_batch=stage.global_batch,
            lanes=job.lanes,
            workers=job.resources.max_workers,
        )
    if job.data.val is not None:
        check_set(job.data.val, _readable_set("data.val", job.data.val))
    _check_shares(job)
    _check_probe(job)
    plan = lay_out(job, index)
    per_step = round(index.bytes / index.samples * plan.spans[0].config.global_batch)
    told = (*warnings(job), *recipe_warnings(job, index))
    return Preflight(job, index, plan, per_step, estimate_memory(job), told)


def lay_out(job: PretrainJob, train: ShardSetIndex) -> Plan:
    """The job's stages in steps; an epoch is what its lanes share out evenly of the training set."""
    return job.plan(job.lanes * (train.samples // job.lanes))


def _readable_set(key: str, address: str) -> ShardSetIndex:
    try:
        check_reachable(address)
        return read_index(address)
    except RequestError as error:
        raise RequestError(
            f"{key}: no shard set can be read at {address}: {error}\n"
            f"correct {key}, or make the set with: dira-dist shard IMAGES {address}"
        ) from error


def _check_probe(job: PretrainJob) -> None:
    if job.probe is None:
        return
    indices = {}
    for key, address in (("train", job.probe.train), ("val", job.probe.val)):
        index = indices[key] = _readable_set(f"probe.{key}", address)
        check_set(address, index)
        if job.probe.label not in index.labels:
            raise RequestError(
                f"probe.label: {job.probe.label!r} is no label of {address} (probe.{key}); "
                f"known: {', '.join(index.labels) or 'none'}"
            )
        if len(index.classes.get(job.probe.label, ("", ""))) < 2:
            raise RequestError(f"probe.label: {job.probe.label!r} has a single value in {address}; give another label")
    _check_apart(job.probe, indices["train"], indices["val"])


def _check_apart(probe: ProbeConfig, train: ShardSetIndex, val: ShardSetIndex) -> None:
    """Refuses a probe that would be judged on what it has learned from; told by the shards' digests."""
    learned = {shard.sha256 for shard in train.shards}
    common = [shard.name for shard in val.shards if shard.sha256 in learned]
    if common:
        raise RequestError(
            f"probe.val: {len(common)} of the {len(val.shards)} shards of {probe.val} (first {common[0]}) stand in "
            f"{probe.train} (probe.train), too, so that a probe would be judged on what it has learned from; give two "
            "parts of a set that is split by patient: dira-dist shard ... --split train=0.8,val=0.2 --group-by patient"
        )


def _check_shares(job: PretrainJob) -> None:
    """Refuses what would only fail on the workers."""
    share = min(stage.global_batch for stage in job.stages) // job.resources.max_workers
    if share < job.method.smallest_share:
        raise RequestError(
            f"data.global_batch: {job.resources.max_workers} workers get {share} samples of the smallest batch each, "
            f"and {job.method.name} needs {job.method.smallest_share}; raise the batch or lower resources.workers"
        )
    if job.execution.sync_batchnorm and job.resources.gpus_per_worker == 0:
        raise RequestError("execution.sync_batchnorm: only GPUs can; set it to false, or resources.gpus_per_worker")
    if job.model.init is not None and not Path(job.model.init).is_file():
        raise RequestError(f"model.init: there is no file {job.model.init}; give a .pt, .pth or .safetensors file")


def estimate_memory(job: PretrainJob) -> dict[str, int]:
    """Bytes of one worker's device memory by purpose, from shapes alone, for the stage that needs most.

    Counted on a step of the largest share, gradient checkpointing included. Under bf16 what passes is halved, which is
    a little too much; the discriminator's own step and the allocator's slack come on top.
    """
    networks = networks_on_meta(job.model, job.method, job.adversarial)
    stages = (_stage_memory(job, networks, stage) for stage in job.stages)
    return max(stages, key=lambda parts: sum(parts.values()))


def _stage_memory(job: PretrainJob, networks: Networks, stage: StageConfig) -> dict[str, int]:
    weights = active_weights(stage.objective, stage.loss_weights)
    set_learning(networks, weights)
    share = -(-stage.global_batch // job.resources.min_workers)
    passing = passing_bytes(networks, weights, share, job.data.image_size)
    beside = [each for each in networks.method.parameters() if not each.requires_grad]
    learned = {
        name: sum(each.nbytes for each in part.parameters() if each.requires_grad)
        for name, part in networks.named_children()
    }
    halved = job.precision == "bf16" or (job.precision is None and job.resources.gpus_per_worker)
    adam = 2 * learned.pop("discriminator")
    return {
        "weights": sum(each.nbytes for each in networks.parameters()) - sum(each.nbytes for each in beside),
        "optimisers": adam + (2 if stage.optimizer.name == "adamw" else 1) * sum(learned.values()),
        "key encoder and queue": sum(each.nbytes for each in (*beside, *networks.method.buffers())),
        "activations and gradients": passing // 2 if halved else passing,
    }


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.1f} MiB" if size_bytes < 1024 * MIB else f"{size_bytes / MIB / 1024:,.2f} GiB"
