"""The whole way on one machine: images, shards in an embedded S3 server, two workers, three stages, MLflow, weights."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dira_dist.cluster.fit.driver import fit
from dira_dist.cluster.fit.outcome import Outcome
from dira_dist.cluster.session import embedded_ray
from dira_dist.config import read_document
from dira_dist.data.ingest import ShardOptions, ShardReport, shard
from dira_dist.evaluation.pictures import RESTORATIONS
from dira_dist.jobs.load import LoadedJob, load_training_job
from dira_dist.metrics import KNN_ACCURACY, KNN_AUROC, LOSS, PSNR, RANKME, SSIM
from dira_dist.objectives.parts import DISCRIMINATIVE, LOSSES
from dira_dist.quickstart.embedded_s3 import embedded_s3
from dira_dist.quickstart.phantom import write_archive
from dira_dist.registry.pull import Pulled, pull
from dira_dist.tracking.history import metric_history, save_pictures

IMAGES = 384
IMAGE_SIZE_PX = 96
BUCKET = "quickstart"
JOB_FILE = Path(__file__).parent / "jobs" / "pretrain-quickstart.yaml"


@dataclass(frozen=True)
class QuickstartReport:
    """What the quickstart made, and what a person wants to see of it.

    Attributes:
        losses: first and last value of each loss, unweighted; of MoCo's the first with a full queue.
        pictures: files.
        elapsed_s: wall time of all of it.
    """

    outcome: Outcome
    losses: dict[str, tuple[float, float]]
    pictures: list[Path]
    pulled: Pulled
    elapsed_s: float

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        yield f"\nDiRA on {IMAGES} synthetic radiographs: {self.outcome.steps} steps, {self.elapsed_s:.0f} s in all\n"
        yield from self._figures()
        yield ""
        yield f"picture      {self._last_restorations()}  (distorted view, restoration, target, difference)"
        yield f"MLflow page  {self.outcome.page}"
        yield f"weights      {self.pulled.path}  (pulled from {self.outcome.model})"
        yield "\nload them:"
        yield from (f"    {line}" for line in self.pulled.loading_lines.splitlines())
        yield "\nwith your own images:"
        yield "    . .venv/bin/activate                                         # or wherever you installed this"
        yield "    dira-dist shard IMAGES/ SHARDS/ --split train=0.9,val=0.1    # folders, or s3://bucket/prefix"
        yield "    cp jobs/pretrain.yaml my-job.yaml    # set data.train, data.val, checkpoint.storage"
        yield "    dira-dist check my-job.yaml && dira-dist run my-job.yaml"

    def _last_restorations(self) -> Path:
        return [path for path in self.pictures if path.name.startswith(RESTORATIONS)][-1]

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


def run_quickstart(folder: Path | str = "quickstart", *, console: Console | None = None) -> QuickstartReport:
    """Run the main job end to end on this machine, with nothing but this package.

    Args:
        folder: everything goes below it; a run that is there already is gone on with, or shown if it is finished.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: the ``local`` extra is missing.
        JobFailedError: the training failed.
    """
    began, folder = time.monotonic(), Path(folder).absolute()
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    with embedded_s3(BUCKET) as endpoint:
        console.print(
            f"S3 server at {endpoint}; {IMAGES} synthetic radiographs into s3://{BUCKET}/shards", markup=False
        )
        _make_shards(folder / "archive")
        loaded = _load(folder)
        with embedded_ray(loaded.job.resources):
            outcome = fit(loaded, console=console)
        tracking = loaded.job.tracking
        pulled = pull(outcome.model, folder / "weights", tracking_uri=tracking.uri)
    pictures = save_pictures(tracking, outcome.run_id, folder / "pictures")
    losses = _first_and_last_losses(loaded, outcome.run_id)
    return QuickstartReport(outcome, losses, pictures, pulled, time.monotonic() - began)


def _first_and_last_losses(loaded: LoadedJob, run_id: str) -> dict[str, tuple[float, float]]:
    """MoCo's loss begins low, as long as the queue holds noise that no image looks like, so it counts from then on."""
    job = loaded.job
    queue_full_step = loaded.public["method"]["queue_size"] // job.data.global_batch
    found = {}
    for name in LOSSES:
        since = queue_full_step + job.tracking.log_every_steps if name == DISCRIMINATIVE else 0
        history = metric_history(job.tracking, run_id, LOSS.of(name))
        values = [value for step, value in history if step >= since]
        found[name] = (values[0], values[-1])
    return found


def _make_shards(archive: Path) -> ShardReport:
    """A user's archive in a folder, and the shard set of it in S3."""
    if not (archive / "boxes.csv").is_file():  # written last
        write_archive(archive, IMAGES, size_px=IMAGE_SIZE_PX)
    # Phantoms are nobody's images: a salt that everybody knows makes the same shards on every machine.
    salt = archive / "salt"
    salt.write_text(hashlib.sha256(b"phantoms").hexdigest())
    options = ShardOptions(
        image_size=None,
        labels=str(archive / "labels.csv"),
        boxes=str(archive / "boxes.csv"),
        masks=str(archive / "masks"),
        split={"train": 0.8, "val": 0.2},
        group_by="patient",
        salt_file=str(salt),
    )
    return shard(archive / "images", f"s3://{BUCKET}/shards", options)


def _load(folder: Path) -> LoadedJob:
    shards = f"s3://{BUCKET}/shards"
    document = read_document(JOB_FILE).with_overrides(
        [
            f"data.train={shards}/train",
            f"data.val={shards}/val",
            f"probe.train={shards}/train",
            f"probe.val={shards}/val",
            f"checkpoint.storage={folder / 'runs'}",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ]
    )
    return load_training_job(document)
