"""A second task in its smallest form: a line from the brightness of a pixel to a number. Nothing else knows of it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from dira_dist.data.batch import LocalBatch
from dira_dist.jobs import tune  # noqa: F401  (a search's base is of the kinds known by then, and not of this one)
from dira_dist.jobs.base import TrainingJob
from dira_dist.metrics import Mode
from dira_dist.models.model_files import write_checksums
from dira_dist.objectives import GlobalBatch
from dira_dist.training.execution import ExecutionConfig, distribute, prepare
from dira_dist.training.networks import Networks
from dira_dist.training.optimizer import NamedOptimizer, OptimizerConfig, ScheduledOptimizer, build_optimizer
from dira_dist.training.stages import Position, StageConfig, StageSpan
from dira_dist.training.step import MAIN, TrainStep
from dira_dist.training.task import About, Evaluation, Package, Start, TrainingSamples
from dira_dist.training.validation import NoValidation

SLOPE, INTERCEPT = 3.0, 1.0
RATE = 0.3


class Line(Networks):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, brightness: Tensor) -> Tensor:
        found: Tensor = self.line(brightness)
        return found


class LineLosses:
    weights: Mapping[str, float] = {"squared": 1.0}
    min_local_batch = 1

    def __init__(self, networks: Networks) -> None:
        self._forward = distribute(networks, ExecutionConfig())

    def backward(
        self, brightness: Tensor, batch: GlobalBatch, autocast: torch.autocast
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        error = self._forward(brightness) - (SLOPE * brightness + INTERCEPT)
        loss = batch.local_weight * error.square().mean()
        torch.autograd.backward(loss)
        return {"squared": loss.detach()}, None

    def after_optimizer_step(self) -> None: ...


class LineTask:
    def __init__(self, job: "LineJob") -> None:
        self.job = job

    def starting_weights(self) -> Start | None:
        return None

    def build(self, weights: Mapping[str, Tensor] | None = None) -> Line:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.job.seed)
            return Line()

    def inputs(self, batch: LocalBatch, span: StageSpan) -> Tensor:
        return batch.images.float().flatten(1)[..., None] / 255

    def step(self, networks: Networks, span: StageSpan, device: torch.device) -> TrainStep[Tensor]:
        prepare(networks, device, ExecutionConfig())
        build = partial(build_optimizer, OptimizerConfig(lr=RATE, weight_decay=0))
        optimizer = NamedOptimizer("sgd", build, dict(networks.named_parameters()))
        scheduled = {MAIN: ScheduledOptimizer(optimizer, lambda step: RATE, RATE)}
        return TrainStep(networks, LineLosses(networks), scheduled, device=device)

    def evaluate(self, networks: Networks, device: torch.device, position: Position, *, title: str = "") -> Evaluation:
        places = torch.linspace(0, 1, 11, device=device)[:, None]
        return Evaluation({"val/error": float((networks(places) - SLOPE * places - INTERCEPT).abs().max())})

    def package(self, tensors: Mapping[str, Any], position: Position, folder: Path, about: About) -> Package:
        folder.mkdir(parents=True)
        save_file(dict(tensors["networks"]), folder / "line.safetensors")
        (folder / "README.md").write_text(f"# {about.name}\n")
        write_checksums(folder)
        return Package(folder, "line.safetensors", [Path(__file__).with_name("line_model.py")], "line", "Lines.")

    def validator(self, networks: Networks, device: torch.device) -> NoValidation:
        return NoValidation()

    def memory(self, workers: int, gpus: bool) -> dict[str, int]:
        return {"weights": 8}

    def notes(self) -> Mapping[str, str]:
        return {"task": "line"}


class LineJob(TrainingJob):
    kind: Literal["line"] = "line"
    steps: int = Field(40, ge=1)

    def build_task(self, samples: TrainingSamples | None = None) -> LineTask:
        return LineTask(self)

    def stage_configs(self) -> Sequence[StageConfig]:
        return (StageConfig(steps=self.steps, global_batch=8),)

    def reported_metrics(self) -> list[str]:
        return ["val/error"]

    def better(self, metric: str) -> Mode:
        return "min" if metric == "val/error" else super().better(metric)
