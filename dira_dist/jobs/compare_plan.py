"""What can be known of a comparison before anything starts: its starts, its fits. Reads, never writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from dira_dist.config import RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.compare import StartOfFits
from dira_dist.jobs.load import LoadedComparison, LoadedJob
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.search.ranking import Goal
from dira_dist.search.trial import Trial
from dira_dist.training.finetune.recipe import RANDOM

START, FRACTION, RATE, PRETRAINING = "start", "label_fraction", "learning_rate", "pretraining_of"
_FEW_SEEDS = 3


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that can run, and what it will do.

    Attributes:
        goal: by what rates are chosen, on ``val``.
        images: that are learned from, by fraction.
        train_digest: of the training set.
        warnings: what is allowed and likely to go wrong, each with its remedy.
        described: a fit, as a person reads it.
    """

    loaded: LoadedComparison
    goal: Goal
    images: Mapping[float, int]
    train_digest: str
    warnings: tuple[str, ...]
    described: tuple[str, ...]

    @property
    def most_trials(self) -> int:
        """Pretrainings, the fits that choose the rates, and those of further seeds."""
        return len(self.pretrainings()) + self._choosing + self._repeated

    @property
    def written(self) -> Mapping[str, Any]:
        """All of the job that trials are made of, as it is written."""
        return self.loaded.written

    def tags(self) -> dict[str, str]:
        """Of the parent's run in MLflow, and of the fits' runs."""
        return {"dira.comparison": self.loaded.job.name}

    def trial(self, name: str, params: Mapping[str, Any], seed: int | None = None) -> LoadedJob:
        """A fit, or a pretraining that comes before it, as a job of its own.

        Raises:
            RequestError: if its values together make no valid job.
        """
        assert seed is not None, "every fit has a seed"
        if PRETRAINING in params:
            return self.loaded.pretraining(params[PRETRAINING], name, seed)
        return self.loaded.fit(name, self.values(params, seed))

    def steps(self, job: TrainingJob) -> int | None:
        """Its own figures say when a fit ends."""
        return None

    def pretrainings(self) -> list[Trial]:
        """Those that are run first, for each start that asks for it and each seed."""
        comparison = self.loaded.comparison
        return [
            Trial(comparison.pretraining_name(name, seed), number, {PRETRAINING: name}, seed)
            for number, (name, start) in enumerate(self.starts.items())
            if start.pretraining is not None
            for seed in comparison.all_seeds
        ]

    def choosing(self) -> list[Trial]:
        """The fits with the first seed: those of all rates."""
        comparison = self.loaded.comparison
        cells = product(self.fractions, self.starts, comparison.learning_rates)
        return [self.fit(start, fraction, rate, comparison.base.seed) for fraction, start, rate in cells]

    def repeated(self, rates: Mapping[tuple[str, float], float]) -> list[Trial]:
        """The fits with further seeds, with the rate that was chosen for their start and fraction.

        Args:
            rates: by start and fraction; what has none is not fitted.
        """
        seeds = self.loaded.comparison.all_seeds[1:]
        return [
            self.fit(start, fraction, rates[start, fraction], seed)
            for fraction, start, seed in product(self.fractions, self.starts, seeds)
            if (start, fraction) in rates
        ]

    def fit(self, start: str, fraction: float, rate: float, seed: int) -> Trial:
        """One fit; its number is that of its start."""
        name = self.loaded.comparison.fit_name(start, fraction, rate, seed)
        return Trial(name, list(self.starts).index(start), {START: start, FRACTION: fraction, RATE: rate}, seed)

    @property
    def starts(self) -> dict[str, StartOfFits]:
        return self.loaded.comparison.settled_starts()

    @property
    def fractions(self) -> list[float]:
        """From the smallest on."""
        return [amount.fraction for amount in self.loaded.comparison.amounts]

    @property
    def _choosing(self) -> int:
        return len(self.starts) * len(self.fractions) * len(self.loaded.comparison.learning_rates)

    @property
    def _repeated(self) -> int:
        return len(self.starts) * len(self.fractions) * (self.loaded.comparison.seeds - 1)

    def values(self, params: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What differs from fit to fit, by dotted key."""
        comparison = self.loaded.comparison
        base, start = comparison.base, self.starts[params[START]]
        amount = next(each for each in comparison.amounts if each.fraction == params[FRACTION])
        given = {
            "start.parts": start.parts,
            "epochs": amount.epochs,
            "early_stopping.every_epochs": amount.every_epochs,
            **{f"optimizer.{key}": value for key, value in start.optimizer.items()},
        }
        return {
            "seed": seed,
            "start.from": self._address(params[START], seed),
            "data.label_fraction": params[FRACTION],
            "data.fraction_seed": base.data.fraction_seed + seed - base.seed,
            "optimizer.lr": params[RATE],
            **{key: value for key, value in given.items() if value is not None},
        }

    def _address(self, name: str, seed: int) -> str:
        """Where a fit of a seed starts from, as it is written."""
        comparison, start = self.loaded.comparison, self.starts[name]
        if start.pretraining is not None:
            return f"{self.loaded.job.checkpoint.storage.rstrip('/')}/{comparison.pretraining_name(name, seed)}"
        given = self.loaded.written["starts"][name]
        source = given if isinstance(given, str) else given["from"]
        if isinstance(source, str):
            return source
        return str(source[(seed - comparison.base.seed) % len(source)])

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it: a fit, then the comparison."""
        comparison = self.loaded.comparison
        yield from self.described
        for name, start in self.starts.items():
            of = "a pretraining with each seed" if start.pretraining is not None else ", ".join(start.addresses)
            yield f"start    {name}: {of}"
        amounts = ", ".join(f"{fraction:.3g} ({self.images[fraction]:,} images)" for fraction in self.fractions)
        yield f"labels   {amounts}"
        rates = ", ".join(f"{rate:g}" for rate in comparison.learning_rates)
        yield f"rates    {rates}, chosen by {self.goal.metrics[0]} for each start and fraction, with one seed"
        yield (
            f"fits     {self._choosing} with the first seed and {self._repeated} with {comparison.seeds - 1} further "
            f"ones, after {len(self.pretrainings())} pretrainings"
        )
        yield from (f"warning  {text}" for text in self.warnings)


def plan_comparison(loaded: LoadedComparison) -> ComparisonPlan:
    """Check a comparison and everything that its starts name.

    Raises:
        RequestError: see :func:`dira_dist.jobs.preflight.preflight`; and for starts of different networks, and workers
            without a fixed number.
    """
    loaded.check_workers()
    job, comparison = loaded.job, loaded.comparison
    metric = job.main_metric()
    plan = ComparisonPlan(loaded, Goal((metric,), (job.better(metric),)), {}, "", (), ())
    facts = {fraction: _of_amount(plan, fraction) for fraction in plan.fractions}
    of_starts = dict(_of_starts(plan))
    _check_networks(of_starts)
    smallest = facts[plan.fractions[0]]
    warnings = [*(warning for each in (*facts.values(), *of_starts.values()) for warning in each.warnings)]
    if comparison.seeds < _FEW_SEEDS:
        warnings.append(
            f"seeds: {comparison.seeds}; with so few, equal starts are told apart in up to 8 % of comparisons in place "
            f"of 5 %: {_FEW_SEEDS} or more are better"
        )
    return ComparisonPlan(
        loaded=loaded,
        goal=plan.goal,
        images={fraction: each.samples.per_epoch for fraction, each in facts.items()},
        train_digest=smallest.train.digest,
        warnings=tuple(dict.fromkeys(warnings)),
        described=tuple(line for line in smallest.lines() if not line.startswith("warning")),
    )


def _of_starts(plan: ComparisonPlan) -> Iterator[tuple[str, Preflight]]:
    """Of every model that fits start from, the fit with the fewest labels; of a pretraining, itself."""
    comparison = plan.loaded.comparison
    for name, start in plan.starts.items():
        if start.pretraining is not None:
            seed = comparison.base.seed
            loaded = plan.loaded.pretraining(name, comparison.pretraining_name(name, seed), seed)
            yield name, _named(f"starts.{name}", loaded)
            continue
        for seed in comparison.all_seeds[: len(start.addresses)]:
            yield name, _of_fit(plan, name, plan.fractions[0], seed)


def _of_fit(plan: ComparisonPlan, start: str, fraction: float, seed: int) -> Preflight:
    trial = plan.fit(start, fraction, plan.loaded.comparison.learning_rates[0], seed)
    return _named(f"starts.{start}", plan.trial(trial.name, trial.params, trial.seed))


def _of_amount(plan: ComparisonPlan, fraction: float) -> Preflight:
    """What is learned from does not hang on the start, which may not be there yet."""
    job, first = plan.loaded.job, plan.loaded.comparison.learning_rates[0]
    values = plan.values({START: next(iter(plan.starts)), FRACTION: fraction, RATE: first}, job.seed)
    random = {"start.from": RANDOM, "start.parts": None}
    return _named(f"label_fractions.{fraction:g}", plan.loaded.fit(job.name, values | random))


def _named(place: str, loaded: LoadedJob) -> Preflight:
    try:
        return preflight(loaded.job.resolve_paths())
    except RequestError as error:
        raise RequestError(f"{place}: {error}") from error


def _check_networks(of_starts: Mapping[str, Preflight]) -> None:
    """Refuses starts of different networks: what they differ by would not be the start alone.

    Raises:
        RequestError: says which.
    """
    networks = {name: _network(facts.job) for name, facts in of_starts.items()}
    (first, network), *others = networks.items()
    for name, other in others:
        if other != network:
            raise RequestError(
                f"starts.{name}: its network is {other}, and that of {first} is {network}: give base.model, so that "
                "all starts are of the same network"
            )


def _network(job: Any) -> str:
    return str(job.model.label)
