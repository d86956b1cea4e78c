"""The public names, each in its home; ``__init__.py`` imports them when they are first used."""

from .cluster.fit.outcome import Outcome as Outcome
from .cluster.prediction import embed as embed
from .cluster.prediction import predict as predict
from .cluster.room import init as init
from .cluster.run import run as run
from .cluster.submit.jobs import describe as describe
from .cluster.submit.jobs import submission as submission
from .cluster.submit.jobs import submissions as submissions
from .cluster.submit.kubernetes import render as render
from .cluster.submit.kubernetes import render_verb as render_verb
from .cluster.submit.submit import submit as submit
from .cluster.tune.compare import ComparisonOutcome as ComparisonOutcome
from .cluster.tune.search import SearchOutcome as SearchOutcome
from .config import JobFailedError as JobFailedError
from .config import RequestError as RequestError
from .data.ingest import ShardOptions as ShardOptions
from .data.ingest import parse_split as parse_split
from .data.ingest import read_list as read_list
from .data.ingest import remove as remove
from .data.ingest import shard as shard
from .data.verify import verify as verify
from .jobs.check import check as check
from .jobs.load import job_schema as job_schema
from .jobs.load import load_job as load_job
from .jobs.pretrain import PretrainJob as PretrainJob
from .prediction.evaluate import evaluate as evaluate
from .prediction.options import EmbedOptions as EmbedOptions
from .prediction.options import PredictOptions as PredictOptions
from .quickstart.examples import example as example
from .quickstart.examples import examples as examples
from .quickstart.phantom_archive import write_phantoms as write_phantoms
from .quickstart.quickstart import run_quickstart as run_quickstart
from .registry.lineage import lineage as lineage
from .registry.publish import register as register
from .registry.pull import pull as pull
from .vocabulary.options import WordsOptions as WordsOptions
from .vocabulary.words import words as words

__version__: str
