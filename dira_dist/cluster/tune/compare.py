"""``kind: compare``: the same fine-tuning from several starts, each fit a Ray Train run, compared at the end."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from PIL import Image
from rich.console import Console

from dira_dist.cluster.outcome import JobOutcome
from dira_dist.cluster.session import cluster_grows
from dira_dist.cluster.tune.driving import claim_state, drive, wanted_state
from dira_dist.cluster.tune.room import at_once
from dira_dist.cluster.tune.trials import TrialController, TrialProgress
from dira_dist.cluster.tune.tuner import run_to_end
from dira_dist.config import JobFailedError, mutable_keys
from dira_dist.data.store import Store
from dira_dist.evaluation.comparison_report import ComparisonWords, calibration_table, comparison_table, sentences
from dira_dist.jobs.compare_plan import FRACTION, PRETRAINING, RATE, START, ComparisonPlan, plan_comparison
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.load import LoadedComparison
from dira_dist.jobs.pretrain import PretrainJob
from dira_dist.metrics import COMPARED
from dira_dist.runs.evaluations import read_evaluations
from dira_dist.runs.folder import COMPARISON, COMPARISON_DATA, CURVES
from dira_dist.runs.report import read_report
from dira_dist.runs.run import differing_keys
from dira_dist.runs.search import SearchState
from dira_dist.search.trial import Trial
from dira_dist.training.finetune.compared import Cell, ComparedFits, compare_fits

LEARNING_CURVES = "learning curves"
_FEWEST_SEEDS = 2


@dataclass(frozen=True)
class ComparisonOutcome(JobOutcome):
    """What a finished comparison leaves behind; its run is the fits' parent.

    Attributes:
        table: rows in Markdown.
        sentences: what can be said of each start but the first, by name.
        notes: what a reader has to know beside the table.
        report: address of the page that holds all of it.
        counts: fits and pretrainings by how they ended.
    """

    table: list[str] = field(default_factory=list)
    sentences: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    report: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The outcome as text, line by line."""
        yield from self.table
        yield from self.notes
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        yield self.headline(f": {counts}")
        for sentence in self.sentences.values():
            yield f"found       {sentence}"
        yield f"report      {self.report}"
        yield from self.run_lines()


@dataclass(frozen=True)
class _Room:
    """How many run side by side: fits, and of each start with a pretraining of its own, these."""

    fits: int
    pretrainings: Mapping[str, int]


def compare(loaded: LoadedComparison, *, console: Console | None = None) -> ComparisonOutcome:
    """Run a comparison to its end, or go on with the one of its name.

    Fits that ended are kept; those that did not go on from their checkpoints, and failed ones are tried again.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: too few fits came to their end, or the comparison was stopped; the same call goes on.
    """
    plan = plan_comparison(loaded)
    wanted = wanted_state(loaded.job, loaded.public, plan.train_digest)
    return drive(
        loaded.job,
        claim=lambda store: claim_state(store, wanted, _differing_keys, _grew),
        outcome=ComparisonOutcome,
        room=lambda: _room(plan),
        work=partial(_compared, plan),
        warnings=plan.warnings,
        console=console,
    )


def _grew(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return bool(here["seeds"] > there["seeds"])


def _differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """More seeds may be asked for, and what says where things are may change."""
    may_change = ["max_concurrent", *(f"base.{key}" for key in mutable_keys(FinetuneJob, "search"))]
    for name in here["starts"]:
        may_change += [f"starts.{name}.from.{key}" for key in mutable_keys(PretrainJob, "search")]
    may_change += ["seeds"] if here["seeds"] >= there["seeds"] else []
    yield from differing_keys(there, here, may_change)


def _room(plan: ComparisonPlan) -> _Room:
    asked = plan.loaded.comparison.max_concurrent
    fits = at_once(plan.loaded.job, asked, plan.most_trials, key="max_concurrent", member="fits")
    of_pretrainings = {
        name: at_once(
            start.pretraining,
            asked if cluster_grows() else None,
            plan.loaded.comparison.seeds,
            key=f"starts.{name}.from.resources",
            member="pretrainings",
        )
        for name, start in plan.starts.items()
        if start.pretraining is not None
    }
    return _Room(fits, of_pretrainings)


def _compared(
    plan: ComparisonPlan, store: Store, state: SearchState, console: Console, room: _Room
) -> ComparisonOutcome:
    with ComparisonController(plan, store, state, console) as controller, TrialProgress(controller, console):
        for name, side_by_side in room.pretrainings.items():
            run_to_end(
                controller, [each for each in plan.pretrainings() if each.params[PRETRAINING] == name], side_by_side
            )
        run_to_end(controller, plan.choosing(), room.fits)
        run_to_end(controller, plan.repeated(controller.rates()), room.fits)
        return controller.conclude()


class ComparisonController(TrialController[ComparisonPlan]):
    """The driver's side of a comparison."""

    kind, member = "comparison", "fit"

    def rates(self) -> dict[Cell, float]:
        """The rate of each start and fraction that was best on ``val`` with the first seed; none where all failed."""
        best: dict[Cell, tuple[float, float]] = {}
        for trial in self._of_seed(self.plan.loaded.job.seed):
            cell, found = (trial.params[START], trial.params[FRACTION]), self._on_val(trial)
            if found is not None and (cell not in best or found > best[cell][0]):
                best[cell] = (found, trial.params[RATE])
        return {cell: rate for cell, (_, rate) in best.items()}

    def conclude(self) -> ComparisonOutcome:
        """The end: table, sentences, curves, in storage and in the parent run.

        Raises:
            JobFailedError: of some start and fraction fewer than two seeds came to their end.
        """
        plan, rates = self.plan, self.rates()
        seeds = self._common_seeds(rates)
        by_cell = {
            cell: [read_report(self._folder(plan.fit(*cell, rates[cell], seed).name)) for seed in seeds]
            for cell in self._cells()
        }
        found = compare_fits(by_cell, plan.images, plan.loaded.comparison.base.report.bootstrap)
        of_method = frozenset(name for name, start in plan.starts.items() if start.of_several_models)
        words = ComparisonWords(found.figure, plan.images, rates, of_method)
        outcome = ComparisonOutcome(
            name=plan.loaded.job.name,
            run_id=self.run_id,
            page=self.page,
            table=list(comparison_table(found.found, words)),
            sentences=sentences(found.found, words),
            notes=list(self._notes(found, seeds)),
            report=self.address(COMPARISON),
            counts=dict(Counter(trial.status for trial in self.trials)),
        )
        self._publish(found, words, outcome)
        if not any(trial.status == "failed" for trial in self.trials):  # else the same command tries them again
            self.concluded(asdict(outcome))
        return outcome

    def _publish(self, found: ComparedFits, words: ComparisonWords, outcome: ComparisonOutcome) -> None:
        page = "\n".join(_page(found, outcome)) + "\n"
        data = json.dumps(_as_data(found, words, outcome), indent=1)
        for name, text in ((COMPARISON, page), (COMPARISON_DATA, data)):
            self._store.write_bytes(name, text.encode())
            self._run.log_text(text, name)
        self._run.set_tags({f"dira.found.{start}": text for start, text in outcome.sentences.items()})
        for cell in found.found.cells:
            figure = {COMPARED.of(f"{cell.start}/{found.figure.lower()}"): cell.mean.value}
            self._run.log_metrics(figure, words.images[cell.fraction])
        self._guarded(self._draw, found, words)
        self._guarded(self._picture)

    def _draw(self, found: ComparedFits, words: ComparisonWords) -> None:
        from dira_dist.evaluation.comparison_pictures import learning_curves  # matplotlib is slow to import

        picture, content = learning_curves(found.found, found.figure, words.images), io.BytesIO()
        Image.fromarray(picture).save(content, format="PNG")
        self._store.write_bytes(CURVES, content.getvalue())
        self._run.log_picture(LEARNING_CURVES, picture, 0)

    def _cells(self) -> list[Cell]:
        return [(start, fraction) for start in self.plan.starts for fraction in self.plan.fractions]

    def _common_seeds(self, rates: Mapping[Cell, float]) -> list[int]:
        """Seeds whose fits came to their end from all starts with all fractions.

        Raises:
            JobFailedError: fewer than two.
        """
        done = {trial.name for trial in self.trials if trial.status == "finished"}
        seeds = [
            seed
            for seed in self.plan.loaded.comparison.all_seeds
            if all(cell in rates and self.plan.fit(*cell, rates[cell], seed).name in done for cell in self._cells())
        ]
        if len(seeds) < _FEWEST_SEEDS:
            reasons = "\n  ".join(f"{trial.name}: {trial.reason}" for trial in self.trials if trial.status == "failed")
            raise JobFailedError(
                f"{self.plan.loaded.job.name}: fits of {len(seeds)} seed(s) came to their end from all starts, and "
                f"{_FEWEST_SEEDS} are needed to compare them:\n  {reasons}\nthe same command tries these again"
            )
        return seeds

    def _notes(self, found: ComparedFits, seeds: Sequence[int]) -> Iterator[str]:
        first = next(iter(self.plan.starts))
        yield (
            f"{found.figure} on {found.samples:,} test samples of {found.patients:,} patients (groups of the set), "
            f"mean and deviation (spread) over {len(seeds)} seeds. Intervals are of 95 %, each by itself, over "
            f"draws of patients and of seeds; p is of the paired difference to {first}, corrected for all differences "
            "(Holm)."
        )
        yield (
            f"Each start and fraction has the rate that was best by {self.plan.goal.metrics[0]} with seed "
            f"{self.plan.loaded.job.seed}; the test set took no part in that."
        )
        missing = [str(seed) for seed in self.plan.loaded.comparison.all_seeds if seed not in seeds]
        if missing:
            yield f"Left out for all starts, since a fit with it is missing: seed {', '.join(missing)}."
        for trial in self.trials:
            if trial.status == "failed":
                yield f"{trial.name} failed: {trial.reason}"

    def _of_seed(self, seed: int) -> list[Trial]:
        return [
            trial
            for trial in self.trials
            if trial.seed == seed and trial.status == "finished" and PRETRAINING not in trial.params
        ]

    def _on_val(self, trial: Trial) -> float | None:
        """The figure of the networks that a fit chose, turned so that more is better."""
        goal, job = self.plan.goal, self.plan.loaded.job
        best = job.best_evaluation(read_evaluations(self._folder(trial.name)))
        scores = None if best is None else goal.scores(best.metrics)
        return scores[0] if scores else None


def _page(found: ComparedFits, outcome: ComparisonOutcome) -> Iterator[str]:
    yield f"# {outcome.name}: {found.figure} on the test set\n"
    yield from (f"- {sentence}" for sentence in outcome.sentences.values())
    yield ""
    yield from outcome.table
    yield ""
    yield from (f"{note}\n" for note in outcome.notes)
    yield f"![{LEARNING_CURVES}]({CURVES})\n"
    if found.calibration:
        yield "## Calibration\n"
        yield from calibration_table(found.calibration, found.found)


def _as_data(found: ComparedFits, words: ComparisonWords, outcome: ComparisonOutcome) -> dict[str, Any]:
    """The same for programs."""
    cells = [
        {
            **asdict(cell),
            "spread": cell.spread,
            "images": words.images[cell.fraction],
            "learning_rate": words.rates[cell.start, cell.fraction],
            "calibration": {name: asdict(each[cell.start, cell.fraction]) for name, each in found.calibration.items()},
        }
        for cell in found.found.cells
    ]
    return {
        name: _numbers(each)
        for name, each in {
            "figure": found.figure,
            "patients": found.patients,
            "samples": found.samples,
            "cells": cells,
            "label_efficiency": {name: asdict(each) for name, each in found.found.efficiency.items()},
            "sentences": outcome.sentences,
            "notes": outcome.notes,
        }.items()
    }


def _numbers(values: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(values, dict):
        return {key: _numbers(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_numbers(value) for value in values]
    return None if isinstance(values, float) and values != values else values
