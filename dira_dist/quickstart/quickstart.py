"""The whole way on one machine: images, shards in an embedded S3 server, two workers, three stages, MLflow, weights."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dira_dist.cluster.fit.driver import fit
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.cluster.session import embedded_ray
from dira_dist.cluster.tune.compare import ComparisonOutcome
from dira_dist.config import RequestError, read_document
from dira_dist.data.ingest import ShardReport, shard
from dira_dist.evaluation.pictures import RESTORATIONS
from dira_dist.jobs.load import LoadedJob, load_training_job
from dira_dist.metrics import KNN_ACCURACY, KNN_AUROC, LOSS, PSNR, RANKME, SSIM
from dira_dist.objectives.parts import DISCRIMINATIVE, LOSSES
from dira_dist.quickstart.embedded_s3 import embedded_s3
from dira_dist.quickstart.few_labels import PICTURE, compare_starts, gain_lines
from dira_dist.quickstart.subjects import Radiographs, Subject, Volumes
from dira_dist.registry.pull import Pulled, pull
from dira_dist.tracking.history import metric_history, save_pictures

BUCKET = "quickstart"


@dataclass(frozen=True)
class QuickstartReport:
    """What the quickstart made, and what a person wants to see of it.

    Attributes:
        subject: what it was shown on.
        losses: first and last value of each loss, unweighted; of MoCo's the first with a full queue.
        pictures: files.
        compared: the same few labels learned from random weights and from these, where that was asked for.
        elapsed_s: wall time of all of it.
    """

    subject: Subject
    outcome: Outcome
    losses: dict[str, tuple[float, float]]
    pictures: list[Path]
    pulled: Pulled
    compared: ComparisonOutcome | None
    elapsed_s: float

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        yield f"\nDiRA on {self.subject.what}: {self.outcome.steps} steps, {self.elapsed_s:.0f} s in all\n"
        yield from self._figures()
        yield ""
        if self.compared is not None:
            yield "what it is worth: lung patterns from the labels of a few patients, from both starts\n"
            yield from gain_lines(self.compared)
            yield f"\npicture      {self._last(PICTURE)}  (both starts' answers, green the truth)"
        yield f"picture      {self._last(RESTORATIONS)}  (distorted view, restoration, target, difference)"
        yield f"MLflow page  {self.outcome.page}"
        yield f"weights      {self.pulled.path}  (pulled from {self.outcome.model})"
        yield "\nload them:"
        yield from (f"    {line}" for line in self.pulled.loading_lines.splitlines())
        yield "\nwith your own images:"
        yield "    . .venv/bin/activate                                         # or wherever you installed this"
        yield from (f"    {line}" for line in self.subject.own())

    def _last(self, name: str) -> Path:
        return [path for path in self.pictures if path.name.startswith(name)][-1]

    def _figures(self) -> Iterator[str]:
        stages = list(self.outcome.quality.values())
        before, after = stages[0], stages[-1]
        yield f"{'':28}{'before':>10}{'after':>10}"
        for name, (first, last) in self.losses.items():
            yield f"{name + ' loss':28}{first:10.4f}{last:10.4f}"
        for name, title in (
            (PSNR.name, "restoration PSNR, dB"),
            (SSIM.name, "restoration SSIM"),
            (RANKME.name, "RankMe"),
            (KNN_ACCURACY.name, "k-NN probe, accuracy"),
            (KNN_AUROC.name, "k-NN probe, AUROC"),
        ):
            yield f"{title:28}{before[name]:10.4f}{after[name]:10.4f}"


def run_quickstart(
    folder: Path | str = "quickstart",
    *,
    volumes: bool = False,
    compare: bool | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> QuickstartReport:
    """Run the main job end to end on this machine, with nothing but this package.

    Args:
        folder: everything goes below it; a run that is there already is gone on with, or shown if it is finished.
        volumes: whether it is shown in 3D, on cubes of CT volumes, in place of radiographs.
        compare: whether to ask what the weights are worth, by fine-tunings from them and from random ones; where left
            out it is asked of radiographs.
        seed: of images, networks and labels. Another seed wants another folder.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: the ``local`` extra is missing, the folder holds a run of another seed, or there is no comparison
            in 3D.
        JobFailedError: a training failed.
    """
    began, folder = time.monotonic(), Path(folder).absolute()
    subject: Subject = Volumes() if volumes else Radiographs()
    compare_file = None if compare is False else subject.compare_file
    if compare and compare_file is None:
        raise RequestError("compare with volumes: the quickstart compares starts on radiographs; leave one of them out")
    shards = f"s3://{BUCKET}/{subject.shards}"
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    with embedded_s3(BUCKET) as endpoint:
        console.print(f"S3 server at {endpoint}; {subject.what} into {shards}", markup=False)
        _make_shards(subject, folder / "archive", shards, seed)
        loaded = _load(subject, folder, shards, seed)
        tracking = loaded.job.tracking
        with embedded_ray(loaded.job.resources):
            outcome = fit(loaded, console=console)
            compared = None
            if compare_file is not None:
                compared = compare_starts(compare_file, folder, shards, outcome, seed=seed, console=console)
        pulled = pull(outcome.model, folder / "weights", format=subject.format, tracking_uri=tracking.uri)
    pictures = save_pictures(tracking, outcome.run_id, folder / "pictures")
    losses = _first_and_last_losses(loaded, outcome.run_id)
    return QuickstartReport(subject, outcome, losses, pictures, pulled, compared, time.monotonic() - began)


def _first_and_last_losses(loaded: LoadedJob, run_id: str) -> dict[str, tuple[float, float]]:
    """MoCo's loss begins low, as long as the queue holds noise that no image looks like, so it counts from then on."""
    job = loaded.job
    queue_full_step = loaded.public["method"].get("queue_size", 0) // job.data.global_batch
    found = {}
    for name in LOSSES:
        since = queue_full_step + job.tracking.log_every_steps if name == DISCRIMINATIVE and queue_full_step else 0
        history = metric_history(job.tracking, run_id, LOSS.of(name))
        values = [value for step, value in history if step >= since]
        found[name] = (values[0], values[-1])
    return found


def _make_shards(subject: Subject, archive: Path, shards: str, seed: int) -> ShardReport:
    """A user's archive in a folder, and the shard set of it in S3."""
    drawn = archive / "seed"
    if not drawn.is_file() or drawn.read_text() != str(seed):
        subject.write(archive, seed)
        drawn.write_text(str(seed))
    return shard(archive / "images", shards, subject.options(archive))


def _load(subject: Subject, folder: Path, shards: str, seed: int) -> LoadedJob:
    document = read_document(subject.job_file).with_overrides(
        [
            f"seed={seed}",
            f"data.train={shards}/train",
            f"data.val={shards}/val",
            f"probe.train={shards}/train",
            f"probe.val={shards}/val",
            f"checkpoint.storage={folder / 'runs'}",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ]
    )
    return load_training_job(document)
