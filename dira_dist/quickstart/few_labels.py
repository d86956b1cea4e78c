"""Does the pretraining pay? The same few labels learned from random weights and from what was pretrained."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.cluster.tune.compare import ComparisonOutcome, compare
from dira_dist.config import read_document
from dira_dist.data.store import open_store
from dira_dist.data.validation import ValidationStream
from dira_dist.drawing import Picture
from dira_dist.evaluation.report_pictures import chances_side_by_side
from dira_dist.jobs.load import LoadedComparison, load_job
from dira_dist.runs.folder import COMPARISON_DATA
from dira_dist.runs.report import read_report
from dira_dist.tracking.run import TrackingRun
from dira_dist.training.finetune.recipe import Classify, FinetuneData
from dira_dist.training.finetune.report_tables import SampleRows, read_rows

PRETRAINED = "pretrained"
PICTURE = "starts"
_BATCH = 64


def compare_starts(
    job_file: Path, folder: Path, shards: str, pretrained: Outcome, *, seed: int, console: Console | None
) -> ComparisonOutcome:
    """Fine-tune from both starts, in the Ray that is there, and log a picture of both starts' answers.

    Args:
        job_file: of the comparison, with a start named ``pretrained``.
        folder: of the quickstart.
        shards: address with the sets train, val and test below it.
        pretrained: the run to start from; the picture is logged to it.
        seed: of networks and labels; each draw of the labels has its own.
        console: where progress is shown.

    Raises:
        JobFailedError: too few fine-tunings came to their end; the same call goes on.
    """
    loaded = _load(job_file, folder, shards, pretrained.model, seed)
    outcome = compare(loaded, console=console)
    if not outcome.already_done:
        _log(loaded, pretrained, _picture(loaded))
    return outcome


def gain_lines(outcome: ComparisonOutcome) -> Iterator[str]:
    """The comparison as a person reads it: table, what it is of, and what can be said."""
    yield from outcome.table
    yield ""
    yield from outcome.notes
    yield ""
    yield from outcome.sentences.values()


def _load(job_file: Path, folder: Path, shards: str, model: str, seed: int) -> LoadedComparison:
    document = read_document(job_file)
    draws = int(document.values["seeds"])
    sets = [f"base.data.{part}={shards}/{part}" for part in ("train", "val", "test")]
    seeds = [f"base.seed={seed * draws}", f"base.data.fraction_seed={seed * draws}"]
    places = [f"base.checkpoint.storage={folder / 'runs'}", f"base.tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    loaded = load_job(job_file, [*sets, *seeds, *places, f"starts.{PRETRAINED}.from={model}"])
    assert isinstance(loaded, LoadedComparison)
    return loaded


def _picture(loaded: LoadedComparison) -> Picture:
    """What the first draw's fits say of test images."""
    task, data = loaded.comparison.base.task, loaded.comparison.base.data
    assert isinstance(task, Classify) and task.classes is not None
    rows = _first_draw(loaded)
    first = next(iter(rows.values()))
    assert first.truth is not None and all(each.keys == first.keys for each in rows.values())
    images = _images(data)
    return chances_side_by_side(
        [images[key] for key in first.keys],
        first.truth.argmax(axis=1),
        {name: each.values for name, each in rows.items()},
        task.classes,
    )


def _first_draw(loaded: LoadedComparison) -> dict[str, SampleRows]:
    """The answers on the test set by start, with the first seed and the rate that was chosen."""
    comparison, job = loaded.comparison, loaded.job.resolve_paths()
    found = json.loads(open_store(job.run_folder).read_bytes(COMPARISON_DATA))
    names = {
        cell["start"]: comparison.fit_name(cell["start"], cell["fraction"], cell["learning_rate"], job.seed)
        for cell in found["cells"]
    }
    runs = job.checkpoint.storage.rstrip("/")
    return {start: read_rows(read_report(open_store(f"{runs}/{names[start]}")), "test") for start in comparison.starts}


def _images(data: FinetuneData) -> dict[str, npt.NDArray[np.uint8]]:
    """(H, W) of the test set's samples by key."""
    assert data.test is not None
    with ValidationStream(data.test, data.read_options, batch_size=_BATCH, rank=0, world_size=1) as stream:
        return {
            batch.keys[place]: batch.images[place, 0].numpy()
            for batch in stream
            for place in np.flatnonzero(batch.valid.numpy()).tolist()
        }


def _log(loaded: LoadedComparison, pretrained: Outcome, picture: Picture) -> None:
    """To the run of the pretraining, which is over."""
    tracking = loaded.job.tracking.model_copy(update={"system_metrics_every_s": 0.0})
    run = TrackingRun.attach(tracking, pretrained.run_id)
    run.log_picture(PICTURE, picture, pretrained.steps)
    run.finish("FINISHED")
