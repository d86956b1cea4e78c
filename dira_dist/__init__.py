"""DiRA self-supervised pretraining of medical images at cluster scale.

Everything the command line does is a call from here::

    import dira_dist

    dira_dist.shard("images/", "s3://bucket/set")
    loaded = dira_dist.load_job("jobs/pretrain.yaml", ["data.train=s3://bucket/set"])
    print(*dira_dist.check(loaded).lines(), sep="\\n")
    outcome = dira_dist.run(loaded)
    dira_dist.pull("models:/dira@best", "weights/", format="torchvision")

Names are imported when they are first used, so that reading a job file needs neither Ray nor MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dira_dist.version import __version__

if TYPE_CHECKING:
    from dira_dist.cluster.fit.outcome import Outcome as Outcome
    from dira_dist.cluster.run import run as run
    from dira_dist.cluster.submit.jobs import describe as describe
    from dira_dist.cluster.submit.jobs import submission as submission
    from dira_dist.cluster.submit.jobs import submissions as submissions
    from dira_dist.cluster.submit.kubernetes import render as render
    from dira_dist.cluster.submit.submit import submit as submit
    from dira_dist.cluster.tune.search import SearchOutcome as SearchOutcome
    from dira_dist.config import JobFailedError as JobFailedError
    from dira_dist.config import RequestError as RequestError
    from dira_dist.data.ingest import ShardOptions as ShardOptions
    from dira_dist.data.ingest import parse_split as parse_split
    from dira_dist.data.ingest import shard as shard
    from dira_dist.data.verify import verify as verify
    from dira_dist.jobs.check import check as check
    from dira_dist.jobs.load import job_schema as job_schema
    from dira_dist.jobs.load import load_job as load_job
    from dira_dist.jobs.pretrain import PretrainJob as PretrainJob
    from dira_dist.quickstart.quickstart import run_quickstart as run_quickstart
    from dira_dist.registry.publish import register_model as register
    from dira_dist.registry.pull import pull as pull


_HOMES = {
    "JobFailedError": "config:JobFailedError",
    "Outcome": "cluster.fit.outcome:Outcome",
    "PretrainJob": "jobs.pretrain:PretrainJob",
    "RequestError": "config:RequestError",
    "SearchOutcome": "cluster.tune.search:SearchOutcome",
    "ShardOptions": "data.ingest:ShardOptions",
    "check": "jobs.check:check",
    "describe": "cluster.submit.jobs:describe",
    "job_schema": "jobs.load:job_schema",
    "load_job": "jobs.load:load_job",
    "parse_split": "data.ingest:parse_split",
    "pull": "registry.pull:pull",
    "run_quickstart": "quickstart.quickstart:run_quickstart",
    "register": "registry.publish:register_model",
    "render": "cluster.submit.kubernetes:render",
    "run": "cluster.run:run",
    "shard": "data.ingest:shard",
    "submission": "cluster.submit.jobs:submission",
    "submissions": "cluster.submit.jobs:submissions",
    "submit": "cluster.submit.submit:submit",
    "verify": "data.verify:verify",
}
__all__ = [
    "JobFailedError",
    "Outcome",
    "PretrainJob",
    "RequestError",
    "SearchOutcome",
    "ShardOptions",
    "__version__",
    "check",
    "describe",
    "job_schema",
    "load_job",
    "parse_split",
    "pull",
    "register",
    "render",
    "run",
    "run_quickstart",
    "shard",
    "submission",
    "submissions",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
