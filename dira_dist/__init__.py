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
    from dira_dist.cluster.kubernetes import render as render
    from dira_dist.cluster.pretrain import Outcome as Outcome
    from dira_dist.cluster.quickstart import quickstart as quickstart
    from dira_dist.cluster.run import run as run
    from dira_dist.cluster.submit import submit as submit
    from dira_dist.cluster.submitted import describe as describe
    from dira_dist.cluster.submitted import submission as submission
    from dira_dist.cluster.submitted import submissions as submissions
    from dira_dist.cluster.tune import SearchOutcome as SearchOutcome
    from dira_dist.config import JobFailedError as JobFailedError
    from dira_dist.config import RequestError as RequestError
    from dira_dist.data.ingest import ShardOptions as ShardOptions
    from dira_dist.data.ingest import parse_split as parse_split
    from dira_dist.data.ingest import shard as shard
    from dira_dist.data.shards import verify as verify
    from dira_dist.job import PretrainJob as PretrainJob
    from dira_dist.job import job_schema as job_schema
    from dira_dist.job import load_job as load_job
    from dira_dist.tracking.publish import register_model as register
    from dira_dist.tracking.pull import pull as pull
    from dira_dist.trials import check as check


_HOMES = {
    "JobFailedError": "config:JobFailedError",
    "Outcome": "cluster.pretrain:Outcome",
    "PretrainJob": "job:PretrainJob",
    "RequestError": "config:RequestError",
    "SearchOutcome": "cluster.tune:SearchOutcome",
    "ShardOptions": "data.ingest:ShardOptions",
    "check": "trials:check",
    "describe": "cluster.submitted:describe",
    "job_schema": "job:job_schema",
    "load_job": "job:load_job",
    "parse_split": "data.ingest:parse_split",
    "pull": "tracking.pull:pull",
    "quickstart": "cluster.quickstart:quickstart",
    "register": "tracking.publish:register_model",
    "render": "cluster.kubernetes:render",
    "run": "cluster.run:run",
    "shard": "data.ingest:shard",
    "submission": "cluster.submitted:submission",
    "submissions": "cluster.submitted:submissions",
    "submit": "cluster.submit:submit",
    "verify": "data.shards:verify",
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
    "quickstart",
    "register",
    "render",
    "run",
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
