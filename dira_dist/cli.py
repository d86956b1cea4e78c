"""The command line: one thin function for each verb. Everything a verb does is a Python call of the package too.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one message, nothing started or overwritten).
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

import dira_dist
from dira_dist.config import JobFailedError, RequestError

app = typer.Typer(
    help="DiRA self-supervised pretraining of medical images at cluster scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out, _err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)

Job = Annotated[Path, typer.Argument(help="job file; examples are in jobs/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the job file; repeatable")
]


def main() -> None:
    """Run the command line, and turn what went wrong into one message and an exit code."""
    try:
        app()
    except RequestError as error:
        _err.print(f"dira-dist: {error}", markup=False)
        sys.exit(2)
    except JobFailedError as error:
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
def check(job: Job, overrides: Overrides = None) -> None:
    """Validate a job, print it resolved and what it will do; touches nothing."""
    loaded = dira_dist.load_job(job, overrides or [])
    facts = dira_dist.check(loaded.job)
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
    address: Annotated[str | None, typer.Option(help="the cluster's dashboard; RAY_ADDRESS where left out")] = None,
    env: Annotated[list[str] | None, typer.Option(help="environment variable to hand to the job; repeatable")] = None,
    wait: Annotated[bool, typer.Option(help="follow the log and end with the job's exit code")] = True,
) -> None:
    """Run a job through Ray Jobs, with the working directory as its environment."""
    submission = dira_dist.submit(job, overrides or [], address=address, env=env or [])
    _err.print(f"submitted as {submission.job_id}", markup=False)
    if wait:
        sys.exit(submission.follow(sys.stdout.write))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, or a checkpoint")],
    dest: Annotated[Path, typer.Argument(help="folder for the weights")],
    format: Annotated[str, typer.Option(help="torchvision, timm or smp")] = "torchvision",  # noqa: A002
    in_channels: Annotated[int | None, typer.Option(help="1 or 3; the model's own where left out")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI where left out")] = None,
) -> None:
    """Weights as a plain state dict that loads strictly, and the lines of Python that load it."""
    pulled = dira_dist.pull(model, dest, format=format, in_channels=in_channels, tracking_uri=tracking_uri)
    _out.print(pulled.loading_lines, markup=False)


@app.command()
def schema() -> None:
    """JSON Schema of the job file, for editors."""
    sys.stdout.write(json.dumps(dira_dist.job_schema(), indent=1) + "\n")
