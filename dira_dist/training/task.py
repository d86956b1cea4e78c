"""A task is what one kind of job trains: its networks, inputs, step, evaluation, and the model it leaves.

The loop, the driver, checkpoints, elasticity, preemption, evaluation beside the training, tracking and the registry are
written once, against this file. A task's settings are a :class:`Recipe`, the part of a job file that says what is
computed, apart from where; from the recipe alone, as it stands in a checkpoint, the task is made again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from dira_dist.config import ENV_REFERENCE, RequestError, Section, with_environment
from dira_dist.data.batch import LocalBatch
from dira_dist.data.selection import Selection
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.stream import DataConfig
from dira_dist.evaluation.config import EvaluationConfig
from dira_dist.metrics import RANKING, Mode, better
from dira_dist.training.networks import Networks
from dira_dist.training.precision import PrecisionChoice
from dira_dist.training.running_guards import NoGuards, RunningGuards
from dira_dist.training.stages import Plan, Position, StageConfig, StageSpan, plan_stages
from dira_dist.training.step import StepResult
from dira_dist.training.trained_on import TrainedOn, trained_on
from dira_dist.training.validation import Validator

Picture = npt.NDArray[np.uint8]
"""(H, W, 3)."""


class Step(Protocol):
    """The optimiser step of one stage."""

    def __call__(self, inputs: Any, step_in_stage: int) -> StepResult:
        """One step on this worker's part of a global batch; a collective of all workers."""

    def state_dict(self) -> dict[str, Any]:
        """``networks`` and ``optimizers``: tensors, numbers and text, not copies; a collective."""

    def load_state_dict(self, state: Mapping[str, Any], *, optimizers: bool = True) -> None:
        """Goes on from a state of this or another stage."""

    def agree(self) -> None:
        """Makes what each worker measures for itself, statistics of batch norms, the same on all; a collective."""


@dataclass(frozen=True)
class Start:
    """What networks start from instead of chance.

    Attributes:
        weights: as the task's ``build`` takes them.
        report: which of them came from where, and what kept its own start, a line each.
    """

    weights: Mapping[str, Tensor]
    report: Sequence[str]


@dataclass(frozen=True)
class TrainingSamples:
    """Which samples of its training set a job learns from.

    Attributes:
        per_epoch: samples of an epoch.
        selection: those of the set, and how they are read; all of them in the plain order where none.
        notes: what a person should know of them, a line each.
        record: what was drawn, JSON-ready, for the run; empty where nothing was.
    """

    per_epoch: int
    selection: Selection | None = None
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What networks were found to be.

    Attributes:
        metrics: figures for a tracker.
        pictures: what there is to look at, by name.
        warnings: what a person should know of the figures.
    """

    metrics: dict[str, float]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class About:
    """What is known of a model beside what its own task knows; for its card and ``model.json``.

    Attributes:
        name: in the registry.
        data: of the training set: address, digest, number of samples ...
        quality: measured figures.
        origin: job, run, steps ...
        job: the recorded job file's text, which holds no secrets.
        pictures: by name.
        report: files of the run's report on these networks, by name; empty where it made none.
        trained_on: what the model remembers of its sets.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    report: Mapping[str, bytes] = field(default_factory=dict)
    trained_on: TrainedOn = field(default_factory=TrainedOn)


REQUIREMENTS = ("mlflow", "numpy", "pillow", "torch")
"""What the code that travels with a model needs, unless its package says otherwise."""


@dataclass(frozen=True)
class Package:
    """A model ready for the registry, and what runs it where this package is not installed.

    Attributes:
        folder: with ``README.md``, the card, and ``SHA256SUMS`` among its files.
        weights: the file in it whose tensors tell one model from another, ``.safetensors``.
        code: files that travel with it and import nothing of this package; the first is MLflow's loader module, whose
            ``_load_pyfunc(path)`` gives what predicts.
        model_type: what MLflow files it under.
        description: of the registered model, when its first version is made.
        requirements: what the code needs.
        parameters: names of what ``predict`` takes as ``params``, with the text that each is where it is not given.
        example: what ``predict`` takes, of nobody's images; kept with the model, and with it MLflow serves images.
    """

    folder: Path
    weights: str
    code: Sequence[Path]
    model_type: str
    description: str
    requirements: Sequence[str] = REQUIREMENTS
    parameters: Mapping[str, str] = field(default_factory=dict)
    example: npt.NDArray[Any] | None = None


class Task(Protocol):
    """What a kind of job trains."""

    def starting_weights(self) -> Start | None:
        """Weights that the recipe names, read by each worker, alike on all; None where it starts from chance.

        Raises:
            RequestError: they cannot be read, or do not fit.
        """

    def build(self, weights: Mapping[str, Tensor] | None = None) -> Networks:
        """The networks on the CPU, with weights drawn from the recipe's seed alone, or from ``weights``."""

    def inputs(self, batch: LocalBatch, span: StageSpan) -> Sized:
        """A worker's part of a global batch, on its device, as what a step works on."""

    def step(self, networks: Networks, span: StageSpan, device: torch.device) -> Step:
        """The step of a stage, on networks that all stages share.

        Raises:
            RequestError: nothing is left to learn, or the device cannot do what is asked.
        """

    def evaluate(self, networks: Networks, device: torch.device, position: Position, *, title: str = "") -> Evaluation:
        """What networks of this position are worth, on the sets that the recipe names; ``title`` is the pictures'."""

    def package(self, tensors: Mapping[str, Any], position: Position, folder: Path, about: About) -> Package:
        """Writes the model that a checkpoint of this position holds into an empty folder: what was trained, no more."""

    def validator(self, networks: Networks, device: torch.device) -> Validator:
        """What measures the networks on the workers, see :mod:`dira_dist.training.validation`."""

    def memory(self, workers: int, gpus: bool) -> dict[str, int]:
        """Estimated bytes of one worker's device memory by purpose, from shapes alone, for the stage that needs most.

        Args:
            workers: the fewest that share a global batch.
            gpus: whether they have GPUs.
        """

    def notes(self) -> Mapping[str, str]:
        """What runs and models of this task are found by: tags, short names to short values."""


class Recipe(Section):
    """The settings of a task. A subclass names its kind: ``kind: Literal["..."] = "..."``."""

    kind: str
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="the job's identity: the same name and storage resume it, and its MLflow run",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order and views")
    data: DataConfig
    precision: PrecisionChoice | None = Field(
        None,
        description="auto: bf16 if every worker of the run's first start has instructions for it, else fp32, and kept "
        "from then on; left out: bf16 on GPUs that have it, else fp32 (on GPUs with convolutions in TF32)",
    )
    evaluation: EvaluationConfig = EvaluationConfig()

    def build_task(self, samples: TrainingSamples | None = None) -> Task:
        """The task of these settings.

        Args:
            samples: what it learns from, where it is to be trained; see :meth:`draw_samples`.
        """
        raise NotImplementedError

    def draw_samples(self, sets: Mapping[str, ShardSetIndex], lanes: int) -> TrainingSamples:
        """What it learns from: each sample of the training set, fewer than ``lanes`` left out in each epoch.

        Args:
            sets: indices by name.
            lanes: equal parts of an epoch.

        Raises:
            RequestError: the sets do not hold what is asked for.
        """
        return TrainingSamples(lanes * (sets["train"].samples // lanes))

    def stage_configs(self) -> Sequence[StageConfig]:
        """The stages in their order."""
        raise NotImplementedError

    def plan(self, epoch_samples: int) -> Plan:
        """The stages laid along a training set of so many samples per epoch."""
        return plan_stages(self.stage_configs(), epoch_samples)

    def check_sets(self, sets: Mapping[str, ShardSetIndex]) -> None:
        """Refuses shard sets, by name, that lack what the task asks of them.

        Raises:
            RequestError: says which, and the remedy.
        """

    def reported_metrics(self) -> list[str]:
        """Names of the figures that its evaluations give; none where there are no samples to evaluate on."""
        return []

    @property
    def reads_masks(self) -> bool:
        """Whether what it learns from has masks and boxes that are to be decoded."""
        return False

    def main_metric(self) -> str:
        """The figure that runs are compared by where nobody names another; only where some are reported."""
        return self.reported_metrics()[0]

    def better(self, metric: str) -> Mode:
        """Whether more or less of a figure is better; a recipe says it of those that are not in the catalogue."""
        return better(metric)

    def ranking(self) -> tuple[str, ...]:
        """Figures by which its checkpoints and models are compared: the first that was measured."""
        return (self.main_metric(), *RANKING) if self.is_evaluated else RANKING

    def trained_on(self) -> TrainedOn:
        """What a model of it remembers of its sets, as far as they can be reached."""
        return trained_on({"train": self.data.train}, groups=False)

    def running_guards(self) -> RunningGuards:
        """What watches its figures while it is trained."""
        return NoGuards()

    def ways_to_save_memory(self, *, on_gpu: bool) -> list[str]:
        """Settings that this recipe does not use, each of which makes a step smaller, as ``key: value``."""
        return []

    def keys_of_rounding(self) -> tuple[str, ...]:
        """Keys of the job file that change figures of these networks by rounding alone: a run goes on with others."""
        return ()

    def published(self) -> Mapping[str, Any]:
        """Values by dotted key of the job file that were published, those that this recipe has included."""
        return {}

    @property
    def is_evaluated(self) -> bool:
        """Whether there are samples that its networks can be evaluated on."""
        return bool(self.reported_metrics())

    @property
    def publishes_best(self) -> bool:
        """Whether the model is the best checkpoint's by the main figure, and not the last one's."""
        return False

    @property
    def is_evaluated_beside(self) -> bool:
        """Whether that happens beside the training, on labelled checkpoints, and not on its workers, while they wait"""
        return self.is_evaluated


def recipes() -> dict[str, type[Recipe]]:
    """All recipes by kind, from the files and folders of this one: a further task is a further file."""
    package = __name__.rpartition(".")[0]
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
    return {recipe.model_fields["kind"].default: recipe for recipe in _named(Recipe)}


def recipe_of(job: Mapping[str, Any]) -> Recipe:
    """The recipe in a recorded job, such as a checkpoint holds; variables that it names are read where they are set.

    Raises:
        RequestError: its kind is not known here, or its settings are none of this version's.
    """
    known, kind = recipes(), job.get("kind", "pretrain")
    if kind not in known:
        raise RequestError(f"the recorded job is of kind {kind!r}; this version knows {', '.join(sorted(known))}")
    values = {name: with_environment(job[name]) for name in known[kind].model_fields if name in job}
    values["name"] = "recorded"  # whose name it is changes nothing, and it may come from a variable
    try:
        return known[kind].model_validate_json(json.dumps(values), strict=True)
    except ValueError as error:
        unset = sorted(set(ENV_REFERENCE.findall(json.dumps(values))))
        remedy = f"set {', '.join(unset)}, which it names and which are not set here, or " if unset else ""
        raise RequestError(
            f"the recorded job {job.get('name', '')!r} is not of this version's form: {error}\n"
            f"{remedy}use the version of dira-dist that made it"
        ) from error


def _named(section: type[Recipe]) -> Iterator[type[Recipe]]:
    """Recipes with a kind of their own; a job made of one has its recipe's."""
    for each in section.__subclasses__():
        if "kind" in each.__annotations__:
            yield each
        yield from _named(each)
