"""``dira-dist predict`` and ``dira-dist embed``: a model over a source, as tables and files."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from dira_dist.config import RequestError, without_credentials
from dira_dist.data.cores import usable_cores
from dira_dist.data.generations import plain_address
from dira_dist.data.ingest.names import runs_as_a_job
from dira_dist.data.ingest.sharding import discreet_storage
from dira_dist.data.shards import INDEX_NAME
from dira_dist.data.store import Store, check_reachable, open_store
from dira_dist.models.ensemble import Ensemble
from dira_dist.prediction.answers import (
    LAST_COLUMNS,
    Answers,
    ClassAnswers,
    Columns,
    FeatureAnswers,
    FileWriter,
    MaskAnswers,
)
from dira_dist.prediction.dicom_seg import DicomMasks, check_installed
from dira_dist.prediction.files import FileSource, find_files
from dira_dist.prediction.heat_maps import HeatMapAnswers
from dira_dist.prediction.masks import PlainMasks
from dira_dist.prediction.model import FineTuned, Model, files_of, load_encoder, load_fine_tuned, over_volumes
from dira_dist.prediction.options import EmbedOptions, PredictOptions
from dira_dist.prediction.overlays import Overlays
from dira_dist.prediction.place import Making, claim, finish, full_disk_in_a_sentence, parts_done
from dira_dist.prediction.pooling import write_pooled
from dira_dist.prediction.sets import SetSource, find_samples
from dira_dist.prediction.tables import merge, part_key, schema_of
from dira_dist.prediction.work import Chunk, Here, Runner, Work, chunks
from dira_dist.registry.model_folder import fetch_model_folder
from dira_dist.tracking.config import tracking_at

PREDICTIONS, FEATURES, POOLED = "predictions", "features", "pooled"
_MOST_REASONS = 5
_NOT_IN_THE_RESULTS = {"device", "processes", "salt_file", "max_raster_mpx", "volume_budget_gib", "names"}


class Progress(Protocol):
    """Called now and then while the work goes on."""

    def __call__(self, done: int, total: int) -> None:
        """Entries done, of all entries, those of an earlier call included."""


@dataclass(frozen=True)
class Results:
    """What was written.

    Attributes:
        dest: where.
        table: name of the table, without suffix.
        entries: files, series or samples.
        rows: of the table.
        unread: why entries have no answer, with how many; without names.
        ignored: files of the source that are no images.
        notes: what a person should know, without names.
        named: whether rows are called by their path.
        was_complete: whether all was there already.
    """

    dest: str
    table: str
    entries: int
    rows: int
    unread: Mapping[str, int] = field(default_factory=dict)
    ignored: int = 0
    notes: Sequence[str] = ()
    named: bool = True
    was_complete: bool = False

    def lines(self) -> Iterator[str]:
        """The summary for a person; no name of a file is in it."""
        state = ", nothing to do: they were complete" if self.was_complete else ""
        yield f"{self.rows} rows of {self.entries} files or samples in {self.dest}/{self.table}.parquet{state}"
        if self.named:
            yield "rows go by the path below SOURCE, which may hold a name; --names keys writes salted keys"
        for reason, count in Counter(self.unread).most_common(_MOST_REASONS):
            yield f"{count} without an answer: {reason}"
        if self.ignored:
            yield f"{self.ignored} files of the source are no images and were left out"
        yield from (f"note: {note}" for note in self.notes)


def predict(
    model: str,
    source: str,
    dest: str,
    options: PredictOptions | None = None,
    *,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> Results:
    """A fine-tuned model over ordinary files, or a shard set.

    A call that is broken off is gone on with by the same call.

    Args:
        model: see :func:`dira_dist.registry.model_folder.fetch_model_folder`.
        source: folder or ``s3://bucket/prefix`` of files, or a shard set.
        dest: folder or prefix for tables and masks.
        options: how.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: told of the progress.
        runner: does the chunks; processes of this machine if none.

    Raises:
        RequestError: model, source, options and ``dest`` do not fit together; nothing was started or overwritten.
        StoreError: source or destination failed for longer than retries last.
        JobFailedError: the disk is full, or a process was ended; the same call goes on.
    """
    options = options or PredictOptions()
    with tempfile.TemporaryDirectory() as scratch, discreet_storage(options.names == "keys" or runs_as_a_job()):
        folder = fetch_model_folder(model, Path(scratch), tracking_at(tracking_uri), files_of, as_registered=True)
        return _Job(
            "predict",
            load_fine_tuned(folder, model),
            source,
            dest,
            options,
            progress,
            runner or Here(options.processes),
        ).run()


def embed(
    model: str,
    source: str,
    dest: str,
    options: EmbedOptions | None = None,
    *,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> Results:
    """The features of any model's encoder, as :func:`predict` gives answers.

    Raises:
        RequestError, StoreError, JobFailedError: as there.
    """
    options = options or EmbedOptions()
    with tempfile.TemporaryDirectory() as scratch, discreet_storage(options.names == "keys" or runs_as_a_job()):
        folder = fetch_model_folder(model, Path(scratch), tracking_at(tracking_uri), files_of, as_registered=True)
        return _Job(
            "embed", load_encoder(folder, model), source, dest, options, progress, runner or Here(options.processes)
        ).run()


@dataclass(frozen=True)
class _Job:
    """One call."""

    verb: str
    model: Model
    source: str
    dest: str
    options: EmbedOptions
    progress: Progress | None
    runner: Runner

    def run(self) -> Results:
        self._check_places()
        check_reachable(self.dest, write=True)
        found = self._found()
        work, todo = self._work(found), list(chunks(found.entries))
        store = open_store(self.dest)
        with full_disk_in_a_sentence(self.dest):
            making = claim(store, self._making(found, len(todo)))
            if not making.finished:
                self._do(work, todo, store)
            return self._finish(store, making, work, found)

    @property
    def _is_set(self) -> bool:
        return open_store(plain_address(self.source)).stat(INDEX_NAME) is not None

    def _found(self) -> FileSource | SetSource:
        if self._is_set:
            return find_samples(self.source, self.model, self.options)
        return find_files(self.source, self.model, self.options, self.options.processes or usable_cores())

    def _work(self, found: FileSource | SetSource) -> Work:
        answers = self._answers(found)
        first = "file" if self.options.names == "files" and isinstance(found, FileSource) else "key"
        grouped = isinstance(self.options, PredictOptions) and self.options.pool is not None
        group: Columns = {"group": "text"} if grouped else {}
        schema = schema_of({first: "text", **group, **LAST_COLUMNS, **answers.columns})
        device = self.runner.device(self.options.device)
        slides = found.reader.framing.fit == "slide"
        model = over_volumes(self.model) if slides else self.model
        batch = 1 if slides else self.options.batch  # volumes are of any size
        return Work(model, found.reader, answers, self.dest, first, schema, batch, device)

    def _answers(self, found: FileSource | SetSource) -> Answers:
        """Raises:
        RequestError: an option is not for this model.
        """
        options, model = self.options, self.model
        if not isinstance(options, PredictOptions):
            return FeatureAnswers()
        assert isinstance(model, FineTuned)
        if model.facts.task == "classify":
            if options.overlays:
                raise RequestError(f"overlays: are of masks, and {model.address} is a classifier: leave them out")
            if options.heatmaps and isinstance(model.network, Ensemble):
                raise RequestError(
                    f"heatmaps: are of one network, and {model.address} is the ensemble of several folds': leave them "
                    "out, or give the run of one of its folds (NAME-fold1)"
                )
            return (HeatMapAnswers if options.heatmaps else ClassAnswers).of(model.facts, options.flips)
        if options.heatmaps:
            raise RequestError(f"heatmaps: are a classifier's, and {model.address} is a segmenter: leave them out")
        if options.pool is not None:
            raise RequestError(f"pool: {model.address} is a segmenter, and pooled are a classifier's probabilities")
        axis = found.reader.options.axis if isinstance(found, FileSource) else "axial"
        writers = tuple(self._writers(options, found))
        slides = model.fit == "slide"
        return MaskAnswers(model.facts.kind, tuple(model.facts.classes), axis, writers, options.flips, slides)

    def _writers(self, options: PredictOptions, found: FileSource | SetSource) -> Iterator[FileWriter]:
        """Those of files beside the table."""
        if isinstance(found, SetSource) and self.model.fit == "slide":
            yield from self._of_samples(options)
            return
        plain = PlainMasks(int(options.volume_budget_gib * 2**30))
        if options.masks == "auto" and isinstance(found, FileSource) and found.has_dicom:
            yield self._dicom_masks(plain)
        elif options.masks != "none":
            yield plain
        if options.overlays:
            yield Overlays()

    def _of_samples(self, options: PredictOptions) -> Iterator[FileWriter]:
        """Raises:
        RequestError: masks are asked for that would have no file to lie on.
        """
        if options.masks == "plain":
            raise RequestError(
                f"masks plain: a mask of a volume lies on the voxels of its file, and {self.source} is a shard set: "
                "give the files as SOURCE, or --masks none for the table"
            )
        if options.overlays:
            yield Overlays()

    def _dicom_masks(self, plain: PlainMasks) -> FileWriter:
        """Raises:
        RequestError: highdicom is missing, or what a DICOM-SEG repeats is not to be written.
        """
        model = self.model
        assert isinstance(model, FineTuned)
        if self.options.names == "keys":
            raise RequestError(
                "names keys: a DICOM-SEG repeats whose its images are: give --masks plain (NIfTI of series, PNG of "
                "single images), or --masks none"
            )
        check_installed()
        first = 1 if model.facts.kind == "multiclass" else 0
        return DicomMasks(self.source, plain, tuple(model.facts.classes[first:]), model.recipe.task.name, model.digest)

    def _making(self, found: FileSource | SetSource, parts: int) -> Making:
        options: dict[str, Any] = {"names": self.options.names} | self.options.model_dump(
            mode="json", exclude=_NOT_IN_THE_RESULTS
        )
        address = without_credentials(self.model.address)
        return Making(self.verb, address, self.model.digest, found.digest, options, parts)

    def _check_places(self) -> None:
        """Raises:
        RequestError: results would be taken for images by the next call.
        """
        source, dest = (place.rstrip("/") + "/" for place in (absolute(self.source), absolute(self.dest)))
        if dest.startswith(source):
            raise RequestError(f"{self.dest}: lies in SOURCE, whose files are read: give a folder beside it")

    def _do(self, work: Work, todo: Sequence[Chunk], store: Store) -> None:
        there, total = parts_done(store), sum(len(entries) for _, entries in todo)
        left = [chunk for chunk in todo if chunk[0] not in there]
        done = total - sum(len(entries) for _, entries in left)

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress(done, total)

        tell(0)
        self.runner.run(work, left, tell)

    def _finish(self, store: Store, making: Making, work: Work, found: FileSource | SetSource) -> Results:
        name = PREDICTIONS if self.verb == "predict" else FEATURES
        if not making.finished:
            keys = [part_key(number) for number in range(making.parts)]
            about = {"model": making.model, "weights": making.weights, "dira_dist": version("dira-dist")}
            unread = Counter[str]()
            rows = merge(store, keys, name, work.schema, about, as_csv=self.verb == "predict", unread=unread)
            if isinstance(work.answers, ClassAnswers) and "group" in work.schema.names:
                write_pooled(store, keys, POOLED, work.answers)
            making = replace(making, rows=rows, unread=dict(unread))
            finish(store, replace(making, finished=True))
        of_files = isinstance(found, FileSource)
        return Results(
            dest=self.dest,
            table=name,
            entries=len(found.entries),
            rows=making.rows,
            unread=making.unread,
            ignored=found.ignored,
            notes=found.notes,
            named=of_files and self.options.names == "files",
            was_complete=making.finished,
        )


def absolute(address: str) -> str:
    """The address with a folder's whole path, by which places are compared."""
    return address if "://" in address else str(Path(address).expanduser().resolve())
