"""Does the pretraining pay? The same few masks learned from random weights and from what was pretrained."""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dira_dist.cluster.fit.driver import fit
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.config import read_document
from dira_dist.data.store import open_store
from dira_dist.drawing import Picture
from dira_dist.evaluation.intervals import Floats, Measured, Resamples, weighted_mean
from dira_dist.evaluation.report_pictures import side_by_side
from dira_dist.evaluation.segmentation import DICE, SegmentationCase
from dira_dist.jobs.load import LoadedJob, load_training_job
from dira_dist.registry.checkpoint import download_checkpoint
from dira_dist.runs.report import read_report
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.finetune.networks import build_networks
from dira_dist.training.finetune.prediction import SetReader, predict_masks
from dira_dist.training.finetune.recipe import FinetuneRecipe
from dira_dist.training.finetune.samples import FinetuneSamples
from dira_dist.training.task import recipe_of

JOB_FILE = Path(__file__).parent / "jobs" / "finetune-quickstart.yaml"
RANDOM, PRETRAINED = "random start", "pretrained start"
PICTURE = "starts"
_CASES = "cases-test.csv"
_RESAMPLES = 2000


@dataclass(frozen=True)
class StartsCompared:
    """What two starts made of the same labels.

    Attributes:
        dice: (D, N) mean Dice over the organs for each draw of the labels and test image, by start.
        patients: whom each of the N test images is of.
    """

    dice: Mapping[str, Floats]
    patients: Sequence[str]

    @property
    def gain(self) -> Measured:
        """Dice that the pretrained start is better by, mean of all draws; the interval is over test patients."""
        differences = (self.dice[PRETRAINED] - self.dice[RANDOM]).mean(axis=0)
        return Resamples(self.patients, _RESAMPLES).measure(weighted_mean(differences))

    @property
    def is_sure(self) -> bool:
        """Whether the pretrained start is better in each draw, and the whole interval is above 0."""
        by_draw = (self.dice[PRETRAINED] - self.dice[RANDOM]).mean(axis=1)
        return bool(self.gain.low > 0 and (by_draw > 0).all())

    def lines(self) -> Iterator[str]:
        """The comparison as a person reads it."""
        draws, images = self.dice[RANDOM].shape
        yield f"lungs and heart from two masks, Dice on {images} test images of {len(set(self.patients))} patients:"
        yield f"{'':28}" + "".join(f"{f'draw {draw + 1}':>10}" for draw in range(draws)) + f"{'mean':>10}"
        for start, found in self.dice.items():
            yield f"{start:28}" + "".join(f"{value:10.3f}" for value in (*found.mean(axis=1), found.mean()))
        gain = self.gain
        verdict = "pretraining pays" if self.is_sure else "no gain to be sure of"
        yield f"{verdict}: {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f} over test patients"


def compare_starts(
    folder: Path, shards: str, pretrained: Outcome, *, seed: int, draws: int, console: Console | None
) -> StartsCompared:
    """Fine-tune from both starts, with the same labels, steps and rate within a draw, in the Ray that is there.

    Args:
        folder: of the quickstart.
        shards: address with the sets train, val and test below it.
        pretrained: the run to start from; the picture is logged to it.
        seed: of networks and labels; each draw has its own.
        draws: of the labelled images.
        console: where progress is shown.

    Raises:
        JobFailedError: a fine-tuning failed; the same call goes on.
    """
    starts = {RANDOM: "random", PRETRAINED: pretrained.model}
    jobs = {
        start: [_load(folder, shards, address, seed * draws + draw) for draw in range(draws)]
        for start, address in starts.items()
    }
    outcomes = {start: [fit(job, console=console) for job in jobs[start]] for start in jobs}
    found = {start: [_test_dice(job) for job in jobs[start]] for start in jobs}
    picture = side_by_side({start: _cases_of(done[0]) for start, done in outcomes.items()})
    _log(jobs[RANDOM][0].job.tracking, pretrained, picture)
    dice = {start: np.stack([values for values, _ in each]) for start, each in found.items()}
    return StartsCompared(dice, found[RANDOM][0][1])


def _load(folder: Path, shards: str, start: str, draw: int) -> LoadedJob:
    name = f"quickstart-masks-{'random' if start == 'random' else 'pretrained'}-{draw}"
    sets = [f"data.{part}={shards}/{part}" for part in ("train", "val", "test")]
    places = [f"checkpoint.storage={folder / 'runs'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    own = [f"name={name}", f"start.from={start}", f"seed={draw}", f"data.fraction_seed={draw}"]
    return load_training_job(read_document(JOB_FILE).with_overrides([*sets, *places, *own]))


def _test_dice(loaded: LoadedJob) -> tuple[Floats, list[str]]:
    """(N,) mean Dice of each test image over the organs, as the run's report has it, and whom it is of."""
    text = read_report(open_store(loaded.job.run_folder))[_CASES].decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in rows[0] if name.startswith(f"{DICE} ")]
    values = [[float(row[name] or "nan") for name in names] for row in rows]
    return np.nanmean(np.array(values), axis=1), [row["group"] for row in rows]


def _cases_of(outcome: Outcome) -> list[SegmentationCase]:
    """What the chosen networks of a fine-tuning say of the test images."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = download_checkpoint(outcome.best, Path(scratch)).checkpoint
    recipe = recipe_of(checkpoint.job)
    assert isinstance(recipe, FinetuneRecipe)
    networks = build_networks(recipe)
    networks.load_state_dict(checkpoint.tensors["networks"])
    reader = SetReader(recipe, FinetuneSamples(per_epoch=1), networks, torch.device("cpu"))
    return predict_masks(reader, "test", in_full=True)


def _log(tracking: TrackingConfig, pretrained: Outcome, picture: Picture) -> None:
    """To the run of the pretraining, which is over."""
    run = TrackingRun.attach(tracking.model_copy(update={"system_metrics_every_s": 0.0}), pretrained.run_id)
    run.log_picture(PICTURE, picture, pretrained.steps)
    run.finish("FINISHED")
