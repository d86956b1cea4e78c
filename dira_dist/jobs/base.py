"""What jobs of every kind that train have in common: where they run, what they keep, how they are recorded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from dira_dist.config import MAY_CHANGE, Document, RequestError, Section
from dira_dist.data.order import choose_lanes
from dira_dist.data.shards import ShardSetIndex
from dira_dist.runs.evaluations import EvaluationEntry, best
from dira_dist.tracking.config import TrackingConfig
from dira_dist.training.loop import GuardConfig
from dira_dist.training.precision import Precision
from dira_dist.training.state import CheckpointConfig
from dira_dist.training.task import Recipe, Start


class ResourcesConfig(Section):
    """What one job takes of the cluster."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        1, description="training processes: a number, or [min, max] for an elastic run"
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of each worker; left out: 1 where the cluster has GPUs, else 0"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs of each worker, its loaders included")
    max_failures: int = Field(3, ge=0, description="worker crashes after which the job is given up")
    start_timeout_s: float = Field(
        1800, gt=0, description="seconds the cluster may take to have room for the fewest workers, at each (re)start"
    )
    resize_every_s: float = Field(
        60, gt=0, description="seconds between two looks whether an elastic run can have more workers"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ResourcesConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(f"found workers {list(self.worker_range)}; [min, max] with min at most max: swap them")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @property
    def min_workers(self) -> int:
        return self.worker_range[0]

    @property
    def max_workers(self) -> int:
        return self.worker_range[1]


@dataclass(frozen=True)
class Settled:
    """A job with nothing left open.

    Attributes:
        job: that one.
        changes: what was filled in, by section, as the recorded job has it.
        start: weights to start from, where they are brought to the workers.
        notes: what a person should know of it, a line each.
    """

    job: "TrainingJob"
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: Start | None = None
    notes: Sequence[str] = ()


class TrainingJob(Recipe):
    """A task and where it runs. A subclass is a kind of job, see :mod:`dira_dist.jobs.kinds`."""

    guards: GuardConfig = GuardConfig()
    resources: ResourcesConfig = ResourcesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def completed(cls, document: Document) -> Document:
        """The document with what its sections take from one another filled in, before it is validated."""
        return document

    @model_validator(mode="after")
    def _batches_fit_workers(self) -> "TrainingJob":
        lanes, batches = self.lanes, sorted({stage.global_batch for stage in self.stage_configs()})
        for batch in batches:
            if batch % lanes:
                raise ValueError(
                    f"data.lanes is {lanes}, which does not divide the global batch {batch}; "
                    f"leave data.lanes out or take a divisor of {math.gcd(*batches)}"
                )
        low, high = self.resources.worker_range
        if not any(lanes % count == 0 for count in range(low, high + 1)):
            divisors = [count for count in range(1, lanes + 1) if lanes % count == 0]
            raise ValueError(
                f"resources.workers is {self.resources.workers} and the global batches {batches} are read in {lanes} "
                f"lanes, which no such number of workers divides; allowed numbers of workers: {divisors}; "
                f"change resources.workers or the global batch"
            )
        return self

    @property
    def lanes(self) -> int:
        """Number of lanes of the sample stream: given, or chosen from the stages' batches alone."""
        return self.data.lanes or choose_lanes([stage.global_batch for stage in self.stage_configs()])

    def settle(self, sets: Mapping[str, ShardSetIndex], recorded: Mapping[str, Any] | None) -> Settled:
        """What the job leaves to its sets and to what it starts from, filled in.

        Args:
            sets: indices of its shard sets, by name.
            recorded: the job as the run of its name recorded it, where there is one.

        Raises:
            RequestError: one of them cannot be had, or does not go with the job.
        """
        return Settled(self)

    def resolve_paths(self) -> "TrainingJob":
        """The same with every address absolute: Ray's workers run in folders of their own."""
        return self.model_copy(update=self._resolved())

    def _resolved(self) -> dict[str, Any]:
        """Sections that hold addresses, with absolute ones."""
        data = {"train": absolute_address(self.data.train)}
        if self.data.val is not None:
            data["val"] = absolute_address(self.data.val)
        storage = absolute_address(self.checkpoint.storage)
        return {
            "data": self.data.model_copy(update=data),
            "checkpoint": self.checkpoint.model_copy(update={"storage": storage}),
            "tracking": self.tracking.resolve_paths(),
        }

    def in_precision(self, precision: Precision) -> Self:
        """The same with the precision that was settled."""
        return self.model_copy(update={"precision": precision})

    def filled_in(self) -> list[str]:
        """What a preset has filled in, and what of it the file says otherwise; a line for each key."""
        return []

    def shard_sets(self) -> Iterator[tuple[str, str, str]]:
        """Name, address and use of every shard set that the job reads."""
        yield "train", self.data.train, "training"
        if self.data.val is not None:
            yield "val", self.data.val, "validation"

    def reading(self, addresses: Mapping[str, str]) -> Self:
        """The same with other addresses of its shard sets, by name."""
        sections: dict[str, Any] = {}
        for name, address in addresses.items():
            section, _, key = self.key_of(name).partition(".")
            there = sections.get(section, getattr(self, section))
            sections[section] = there.model_copy(update={key: address})
        return self.model_copy(update=sections)

    def key_of(self, shard_set: str) -> str:
        """The job file's key of a shard set: ``data.train`` of ``train``, ``probe.val`` of ``probe-val``."""
        section, _, name = shard_set.rpartition("-")
        return f"{section or 'data'}.{name}"

    def weight_files(self) -> Iterator[tuple[str, str]]:
        """Key and path of every file of weights that the job starts from."""
        yield from ()

    def check_workers(self) -> None:
        """Refuses what would only fail on the workers.

        Raises:
            RequestError: says what, and the remedy.
        """
        for key, file in self.weight_files():
            if not Path(file).is_file():
                raise RequestError(f"{key}: there is no file {file}; give a .pt, .pth or .safetensors file")

    def warnings(self, train: ShardSetIndex) -> list[str]:
        """What is likely to go wrong with the job that is allowed all the same, each with its remedy.

        Args:
            train: index of the training set.
        """
        return []

    def best_evaluation(self, evaluations: list[EvaluationEntry]) -> EvaluationEntry | None:
        """That of the checkpoint to keep, by ``checkpoint.best``; none where none has its figure."""
        named = self.checkpoint.best
        return best(evaluations, self.ranking() if named is None else (named,), self.better)

    @property
    def run_folder(self) -> str:
        """Address of everything a run keeps: its state and its checkpoints."""
        return f"{self.checkpoint.storage.rstrip('/')}/{self.name}"


def absolute_address(address: str) -> str:
    """A plain path made absolute; an address with a scheme as it is."""
    return address if "://" in address else str(Path(address).expanduser().absolute())
