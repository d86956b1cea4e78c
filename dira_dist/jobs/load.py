"""From a job file to a validated job, and to the form of it that may be written anywhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from dira_dist.config import Document, RequestError, dump_yaml, public_values, read_document, validate
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.kinds import kinds
from dira_dist.jobs.tune import TuneJob
from dira_dist.search.config import SearchConfig
from dira_dist.training.precision import Precision

Driver = Literal["fit", "search"]
"""What brings a job to its end."""


@dataclass(frozen=True)
class LoadedJob:
    """A job and the form of it that may be written anywhere.

    Attributes:
        job: validated, environment references resolved; may hold secrets.
        public: the same as plain values with all defaults, ``${env:NAME}`` unresolved; holds none.
    """

    driver: ClassVar[Driver] = "fit"

    job: TrainingJob
    public: dict[str, Any]

    def in_precision(self, precision: Precision) -> "LoadedJob":
        """The same with the precision that was settled, in both forms."""
        return LoadedJob(self.job.in_precision(precision), {**self.public, "precision": precision})

    def settled(self, job: TrainingJob, changes: Mapping[str, Any]) -> "LoadedJob":
        """The same with what it left open filled in, in both forms."""
        return LoadedJob(job, {**self.public, **changes})

    def side_by_side(self) -> int:
        """How many such jobs run at once."""
        return 1


@dataclass(frozen=True)
class LoadedSearch:
    """A search and its base.

    Attributes:
        job: the base under the search's name.
        public: the whole job file, see :class:`LoadedJob`.
        search: the section.
        winner_name: what the base calls itself.
        base: the base as it is written, overrides applied; what stages inherit is not filled in yet.
    """

    driver: ClassVar[Driver] = "search"

    job: TrainingJob
    public: dict[str, Any]
    search: SearchConfig
    winner_name: str
    base: dict[str, Any]

    def check_workers(self) -> None:
        """Refuses an elastic base.

        Raises:
            RequestError: ``resources.workers`` is a range.
        """
        low, high = self.job.resources.worker_range
        if low != high:
            raise RequestError(
                f"base.resources.workers: found {[low, high]}; the trials of a search run on a fixed number of "
                "workers, so that they can be compared and counted: give one number"
            )

    def side_by_side(self) -> int:
        """How many trials run at once, where the cluster is made for the search.

        Raises:
            RequestError: nobody said so, or the base is elastic.
        """
        self.check_workers()
        if self.search.max_concurrent is None:
            raise RequestError(
                "search.max_concurrent: how many trials run side by side is left to the cluster, and the cluster is "
                "made for the job here; give a number, in the file or with --set search.max_concurrent=4"
            )
        return self.search.max_concurrent

    def trial(self, name: str, values: Mapping[str, Any]) -> LoadedJob:
        """The base with some values, by dotted key, as a job of its own.

        Raises:
            RequestError: if the values make no valid job.
        """
        overrides = [f"name={name}", *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        return load_training_job(Document(self.base, "job").with_overrides(overrides))


def load_job(source: Path | str | dict[str, Any], overrides: Sequence[str] = ()) -> LoadedJob | LoadedSearch:
    """Read, complete and validate a job.

    Args:
        source: the path of a job file, or its content as a mapping.
        overrides: ``key.path=value`` each, values in YAML.

    Raises:
        RequestError: with every mistake found in one message.
    """
    document = Document(source, "job") if isinstance(source, dict) else read_document(Path(source))
    document = document.with_overrides(overrides)
    return _load_search(document) if document.values.get("kind") == "tune" else load_training_job(document)


def load_training_job(document: Document) -> LoadedJob:
    """A job of any kind but a search.

    Raises:
        RequestError: with every mistake found in one message.
    """
    kind = _kind(document, document.values)
    document = kind.completed(document)
    job = validate(kind, document)
    return LoadedJob(job, public_values(job, document))


def _load_search(document: Document) -> LoadedSearch:
    """What stands under ``base`` is completed like a job that stands alone."""
    given = document.values.get("base")
    kind = _kind(document, given if isinstance(given, dict) else {}, "base")
    if isinstance(given, dict):
        base = kind.completed(Document({"name": f"{document.values.get('name')}-best"} | given))
        inherited = frozenset(("base", *path) for path in base.inherited)
        document = replace(document, values=document.values | {"base": base.values}, inherited=inherited)
    tune = validate(_search_over(kind), document)
    job = tune.base.model_copy(update={"name": tune.name})
    return LoadedSearch(job, public_values(tune, document), tune.search, tune.base.name, dict(given or {}))


def _kind(document: Document, section: Mapping[str, Any], *path: str) -> type[TrainingJob]:
    """What a section says it is; a pretraining unless it says so."""
    known, kind = kinds(), section.get("kind", "pretrain")
    if kind in known:
        return known[kind]
    allowed = ", ".join(map(repr, sorted(known if path else [*known, "tune"])))
    raise RequestError(f"{document.place((*path, 'kind'))}: found {kind!r}; allowed: {allowed}")


def _search_over(kind: Any) -> type[TuneJob[TrainingJob]]:
    """The section of a search over jobs of this kind, or of a union of kinds."""
    return TuneJob[kind]


def job_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors; what stages inherit and ``${env:NAME}`` included."""
    any_kind: Any = reduce(or_, kinds().values())
    return TypeAdapter(any_kind | _search_over(any_kind)).json_schema()


def dump_job(public: dict[str, Any]) -> str:
    """A job's public form as YAML text that :func:`load_job` reads again."""
    return dump_yaml(public)
