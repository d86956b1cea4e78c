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
from dira_dist.quickstart.few_labels import PICTURE, StartsCompared, compare_starts
from dira_dist.quickstart.phantom import write_archive
from dira_dist.registry.pull import Pulled, pull
from dira_dist.tracking.history import metric_history, save_pictures

IMAGES = 480
IMAGE_SIZE_PX = 96
SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}
BUCKET = "quickstart"
SHARDS = f"s3://{BUCKET}/shards"
JOB_FILE = Path(__file__).parent / "jobs" / "pretrain-quickstart.yaml"


@dataclass(frozen=True)
class QuickstartReport:
    """What the quickstart made, and what a person wants to see of it.

    Attributes:
        losses: first and last value of each loss, unweighted; of MoCo's the first with a full queue.
        pictures: files.
        compared: the same few masks learned from both starts; none where that was not asked for.
        elapsed_s: wall time of all of it.
    """

    outcome: Outcome
    losses: dict[str, tuple[float, float]]
    pictures: list[Path]
    pulled: Pulled
    compared: StartsCompared | None
    elapsed_s: float

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        yield f"\nDiRA on {IMAGES} synthetic radiographs: {self.outcome.steps} steps, {self.elapsed_s:.0f} s in all\n"
        yield from self._figures()
        yield ""
        if self.compared is not None:
            yield from self.compared.lines()
            yield f"\npicture      {self._last(PICTURE)}  (both starts' masks, green the truth)"
        yield f"picture      {self._last(RESTORATIONS)}  (distorted view, restoration, target, difference)"
        yield f"MLflow page  {self.outcome.page}"
        yield f"weights      {self.pulled.path}  (pulled from {self.outcome.model})"
        yield "\nload them:"
        yield from (f"    {line}" for line in self.pulled.loading_lines.splitlines())
        yield "\nwith your own images:"
        yield "    . .venv/bin/activate                                         # or wherever you installed this"
        yield "    dira-dist shard IMAGES/ SHARDS/ --split train=0.9,val=0.1    # folders, or s3://bucket/prefix"
        yield "    cp jobs/pretrain.yaml my-job.yaml    # set data.train, data.val, checkpoint.storage"
        yield "    dira-dist check my-job.yaml && dira-dist run my-job.yaml"

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
    folder: Path | str = "quickstart", *, seed: int = 0, draws: int = 0, console: Console | None = None
) -> QuickstartReport:
    """Run the main job end to end on this machine, with nothing but this package.

    Args:
        folder: everything goes below it; a run that is there already is gone on with, or shown if it is finished.
        seed: of images, networks and labels. Another seed wants another folder.
        draws: how often two labelled images are drawn that a segmenter learns from, once from the pretrained weights
            and once from random ones; 0: not at all.
        console: where progress is shown; standard error by default.

    Raises:
        RequestError: the ``local`` extra is missing, or the folder holds a run of another seed.
        JobFailedError: a training failed.
    """
    began, folder = time.monotonic(), Path(folder).absolute()
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    with embedded_s3(BUCKET) as endpoint:
        console.print(f"S3 server at {endpoint}; {IMAGES} synthetic radiographs into {SHARDS}", markup=False)
        _make_shards(folder / "archive", seed)
        loaded = _load(folder, seed)
        tracking = loaded.job.tracking
        with embedded_ray(loaded.job.resources):
            outcome = fit(loaded, console=console)
            compared = None
            if draws:
                compared = compare_starts(folder, SHARDS, outcome, seed=seed, draws=draws, console=console)
        pulled = pull(outcome.model, folder / "weights", tracking_uri=tracking.uri)
    pictures = save_pictures(tracking, outcome.run_id, folder / "pictures")
    losses = _first_and_last_losses(loaded, outcome.run_id)
    return QuickstartReport(outcome, losses, pictures, pulled, compared, time.monotonic() - began)


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


def _make_shards(archive: Path, seed: int) -> ShardReport:
    """A user's archive in a folder, and the shard set of it in S3."""
    drawn = archive / "seed"
    if not drawn.is_file() or drawn.read_text() != str(seed):
        write_archive(archive, IMAGES, seed, size_px=IMAGE_SIZE_PX)
        drawn.write_text(str(seed))
    # Phantoms are nobody's images: a salt that everybody knows makes the same shards on every machine.
    salt = archive / "salt"
    salt.write_text(hashlib.sha256(b"phantoms").hexdigest())
    options = ShardOptions(
        image_size=None,
        labels=str(archive / "labels.csv"),
        boxes=str(archive / "boxes.csv"),
        masks=str(archive / "masks"),
        split=SPLIT,
        group_by="patient",
        salt_file=str(salt),
    )
    return shard(archive / "images", SHARDS, options)


def _load(folder: Path, seed: int) -> LoadedJob:
    document = read_document(JOB_FILE).with_overrides(
        [
            f"seed={seed}",
            f"data.train={SHARDS}/train",
            f"data.val={SHARDS}/val",
            f"probe.train={SHARDS}/train",
            f"probe.val={SHARDS}/val",
            f"checkpoint.storage={folder / 'runs'}",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ]
    )
    return load_training_job(document)
