"""``kind: compare``: the same fine-tuning from several starts, with several fractions of the labels and seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, field_validator, model_validator

from dira_dist.config import MAY_CHANGE, Positive, Section
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.training.finetune.recipe import RANDOM, Parts

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
_LONGEST_NAME = 80
_JOB_FILES = (".yaml", ".yml")
_BY_COMPARISON = {
    "start": "what each fit starts from stands under starts",
    "data.label_fraction": "the fractions stand under label_fractions",
    "optimizer.lr": "the rates stand under learning_rates",
    "tracking.register_as": "no fit is registered; fine-tune the start that was found best by a job of its own",
}
Fraction = Annotated[float, Field(gt=0, le=1)]


class LabelAmount(Section):
    """A share of the labels, and how long it is learned from."""

    fraction: Fraction = Field(description="share of the training set's patients")
    epochs: Positive | None = Field(None, description="in place of base.epochs: of few images more passes are needed")
    every_epochs: int | None = Field(None, ge=1, description="in place of base.early_stopping.every_epochs")


class ComparedStartSection(Section):
    """What fits of one name start from."""

    parts: Parts | None = Field(None, description="what is taken over, as base.start.parts would say it")
    optimizer: dict[str, str | int | float | bool] = Field(
        {}, description="keys of base.optimizer with values of its own, such as freeze_epochs; not its rate"
    )

    @property
    def source(self) -> str | tuple[str, ...] | PretrainJob:
        """What the job file says under ``from``, a word that Python keeps for itself."""
        found: str | tuple[str, ...] | PretrainJob = getattr(self, "from")
        return found

    @field_validator("optimizer")
    @classmethod
    def _rate_is_common(cls, optimizer: dict[str, Any]) -> dict[str, Any]:
        if "lr" in optimizer:
            raise ValueError("found lr; each start's rate is chosen on val from the same learning_rates: leave it out")
        return optimizer


ComparedStart = create_model(
    "ComparedStart",
    __base__=ComparedStartSection,
    __doc__=ComparedStartSection.__doc__,
    **{
        "from": (
            str | tuple[str, ...] | PretrainJob,
            Field(
                description="a model's address as in base.start.from, or random; a list of them, one for each seed; or "
                "a job file of kind pretrain, which is run first with each seed"
            ),
        )
    },  # type: ignore[call-overload]
)


@dataclass(frozen=True)
class StartOfFits:
    """A start as the fits need it.

    Attributes:
        addresses: one for all seeds, or one for each; none where a pretraining makes them.
        pretraining: run first with each seed.
        parts: what is taken over.
        optimizer: keys of the optimiser with values of its own.
    """

    addresses: tuple[str, ...]
    pretraining: PretrainJob | None
    parts: Parts | None
    optimizer: dict[str, Any]

    @classmethod
    def of(cls, given: "str | ComparedStartSection") -> "StartOfFits":
        if isinstance(given, str):
            return cls((given,), None, None, {})
        source = given.source
        if isinstance(source, PretrainJob):
            return cls((), source, given.parts, dict(given.optimizer))
        addresses = (source,) if isinstance(source, str) else tuple(source)
        return cls(addresses, None, given.parts, dict(given.optimizer))

    @property
    def of_several_models(self) -> bool:
        """Whether there is a pretraining for each seed, so that something can be said of the method."""
        return self.pretraining is not None or len(self.addresses) > 1

    @property
    def is_random(self) -> bool:
        return self.addresses == (RANDOM,)


class CompareJob(Section):
    """A comparison of starts: what ``kind: compare`` holds."""

    kind: Literal["compare"]
    name: str = Field(
        pattern=NAME_PATTERN, description="the comparison's identity; its fits are NAME-START-FRACTION-..."
    )
    starts: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,29}$")], str | ComparedStart] = Field(
        min_length=2,
        description="names, and what each starts from: an address, random, or a section; the others are compared with "
        "the first one",
    )
    label_fractions: tuple[Fraction | LabelAmount, ...] = Field(
        (1.0,), min_length=1, description="shares of the labels to learn from, the same for all starts"
    )
    seeds: int = Field(
        3, ge=2, le=100, description="fits of each start and fraction; each seed draws other labels, the same for all"
    )
    learning_rates: tuple[Positive, ...] = Field(
        min_length=1, description="of which each start and fraction gets the one that is best on val, with one seed"
    )
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="fits side by side; left out, as many as the cluster holds", json_schema_extra=MAY_CHANGE
    )
    base: FinetuneJob = Field(description="a whole job of kind finetune, but for what differs from fit to fit")

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        shares = [amount.fraction for amount in self.amounts]
        for key, values in (("label_fractions", shares), ("learning_rates", self.learning_rates)):
            if len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"found {key} {list(values)}; give each value once")
        return self

    @model_validator(mode="after")
    def _base_leaves_open_what_differs(self) -> Self:
        for key, reason in _BY_COMPARISON.items():
            *sections, last = key.split(".")
            holder = reduce(getattr, sections, self.base)
            if getattr(holder, last) != type(holder).model_fields[last].default:
                raise ValueError(f"found base.{key}; it is the comparison's: {reason}; leave it out")
        if self.base.name != self.name:
            raise ValueError(f"found base.name {self.base.name!r}; fits are named by the comparison: leave it out")
        if self.base.is_ensemble:
            raise ValueError(
                f"found base.data.folds; a comparison's fits are of one split: give base.data.val, or base.data.fold "
                f"(1 to {self.base.data.folds}), too, to compare on one of the folds"
            )
        if self.base.data.test is None:
            raise ValueError(
                "found no base.data.test; starts are compared on patients that no choice was made by: give a set"
            )
        return self

    @model_validator(mode="after")
    def _a_model_for_each_seed(self) -> Self:
        for name, start in self.settled_starts().items():
            if len(start.addresses) > 1 and len(start.addresses) != self.seeds:
                raise ValueError(
                    f"found {len(start.addresses)} models in starts.{name}.from and seeds {self.seeds}; each seed "
                    "starts from a model of its own: give as many"
                )
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for name in (*self.fit_names(), *self.pretraining_names()):
            if len(name) > _LONGEST_NAME:
                raise ValueError(
                    f"found names that make fits like {name!r}, of {len(name)} characters; a run's name has "
                    f"{_LONGEST_NAME} at most: shorten the comparison's name or the start's"
                )
        return self

    @property
    def amounts(self) -> tuple[LabelAmount, ...]:
        """The fractions, from the smallest on."""
        given = (each if isinstance(each, LabelAmount) else LabelAmount(fraction=each) for each in self.label_fractions)
        return tuple(sorted(given, key=lambda amount: amount.fraction))

    @property
    def all_seeds(self) -> range:
        """From that of the base on."""
        return range(self.base.seed, self.base.seed + self.seeds)

    def settled_starts(self) -> dict[str, StartOfFits]:
        """By name, in the order of the file."""
        return {name: StartOfFits.of(start) for name, start in self.starts.items()}

    def fit_name(self, start: str, fraction: float, rate: float, seed: int) -> str:
        """Of a fit's job, and of its folder beside the comparison's."""
        return f"{self.name}-{start}-{fraction:g}-lr{rate:g}-seed{seed}"

    def pretraining_name(self, start: str, seed: int) -> str:
        """Of the pretraining that a start's fits of a seed begin with."""
        return f"{self.name}-pretrain-{start}-seed{seed}"

    def fit_names(self) -> Iterator[str]:
        """Of all fits that there can be."""
        for start, amount, rate in product(self.starts, self.amounts, self.learning_rates):
            yield from (self.fit_name(start, amount.fraction, rate, seed) for seed in self.all_seeds)

    def pretraining_names(self) -> Iterator[str]:
        """Of all pretrainings."""
        for name, start in self.settled_starts().items():
            if start.pretraining is not None:
                yield from (self.pretraining_name(name, seed) for seed in self.all_seeds)


def is_job_file(source: Any) -> bool:
    """Whether what stands under ``from`` is the path of a job file."""
    return isinstance(source, str) and source.endswith(_JOB_FILES)
