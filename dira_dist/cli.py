"""The command line: one thin function for each verb. Everything a verb does is a Python call of the package too.

Exit codes: 0 done, 1 the work failed, or storage in the middle of it, 2 the request was wrong (one message, nothing
started or overwritten).
"""

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.console import Console

import dira_dist
from dira_dist.config import Document, JobFailedError, RequestError, Section, dump_yaml, validate
from dira_dist.data.ingest.options import ShardOptions
from dira_dist.data.retry import StoreError
from dira_dist.environment import VERBOSE
from dira_dist.jobs.draft import DraftKind
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.progress import counted
from dira_dist.vocabulary.options import WordsOptions

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


@app.callback()
def _of_all_verbs(
    verbose: Annotated[bool, typer.Option("--verbose", help="what Ray and MLflow say of themselves, too")] = False,
) -> None:
    if verbose:
        os.environ[VERBOSE] = "1"
    else:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when it is imported, by this process and others


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
    folder: Annotated[
        Path | None, typer.Argument(help="where everything goes; quickstart, or quickstart-volumes where left out")
    ] = None,
    volumes: Annotated[bool, typer.Option("--volumes", help="in 3D, on cubes of CT volumes")] = False,
    compare: Annotated[
        bool | None,
        typer.Option("--compare/--no-compare", help="fine-tune from the weights and from random ones; not in 3D"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of images, networks and labels", min=0)] = 0,
) -> None:
    """The whole way on this machine: images, shards in S3, 2 workers, 3 stages, MLflow, weights, their worth."""
    place = folder or Path("quickstart-volumes" if volumes else "quickstart")
    report = dira_dist.run_quickstart(place, volumes=volumes, compare=compare, seed=seed, console=_err)
    for line in report.lines():
        _out.print(line, markup=False)


def _options_of(section: type[Section]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb an option for each field of a section: nothing that stands there, descriptions included, twice.

    The verb takes the validated section as its argument ``options``.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def command(**arguments: Any) -> None:
            given = {name: _value_of(section, name, arguments.pop(name)) for name in section.model_fields}
            verb(**arguments, options=validate(section, Document(given, verb.__name__)))

        own = [part for name, part in inspect.signature(verb).parameters.items() if name != "options"]
        taken = [*own, *(_option(name, field) for name, field in section.model_fields.items())]
        command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]  # which typer reads
        command.__annotations__ = {part.name: part.annotation for part in taken}
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A field as an option; one that may be none is left out for it, or 0 where it has another default."""
    kind, optional = _plain_type(field.annotation)
    default = None if kind is str and not isinstance(field.default, str) else field.default
    text = (field.description or "").replace("none:", "if left out:" if default is None else "0:")
    choices = _choices(field.annotation)
    flags = [f"--{name.replace('_', '-')}"] if kind is bool else []
    wanted: Any = kind | None if optional or default is None else kind
    annotation: Any = Annotated[
        wanted, typer.Option(*flags, help=f"{text} ({', '.join(choices)})" if choices else text)
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _choices(annotation: Any) -> list[str]:
    """The values that a field may have, where they are few and known."""
    literals = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    return [str(value) for part in literals for value in get_args(part)]


def _plain_type(annotation: Any) -> tuple[type, bool]:
    """What the command line takes for a field, lists and mappings as text; and whether the field may be none."""
    members = set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}
    (kind,) = members - {type(None)}
    return (kind if kind in (bool, int, float) else str), type(None) in members


def _value_of(section: type[Section], name: str, given: Any) -> Any:
    """``a,b`` for a list and ``a=0.9,b=0.1`` for a mapping; 0 stands for none where none is not the default."""
    field = section.model_fields[name]
    origins = {get_origin(part) for part in (field.annotation, *get_args(field.annotation))}
    if isinstance(given, str) and tuple in origins:
        return [part.strip() for part in given.split(",")]
    if isinstance(given, str) and dict in origins:
        return dira_dist.parse_split(given)
    if given is None and field.default is not None:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    return None if given == 0 and given is not False and _plain_type(field.annotation)[1] else given


@app.command()
@_options_of(ShardOptions)
def shard(
    source: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix of images; with --verify a shard set")],
    dest: Annotated[str | None, typer.Argument(help="folder or s3://bucket/prefix for the shard set")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="check the shard set SOURCE against its index")] = False,
    *,
    options: ShardOptions,
) -> None:
    """Images (PNG, JPEG, TIFF, DICOM, NIfTI, ...) to a shard set; an interrupted run goes on with the same command."""
    if verify:
        problems = dira_dist.verify(source)
        _out.print("\n".join(problems) or f"{source}: sound", markup=False)
        sys.exit(1 if problems else 0)
    if dest is None:
        raise RequestError("DEST is missing: dira-dist shard SOURCE DEST")
    with counted("sharding", _err) as progress:
        done = dira_dist.shard(source, dest, options, progress)
    for line in done.lines():
        _out.print(line, markup=False)


@app.command()
def remove(
    shard_set: Annotated[str, typer.Argument(metavar="SET", help="shard set, or the folder of a split's parts")],
    groups: Annotated[str | None, typer.Option(help="file of patients, one a line, as the source calls them")] = None,
    keys: Annotated[str | None, typer.Option(help="file of sample keys, or paths in the source, one a line")] = None,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="for good: write the tars that hold them anew, and delete those")
    ] = False,
    salt_file: Annotated[str | None, typer.Option(help="that the set was made with; your own if left out")] = None,
) -> None:
    """Take patients out of a shard set: at once for every new run, and with --rewrite for good."""
    listed = [[] if file is None else dira_dist.read_list(file) for file in (groups, keys)]
    for line in dira_dist.remove(shard_set, *listed, rewrite_tars=rewrite, salt_file=salt_file).lines():
        _out.print(line, markup=False)


Model = Annotated[
    str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, a checkpoint, or a model's folder")
]
Source = Annotated[str, typer.Argument(help="folder or s3://bucket/prefix of images, or a shard set")]
Results = Annotated[str, typer.Argument(help="folder or s3://bucket/prefix for what is written")]
Cluster = Annotated[str | None, typer.Option("--address", help="of a Ray cluster; this machine alone if left out")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")]


@app.command()
@_options_of(PredictOptions)
def predict(
    model: Model,
    source: Source,
    dest: Results,
    address: Cluster = None,
    tracking_uri: TrackingUri = None,
    *,
    options: PredictOptions,
) -> None:
    """A fine-tuned model over images: probabilities, decisions and masks; an interrupted run goes on."""
    with counted("predicting", _err) as progress:
        done = dira_dist.predict(
            model, source, dest, options, address=address, tracking_uri=tracking_uri, progress=progress
        )
    for line in done.lines():
        _out.print(line, markup=False)


@app.command()
@_options_of(EmbedOptions)
def embed(
    model: Model,
    source: Source,
    dest: Results,
    address: Cluster = None,
    tracking_uri: TrackingUri = None,
    *,
    options: EmbedOptions,
) -> None:
    """Features of images by any model's encoder, as Parquet; an interrupted run goes on."""
    with counted("embedding", _err) as progress:
        done = dira_dist.embed(
            model, source, dest, options, address=address, tracking_uri=tracking_uri, progress=progress
        )
    for line in done.lines():
        _out.print(line, markup=False)


@app.command()
def evaluate(
    model: Model,
    shard_set: Annotated[str, typer.Argument(metavar="SET", help="labelled shard set")],
    dest: Annotated[str | None, typer.Option(help="folder or s3://bucket/prefix for the report and pictures")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one if left out")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """What a fine-tuned model is worth on a labelled set, with its own thresholds and calibration."""
    found = dira_dist.evaluate(model, shard_set, dest, device=device, tracking_uri=tracking_uri)
    _out.print(found.text, markup=False)


@app.command()
@_options_of(WordsOptions)
def words(
    volumes: Annotated[str, typer.Argument(help="shard set of whole volumes, made with --intensity")],
    dest: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix for the sets of cubes and the picture")],
    encoder: Annotated[
        str,
        typer.Option(help="3D, for the features: models:/NAME@ALIAS, runs:/ID, a checkpoint, or a model's folder"),
    ],
    tracking_uri: TrackingUri = None,
    *,
    options: WordsOptions,
) -> None:
    """Visual words (TransVW) of whole volumes: a new set of cubes that carry their word as the label `word`."""
    with counted("finding words", _err) as progress:
        done = dira_dist.words(volumes, dest, encoder, options, tracking_uri=tracking_uri, progress=progress)
    for line in done.lines():
        _out.print(line, markup=False)


@app.command()
def check(
    job: Job,
    overrides: Overrides = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="take a few steps here, and say how long a run is")
    ] = False,
    images_per_second: Annotated[
        float | None, typer.Option(help="of all workers, where you know it: says how long a run is")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="estimate a worker's memory, too")] = False,
) -> None:
    """Validate a job, print it resolved and what it will do; touches nothing."""
    loaded = dira_dist.load_job(job, overrides or [])
    facts = dira_dist.check(loaded, "measured" if measure else images_per_second, memory=memory)
    _out.print(dump_yaml(loaded.public), markup=False)
    for line in facts.lines():
        _out.print(line, markup=False)


@app.command()
def init(
    shards: Annotated[str, typer.Argument(help="a shard set, or the folder of a split's parts")],
    kind: Annotated[DraftKind, typer.Option(help="of job")] = "pretrain",
    start: Annotated[str | None, typer.Option(help="finetune, compare: the pretrained model")] = None,
    output: Annotated[Path | None, typer.Option(help="file to write; KIND.yaml where left out")] = None,
) -> None:
    """Write a commented job file for a shard set and this machine, or the cluster of RAY_ADDRESS."""
    file = dira_dist.init(shards, output or Path(f"{kind}.yaml"), kind, start=start)
    word = shlex.quote(str(file))
    _out.print(f"wrote {file}; next: dira-dist check {word}, then dira-dist run {word}", markup=False)


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
    include: Annotated[
        list[Path] | None, typer.Option(help="file or folder to upload beside what the job names; repeatable")
    ] = None,
    wait: Annotated[bool, typer.Option(help="follow the log and end with the job's exit code")] = True,
) -> None:
    """Run a job through Ray Jobs. Its file is uploaded, with what it names here; the package is the cluster's."""
    submission = dira_dist.submit(
        job, overrides or [], address=address, env=env or [], include=include or [], console=_err
    )
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


Image = Annotated[str | None, typer.Option(help="of every pod; that of DIRA_DIST_IMAGE where left out")]
Queue = Annotated[str | None, typer.Option(help="Kueue's LocalQueue that the job waits in")]


@k8s.command()
def render(
    job: Job,
    overrides: Overrides = None,
    image: Image = None,
    workers_per_pod: Annotated[int, typer.Option(min=1, help="workers of one pod share memory and NVLink")] = 1,
    memory_gib: Annotated[int | None, typer.Option(min=1, help="of one worker pod; 4 per CPU where left out")] = None,
    queue: Queue = None,
) -> None:
    """Print the RayJob of a job file: pods, GPUs, memory and elasticity as its `resources` say."""
    sys.stdout.write(
        dira_dist.render(
            job,
            overrides or [],
            image=image,
            workers_per_pod=workers_per_pod,
            memory_gib=memory_gib,
            queue=queue,
        )
    )


@k8s.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def render_verb(
    words: Annotated[list[str], typer.Argument(metavar="VERB ...", help="as after dira-dist")],
    name: Annotated[str, typer.Option(help="of the RayJob")],
    image: Image = None,
    pods: Annotated[int, typer.Option(min=1, help="that share the files of predict and embed")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="of one pod")] = 8,
    gpus: Annotated[int, typer.Option(min=0, help="of one pod")] = 0,
    memory_gib: Annotated[int | None, typer.Option(min=1, help="of one pod; 4 per CPU where left out")] = None,
    queue: Queue = None,
) -> None:
    """Print the RayJob of shard, predict, embed, evaluate or words, which work long without a job file."""
    manifest = dira_dist.render_verb(
        words, name=name, image=image, pods=pods, cpus=cpus, gpus=gpus, memory_gib=memory_gib, queue=queue
    )
    _check_words(words)
    sys.stdout.write(manifest)


def _check_words(words: list[str]) -> None:
    """Reads a verb's words as the pod will, and does nothing.

    Raises:
        click.UsageError: an option or argument that the verb does not take; typer prints it.
    """
    command: Any = typer.main.get_command(app)
    command.commands[words[0]].make_context(words[0], words[1:])


@app.command()
def register(
    source: Annotated[str, typer.Argument(help="MLflow run (runs:/ID), a checkpoint, or a run's folder of them")],
    name: Annotated[str | None, typer.Option(help="in the registry; tracking.register_as where left out")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")] = None,
) -> None:
    """A new version in the registry from the newest checkpoint of a run, also one that failed or was stopped."""
    with counted("fetching", _err) as progress:
        registered = dira_dist.register(source, name=name, tracking_uri=tracking_uri, progress=progress)
    best = "is" if registered.is_best else "is not"
    _out.print(f"{registered.address} {best} @best: {registered.why}", markup=False)
    if registered.sha256:
        _out.print(f"for who pulls it: dira-dist pull --sha256 {registered.sha256}", markup=False)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, or a checkpoint")],
    dest: Annotated[Path, typer.Argument(help="folder for the weights")],
    format: Annotated[  # noqa: A002
        str, typer.Option(help="torchvision, timm or smp; torch or monai of 3D networks; or onnx")
    ] = "torchvision",
    in_channels: Annotated[
        int | None, typer.Option(help="1 or 3 of a grey or colour model; the model's own where left out")
    ] = None,
    file_format: Annotated[str, typer.Option(help="safetensors or pt")] = "safetensors",
    input_type: Annotated[
        str, typer.Option(help="of the images an ONNX file takes: uint8, uint16, or float32 in [0, 1]")
    ] = "uint8",
    sha256: Annotated[
        str | None, typer.Option(help="of the model, as its maker told it: another one is refused, and not loaded")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")] = None,
) -> None:
    """Weights as a plain state dict that loads strictly, or an ONNX file; and the lines of Python that load it."""
    with counted("pulling", _err) as progress:
        pulled = dira_dist.pull(
            model,
            dest,
            format=format,
            in_channels=in_channels,
            file_format=file_format,
            input_type=input_type,
            sha256=sha256,
            tracking_uri=tracking_uri,
            progress=progress,
        )
    _out.print(pulled.loading_lines, markup=False)
    _err.print(f"the model's files are whole; its sha256 is {pulled.model_sha256}", markup=False)
    if sha256 is None:
        _err.print("who made it no sum beside it can tell: compare with what its maker says (--sha256)", markup=False)


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(help="empty or new; gets images/, labels.csv and boxes.csv")],
    count: Annotated[int, typer.Option(help="images, two of each patient", min=1)] = 240,
    size_px: Annotated[int, typer.Option(help="side of the images", min=32)] = 64,
    seed: Annotated[int, typer.Option(help="which archive", min=0)] = 0,
) -> None:
    """Draw synthetic chest radiographs as DICOM, with findings and boxes, to try things out with."""
    made = dira_dist.write_phantoms(folder, count, seed=seed, size_px=size_px)
    _out.print(f"{len(made)} DICOM files in {folder}/images, {folder}/labels.csv, {folder}/boxes.csv", markup=False)


@app.command()
def examples(
    name: Annotated[str | None, typer.Argument(help="one of them, which is printed; all names where left out")] = None,
) -> None:
    """The job files that come with the package: `dira-dist examples pretrain-ct > my-job.yaml`."""
    if name is not None:
        sys.stdout.write(dira_dist.example(name))
        return
    for each, text in dira_dist.examples().items():
        _out.print(f"{each:31} {text}", markup=False)


@app.command()
def lineage(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, a model's folder, or a run's")
    ],
    tracking_uri: TrackingUri = None,
) -> None:
    """Which sets and generations a model, and what it started from, have seen, and whether patients left them since."""
    for line in dira_dist.lineage(model, tracking_uri=tracking_uri).lines():
        _out.print(line, markup=False)


@app.command()
def schema() -> None:
    """JSON Schema of the job file, for editors."""
    sys.stdout.write(json.dumps(dira_dist.job_schema(), indent=1) + "\n")
