"""What can be known of a cross-validation before anything starts: its folds, its fits. Reads, never writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dira_dist.config import RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.load import LoadedFolds, LoadedJob
from dira_dist.jobs.preflight import Preflight, preflight
from dira_dist.search.ranking import Goal
from dira_dist.search.trial import Trial

FOLD = "fold"


@dataclass(frozen=True)
class FoldFacts:
    """A fold as its fit sees it.

    Attributes:
        learned: samples that its fit learns from.
        held_out, groups: samples that it is judged by, and of how many groups (patients) they are.
    """

    learned: int
    held_out: int
    groups: int


@dataclass(frozen=True)
class FoldsPlan:
    """A cross-validation that can run, and what it will do.

    Attributes:
        goal: by what networks are chosen, on the fold that is held out.
        job: of all folds together, with nothing left open.
        changes: what was filled in, by section, as the recorded job has it.
        folds: in their order.
        train_digest: of the training set.
        notes: what a person should know of the samples.
        warnings: what is allowed and likely to go wrong, each with its remedy.
        described: a fit, as a person reads it.
    """

    loaded: LoadedFolds
    goal: Goal
    job: FinetuneJob
    changes: Mapping[str, Any]
    folds: tuple[FoldFacts, ...]
    train_digest: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    described: tuple[str, ...]

    @property
    def most_trials(self) -> int:
        """A fit for each fold."""
        return self.loaded.folds

    @property
    def written(self) -> Mapping[str, Any]:
        """All of the job that fits are made of, as it is written."""
        return self.loaded.written

    @property
    def public(self) -> dict[str, Any]:
        """The job of all folds with nothing left open, as it may be written anywhere."""
        return {**self.loaded.public, **self.changes}

    def tags(self) -> dict[str, str]:
        """Of the parent's run in MLflow, and of the fits' runs."""
        return {"dira.folds": self.loaded.job.name}

    def trials(self) -> list[Trial]:
        """The fits, in the order of the folds."""
        folds = range(1, self.loaded.folds + 1)
        return [Trial(self.loaded.fold_name(fold), fold, {FOLD: fold}) for fold in folds]

    def trial(self, name: str, params: Mapping[str, Any], seed: int | None = None) -> LoadedJob:
        """A fit as a job of its own, without a test set; all start from what the name stood for when the first one did.

        Raises:
            RequestError: if its values together make no valid job.
        """
        pinned = {} if self.job.start.pinned is None else {"start.from": self.job.start.pinned}
        return self.loaded.fold(params[FOLD], {"data.test": None, **pinned})

    def steps(self, job: TrainingJob) -> int | None:
        """Its own figures say when a fit ends."""
        return None

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it: a fit, then the folds."""
        yield from self.described
        for number, fold in enumerate(self.folds, 1):
            yield (
                f"fold     {number} of {len(self.folds)}: {fold.held_out:,} images of {fold.groups:,} groups "
                f"(patients) held out, {fold.learned:,} learned from; chosen by {self.goal.metrics[0]}"
            )
        test = "judged out of fold alone, for there is no data.test" if self.job.data.test is None else "judged on test"
        yield f"ensemble of {len(self.folds)} networks, {test}"
        yield from (f"warning  {text}" for text in self.warnings)


def plan_folds(loaded: LoadedFolds, recorded: Mapping[str, Any] | None = None) -> FoldsPlan:
    """Check the fits of all folds, and everything that they name.

    Args:
        loaded: the job.
        recorded: the job as an earlier start recorded it, where there was one.

    Raises:
        RequestError: see :func:`dira_dist.jobs.preflight.preflight`; and for workers without a fixed number.
    """
    loaded.check_workers()
    # the first fold's fit is looked at with the test set, so that the set is checked beside all that is learned from
    facts = [_of_fold(loaded, fold, {} if fold == 1 else {"data.test": None}, recorded) for fold in _numbers(loaded)]
    first = facts[0]
    assert isinstance(first.job, FinetuneJob)
    metric = first.job.main_metric()
    data = first.job.data.model_copy(update={"fold": None})
    kept = {"name": loaded.job.name, "data": data, "max_concurrent": loaded.job.max_concurrent}
    return FoldsPlan(
        loaded=loaded,
        goal=Goal((metric,), (first.job.better(metric),)),
        job=first.job.model_copy(update={**kept, "tracking": loaded.job.resolve_paths().tracking}),
        changes=first.changes,
        folds=tuple(map(_facts_of, facts)),
        train_digest=first.train.digest,
        notes=tuple(dict.fromkeys(note for each in facts for note in each.samples.notes)),
        warnings=tuple(dict.fromkeys([*(text for each in facts for text in each.warnings), *_not_done(first.job)])),
        described=tuple(line for line in first.lines() if not line.startswith("warning")),
    )


def _not_done(job: FinetuneJob) -> Iterator[str]:
    """What is asked of a fit and is not asked of the ensemble."""
    if job.report.localization is not None and "localization" in job.report.model_fields_set and not job.segments:
        yield (
            "report.localization: where a classifier looks is judged of each fold's network on the fold that it held "
            "out, in the fold's own report; of the ensemble it is not"
        )


def _numbers(loaded: LoadedFolds) -> range:
    return range(1, loaded.folds + 1)


def _of_fold(
    loaded: LoadedFolds, fold: int, values: Mapping[str, Any], recorded: Mapping[str, Any] | None
) -> Preflight:
    try:
        return preflight(loaded.fold(fold, values).job.resolve_paths(), recorded)
    except RequestError as error:
        raise RequestError(f"fold {fold} of {loaded.folds}: {error}") from error


def _facts_of(fit: Preflight) -> FoldFacts:
    record = fit.samples.record
    return FoldFacts(fit.samples.per_epoch, len(record["held_out"]), record["held_out_groups"])
