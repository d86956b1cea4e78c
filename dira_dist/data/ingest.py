"""``dira-dist shard``: an archive of images to shard sets, in parallel, resumable, the same bytes every time.

Each tar is one piece of work, fixed beforehand by the plan and done whole by one process, so that neither the number of
processes nor an interruption can change a byte. A process holds one image, or volume, in memory and one tar in the
temporary folder.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from dira_dist.config import RequestError, Section
from dira_dist.data.convert import Converter, Task
from dira_dist.data.parts import Part, ShardOutcome, SkippedItem
from dira_dist.data.pixels import PictureMode, mode_of
from dira_dist.data.plan import WHOLE, Item, Plan, ShardOptions, make_plan, parse_split
from dira_dist.data.readers import UnreadableError, discreetly, read_pictures
from dira_dist.data.shards import INDEX_NAME, Sample, publish_shard
from dira_dist.data.store import check_reachable, open_store
from dira_dist.data.tables import boxes_for

__all__ = ["PartReport", "Progress", "ShardOptions", "ShardReport", "Skipped", "parse_split", "shard"]

_PROBED_FILES = 32
_POLL_S = 0.2


class Progress(Protocol):
    """Called now and then while the work goes on."""

    def __call__(self, done: int, total: int) -> None:
        """Files done, of all files, those of an earlier run that went before included."""


class Skipped(Section):
    """A file that is not in the set."""

    file: str
    reason: str


class PartReport(Section):
    """One shard set as it stands."""

    address: str
    samples: int
    shards: int
    bytes: int
    digest: Annotated[str, Field(description="over the tars' SHA-256: equal sets, equal digests")]
    resumed_shards: Annotated[int, Field(description="tars that an earlier run had published")]
    was_complete: Annotated[bool, Field(description="the whole part was there already")]


class ShardReport(Section):
    """What was read, skipped and why. It names files of the source: keep it where the source is."""

    source: str
    dest: str
    parts: dict[str, PartReport]
    files: Annotated[int, Field(description="image files, or series, in the plan")]
    skipped: tuple[Skipped, ...]
    ignored: Annotated[int, Field(description="files of the source that are no images")]
    unlabelled: Annotated[int, Field(description="images without a row in the label table")]
    converted: Annotated[int, Field(description="files whose depth or colour the set's mode does not keep")]
    warnings: tuple[str, ...]
    files_now: Annotated[int, Field(description="files converted by this run, not by an earlier one")]
    elapsed_s: float

    @property
    def samples(self) -> int:
        """Samples in all parts."""
        return sum(part.samples for part in self.parts.values())

    @property
    def files_per_s(self) -> float:
        """Rate of this run."""
        return self.files_now / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def lines(self) -> Iterator[str]:
        """The summary for a person."""
        for name, part in self.parts.items():
            state = ", nothing to do: it was complete" if part.was_complete else ""
            size = f"{part.bytes / 1e6:.1f} MB"
            label = "" if name == WHOLE else f"{name}: "
            yield f"{label}{part.samples} samples in {part.shards} shards, {size}, at {part.address}{state}"
        if self.files_now:
            yield f"{self.files_now} files in {self.elapsed_s:.1f} s, {self.files_per_s:.0f} files/s"
        for line in self.warnings:
            yield f"warning: {line}"
        if self.unlabelled:
            yield f"{self.unlabelled} images have no labels"
        for skipped in self.skipped[:20]:
            yield f"skipped {skipped.file}: {skipped.reason}"
        if len(self.skipped) > 20:
            yield f"skipped {len(self.skipped) - 20} more; the JSON report names them all"


def shard(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: ShardOptions | None = None,
    progress: Progress | None = None,
) -> ShardReport:
    """Makes the shard set of an archive, or with a split one set for each part at ``dest/<part>``.

    An interrupted call is taken up by the next equal one; a finished one has nothing left to do.

    Args:
        source: folder or ``s3://bucket/prefix`` of image files.
        dest: where the sets go, local or S3.
        options: how; the defaults make an unlabelled, lossless set of grey images.
        progress: told of the progress.

    Raises:
        RequestError: source, tables and options do not fit, ``dest`` holds something else, or a file is unreadable
            under ``strict``; with the remedy.
        StoreError: source or destination failed for longer than patience lasts; the next call goes on from there.
    """
    started_s = time.monotonic()
    options = options or ShardOptions()
    source, dest = os.fspath(source), os.fspath(dest)
    plan = make_plan(source, options)
    check_reachable(dest, write=True)
    parts = {name: Part(plan, name, f"{dest.rstrip('/')}/{name}" if options.split else dest) for name in plan.parts}
    _check_layout(dest, parts)
    for part in parts.values():
        part.take_up(overwrite=options.overwrite)
    files_before = sum(len(part.items) if part.index else part.files_done for part in parts.values())
    if files_before < plan.items:
        _work(plan, parts, progress)
    report = _report(plan, parts, dest, plan.items - files_before, time.monotonic() - started_s)
    if options.report is not None:
        Path(options.report).write_text(report.model_dump_json(indent=1))
    return report


def _check_layout(dest: str, parts: Mapping[str, Part]) -> None:
    """A set beside, above or below those to be made would be taken for one of them."""
    root = open_store(dest)
    expected = {INDEX_NAME} if WHOLE in parts else {f"{name}/{INDEX_NAME}" for name in parts}
    found = (info.key for info in root.list() if info.key.rpartition("/")[2] == INDEX_NAME)
    strangers = sorted(set(found) - expected)
    if strangers:
        raise RequestError(
            f"{dest} already holds another shard set ({', '.join(strangers)}), which does not go with "
            f"{'a set without a split' if WHOLE in parts else 'the parts ' + ', '.join(parts)}. Choose another place."
        )


def _report(plan: Plan, parts: Mapping[str, Part], dest: str, files_now: int, elapsed_s: float) -> ShardReport:
    skipped = [*plan.skipped, *(pair for part in parts.values() for pair in part.skipped())]
    return ShardReport(
        source=plan.source,
        dest=dest,
        parts={name: _part_report(part) for name, part in parts.items()},
        files=plan.items,
        skipped=tuple(Skipped(file=file, reason=reason) for file, reason in sorted(skipped)),
        ignored=plan.ignored,
        unlabelled=plan.unlabelled,
        converted=sum(part.converted() for part in parts.values()),
        warnings=tuple(plan.warnings),
        files_now=files_now,
        elapsed_s=elapsed_s,
    )


def _part_report(part: Part) -> PartReport:
    assert part.index is not None, "the work is done"
    return PartReport(
        address=part.address,
        samples=part.index.samples,
        shards=len(part.index.shards),
        bytes=part.index.bytes,
        digest=part.index.digest,
        resumed_shards=part.resumed_shards,
        was_complete=part.was_complete,
    )


# ------------------------------------------------------------------------ the work


@dataclass
class _Bench:
    """What a process works with; ``done`` and ``stopped`` reach over to the one that reports and commands."""

    converter: Converter
    strict: bool
    done: Callable[[], None]
    stopped: Callable[[], bool]


class _StoppedError(Exception):
    """The run was ended from outside while a tar was in the making."""


class _RefusedError(Exception):
    """A file could not be read, and the run is strict."""


@dataclass(frozen=True)
class _Job:
    """One tar to be made."""

    address: str
    name: str
    tasks: Sequence[Task]


def _make_shard(bench: _Bench, job: _Job) -> ShardOutcome:
    """Converts the files of one tar and publishes it; under ``strict`` nothing after the first unreadable file."""
    notes = _Notes()
    samples = _samples(bench, job.tasks, notes)
    try:
        record = publish_shard(open_store(job.address), job.name, samples)
    except _RefusedError:
        record = None
    return ShardOutcome(record=record, files=len(job.tasks), converted=notes.converted, skipped=tuple(notes.skipped))


@dataclass
class _Notes:
    converted: int = 0
    skipped: list[SkippedItem] = field(default_factory=list)


def _samples(bench: _Bench, tasks: Sequence[Task], notes: _Notes) -> Iterator[Sample]:
    for task in tasks:
        if bench.stopped():
            raise _StoppedError
        files = bench.converter.fetch(task)
        try:
            with discreetly():
                samples, converted = bench.converter.samples(task, files)
        except Exception as error:  # decoders raise whatever a damaged file drives them to
            notes.skipped.append(SkippedItem(key=task.item.key, cause=type(error).__name__, reason=_reason(error)))
            if bench.strict:
                raise _RefusedError from error
        else:
            notes.converted += converted
            yield from samples
        bench.done()


def _reason(error: Exception) -> str:
    """Why a file was skipped. What others say may quote a header, so only the decoders' own failures are repeated."""
    if isinstance(error, UnreadableError):
        return str(error)
    told = str(error).partition("\n")[0][:200] if isinstance(error, OSError | RuntimeError | SyntaxError) else ""
    return f"it cannot be read: {type(error).__name__}{': ' if told else ''}{told}"


def _work(plan: Plan, parts: Mapping[str, Part], progress: Progress | None) -> None:
    """Makes all tars that are missing, then the indexes."""
    mode = _mode_of(plan)
    jobs = _jobs(plan, parts)
    total = plan.items
    before = sum(len(part.items) if part.index else part.files_done for part in parts.values())
    tell: Callable[[int], None] = lambda done: progress(before + done, total) if progress else None  # noqa: E731
    tell(0)
    shards = sum(1 for part in parts.values() for _ in part.open_shards())
    processes = min(plan.options.processes or len(os.sched_getaffinity(0)), shards)
    run = _run_here if processes <= 1 else _run_in_processes
    for part, name, outcome in run(plan, mode, jobs, processes, tell):
        if plan.options.strict and outcome.skipped:
            raise _refusal(part, outcome.skipped[0])
        part.note(name, outcome)
    for part in parts.values():
        if part.index is None:
            part.finish(mode)
    tell(total - before)


def _refusal(part: Part, skipped: SkippedItem) -> RequestError:
    return RequestError(
        f"strict: {part.name_of(skipped.key)} cannot go into the set: {skipped.reason}. "
        "Repair or remove it, or go on without --strict, which skips such files and names them in the report."
    )


def _jobs(plan: Plan, parts: Mapping[str, Part]) -> Iterator[tuple[Part, _Job]]:
    """Made one by one as they are needed: tables and masks are looked up then, not held for every file."""
    for part in parts.values():
        for name, items in part.open_shards():
            yield part, _Job(part.address, name, [_task(plan, item) for item in items])


def _task(plan: Plan, item: Item) -> Task:
    return Task(
        item=item,
        labels=plan.labels_of(item),
        boxes=boxes_for(plan.boxes, item.files[0]) if plan.boxes else (),
        mask=plan.mask_of(item),
        group=plan.groups.get(item.key),
    )


_Results = Iterator[tuple[Part, str, ShardOutcome]]


def _run_here(
    plan: Plan, mode: PictureMode | None, jobs: Iterator[tuple[Part, _Job]], processes: int, tell: Callable[[int], None]
) -> _Results:
    """In this process, tar by tar."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tell(done)

    bench = _Bench(Converter(plan.source, plan.options, mode), plan.options.strict, count, lambda: False)
    for part, job in jobs:
        yield part, job.name, _make_shard(bench, job)


_bench: _Bench | None = None  # of a worker process, set once when it starts


def _start_worker(
    source: str, options: ShardOptions, mode: PictureMode | None, counter: "Synchronized[int]", stop: Event
) -> None:
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and stops its workers in good order

    def count() -> None:
        with counter.get_lock():
            counter.value += 1

    _bench = _Bench(Converter(source, options, mode), options.strict, count, stop.is_set)


def _make_in_worker(job: _Job) -> ShardOutcome:
    assert _bench is not None, "the pool starts its workers with _start_worker"
    return _make_shard(_bench, job)


def _run_in_processes(
    plan: Plan, mode: PictureMode | None, jobs: Iterator[tuple[Part, _Job]], processes: int, tell: Callable[[int], None]
) -> _Results:
    """In fresh processes, two tars each under way or waiting; outcomes come in the order in which they are done."""
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    arguments = (plan.source, plan.options, mode, counter, stop)
    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        waiting: dict[Future[ShardOutcome], tuple[Part, str]] = {}
        try:
            while _fill(pool, jobs, waiting, 2 * processes):
                finished, _ = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                tell(counter.value)
                for future in finished:
                    part, name = waiting.pop(future)
                    yield part, name, future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _fill(
    pool: ProcessPoolExecutor,
    jobs: Iterator[tuple[Part, _Job]],
    waiting: dict[Future[ShardOutcome], tuple[Part, str]],
    most: int,
) -> bool:
    """Submits jobs until ``most`` are waiting; whether there is anything to wait for."""
    while len(waiting) < most and (following := next(jobs, None)) is not None:
        part, job = following
        waiting[pool.submit(_make_in_worker, job)] = (part, job.name)
    return bool(waiting)


# ------------------------------------------------------------------------ the mode


def _mode_of(plan: Plan) -> PictureMode | None:
    """The one mode of the set, none for volumes: as asked for, or the richest among a sample of the files.

    16 bits go before colour, as colour in a radiograph is a rendering; a set coded in JPEG has 8 bits.
    """
    if plan.content == "volumes":
        return None
    if plan.options.mode is not None:
        return plan.options.mode
    modes = {mode for item in _sample_of(plan) for mode in _modes_in(plan, item)}
    if "I;16" in modes and plan.options.coding == "png":
        return "I;16"
    return "RGB" if "RGB" in modes else "L"


def _sample_of(plan: Plan) -> list[Item]:
    """Random by the keys, and the same every time."""
    items = sorted((item for items in plan.parts.values() for item in items[:_PROBED_FILES]), key=lambda item: item.key)
    return items[:_PROBED_FILES]


def _modes_in(plan: Plan, item: Item) -> set[PictureMode]:
    assert item.kind != "series", "flat images only"
    data = open_store(plan.source).read_bytes(item.files[0])
    try:
        with discreetly():
            return {mode_of(picture.pixels) for picture in read_pictures(data, item.kind, plan.options.intensity, None)}
    except Exception:  # an unreadable file has no mode; it is reported when its turn comes
        return set()
