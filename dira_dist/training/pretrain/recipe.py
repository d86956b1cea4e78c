"""The settings of a pretraining, apart from where it runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from dira_dist.config import RequestError, flatten, per_axis
from dira_dist.data.shards import ShardSetIndex
from dira_dist.evaluation.config import ProbeConfig
from dira_dist.evaluation.evaluator import reported_metrics
from dira_dist.metrics import PROBE_AUROC, RANKME
from dira_dist.models.choice import ModelConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import AdversarialConfig, MethodConfig, RestorativeConfig, default_method
from dira_dist.objectives.parts import (
    OBJECTIVE_HELP,
    PUBLISHED_WEIGHTS,
    ActiveParts,
    LossWeights,
    Objective,
    active_parts,
    objectives_with,
    together,
)
from dira_dist.training.execution import ExecutionConfig, passes_alone
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.running_guards import PretrainGuards
from dira_dist.training.stages import Position, StageConfig
from dira_dist.training.task import Recipe, TrainingSamples
from dira_dist.views import ViewsConfig, check_viewable

if TYPE_CHECKING:
    from dira_dist.training.pretrain.task import PretrainTask

DEFAULT_STAGES = (
    {"objective": "di", "epochs": 200},
    {"objective": "dir", "epochs": 200},
    {"objective": "dira", "epochs": 400},
)


class PretrainStage(StageConfig):
    """One stage. What it leaves out, it takes from the job's own ``data``, ``optimizer`` and ``loss_weights``; of an
    optimiser of another name it takes nothing."""

    objective: Objective = Field(description=OBJECTIVE_HELP)
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_weights: LossWeights = LossWeights()

    @property
    def label(self) -> str:
        return self.objective

    def described(self) -> str:
        return f", rate {self.optimizer.for_batch(self.global_batch).lr:.3g}"

    def effect(self) -> dict[str, Any]:
        """Without the weights of parts that the objective does not have."""
        values = self.model_dump()
        weights = values.pop("loss_weights")
        return values | {part: weight for part, weight in weights.items() if self.objective in objectives_with(part)}

    def parts(self) -> ActiveParts:
        """What the stage computes.

        Raises:
            RequestError: nothing is left to learn.
        """
        return active_parts(self.objective, self.loss_weights)


class PretrainRecipe(Recipe):
    """What a DiRA pretraining computes."""

    kind: Literal["pretrain"] = "pretrain"
    model: ModelConfig = UNetConfig()
    method: MethodConfig = Field(default_factory=default_method)
    restorative: RestorativeConfig = RestorativeConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    views: ViewsConfig = ViewsConfig()
    loss_weights: LossWeights = LossWeights()
    stages: tuple[PretrainStage, ...] = Field(
        tuple(PretrainStage.model_validate(stage) for stage in DEFAULT_STAGES),
        min_length=1,
        description="each goes on from the last",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    execution: ExecutionConfig = ExecutionConfig()
    probe: ProbeConfig | None = Field(None, description="labelled shard sets the frozen encoder is evaluated on")

    @model_validator(mode="after")
    def _image_size_fits_encoder(self) -> "PretrainRecipe":
        try:
            self.model.check_image_size(self.data.image_size)
        except RequestError as error:
            raise ValueError(f"data.image_size is {self.data.image_size}: {error}") from error
        return self

    @model_validator(mode="after")
    def _views_go_with_method(self) -> "PretrainRecipe":
        distortion, axes = self.views.distortion, self.model.dims
        try:
            distortion.check_size(per_axis(self.data.image_size, axes))
            if self.parts().discriminates:
                self.method.check_distortion(distortion, axes)
        except RequestError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _penalty_is_not_compiled(self) -> "PretrainRecipe":
        if self.execution.compile and self.adversarial.loss == "wgan_gp" and self.parts().plays:
            raise ValueError(
                "execution.compile is true and adversarial.loss wgan_gp: torch.compile makes no gradient of a "
                "gradient, which the penalty is; set execution.compile to false, or take another adversarial.loss"
            )
        return self

    def build_task(self, samples: TrainingSamples | None = None) -> "PretrainTask":
        from dira_dist.training.pretrain.task import PretrainTask  # evaluation and pictures are slow to import

        return PretrainTask(self)

    def stage_configs(self) -> Sequence[PretrainStage]:
        return self.stages

    def parts(self) -> ActiveParts:
        """What any of its stages computes."""
        return together(stage.parts() for stage in self.stages)

    def trained_parts(self, position: Position) -> ActiveParts:
        """What has been trained where a run stands at ``position``."""
        begun = self.stages[: position.stage + (position.step_in_stage > 0)]
        return together(stage.parts() for stage in begun)

    def check_sets(self, sets: Mapping[str, ShardSetIndex]) -> None:
        """Refuses sets of which no views can be made, one without labels that the method learns, and probe sets that
        cannot be a probe's.

        Those lack the label, or have a single value of it, or one of them holds the other's shards.

        Raises:
            RequestError: says which, and the remedy.
        """
        for name, index in sets.items():
            try:
                check_viewable(index.image, self.model.dims, self.model.in_channels, rgb=self.model.is_rgb)
            except RequestError as error:
                raise RequestError(f"the {name} set has {error}") from None
        if self.parts().discriminates:
            index = sets["train"]
            try:
                self.method.check_labels({label: index.classes.get(label) for label in index.labels})
            except RequestError as error:
                raise RequestError(f"the train set does not go with the method {self.method.name}: {error}") from None
        for key in ("train", "val") if self.probe is not None else ():
            _check_label(self.probe, key, sets[f"probe-{key}"])
        if self.probe is not None:
            _check_apart(self.probe, sets["probe-train"], sets["probe-val"])

    def reported_metrics(self) -> list[str]:
        return reported_metrics(self.data.val, self.probe, restores=self.parts().restores)

    def main_metric(self) -> str:
        return PROBE_AUROC.name if self.probe is not None else RANKME.name

    def running_guards(self) -> PretrainGuards:
        return PretrainGuards(self.adversarial.loss)

    def ways_to_save_memory(self, *, on_gpu: bool) -> list[str]:
        ways = ["precision: bf16"] if on_gpu and self.precision == "fp32" else []
        ways += [] if self.model.gradient_checkpointing else ["model.gradient_checkpointing: true"]
        return ways if self.execution.micro_batch else [*ways, "execution.micro_batch: a part of a worker's images"]

    def keys_of_rounding(self) -> tuple[str, ...]:
        from dira_dist.training.pretrain.networks import networks_on_meta  # slow to import

        networks = networks_on_meta(self.model, self.method, self.adversarial, self.parts()).train()
        alone = all(passes_alone(each) for each in networks.passed_by_parts(self.parts()))
        return ("execution.micro_batch",) if alone else ()

    def published(self) -> Mapping[str, Any]:
        """The loss weights, of the job and of every stage."""
        weights = flatten(PUBLISHED_WEIGHTS.model_dump())
        places = ["loss_weights", *(f"stages.{number}.loss_weights" for number in range(len(self.stages)))]
        return {f"{place}.{part}": value for place in places for part, value in weights.items()}


def _check_label(probe: ProbeConfig | None, key: str, index: ShardSetIndex) -> None:
    assert probe is not None
    address = {"train": probe.train, "val": probe.val}[key]
    if probe.label not in index.labels:
        raise RequestError(
            f"probe.label: {probe.label!r} is no label of {address} (probe.{key}); "
            f"known: {', '.join(index.labels) or 'none'}"
        )
    if len(index.classes.get(probe.label, ("", ""))) < 2:
        raise RequestError(f"probe.label: {probe.label!r} has a single value in {address}; give another label")


def _check_apart(probe: ProbeConfig, train: ShardSetIndex, val: ShardSetIndex) -> None:
    """Refuses a probe that would be evaluated on what it has learned from; told by the shards' digests."""
    learned = {shard.sha256 for shard in train.shards}
    common = [shard.name for shard in val.shards if shard.sha256 in learned]
    if common:
        raise RequestError(
            f"probe.val: {len(common)} of the {len(val.shards)} shards of {probe.val} (first {common[0]}) stand in "
            f"{probe.train} (probe.train), too, so that a probe would be judged on what it has learned from; give two "
            "parts of a set that is split by patient: dira-dist shard ... --split train=0.8,val=0.2 --group-by patient"
        )
