"""The command line: one thin function for each verb. Everything a verb does is a Python call of the package too.

Exit codes: 0 done, 1 the work failed, or storage in the middle of it, 2 the request was wrong (one message, nothing
started or overwritten).
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import Progress

import dira_dist
from dira_dist.config import Document, JobFailedError, RequestError, validate
from dira_dist.data.patience import StoreError

if TYPE_CHECKING:
    from dira_dist.data.ingest import Progress as ShardProgress

app = typer.Typer(
    help="DiRA self-supervised pretraining of medical images at cluster scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
k8s = typer.Typer(help="Kubernetes.", no_args_is_help=True)
app.add_typer(k8s, name="k8s")
_out, _err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)

Job = Annotated[Path, typer.Argument(help="job file; examples are in jobs/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the job file; repeatable")
]
Address = Annotated[str | None, typer.Option(help="the cluster's dashboard; RAY_ADDRESS where left out")]


def _write_now(text: str) -> None:
    """A log that is followed is read line by line, also through a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _progress_bar(title: str) -> Iterator["ShardProgress"]:
    """A live bar on a terminal, nothing elsewhere; yields the function that moves it."""
    with Progress(console=_err, transient=True, disable=not _err.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def main() -> None:
    """Run the command line, and turn what went wrong into one message and an exit code."""
    try:
        app()
    except RequestError as error:
        _err.print(f"dira-dist: {error}", markup=False)
        sys.exit(2)
    except (JobFailedError, StoreError) as error:
        _err.print(f"dira-dist: {error}", markup=False)
        sys.exit(1)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Argument(help="where everything it makes goes")] = Path("quickstart"),
) -> None:
    """The main job end to end on this machine: images, shards in S3, 2 workers, 3 stages, MLflow, register, pull."""
    for line in dira_dist.quickstart(folder, console=_err).lines():
        _out.print(line, markup=False)


@app.command()
def shard(
    source: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix of images; with --verify a shard set")],
    dest: Annotated[str | None, typer.Argument(help="folder or s3://bucket/prefix for the shard set")] = None,
    image_size: Annotated[int, typer.Option(help="side of the stored images in px; 0 keeps them as they are")] = 512,
    side: Annotated[str, typer.Option(help="which side that is: shortest or longest")] = "shortest",
    coding: Annotated[str, typer.Option(help="png (lossless) or jpeg")] = "png",
    jpeg_quality: Annotated[int, typer.Option(help="1 to 100")] = 95,
    content: Annotated[
        str | None,
        typer.Option(help="images, slices (of volumes) or volumes; volumes where there are only such if left out"),
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(help="files per tar; chosen by their number if left out")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="L, I;16 or RGB; the richest of a sample of files if left out")
    ] = None,
    intensity: Annotated[
        str,
        typer.Option(help="values to grey: window, full, range:LOW,HIGH (HU: range:-1000,400) or percentiles:LOW,HIGH"),
    ] = "window",
    axis: Annotated[str, typer.Option(help="slices of volumes: axial, coronal or sagittal")] = "axial",
    every: Annotated[int, typer.Option(help="takes every so many slices of a volume")] = 1,
    include: Annotated[
        str | None,
        typer.Option(
            help="A,B: DICOM objects left out otherwise: segmentation, dose, localizer, report, for-processing"
        ),
    ] = None,
    spacing_tolerance: Annotated[
        float, typer.Option(help="how far a step between slices may differ from the usual, as a share of it")
    ] = 0.05,
    tilt: Annotated[str, typer.Option(help="slices of a tilted gantry: correct or refuse")] = "correct",
    volume_masks: Annotated[
        str, typer.Option(help="a volume's mask must match its voxels, or is resampled: match or resample")
    ] = "match",
    volume_budget_gib: Annotated[float, typer.Option(help="larger volumes are named, not read")] = 2.0,
    labels: Annotated[str | None, typer.Option(help="CSV with a row per image, or the word `folders`")] = None,
    image_column: Annotated[str, typer.Option(help="column that names the image's file")] = "image",
    label_columns: Annotated[
        str | None, typer.Option(help="A,B,C: columns that are labels; those of usual names if left out")
    ] = None,
    boxes: Annotated[str | None, typer.Option(help="CSV with columns x, y, width, height in px")] = None,
    masks: Annotated[str | None, typer.Option(help="folder with a label map for each image, named like it")] = None,
    split: Annotated[str | None, typer.Option(help="parts and shares, such as train=0.9,val=0.1")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="what stays in one part: a column, PatientID, folder or none; DICOM's patient if left out"),
    ] = None,
    salt_file: Annotated[
        Path | None, typer.Option(help="secret behind the samples' keys; one per user if left out")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="one per core if left out")] = None,
    report: Annotated[Path | None, typer.Option(help="JSON file for what was read, skipped and why")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="refuse an archive with an unreadable file")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a set that was made otherwise")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="check the shard set SOURCE against its index")] = False,
) -> None:
    """Images (PNG, JPEG, TIFF, DICOM, NIfTI) to a shard set; an interrupted run goes on with the same command."""
    if verify:
        problems = dira_dist.verify(source)
        _out.print("\n".join(problems) or f"{source}: sound", markup=False)
        sys.exit(1 if problems else 0)
    if dest is None:
        raise RequestError("DEST is missing: dira-dist shard SOURCE DEST")
    given = {
        "image_size": image_size or None,
        "side": side,
        "coding": coding,
        "jpeg_quality": jpeg_quality,
        "content": content,
        "samples_per_shard": samples_per_shard,
        "mode": mode,
        "intensity": intensity,
        "axis": axis,
        "every": every,
        "include": include.split(",") if include else [],
        "spacing_tolerance": spacing_tolerance,
        "tilt": tilt,
        "volume_masks": volume_masks,
        "volume_budget_gib": volume_budget_gib,
        "labels": labels,
        "image_column": image_column,
        "label_columns": label_columns.split(",") if label_columns else None,
        "boxes": boxes,
        "masks": masks,
        "split": dira_dist.parse_split(split) if split else None,
        "group_by": group_by,
        "salt_file": str(salt_file) if salt_file else None,
        "processes": processes,
        "report": str(report) if report else None,
        "strict": strict,
        "overwrite": overwrite,
    }
    options = validate(dira_dist.ShardOptions, Document(given, "shard"))
    with _progress_bar("sharding") as progress:
        done = dira_dist.shard(source, dest, options, progress)
    for line in done.lines():
        _out.print(line, markup=False)


@app.command()
def check(job: Job, overrides: Overrides = None) -> None:
    """Validate a job, print it resolved and what it will do; touches nothing."""
    loaded = dira_dist.load_job(job, overrides or [])
    facts = dira_dist.check(loaded)
    _out.print(yaml.safe_dump(loaded.record, sort_keys=False, allow_unicode=True), markup=False)
    for line in facts.lines():
        _out.print(line, markup=False)


@app.command()
def run(job: Job, overrides: Overrides = None) -> None:
    """Run a job on the cluster of RAY_ADDRESS, else on an embedded Ray here. The same command resumes it."""
    for line in dira_dist.run(dira_dist.load_job(job, overrides or []), console=_err).lines():
        _out.print(line, markup=False)


@app.command()
def submit(
    job: Job,
    overrides: Overrides = None,
    address: Address = None,
    env: Annotated[list[str] | None, typer.Option(help="environment variable to hand to the job; repeatable")] = None,
    wait: Annotated[bool, typer.Option(help="follow the log and end with the job's exit code")] = True,
) -> None:
    """Run a job through Ray Jobs, with the working directory as its environment."""
    submission = dira_dist.submit(job, overrides or [], address=address, env=env or [])
    _err.print(f"submitted as {submission.job_id}", markup=False)
    if wait:
        sys.exit(submission.follow(_write_now))


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(help="as `submit` printed it; all jobs where left out")] = None,
    address: Address = None,
) -> None:
    """What became of submitted jobs, one a line: id, status, begin, end."""
    if job_id is not None:
        _out.print(dira_dist.submission(job_id, address=address).describe(), markup=False)
        return
    for line in map(dira_dist.describe, dira_dist.submissions(address=address)):
        _out.print(line, markup=False)


@app.command()
def logs(
    job_id: Annotated[str, typer.Argument(help="as `submit` printed it")],
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="until the job ends, with its exit code")] = False,
) -> None:
    """What a submitted job has written."""
    found = dira_dist.submission(job_id, address=address)
    if follow:
        sys.exit(found.follow(_write_now))
    sys.stdout.write(found.log())


@app.command()
def stop(
    job_id: Annotated[str, typer.Argument(help="as `submit` printed it")],
    address: Address = None,
) -> None:
    """End a submitted job; submitted again, its run goes on from the last checkpoint."""
    ended = dira_dist.submission(job_id, address=address).stop()
    _out.print(f"{job_id}: {'stopping' if ended else 'had ended already'}", markup=False)


@k8s.command()
def render(
    job: Job,
    overrides: Overrides = None,
    image: Annotated[str | None, typer.Option(help="of every pod; the project's own where left out")] = None,
    workers_per_pod: Annotated[int, typer.Option(min=1, help="workers of one pod share memory and NVLink")] = 1,
    memory_gib: Annotated[int | None, typer.Option(min=1, help="of one worker pod; 4 per CPU where left out")] = None,
) -> None:
    """Print the RayJob of a job file: pods, GPUs, memory and elasticity as its `resources` say."""
    sys.stdout.write(
        dira_dist.render(job, overrides or [], image=image, workers_per_pod=workers_per_pod, memory_gib=memory_gib)
    )


@app.command()
def register(
    source: Annotated[str, typer.Argument(help="MLflow run (runs:/ID), a checkpoint, or a run's folder of them")],
    name: Annotated[str | None, typer.Option(help="in the registry; tracking.register_as where left out")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")] = None,
) -> None:
    """A new version in the registry from the newest checkpoint of a run, also one that failed or was stopped."""
    with _progress_bar("fetching") as progress:
        registered = dira_dist.register(source, name=name, tracking_uri=tracking_uri, progress=progress)
    best = "is" if registered.is_best else "is not"
    _out.print(f"{registered.address} {best} @best: {registered.why}", markup=False)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, or a checkpoint")],
    dest: Annotated[Path, typer.Argument(help="folder for the weights")],
    format: Annotated[str, typer.Option(help="torchvision, timm or smp")] = "torchvision",  # noqa: A002
    in_channels: Annotated[int | None, typer.Option(help="1 or 3; the model's own where left out")] = None,
    file_format: Annotated[str, typer.Option(help="safetensors or pt")] = "safetensors",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")] = None,
) -> None:
    """Weights as a plain state dict that loads strictly, and the lines of Python that load it."""
    with _progress_bar("pulling") as progress:
        pulled = dira_dist.pull(
            model,
            dest,
            format=format,
            in_channels=in_channels,
            file_format=file_format,
            tracking_uri=tracking_uri,
            progress=progress,
        )
    _out.print(pulled.loading_lines, markup=False)


@app.command()
def schema() -> None:
    """JSON Schema of the job file, for editors."""
    sys.stdout.write(json.dumps(dira_dist.job_schema(), indent=1) + "\n")
