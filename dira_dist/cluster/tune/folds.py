"""``data.folds``: a fit for each fold, each a Ray Train run, and the ensemble of them, judged and registered."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from dira_dist.cluster.fit.outcome import facts_of_images
from dira_dist.cluster.fit.reporter import keep_report
from dira_dist.cluster.outcome import JobOutcome
from dira_dist.cluster.session import gpus_per_worker
from dira_dist.cluster.tune.driving import claim_state, drive, wanted_state
from dira_dist.cluster.tune.room import at_once
from dira_dist.cluster.tune.trials import TrialController, TrialProgress
from dira_dist.cluster.tune.tuner import handed_on, run_to_end
from dira_dist.config import JobFailedError, RequestError, mutable_keys
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import read_index
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.folds_plan import FoldsPlan, plan_folds
from dira_dist.jobs.load import LoadedFolds
from dira_dist.registry.publish import publish
from dira_dist.runs.evaluations import EvaluationEntry, add_evaluation, read_evaluations
from dira_dist.runs.folder import CHECKPOINT_PREFIX, REPORT
from dira_dist.runs.report import read_report, report_metrics
from dira_dist.runs.run import differing_keys, read_run
from dira_dist.runs.search import SearchState, read_search
from dira_dist.training.checkpoints import CheckpointFolder, step_of
from dira_dist.training.finetune.networks import build_networks, joined
from dira_dist.training.finetune.pooled import Pooled, Said, pool, say_of_test
from dira_dist.training.finetune.prediction import SetReader
from dira_dist.training.finetune.report_tables import read_calibration
from dira_dist.training.finetune.samples import FinetuneSamples, known_of, resampled_of
from dira_dist.training.state import Checkpoint, write_checkpoint

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class FoldsOutcome(JobOutcome):
    """What a finished cross-validation leaves behind; its run is the fits' parent.

    Attributes:
        figures: of the pooled predictions out of fold, and of the ensemble on the test set.
        notes: what a reader has to know beside them.
        checkpoint: address of the ensemble's networks.
        model: ``models:/name/version`` of the registered ensemble, or an empty string.
        report: address of the page.
        counts: fits by how they ended.
    """

    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checkpoint: str = ""
    model: str = ""
    report: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The outcome as text, line by line."""
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        yield self.headline(f": {counts}")
        yield from self.notes
        yield f"report      {self.report}"
        yield f"checkpoint  {self.checkpoint}"
        yield from self.run_lines()
        if self.model:
            yield f"model       {self.model}  (dira-dist pull {self.model} weights/)"


def train_folds(loaded: LoadedFolds, *, console: Console | None = None) -> FoldsOutcome:
    """Run the fits of all folds to their end and make the ensemble of them, or go on with the job of this name.

    Fits that ended are kept; those that did not go on from their checkpoints, and failed ones are tried again.

    Args:
        loaded: from :func:`dira_dist.load_job`.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: before anything is started or written, for what cannot run as asked.
        JobFailedError: a fit did not come to its end, or the job was stopped; the same call goes on.
    """
    resolved = loaded.job.resolve_paths()
    check_reachable(resolved.checkpoint.storage, write=True)
    earlier = read_search(open_store(resolved.run_folder))
    plan = plan_folds(loaded, earlier.job if earlier is not None and earlier.job["kind"] == loaded.job.kind else None)
    wanted = wanted_state(loaded.job, plan.public, plan.train_digest)
    return drive(
        loaded.job,
        claim=lambda store: claim_state(store, wanted, _differing_keys, lambda there, here: False),
        outcome=FoldsOutcome,
        room=lambda: _room(plan),
        work=partial(_trained, plan),
        warnings=plan.warnings,
        console=console,
    )


def _differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    yield from differing_keys(there, here, mutable_keys(FinetuneJob, "search"))


def _room(plan: FoldsPlan) -> int:
    job = plan.loaded.job
    return at_once(job, job.max_concurrent, plan.most_trials, key="max_concurrent", member="folds")


def _trained(plan: FoldsPlan, store: Store, state: SearchState, console: Console, side_by_side: int) -> FoldsOutcome:
    with FoldsController(plan, store, state, console) as controller, TrialProgress(controller, console):
        run_to_end(controller, plan.trials(), side_by_side)
        return controller.conclude()


class FoldsController(TrialController[FoldsPlan]):
    """The driver's side of a cross-validation."""

    kind, member = "cross-validation", "fold"

    def conclude(self) -> FoldsOutcome:
        """The end: ensemble, report and registered model, each unless an earlier start has made it.

        Raises:
            JobFailedError: the fit of some fold did not come to its end, or the registry refuses the model.
        """
        self._check_all_are_done()
        checkpoint = self._ensemble()
        evaluated = self._evaluated(checkpoint)
        report = read_report(self._store)
        figures = {**evaluated.metrics, **report_metrics(report)}
        outcome = FoldsOutcome(
            name=self.plan.loaded.job.name,
            run_id=self.run_id,
            page=self.page,
            figures=figures,
            notes=list(self._notes(evaluated)),
            checkpoint=self._checkpoints.address(evaluated.checkpoint),
            model=self._published(evaluated.checkpoint, figures, report),
            report=self.address(f"{REPORT}/report.md"),
            counts=dict(Counter(trial.status for trial in self.trials)),
        )
        self.concluded(asdict(outcome))
        return outcome

    @property
    def _checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self._store)

    def _folds(self) -> list[Store]:
        """The folders of the fits, in the order of the folds."""
        return [self._folder(trial.name) for trial in self.plan.trials()]

    def _check_all_are_done(self) -> None:
        """Raises:
        JobFailedError: an ensemble of some of them would be another model, and their pooled figures of some samples.
        """
        missing = [trial for trial in self.trials if trial.status != "finished"]
        if missing:
            reasons = "\n  ".join(f"{trial.name}: {trial.reason}" for trial in missing)
            raise JobFailedError(
                f"{self.plan.loaded.job.name}: {len(missing)} of {self.plan.most_trials} folds' fits did not come to "
                f"their end:\n  {reasons}\nthe same command tries these again"
            )
        for trial, folder in zip(self.plan.trials(), self._folds(), strict=True):
            run = read_run(folder)
            assert run is not None, "it is finished"
            if run.digests["train"] != self.plan.train_digest:
                raise JobFailedError(
                    f"{trial.name} was fitted on other images than the set holds now (digest "
                    f"{run.digests['train'][:12]} there, {self.plan.train_digest[:12]} here): the folds would overlap; "
                    "give the job another name"
                )

    def _ensemble(self) -> str:
        """The name of the checkpoint that holds the networks that each fit chose, with their calibrations."""
        chosen = [self._chosen(folder) for folder in self._folds()]
        step = max(step_of(name) for name in chosen)
        name = f"{CHECKPOINT_PREFIX}{step:09d}-{ENSEMBLE}"
        if name in self._checkpoints.names():
            return name
        found = [CheckpointFolder(folder).fetch(each) for folder, each in zip(self._folds(), chosen, strict=True)]
        calibrations = [read_calibration(read_report(folder)) for folder in self._folds()]
        longest = max((each.position for each in found), key=lambda position: position.step)
        tensors = {"networks": joined(self.plan.job, [each.tensors["networks"] for each in found], calibrations)}
        checkpoint = Checkpoint(longest, self.plan.public, self.run_id, ENSEMBLE, tensors=tensors)
        with tempfile.TemporaryDirectory() as scratch:
            write_checkpoint(Path(scratch), checkpoint)
            self._checkpoints.upload(name, Path(scratch))
        return name

    def _chosen(self, folder: Store) -> str:
        """The checkpoint that a fit chose on the fold that it held out."""
        best = self.plan.job.best_evaluation(read_evaluations(folder))
        assert best is not None, "a fit that came to its end has validated"
        return best.checkpoint

    def _evaluated(self, checkpoint: str) -> EvaluationEntry:
        """The figures, and beside them the report; the test set is looked at once."""
        known = [each for each in read_evaluations(self._store) if each.checkpoint == checkpoint]
        if known:
            return known[0]
        found, step = self._pooled(checkpoint), step_of(checkpoint)
        keep_report(self._store, self._run, found.report, step)
        evaluated = EvaluationEntry(ENSEMBLE, step, checkpoint, dict(found.figures))
        add_evaluation(self._store, evaluated)
        self._run.log_checkpoint(self._checkpoints.address(checkpoint), step, dict(found.figures))
        return evaluated

    def _pooled(self, checkpoint: str) -> Pooled:
        job, data = self.plan.job, self.plan.job.data
        train = read_samples(data.train, read_index(data.train))
        tables = {"train": train}
        if data.test is not None:
            tables["test"] = read_samples(data.test, read_index(data.test))
        samples = FinetuneSamples(
            per_epoch=1,
            notes=self.plan.notes,
            record={"folds": data.folds, "seed": job.seed},
            evaluated={name: known_of(table) for name, table in tables.items() if name != "train"},
            resampled=resampled_of(tables.values()),
        )
        said = None if data.test is None else self._say_of_test(checkpoint, samples)
        return pool(job, samples, train, [read_report(folder) for folder in self._folds()], said)

    def _say_of_test(self, checkpoint: str, samples: FinetuneSamples) -> Said:
        """On a worker of the job's size: the driver may have neither a GPU nor the time."""
        resources = self.plan.job.resources
        gpus = gpus_per_worker(resources)
        task = ray.remote(_predict_test).options(num_cpus=resources.cpus_per_worker, num_gpus=gpus, max_retries=2)
        asked = task.remote(self.plan.job, checkpoint, samples, handed_on(self.plan), "cuda" if gpus else "cpu")
        try:
            said: Said = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayError as error:
            raise JobFailedError(
                f"{self.plan.loaded.job.name}: the ensemble could not be evaluated: {error}"
            ) from error
        return said

    def _published(self, name: str, figures: Mapping[str, float], report: Mapping[str, bytes]) -> str:
        """The address of the registered ensemble; none where nothing is to be registered."""
        job = self.plan.job
        if job.tracking.register_as is None or not self.run_id:
            return ""
        data = facts_of_images(self.plan.public["data"]["train"], read_index(job.data.train))
        try:
            checkpoint = self._checkpoints.fetch(name)
            found = publish(
                job.tracking, self.run_id, checkpoint, figures, data, recipe=job, tags=self.plan.tags(), report=report
            )
        except RequestError as error:
            raise JobFailedError(
                f"{job.name}: the folds are trained, but their ensemble was not registered: {error}\n"
                f"it is in {self._checkpoints.address(name)}; the same command registers it"
            ) from error
        return found.address

    def _notes(self, evaluated: EvaluationEntry) -> Iterator[str]:
        """The figure that counts, of the pooled predictions and of each fold."""
        metric = self.plan.job.main_metric()
        each = [
            found.metrics[metric]
            for folder in self._folds()
            if (found := self.plan.job.best_evaluation(read_evaluations(folder))) is not None
        ]
        if metric in evaluated.metrics:
            of_folds = ", ".join(f"{value:.4f}" for value in each)
            yield f"{metric:11} {evaluated.metrics[metric]:.4f} out of fold, all folds pooled (each fold: {of_folds})"


def _predict_test(
    job: FinetuneJob, checkpoint: str, samples: FinetuneSamples, environment: Mapping[str, str], device: str
) -> Said:
    """In a process of the cluster."""
    os.environ.update(environment)
    networks = build_networks(job)
    state = CheckpointFolder(open_store(job.run_folder)).fetch(checkpoint).tensors["networks"]
    networks.load_state_dict(state)
    return say_of_test(SetReader(job, samples, networks.to(device), torch.device(device)))
