"""How a training ends: the model registered, the best checkpoints kept, the outcome reported."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dira_dist.cluster.fit.evaluations import log_late
from dira_dist.cluster.fit.session import FitSession
from dira_dist.cluster.outcome import JobOutcome
from dira_dist.config import JobFailedError, RequestError
from dira_dist.data.generations import plain_address
from dira_dist.data.shards import ShardSetIndex
from dira_dist.evaluation.pictures import LOSSES
from dira_dist.registry.publish import publish
from dira_dist.runs.evaluations import by_label, figures_of, read_evaluations
from dira_dist.runs.report import read_report, report_metrics
from dira_dist.tracking.history import draw_losses
from dira_dist.tracking.protocol import Run
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.checkpoints import CheckpointFolder, step_of
from dira_dist.training.state import Checkpoint


@dataclass(frozen=True)
class Outcome(JobOutcome):
    """What a finished training leaves behind.

    Attributes:
        steps: optimiser steps of all stages.
        checkpoint: address of the last checkpoint.
        best: address of the checkpoint that is best by ``checkpoint.best``; empty where nothing was evaluated.
        model: ``models:/name/version`` of the registered model, or an empty string.
        quality: the figures of the networks before and after each stage, by stage and name.
    """

    steps: int = 0
    checkpoint: str = ""
    best: str = ""
    model: str = ""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The outcome as text, line by line."""
        yield self.headline(f", {self.steps:,} steps")
        yield f"checkpoint  {self.checkpoint}"
        yield from self.run_lines()
        if self.model:
            yield f"model       {self.model}  (dira-dist pull {shlex.quote(self.model)} weights/)"


def conclude(session: FitSession, run: Run) -> Outcome:
    """Register what the last checkpoint holds, and say what came out."""
    job, folder = session.job, CheckpointFolder(session.store)
    newest = folder.newest_whole(lambda warning: None)
    assert newest is not None, "the last stage ends with a checkpoint"
    name, checkpoint = newest
    if checkpoint.pending_metrics and run.run_id:  # measured while the tracking server was away
        late = TrackingRun.attach(session.tracking, run.run_id, checkpoint.pending_metrics)
        if not late.flush():
            raise session.undelivered()
    run.deliver_left_behind()
    log_late(run, session.store)
    evaluations = read_evaluations(session.store)
    best_one = job.best_evaluation(evaluations)
    if job.publishes_best and best_one is not None:
        name, checkpoint = best_one.checkpoint, folder.fetch(best_one.checkpoint)
    for gone in folder.keep(job.checkpoint.keep, [best_one.checkpoint] if best_one else []):
        run.log_removal(step_of(gone))
    report = read_report(session.store)
    figures = figures_of(evaluations, name) | (report_metrics(report) if report else {})
    return Outcome(
        name=job.name,
        run_id=run.run_id,
        page=run.page,
        steps=newest[1].position.step,
        checkpoint=folder.address(newest[0]),
        best=folder.address(best_one.checkpoint) if best_one else "",
        model=_published(session, run.run_id, checkpoint, figures, report),
        quality=by_label(evaluations),
    )


def draw_loss_curves(session: FitSession, run: Run) -> None:
    """The curves of the whole run as a picture, where its tracking server is there to be asked for them."""
    boundaries = {span.first_step: span.name for span in session.facts.plan.spans}
    try:
        curves = draw_losses(session.tracking, run.run_id, boundaries) if run.run_id else None
    except RequestError:
        return  # the training is done, and its figures arrive when the server is back
    if curves is not None:
        run.log_picture(LOSSES, curves, session.facts.plan.steps)
        run.flush()


def _published(
    session: FitSession,
    run_id: str,
    checkpoint: Checkpoint,
    quality: Mapping[str, float],
    report: Mapping[str, bytes],
) -> str:
    """The address of the newly registered model; none where nothing is to be registered."""
    train, job = session.facts.train, session.job
    if job.tracking.register_as is None or not run_id:
        return ""
    data = facts_of_images(session.loaded.public["data"]["train"], train)
    try:
        recipe = session.job_as_it_ran
        found = publish(
            job.tracking, run_id, checkpoint, quality, data, recipe=recipe, tags=session.tags, report=report
        )
        return found.address
    except RequestError as error:
        raise JobFailedError(
            f"{job.name} is trained, but its model was not registered: {error}\n"
            f"its checkpoints are in {job.run_folder}; the same command registers it"
        ) from error


def facts_of_images(address: str, train: ShardSetIndex) -> dict[str, Any]:
    """What a model's card says of its training images."""
    known = {"address": plain_address(address), "generation": train.number, "digest": train.digest}
    return {**known, "images": train.samples, **_scanned(train)}


def _scanned(train: ShardSetIndex) -> dict[str, str]:
    """Of cubes and volumes the scale of their intensities and their spacing: what is fed later must be made alike."""
    if train.image.axes != 3:
        return {}
    known = {"intensities": str(train.made_by.get("request", {}).get("intensity") or "")}
    if spacing := train.image.spacing_mm:
        medians = " x ".join(f"{axis.median:.4g}" for axis in reversed(spacing))
        known["spacing along x, y and z"] = f"{medians} mm (medians)"
    return {name: value for name, value in known.items() if value}
