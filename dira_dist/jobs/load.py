"""From a job file to a validated job, and to the form of it that may be written anywhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from dira_dist.config import Document, KeyPath, RequestError, dump_yaml, public_values, read_document, validate
from dira_dist.jobs.base import TrainingJob
from dira_dist.jobs.compare import CompareJob, is_job_file
from dira_dist.jobs.finetune import FinetuneJob
from dira_dist.jobs.kinds import kinds
from dira_dist.jobs.tune import TuneJob
from dira_dist.search.config import SearchConfig
from dira_dist.training.precision import Precision

Driver = Literal["fit", "search", "compare", "folds"]
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
        _check_fixed_workers(self.job, "base.resources.workers", "trials of a search")

    def side_by_side(self) -> int:
        """How many trials run at once, where the cluster is made for the search.

        Raises:
            RequestError: nobody said so, or the base is elastic.
        """
        self.check_workers()
        return _given_number(self.search.max_concurrent, "search.max_concurrent", "trials")

    def trial(self, name: str, values: Mapping[str, Any]) -> LoadedJob:
        """The base with some values, by dotted key, as a job of its own.

        Raises:
            RequestError: if the values make no valid job.
        """
        return _with_values(self.base, name, values)


@dataclass(frozen=True)
class LoadedComparison:
    """A comparison and its base.

    Attributes:
        job: the base under the comparison's name.
        public: the whole job file, see :class:`LoadedJob`; a job file that a start names stands in it.
        comparison: the whole job.
        written: the same as it is written, overrides applied.
    """

    driver: ClassVar[Driver] = "compare"

    job: TrainingJob
    public: dict[str, Any]
    comparison: CompareJob
    written: dict[str, Any]

    def check_workers(self) -> None:
        """Refuses an elastic base.

        Raises:
            RequestError: ``resources.workers`` is a range.
        """
        _check_fixed_workers(self.job, "base.resources.workers", "fits of a comparison")

    def side_by_side(self) -> int:
        """How many fits run at once, where the cluster is made for the comparison.

        Raises:
            RequestError: nobody said so, or the base is elastic.
        """
        self.check_workers()
        return _given_number(self.comparison.max_concurrent, "max_concurrent", "fits")

    def fit(self, name: str, values: Mapping[str, Any]) -> LoadedJob:
        """The base with some values, by dotted key, as a job of its own.

        Raises:
            RequestError: if the values make no valid job.
        """
        return _with_values(self.written["base"], name, values)

    def pretraining(self, start: str, name: str, seed: int) -> LoadedJob:
        """The pretraining of a start with a seed: it lies beside the fits, and is recorded as they are."""
        common = {key: self.written["base"][key] for key in ("checkpoint", "tracking") if key in self.written["base"]}
        job = self.written["starts"][start]["from"]
        storage = {"checkpoint": dict(job.get("checkpoint", {})) | {"storage": self.job.checkpoint.storage}}
        if "storage" in common.get("checkpoint", {}):
            storage["checkpoint"]["storage"] = common["checkpoint"]["storage"]
        tracking = {"tracking": dict(common.get("tracking", {}))}
        return _with_values({**job, **storage, **tracking}, name, {"seed": seed})


@dataclass(frozen=True)
class LoadedFolds:
    """A fine-tuning of each fold, and the ensemble of them.

    Attributes:
        job: of all folds together.
        public: the same, see :class:`LoadedJob`.
        written: the same as it is written, overrides applied.
    """

    driver: ClassVar[Driver] = "folds"

    job: FinetuneJob
    public: dict[str, Any]
    written: dict[str, Any]

    @property
    def folds(self) -> int:
        """How many."""
        assert self.job.data.folds is not None
        return self.job.data.folds

    def check_workers(self) -> None:
        """Refuses elastic fits.

        Raises:
            RequestError: ``resources.workers`` is a range.
        """
        _check_fixed_workers(self.job, "resources.workers", "fits of the folds")

    def side_by_side(self) -> int:
        """How many fits run at once, where the cluster is made for the job.

        Raises:
            RequestError: nobody said so, or the job is elastic.
        """
        self.check_workers()
        return _given_number(self.job.max_concurrent, "max_concurrent", "folds")

    def fold_name(self, fold: int) -> str:
        """Of the fit that holds a fold out, and of its folder beside the job's."""
        return f"{self.job.name}-fold{fold}"

    def fold(self, fold: int, values: Mapping[str, Any]) -> LoadedJob:
        """The fit that holds a fold out, from 1 on, with some values, by dotted key. It leaves no registered model.

        Raises:
            RequestError: if the values make no valid job.
        """
        own = {"data.fold": fold, "tracking.register_as": None, "max_concurrent": None}
        return _with_values(self.written, self.fold_name(fold), own | dict(values))


def _check_fixed_workers(job: TrainingJob, key: str, what: str) -> None:
    low, high = job.resources.worker_range
    if low != high:
        raise RequestError(
            f"{key}: found {[low, high]}; the {what} run on a fixed number of "
            "workers, so that they can be compared and counted: give one number"
        )


def _given_number(found: int | None, key: str, what: str) -> int:
    if found is None:
        raise RequestError(
            f"{key}: how many {what} run side by side is left to the cluster, and the cluster is made for the job "
            f"here; give a number, in the file or with --set {key}=4"
        )
    return found


def _with_values(base: dict[str, Any], name: str, values: Mapping[str, Any]) -> LoadedJob:
    overrides = [f"name={name}", *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    return load_training_job(Document(base, "job").with_overrides(overrides))


AnyLoaded = LoadedJob | LoadedSearch | LoadedComparison | LoadedFolds


def load_job(source: Path | str | dict[str, Any], overrides: Sequence[str] = ()) -> AnyLoaded:
    """Read, complete and validate a job.

    Args:
        source: the path of a job file, or its content as a mapping.
        overrides: ``key.path=value`` each, values in YAML.

    Raises:
        RequestError: with every mistake found in one message.
    """
    document = Document(source, "job") if isinstance(source, dict) else read_document(Path(source))
    document = document.with_overrides(overrides)
    match document.values.get("kind"):
        case "tune":
            return _load_search(document)
        case "compare":
            return _load_comparison(document)
        case _:
            loaded = load_training_job(document)
            if isinstance(loaded.job, FinetuneJob) and loaded.job.is_ensemble:
                return LoadedFolds(loaded.job, loaded.public, document.values)
            return loaded


def load_training_job(document: Document) -> LoadedJob:
    """A job of any kind that trains.

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
    if isinstance(tune.base, FinetuneJob) and tune.base.is_ensemble:
        folds = tune.base.data.folds
        raise RequestError(
            f"{document.place(('base', 'data', 'folds'))}: found {folds}; a search's trials are of one split: give "
            f"base.data.val, or base.data.fold (1 to {folds}), too, to search on one of the folds"
        )
    job = tune.base.model_copy(update={"name": tune.name})
    return LoadedSearch(job, public_values(tune, document), tune.search, tune.base.name, dict(given or {}))


def _load_comparison(document: Document) -> LoadedComparison:
    """Job files that starts name are read, so that the comparison stands in one place."""
    values = json.loads(json.dumps(document.values))
    base, inherited = values.get("base"), set[KeyPath]()
    if isinstance(base, dict):
        values["base"] = {"name": values.get("name")} | base
        if base.get("kind") != "finetune":
            place = document.place(("base", "kind"))
            raise RequestError(f"{place}: found {base.get('kind')!r}; allowed: 'finetune', what starts are compared by")
    starts = values.get("starts")
    for name, start in starts.items() if isinstance(starts, dict) else ():
        if is_job_file(start):
            starts[name] = start = {"from": start}
        if isinstance(start, dict) and (is_job_file(start.get("from")) or isinstance(start.get("from"), dict)):
            completed = _pretraining_of(document, name, start["from"])
            start["from"] = completed.values
            inherited.update(("starts", name, "from", *path) for path in completed.inherited)
    document = replace(document, values=values, inherited=frozenset(inherited))
    comparison = validate(CompareJob, document)
    return LoadedComparison(comparison.base, public_values(comparison, document), comparison, values)


def _pretraining_of(document: Document, start: str, given: str | dict[str, Any]) -> Document:
    """The job file of a start, read and complete.

    Raises:
        RequestError: it is none of kind pretrain, or is not valid.
    """
    place = document.place(("starts", start, "from"))
    found = read_document(Path(given)) if isinstance(given, str) else Document(given, place)
    if found.values.get("kind", "pretrain") != "pretrain":
        raise RequestError(f"{place}: a job of kind {found.values['kind']!r}; give one of kind pretrain, or a model")
    load_training_job(found)
    return kinds()["pretrain"].completed(found)


def _kind(document: Document, section: Mapping[str, Any], *path: str) -> type[TrainingJob]:
    """What a section says it is; a pretraining unless it says so."""
    known, kind = kinds(), section.get("kind", "pretrain")
    if kind in known:
        return known[kind]
    allowed = ", ".join(map(repr, sorted(known if path else [*known, "tune", "compare"])))
    raise RequestError(f"{document.place((*path, 'kind'))}: found {kind!r}; allowed: {allowed}")


def _search_over(kind: Any) -> type[TuneJob[TrainingJob]]:
    """The section of a search over jobs of this kind, or of a union of kinds."""
    return TuneJob[kind]


def job_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors; what stages inherit and ``${env:NAME}`` included.

    :data:`dira_dist.jobs.draft.SCHEMA_FILE` holds it, too; it is written anew by
    ``dira-dist schema > dira_dist/jobs/job.schema.json``.
    """
    any_kind: Any = reduce(or_, kinds().values())
    return _with_nameless_bases(TypeAdapter(any_kind | _search_over(any_kind) | CompareJob).json_schema())


def _with_nameless_bases(schema: dict[str, Any]) -> dict[str, Any]:
    """A search and a comparison name their base where it does not name itself, so none asks a base for its name."""
    definitions = schema["$defs"]
    for holder in [each for each in definitions.values() if "base" in each.get("properties", {})]:
        base = holder["properties"]["base"]
        for link in base.get("anyOf", [base]):
            kind = link["$ref"].rpartition("/")[2]
            required = [key for key in definitions[kind]["required"] if key != "name"]
            definitions[f"{kind}AsBase"] = {**definitions[kind], "required": required}
            link["$ref"] += "AsBase"
    return schema


def dump_job(public: dict[str, Any]) -> str:
    """A job's public form as YAML text that :func:`load_job` reads again."""
    return dump_yaml(public)
