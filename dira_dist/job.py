"""The job file: every floor's section composed into one :class:`PretrainJob`, and what no single section can check."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, model_validator

from dira_dist.config import (
    Document,
    KeyPath,
    RequestError,
    Section,
    read_document,
    recorded,
    validate,
)
from dira_dist.data.order import choose_lanes
from dira_dist.data.stream import DataConfig
from dira_dist.evaluation.config import EvaluationConfig, ProbeConfig
from dira_dist.models.unet import UNetConfig, check_image_size
from dira_dist.objectives import METHODS, AdversarialConfig, MethodConfig, default_method
from dira_dist.search.config import SearchConfig
from dira_dist.tracking.config import TrackingConfig
from dira_dist.training.loop import GuardConfig
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.precision import PrecisionChoice
from dira_dist.training.stages import Plan, StageConfig, plan_stages
from dira_dist.training.state import CheckpointConfig
from dira_dist.training.step import ExecutionConfig, LossWeights
from dira_dist.views import ViewsConfig

DEFAULT_STAGES = (
    {"objective": "di", "epochs": 200},
    {"objective": "dir", "epochs": 200},
    {"objective": "dira", "epochs": 400},
)


class ResourcesConfig(Section):
    """What one job takes of the cluster."""

    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        1, description="training processes: a number, or [min, max] for an elastic run"
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of each worker; left out: 1 where the cluster has GPUs, else 0"
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1, description="CPUs of each worker, its loaders included")
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


class PretrainJob(Section):
    """One DiRA pretraining: what ``kind: pretrain`` holds."""

    kind: Literal["pretrain"] = "pretrain"
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="the job's identity: the same name and storage resume it, and its MLflow run",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order and views")
    data: DataConfig
    model: UNetConfig = UNetConfig()
    method: MethodConfig = Field(default_factory=default_method)
    adversarial: AdversarialConfig = AdversarialConfig()
    views: ViewsConfig = ViewsConfig()
    loss_weights: LossWeights = LossWeights()
    stages: tuple[StageConfig, ...] = Field(
        tuple(StageConfig.model_validate(stage) for stage in DEFAULT_STAGES),
        min_length=1,
        description="each goes on from the last",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionChoice | None = Field(
        None,
        description="auto: bf16 if every worker of the run's first start has instructions for it, else fp32, and kept "
        "from then on; left out: bf16 on GPUs that have it, else fp32 (on GPUs with convolutions in TF32)",
    )
    execution: ExecutionConfig = ExecutionConfig()
    guards: GuardConfig = GuardConfig()
    probe: ProbeConfig | None = Field(None, description="labelled shard sets the frozen encoder is judged on")
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _image_size_fits_encoder(self) -> "PretrainJob":
        try:
            check_image_size(self.model, self.data.image_size)
        except RequestError as error:
            raise ValueError(f"data.image_size is {self.data.image_size}: {error}") from error
        return self

    @model_validator(mode="after")
    def _batches_fit_workers(self) -> "PretrainJob":
        lanes, batches = self.lanes, sorted({stage.global_batch for stage in self.stages})
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
        return self.data.lanes or choose_lanes([stage.global_batch for stage in self.stages])

    def located(self) -> "PretrainJob":
        """The same with every address settled: Ray's workers run in folders of their own."""
        data = {"train": absolute_address(self.data.train)}
        if self.data.val is not None:
            data["val"] = absolute_address(self.data.val)
        changes: dict[str, Section] = {
            "data": self.data.model_copy(update=data),
            "checkpoint": self.checkpoint.model_copy(update={"storage": absolute_address(self.checkpoint.storage)}),
            "tracking": self.tracking.located(),
        }
        if self.probe is not None:
            probe = {"train": absolute_address(self.probe.train), "val": absolute_address(self.probe.val)}
            changes["probe"] = self.probe.model_copy(update=probe)
        if self.model.init is not None:
            changes["model"] = self.model.model_copy(update={"init": absolute_address(self.model.init)})
        return self.model_copy(update=changes)

    def shard_sets(self) -> Iterator[tuple[str, str, str]]:
        """Name, address and use of every shard set that the job reads."""
        yield "train", self.data.train, "training"
        if self.data.val is not None:
            yield "val", self.data.val, "validation"
        if self.probe is not None:
            yield "probe-train", self.probe.train, "probe"
            yield "probe-val", self.probe.val, "probe"

    @property
    def is_judged(self) -> bool:
        """Whether there are images that its networks can be judged on."""
        return self.data.val is not None or self.probe is not None

    @property
    def run_folder(self) -> str:
        """Address of everything a run keeps: its record and its checkpoints."""
        return f"{self.checkpoint.storage.rstrip('/')}/{self.name}"

    def plan(self, epoch_samples: int) -> Plan:
        """The stages laid along a training set of so many samples per epoch."""
        return plan_stages(self.stages, epoch_samples)


class TuneJob(Section):
    """A search over pretraining jobs: what ``kind: tune`` holds."""

    kind: Literal["tune"]
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="the search's identity; its trials are NAME-000, ..."
    )
    search: SearchConfig
    base: PretrainJob = Field(description="a whole pretraining job; its name is the winner's, NAME-best if left out")


def absolute_address(address: str) -> str:
    """A plain path made absolute; an address with a scheme as it is."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


@dataclass(frozen=True)
class LoadedJob:
    """A job and the form of it that may be written anywhere.

    Attributes:
        job: validated, environment references resolved; may hold secrets.
        record: the same as plain values with all defaults, ``${env:NAME}`` unresolved; holds none.
    """

    job: PretrainJob
    record: dict[str, Any]


@dataclass(frozen=True)
class LoadedSearch(LoadedJob):
    """A search: ``job`` is its base under the search's name, ``record`` the whole job file.

    Attributes:
        search: the section.
        winner_name: what the base calls itself.
        base: the base as it is written, overrides applied; what stages inherit is not filled in yet.
    """

    search: SearchConfig
    winner_name: str
    base: dict[str, Any]

    def trial(self, name: str, values: Mapping[str, Any]) -> LoadedJob:
        """The base with some values, by dotted key, as a job of its own.

        Raises:
            RequestError: if the values make no valid job.
        """
        return load_job(self.base, [f"name={name}", *(f"{key}={json.dumps(value)}" for key, value in values.items())])


def load_job(source: Path | str | dict[str, Any], overrides: Sequence[str] = ()) -> LoadedJob:
    """Read, complete and validate a job.

    Args:
        source: the path of a job file, or its content as a mapping.
        overrides: ``key.path=value`` each, values in YAML.

    Raises:
        RequestError: with every mistake found in one message.
    """
    document = Document(source, "job") if isinstance(source, dict) else read_document(Path(source))
    document = document.with_overrides(overrides)
    kind = document.values.get("kind", "pretrain")
    if kind == "tune":
        return _load_search(document)
    if kind != "pretrain":
        raise RequestError(f"{document.place(('kind',))}: found {kind!r}; allowed: 'pretrain', 'tune'")
    document = _inherit(document)
    job = validate(PretrainJob, document)
    return LoadedJob(job, recorded(job, document))


def _load_search(document: Document) -> LoadedSearch:
    """What stands under ``base`` is completed like a job that stands alone."""
    given = document.values.get("base")
    if isinstance(given, dict):
        base = _inherit(Document({"name": f"{document.values.get('name')}-best"} | given))
        inherited = frozenset(("base", *path) for path in base.inherited)
        document = replace(document, values=document.values | {"base": base.values}, inherited=inherited)
    tune = validate(TuneJob, document)
    job = tune.base.model_copy(update={"name": tune.name})
    return LoadedSearch(job, recorded(tune, document), tune.search, tune.base.name, dict(given or {}))


def job_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors; what stages inherit and ``${env:NAME}`` included."""
    return TypeAdapter(PretrainJob | TuneJob).json_schema()


def _inherit(document: Document) -> Document:
    """Complete the optimiser with the method's own, and each stage with the job's batch, optimiser and loss weights."""
    values = json.loads(json.dumps({"stages": DEFAULT_STAGES} | document.values))
    if isinstance(values.get("method"), dict):
        method = METHODS.get(str(values["method"].setdefault("name", default_method().name)))
        common = values.setdefault("optimizer", {})
        if method is not None and isinstance(common, dict) and "name" not in common:
            values["optimizer"] = {**method.own_optimizer, **common}
    inherited: set[KeyPath] = set()
    for position, stage in enumerate(values["stages"] if isinstance(values["stages"], list) else []):
        if isinstance(stage, dict):
            taken = _complete_stage(stage, values)
            inherited.update(("stages", position, *path) for path in taken)
    return replace(document, values=values, inherited=frozenset(inherited))


def _complete_stage(stage: dict[str, Any], values: dict[str, Any]) -> Iterator[KeyPath]:
    """Takes over what the stage leaves out; yields the key paths, inside the stage, of what it took."""
    data = values.get("data")
    if isinstance(data, dict) and "global_batch" in data and "global_batch" not in stage:
        stage["global_batch"] = data["global_batch"]
        yield ("global_batch",)
    for section in ("optimizer", "loss_weights"):
        own, common = stage.setdefault(section, {}), values.get(section, {})
        if isinstance(own, dict) and isinstance(common, dict):
            for key in common.keys() - own.keys():
                own[key] = common[key]
                yield (section, key)


def dump_job(record: dict[str, Any]) -> str:
    """A recorded job as YAML text that :func:`load_job` reads again."""
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
