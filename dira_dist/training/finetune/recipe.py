"""The settings of a fine-tuning, apart from where it runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from dira_dist.config import MAY_CHANGE, Positive, Probability, RequestError, Section
from dira_dist.data.shards import ShardSetIndex
from dira_dist.data.stream import DataConfig
from dira_dist.evaluation.config import LocalizationConfig
from dira_dist.metrics import VAL_AUROC, VAL_DICE
from dira_dist.models.backbone import built_on_meta
from dira_dist.models.choice import ModelConfig
from dira_dist.training.execution import ExecutionConfig, passes_alone
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.stages import StageConfig
from dira_dist.training.task import Recipe, TrainingSamples
from dira_dist.training.trained_on import TrainedOn, trained_on
from dira_dist.training.validation import PLATEAU_EPOCHS
from dira_dist.views import check_viewable
from dira_dist.views.augmentation import AugmentationConfig
from dira_dist.views.labelled import Fit
from dira_dist.views.patches import PatchConfig

if TYPE_CHECKING:
    from dira_dist.training.finetune.samples import FinetuneSamples
    from dira_dist.training.finetune.task import FinetuneTask

Parts = Literal["encoder", "encoder_decoder"]
RANDOM = "random"
MOST_FOLDS = 20


class StartSection(Section):
    """What the networks start from."""

    parts: Parts | None = Field(
        None,
        description="what is taken over: encoder, or encoder_decoder for segmentation; left out: the decoder too where "
        "the task segments and the start has a trained one",
    )
    pinned: str | None = Field(
        None,
        description="set by a run's first start: the version or checkpoint that `from` stood for then",
        json_schema_extra=MAY_CHANGE,
    )

    @property
    def address(self) -> str:
        """What the job file says under ``from``, a word that Python keeps for itself."""
        return str(getattr(self, "from"))

    @property
    def is_random(self) -> bool:
        return self.address == RANDOM


StartConfig = create_model(
    "StartConfig",
    __base__=StartSection,
    __doc__=StartSection.__doc__,
    **{
        "from": (
            str,
            Field(
                RANDOM,
                description="a registered model (models:/NAME@ALIAS), a run (runs:/ID), a checkpoint's or run's "
                "folder, a file of weights (.pt, .pth, .safetensors), or random",
            ),
        )
    },  # type: ignore[call-overload]
)


class FinetuneData(DataConfig):
    """The labelled sets."""

    val: str | None = Field(
        None, description="labelled shard set that the networks are chosen on", json_schema_extra=MAY_CHANGE
    )
    test: str | None = Field(
        None,
        description="labelled shard set that the chosen networks are judged on, once, at the end",
        json_schema_extra=MAY_CHANGE,
    )
    label_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the training set's patients (images, where the groups are coarser) to learn from"
    )
    fraction_of: Literal["group", "image"] = Field(
        "group", description="what the share is drawn of: group, the patients that the set was split by; or image"
    )
    fraction_seed: int = Field(0, ge=0, description="of the draw; of one seed a smaller share is part of a larger one")
    folds: Annotated[int, Field(ge=2, le=MOST_FOLDS)] | None = Field(
        None,
        description="in place of val: the training set's patients in so many parts, each held out from one fit and "
        "validated on; the fits' networks together are one model",
    )
    fold: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of the folds the one that is held out, from 1 on: that fit alone; left out: all of them"
    )

    @model_validator(mode="after")
    def _val_or_folds(self) -> Self:
        if self.folds is not None and self.val is not None:
            raise ValueError(
                "found folds beside val; each fold is held out in its place: leave val out, and shard its samples "
                "with those of train if they are to be learned from"
            )
        if self.folds is None and self.val is None:
            raise ValueError(
                "found no val; the networks are chosen on it: give a labelled set, split by patient, or folds (such as "
                "5) of the training set"
            )
        if self.fold is not None and self.fold > (self.folds or 0):
            raise ValueError(f"found fold {self.fold} and folds {self.folds}; allowed are folds from 1 to folds")
        return self

    def address_of(self, name: str) -> str | None:
        """Of the set that ``train``, ``val`` or ``test`` is a part of; none where there is no such part."""
        if name == "val" and self.fold is not None:
            return self.train
        address: str | None = getattr(self, name)
        return address


class Classify(Section):
    """From an image to classes."""

    name: Literal["classify"] = "classify"
    label: str | tuple[str, ...] = Field(
        description="name of the label in the shards, or names of several that are 1, 0, -1 (uncertain) or unknown each"
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="values of the label, in the order of the outputs; left out: those of the sets"
    )
    exclusive: bool | None = Field(
        None, description="whether an image has one class; left out: yes, unless some label names several at once"
    )
    uncertain: Literal["ignore", "ones", "zeros", "smooth"] = Field(
        "ignore", description="what -1 is learned as; smooth: a number between 0.55 and 0.85, drawn anew"
    )
    imbalance: Literal["none", "weights", "focal", "sampling"] = Field(
        "none",
        description="weights: rare classes count more; focal: hard samples count more; sampling: rare classes are "
        "drawn more often, so that an epoch no longer holds each sample once",
    )
    weight_cap: float = Field(20.0, ge=1, description="most that weights or sampling prefer a class by")
    focal_gamma: float = Field(2.0, ge=0, description="of the focal loss")
    dropout: Probability = Field(0.0, description="of the features before the last layer")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that are read."""
        return (self.label,) if isinstance(self.label, str) else self.label


class Segment(Section):
    """From an image to a mask."""

    name: Literal["segment"] = "segment"
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the mask's values 1, 2, ..., which exclude each other; left out, and without regions: "
        "foreground, whatever is not 0",
    )
    regions: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] | None = Field(
        None, min_length=1, description="regions that may overlap, each the union of some of the mask's values"
    )
    loss: Literal["dice_ce", "dice", "focal", "tversky"] = Field("dice_ce", description="computed for each image")
    patches: PatchConfig = PatchConfig()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.classes and self.regions:
            raise ValueError("found classes and regions; classes exclude each other and regions overlap: keep one")
        return self


TaskSection = Annotated[Classify | Segment, Field(discriminator="name")]


class FinetuneOptimizer(OptimizerConfig):
    """How the networks learn. Adam with 2e-4 is what the method's laboratory fine-tunes with."""

    name: Literal["sgd", "adamw", "lars"] = Field("adamw", description="sgd with momentum, adamw, or lars")
    lr: float = Field(2e-4, gt=0, description="learning rate at its highest")
    weight_decay: float = Field(0.01, ge=0, description="on all weights")
    schedule: Literal["cosine", "constant", "step", "plateau"] = Field(  # type: ignore[assignment]
        "cosine",
        description="of the rate; plateau: halved after more than "
        f"{PLATEAU_EPOCHS} epochs without a better figure on val",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="rate of each layer as a factor of the one behind it: below 1 the first layers learn slowest"
    )
    head_lr_factor: Positive = Field(1.0, description="rate of the last layer as a factor of the others'")
    freeze_epochs: float = Field(
        0, ge=0, description="epochs in which what was taken over stays as it is; all of them: a linear probe"
    )
    batch_norms: Literal["learn", "stay"] = Field(
        "learn", description="stay: the encoder's batch norms keep the statistics that it came with"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, given: Any) -> Any:
        return given  # another optimiser's rate is the user's to know


class EarlyStopping(Section):
    """Which networks are chosen, and when it is enough."""

    metric: str | None = Field(
        None, description="figure on val that counts; left out: val/auroc or val/dice", pattern=r"^val/.+"
    )
    patience_epochs: int | None = Field(
        10, ge=1, description="epochs without a better figure after which the run ends; null: it goes on to the last"
    )
    every_epochs: int = Field(1, ge=1, description="epochs from one validation to the next")


class ReportConfig(Section):
    """What is said of the chosen networks at the end."""

    operating_point: str = Field(
        "youden",
        pattern=r"^(youden|(sensitivity|specificity)=0?\.\d+)$",
        description="how thresholds are chosen on val: youden, sensitivity=0.9 or specificity=0.9",
    )
    subgroups: tuple[str, ...] = Field((), description="columns of the sets by which figures are given apart")
    bootstrap: int = Field(1000, ge=100, description="resamples of the patients for intervals")
    tolerance_mm: Positive = Field(2.0, description="of the surface Dice")
    localization: LocalizationConfig | None = Field(
        LocalizationConfig(),
        description="how a classifier's maps are compared with lesions, where the set that is reported on has any; "
        "null: not at all",
    )


class FinetuneStage(StageConfig):
    """Epochs in which the same layers learn."""

    learns: Literal["head", "whole"] = "whole"
    optimizer: FinetuneOptimizer = FinetuneOptimizer()

    @property
    def label(self) -> str:
        return self.learns

    def described(self) -> str:
        return f", rate {self.optimizer.for_batch(self.global_batch).lr:.3g}"


class FinetuneRecipe(Recipe):
    """What a fine-tuning computes."""

    kind: Literal["finetune"] = "finetune"
    data: FinetuneData
    start: StartConfig = StartConfig()
    task: TaskSection
    model: ModelConfig | None = Field(None, description="the network; left out: that of the start, or resnet50")
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    epochs: float = Field(100, gt=0, description="most passes over the training samples")
    early_stopping: EarlyStopping = EarlyStopping()
    augmentation: AugmentationConfig = AugmentationConfig()
    report: ReportConfig = ReportConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _image_size_fits_encoder(self) -> Self:
        if self.model is not None:
            try:
                self.model.check_image_size(self.data.image_size)
            except RequestError as error:
                raise ValueError(f"data.image_size is {self.data.image_size}: {error}") from error
        return self

    @model_validator(mode="after")
    def _segmenters_show_masks(self) -> Self:
        # a recorded job has the defaults written out
        if self.segments and self.report.localization not in (None, LocalizationConfig()):
            raise ValueError(
                "found report.localization, and the task segments: its masks say where lesions lie; leave it out"
            )
        return self

    def build_task(self, samples: TrainingSamples | None = None) -> "FinetuneTask":
        from dira_dist.training.finetune.samples import FinetuneSamples
        from dira_dist.training.finetune.task import FinetuneTask  # evaluation is slow to import

        assert samples is None or isinstance(samples, FinetuneSamples)
        return FinetuneTask(self, samples)

    def draw_samples(self, sets: Mapping[str, ShardSetIndex], lanes: int) -> "FinetuneSamples":
        from dira_dist.training.finetune.samples import draw_samples

        return draw_samples(self, sets)

    def stage_configs(self) -> Sequence[FinetuneStage]:
        """The last layer alone, where what was taken over is frozen at first; then all of them."""
        frozen = min(self.optimizer.freeze_epochs, self.epochs)
        lengths: dict[Literal["head", "whole"], float] = {"head": frozen, "whole": self.epochs - frozen}
        return [
            FinetuneStage(learns=learns, epochs=epochs, global_batch=self.data.global_batch, optimizer=self.optimizer)
            for learns, epochs in lengths.items()
            if epochs > 0
        ]

    def check_sets(self, sets: Mapping[str, ShardSetIndex]) -> None:
        """Refuses sets whose images the network cannot take, and sizes and patches that are of another network.

        Raises:
            RequestError: says which, and the remedy.
        """
        assert self.model is not None, "settled before anything is read"
        try:
            self.model.check_image_size(self.data.image_size)
        except RequestError as error:
            raise RequestError(f"data.image_size is {self.data.image_size}: {error}") from None
        if isinstance(self.task, Segment) and self.patches is None and self.task.patches != PatchConfig():
            raise RequestError(
                f"task.patches: they are of volumes, and {self.model.label} takes images, which it sees whole: leave "
                "the section out, or set model to a network of volumes ({name: unet3d})"
            )
        for name, index in sets.items():
            try:
                check_viewable(index.image, self.model.dims, self.model.in_channels, rgb=self.model.is_rgb)
            except RequestError as error:
                raise RequestError(f"the {name} set has {error}") from None

    def reported_metrics(self) -> list[str]:
        """The figure that networks are chosen by."""
        return [self.main_metric()]

    def main_metric(self) -> str:
        usual = {"classify": VAL_AUROC.name, "segment": VAL_DICE.name}[self.task.name]
        return self.early_stopping.metric or usual

    def keys_of_rounding(self) -> tuple[str, ...]:
        from dira_dist.training.finetune.networks import build_networks  # slow to import

        if self.model is None:
            return ()
        return ("execution.micro_batch",) if passes_alone(built_on_meta(partial(build_networks, self)).train()) else ()

    def trained_on(self) -> TrainedOn:
        """Whom it learned from, and was chosen on, too."""
        sets = {"train": self.data.train} | ({} if self.data.val is None else {"val": self.data.val})
        return trained_on(sets, groups=True)

    @property
    def is_ensemble(self) -> bool:
        """Whether it is of all folds together: such networks answer as one, and are not trained as one."""
        return self.data.folds is not None and self.data.fold is None

    def of_fold(self, fold: int) -> Self:
        """The same for one of the folds, from 1 on."""
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    @property
    def is_evaluated_beside(self) -> bool:
        return False

    @property
    def publishes_best(self) -> bool:
        return True

    @property
    def segments(self) -> bool:
        return isinstance(self.task, Segment)

    @property
    def fit(self) -> Fit:
        """How images are brought before the network: whole, where every pixel is asked about; volumes by windows."""
        if not isinstance(self.task, Segment):
            return "crop"
        return "slide" if self.model is not None and self.model.dims == 3 else "fit"

    @property
    def patches(self) -> PatchConfig | None:
        """Of a segmenter of volumes."""
        return self.task.patches if isinstance(self.task, Segment) and self.fit == "slide" else None

    @property
    def reads_masks(self) -> bool:
        return self.segments
